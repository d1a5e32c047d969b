"""``python -m boltzformer_monai …``, the same as the ``boltzformer`` command."""

from __future__ import annotations

import sys

from boltzformer_monai.cli import main

if __name__ == "__main__":
    sys.exit(main())
