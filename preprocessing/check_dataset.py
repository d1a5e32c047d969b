#!/usr/bin/env python
"""Check slice data sets and measure what they hold: the same as `boltzformer check`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from boltzformer_monai.cli.check import main

if __name__ == "__main__":
    sys.exit(main())
