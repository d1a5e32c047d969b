"""What MONAI Label loads: ``start_server --app boltzformer_monai/label``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# MONAI Label, its background processes too, looks for packages in this folder first; but what lies here are modules of
# this package, which must not stand in for a package of the same name. So it comes last.
_here = Path(__file__).resolve().parent
sys.path.sort(key=lambda place: Path(place).resolve() == _here)
_places = os.environ.get("PYTHONPATH", "").split(os.pathsep)
os.environ["PYTHONPATH"] = os.pathsep.join(place for place in _places if place and Path(place).resolve() != _here)

from boltzformer_monai.label.app import BoltzFormerApp  # noqa: E402

__all__ = ["BoltzFormerApp"]
