"""What MONAI Label loads: ``start_server --app boltzformer_monai/label``."""

from __future__ import annotations

from boltzformer_monai.label.app import BoltzFormerApp

__all__ = ["BoltzFormerApp"]
