"""Networks that answer without thinking, so that a test knows what must come out."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from boltzformer_monai.inferers import PresenceRule, RunSettings, SlidingVolumeInferer
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.weights import Description
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


def inferer(
    tokenizer: PromptTokenizer,
    size: int,
    *,
    rule: PresenceRule | None = None,
    trained_plane: str = "axial",
    neighbours: int = 0,
    neighbour_mm: float = 0.0,
    should_stop: Callable[[], bool] | None = None,
    **settings: Any,
) -> SlidingVolumeInferer:
    """An inferer of CT for "liver", black at -100 HU and white at 100 HU, unless told otherwise."""
    network: Any = SimpleNamespace(image_size=size, neighbours=neighbours, neighbour_mm=neighbour_mm, presence=False)
    data = {"plane": trained_plane, "presence": None if rule is None else rule.as_dict()}
    return SlidingVolumeInferer(
        RunSettings(**{"prompts": ["liver"], "modality": "CT", "window": [0, 200], **settings}),
        description=Description(network, data),
        tokenizer=tokenizer,
        should_stop=should_stop,
    )
