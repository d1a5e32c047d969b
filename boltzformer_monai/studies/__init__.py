"""Comparisons of many trainings: arms × seeds × folds on data sets, their scores and statistics, and one page."""
