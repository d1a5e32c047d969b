"""From a volume and prompts to probabilities, masks and a label map on the volume's own grid."""

from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.segmenter import LoadVolumed, SaveLabelMapd, VolumeSegmenter
from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
from boltzformer_monai.inferers.volume_result import PromptFinding, VolumeResult
from boltzformer_monai.inferers.windows import PromptWindows

__all__ = [
    "LoadVolumed",
    "PresenceRule",
    "PromptFinding",
    "PromptWindows",
    "SaveLabelMapd",
    "SlidingVolumeInferer",
    "VolumeResult",
    "VolumeSegmenter",
]
