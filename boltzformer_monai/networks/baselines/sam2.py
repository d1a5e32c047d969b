"""SAM 2's mask decoder on images (Ravi et al., 2024), as transformers has it: finer features, and an object score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.baselines.sam import SamDecoder
from boltzformer_monai.networks.interfaces import ImageFeatures
from boltzformer_monai.networks.registries import register_decoder

SAM2 = "sam2"


@register_decoder(SAM2)
class Sam2Decoder(SamDecoder):
    """SAM's decoder; the up-sampling adds the visual features V of stride 8 and the semantic map S of stride 4.

    With ``config.presence`` its object score says whether the object is in the slice. The predicted IoU is not trained.
    """

    name: ClassVar[str] = SAM2
    leaves_features: ClassVar[bool] = False

    def library_decoder(self, dim: int, **sizes: Any) -> nn.Module:
        """The decoder of transformers, at random; its convolutions of the finer features read d channels."""
        try:
            from transformers.models.sam2.configuration_sam2 import Sam2MaskDecoderConfig
            from transformers.models.sam2.modeling_sam2 import Sam2MaskDecoder
        except ImportError as error:
            msg = "the decoder 'sam2' needs transformers 4.56 or newer: pip install --upgrade transformers"
            raise ConfigError(msg) from error
        width = sizes["hidden_size"]
        config = Sam2MaskDecoderConfig(
            num_multimask_outputs=0, dynamic_multimask_via_stability=False, iou_head_hidden_dim=width, **sizes
        )
        config._attn_implementation = "sdpa"
        decoder = Sam2MaskDecoder(config)
        decoder.conv_s0 = nn.Conv2d(dim, width // 8, 1)
        decoder.conv_s1 = nn.Conv2d(dim, width // 4, 1)
        return decoder

    def presence_head(self) -> nn.Module:
        """The head of the object score."""
        return self.mask_decoder.pred_obj_score_head  # type: ignore[no-any-return]

    def untrained(self) -> Sequence[nn.Module]:
        """Heads whose output has no loss."""
        return (*super().untrained(), self.mask_decoder.iou_prediction_head)

    def features(self, image: ImageFeatures) -> tuple[Tensor, ...]:
        """What the prompts of an image share, with strides 16, 4 and 8 and width, width/8 and width/4 channels."""
        library = self.mask_decoder
        return (*super().features(image), library.conv_s0(image.semantic_map), library.conv_s1(image.levels[2]))

    def predict(self, features: Sequence[Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        """As in the base class."""
        embedding, *finer = features
        masks, _, _, score = self.mask_decoder(**self.inputs(embedding, tokens), high_resolution_features=finer)
        return masks[:, 0, 0], score[:, 0, 0]
