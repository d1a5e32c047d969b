"""Slices → 8-bit probabilities of all prompts: encoded once, decoded per group of prompts and repetition."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.encoder import Encode, Encoder, Pictures
from boltzformer_monai.inferers.prompt_groups import PromptGroup
from boltzformer_monai.inferers.slice_view import SliceView
from boltzformer_monai.networks import BoltzFormer, CounterNoise, Decoded, ImageFeatures, TextFeatures

_log = logging.getLogger(__name__)
_SEED_STEP = 7919  # between repetitions, so that neighbouring seeds share none
_OUT_OF_MEMORY: type[Exception] = torch.OutOfMemoryError
_Result = TypeVar("_Result")


class PromptSlices(NamedTuple):
    """Prediction of one prompt in some slices."""

    prompt: int
    """Index of the prompt."""
    probability: np.ndarray
    """``min(255, floor(256 p))``, uint8 ``(B, H, W)``; p is the mean over the repetitions and views."""
    presence: np.ndarray | None
    """Presence probability ``(B,)`` float32; ``None`` without presence head."""


class PromptTotals(NamedTuple):
    """What is known of one prompt in some slices, before it is rounded to 8 bits."""

    prompt: int
    """Index of the prompt."""
    total: Tensor
    """Sum of the probabilities over repetitions and views, ``(B, H, W)`` float32."""
    presence: np.ndarray | None
    """As in :class:`PromptSlices`."""


class SliceDecoder:
    """Decodes slices for all prompts that share a window.

    Args:
        network: in evaluation mode.
        groups: the prompts.
        seed: of the first repetition.
        repeats: repetitions to average.
        encoder: e.g. one with a cache; by default the network's ``encode_image``.
    """

    def __init__(
        self,
        network: BoltzFormer,
        groups: Sequence[PromptGroup],
        *,
        seed: int,
        repeats: int,
        encoder: Encoder | None = None,
    ) -> None:
        self.network = network
        self.encoder = encoder or Encoder(network.encode_image)
        self.groups = groups
        self.device = network.mean.device
        self.noises = [CounterNoise(seed + _SEED_STEP * repeat) for repeat in range(repeats)]
        self.texts = [network.encode_text(group.tokens[None].to(self.device)) for group in groups]

    def decode(self, pictures: Pictures, views: Sequence[SliceView], *, batch: int) -> Iterator[PromptSlices]:
        """Decode slices, prompt after prompt; what the views show is averaged."""
        draws = len(self.noises) * len(views)
        for prompt, total, presence in self.totals(pictures, views, batch=batch):
            levels = total.mul_(256 / draws).clamp_(max=255)  # the cast rounds down
            yield PromptSlices(prompt, levels.to(torch.uint8).cpu().numpy(), presence)

    def totals(self, pictures: Pictures, views: Sequence[SliceView], *, batch: int) -> Iterator[PromptTotals]:
        """Decode slices, prompt after prompt, without rounding; the caller may change the tensors."""
        encoded = [view.encode(pictures, self.encoder, batch=batch) for view in views]
        for group, text in zip(self.groups, self.texts, strict=True):
            sums: list[Tensor] = []
            presence: list[Tensor] = []
            for decode_slices, noise in product(encoded, self.noises):
                decoded = decode_slices(partial(self._decode, text=text, noise=noise))
                # Prompt by prompt: vectorised and remaining elements round differently, which must not depend on the
                # prompt's place in the group.
                found = [torch.sigmoid(decoded.logits[:, row]) for row in range(len(group.members))]
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
                if decoded.presence is not None:
                    presence.append(torch.sigmoid(decoded.presence))
            mean = torch.stack(presence).mean(0).float().cpu().numpy() if presence else None
            for row, member in enumerate(group.members):
                yield PromptTotals(member, sums[row], None if mean is None else mean[:, row])

    def _decode(self, features: ImageFeatures, *, text: TextFeatures, noise: CounterNoise) -> Decoded:
        count = len(features)
        repeated = TextFeatures(*(part.expand(count, *part.shape[1:]) for part in text))
        return self.network.decode(features, repeated, generator=noise)


def one_by_one(encode: Encode) -> Encode:
    """Encode every slice alone, so that its features do not depend on the others to the bit."""

    def encode_each(images: Tensor) -> ImageFeatures:
        return ImageFeatures.cat([encode(image[None]) for image in images])

    return encode_each


class BatchSize:
    """Slices per pass, halved when the device runs out of memory.

    Args:
        size: at first.

    Attributes:
        release: frees memory before the next attempt.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.release: Callable[[], None] | None = None

    def attempt(self, work: Callable[[int], _Result]) -> _Result:
        """Return ``work(size)``; halves the size for good when memory runs out.

        Raises:
            ConfigError: a single slice does not fit.
        """
        while True:
            try:
                return work(self.size)
            except _OUT_OF_MEMORY as error:
                if self.size == 1:
                    msg = "the device's memory does not hold a single slice; free it, or use another --device, e.g. cpu"
                    raise ConfigError(msg) from error
            # Outside of the handler, whose traceback keeps tensors alive.
            if self.release is not None:
                self.release()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            _log.warning("out of memory with a batch of %d; going on with %d", self.size, self.size // 2)
            self.size //= 2
