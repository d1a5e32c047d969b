"""Command lines that turn public and own scans into slice data sets."""
