"""Evaluation of segmentations: metrics, tables, figures and a report."""
