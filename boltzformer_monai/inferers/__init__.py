"""From a volume and prompts to a label map on the volume's own grid."""

from boltzformer_monai.inferers.segmenter import LoadVolumed, SaveLabelMapd, VolumeSegmenter
from boltzformer_monai.inferers.sliding_volume import SlidingVolumeInferer
from boltzformer_monai.inferers.windows import PromptWindows

__all__ = ["LoadVolumed", "PromptWindows", "SaveLabelMapd", "SlidingVolumeInferer", "VolumeSegmenter"]
