"""The decoders that the paper compares with; backbone, pixel decoder and text encoder are the same."""

from boltzformer_monai.networks.baselines.sam import SAM, SamDecoder
from boltzformer_monai.networks.baselines.sam2 import SAM2, Sam2Decoder
from boltzformer_monai.networks.baselines.seem import SEEM, SeemDecoder

__all__ = ["SAM", "SAM2", "SEEM", "Sam2Decoder", "SamDecoder", "SeemDecoder"]
