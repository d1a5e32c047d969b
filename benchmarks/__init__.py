"""One script per claim; each prints a table and writes JSON with ``--json FILE``."""
