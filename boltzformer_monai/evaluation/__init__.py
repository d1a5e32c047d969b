"""What a segmentation is worth: scores, tables, pictures and one page that holds them together."""
