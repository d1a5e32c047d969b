"""From a volume and prompts to probabilities, masks and a label map on the volume's own grid."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boltzformer_monai.evaluation.presence_rule import PresenceRule
    from boltzformer_monai.inferers.run_settings import RunSettings
    from boltzformer_monai.inferers.segmenter import LoadVolumed, SaveLabelMapd, VolumeSegmenter
    from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
    from boltzformer_monai.inferers.volume_result import PromptFinding, VolumeResult
    from boltzformer_monai.inferers.windows import PromptWindows

__all__ = [
    "LoadVolumed",
    "PresenceRule",
    "PromptFinding",
    "PromptWindows",
    "RunSettings",
    "SaveLabelMapd",
    "SlidingVolumeInferer",
    "VolumeResult",
    "VolumeSegmenter",
]

_HOMES = {
    "LoadVolumed": "inferers.segmenter",
    "PresenceRule": "evaluation.presence_rule",
    "PromptFinding": "inferers.volume_result",
    "PromptWindows": "inferers.windows",
    "RunSettings": "inferers.run_settings",
    "SaveLabelMapd": "inferers.segmenter",
    "SlidingVolumeInferer": "inferers.sliding_volume",
    "VolumeResult": "inferers.volume_result",
    "VolumeSegmenter": "inferers.segmenter",
}


def __getattr__(name: str) -> Any:
    """Import on first access: planning a run must not wait for PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"boltzformer_monai.{_HOMES[name]}"), name)
