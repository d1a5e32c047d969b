"""Networks that answer without thinking, so that a test knows what must come out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from boltzformer_monai.inferers import PromptWindows, SlidingVolumeInferer
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.transforms import PromptTokenizer


class Stub(nn.Module):
    """Stands in for a network.

    Args:
        logits: what it finds in images ``(B, 1, H, W)``; the same for every prompt.
        presence: what its presence head says of images, ``(B,)``; without it there is no head.
    """

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor] = lambda image: (image - 0.5) * 1e4,
        presence: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.logits = logits
        self.presence = presence
        self.encoded: list[int] = []
        self.decoded: list[tuple[int, ...]] = []

    def encode_image(self, image: Tensor) -> ImageFeatures:
        self.encoded.append(len(image))
        return ImageFeatures((), image, image)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(tokens[..., None].float(), tokens >= 0)

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: object = None) -> Decoded:
        self.decoded.append(tuple(text.tokens.shape))
        prompts = text.tokens.shape[1]
        logits = self.logits(image.image[:, :1]).expand(-1, prompts, -1, -1)
        presence = None if self.presence is None else self.presence(image.image)[:, None].expand(-1, prompts)
        return Decoded(logits, presence)


def inferer(tokenizer: PromptTokenizer, size: int, **settings: object) -> SlidingVolumeInferer:
    """An inferer of CT for "liver", black at -100 HU and white at 100 HU, unless told otherwise."""
    options = {"prompts": ["liver"], "modality": "CT", "windows": PromptWindows({}, window=[0, 200]), **settings}
    return SlidingVolumeInferer(tokenizer=tokenizer, image_size=size, **options)
