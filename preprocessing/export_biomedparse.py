#!/usr/bin/env python
"""Write a slice data set in BiomedParse's layout: the same as `boltzformer export-dataset`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from boltzformer_monai.cli.export_dataset import main

if __name__ == "__main__":
    sys.exit(main())
