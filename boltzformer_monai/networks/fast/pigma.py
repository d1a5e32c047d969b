"""PiGMA as a single transposed convolution of at most 17 combined masks (docs/explanation/decoder.md).

PiGMA's two convolutions have no nonlinearity between them, so they equal one transposed convolution from m masks to one
map.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.fast.semantic_map import Masks
from boltzformer_monai.networks.pigma import PiGMA, double, resize

MOST_COMBINED = 17
"""Largest number of combined masks that the aggregation needs, for any number of queries."""


class FastPiGMA(PiGMA):
    """The same function and parameters as :class:`~boltzformer_monai.networks.pigma.PiGMA`."""

    def forward(self, masks: Masks | Tensor, image: Tensor) -> Tensor:
        """As in the base class; of lazy masks only the needed combinations are computed."""
        if not self.correction:
            return double(_mean(masks))
        channels = image.shape[1]
        weight_of_maps = self.conv.weight[0, channels:, 0, 0]
        weight = torch.einsum("ickl,c->ikl", self.deconv.weight, weight_of_maps)[:, None]
        bias = torch.mv(weight_of_maps[None], _bias(self.deconv)) + _bias(self.conv)
        mean, maps, of_maps = _ingredients(masks, weight[channels:])
        height, width = mean.shape[-2:]
        small, large = (resize(image, size) for size in ((height, width), (2 * height, 2 * width)))
        # The image's contribution is the same for all prompts.
        grounding = F.conv2d(large, self.conv.weight[:, :channels], bias)
        grounding = grounding + F.conv_transpose2d(small, weight[:channels], stride=2, padding=1)
        ensemble = double(mean)
        correction = F.conv_transpose2d(maps.flatten(0, 1), of_maps, stride=2, padding=1)
        return (ensemble + correction.view_as(ensemble) + grounding) / 2


def _ingredients(masks: Masks | Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean mask ``(B, P, h, w)``, maps ``(B, P, k, h, w)`` and their deconvolution kernel ``(k, 1, 4, 4)``.

    The kernel (m, 1, 4, 4) has 16 taps. Each needs one weighted sum of the m masks, so with the mean at most
    ``MOST_COMBINED`` masks are computed.
    """
    if isinstance(masks, Tensor):
        return masks.mean(2), masks, weight
    taps = weight.flatten(1).T  # (16, m)
    if masks.count <= MOST_COMBINED:
        return _ingredients(masks.logits(), weight)
    maps = masks.combined(torch.cat((torch.full_like(taps[:1], 1 / masks.count), taps)))
    identity = torch.eye(len(taps), dtype=weight.dtype, device=weight.device)
    return maps[:, :, 0], maps[:, :, 1:], identity.view(-1, 1, *weight.shape[2:])


def _mean(masks: Masks | Tensor) -> Tensor:
    if isinstance(masks, Tensor):
        return masks.mean(2)
    return masks.combined(masks.mu.new_full((1, masks.count), 1 / masks.count))[:, :, 0]


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's bias, which both layers of PiGMA have."""
    return cast(Tensor, layer.bias)
