"""Checks of slice data sets before training, and their statistics."""
