#!/usr/bin/env python
"""Slice volumes into a data set: the same as `boltzformer slice`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from boltzformer_monai.cli.slice import main

if __name__ == "__main__":
    sys.exit(main())
