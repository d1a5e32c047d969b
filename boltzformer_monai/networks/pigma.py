"""PiGMA, the pixel-grounded mask aggregation (Sec. 3.3, Fig. 3)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks.fast.masks import MOST_COMBINED, Masks


class PiGMA(nn.Module):
    """m mask logits and the image → one mask logit map of twice the resolution.

    The mean of the masks (Eq. 7), upsampled, is averaged with a correction that sees the image: a transposed
    convolution ×2 on [image, masks] to ``channels`` maps, then a 1×1 convolution on [image, those].
    Any mask size works; the published code hard-codes 256 → 512.

    Args:
        queries: m.
        image_channels: channels of the image.
        channels: c of the paper, 10.
        correction: ``False`` leaves the ensemble mean only (the paper's ablation "no pixel-grounded correction").
    """

    def __init__(self, *, queries: int, image_channels: int = 3, channels: int = 10, correction: bool = True) -> None:
        super().__init__()
        self.correction = correction
        if correction:
            self.deconv = nn.ConvTranspose2d(queries + image_channels, channels, kernel_size=4, stride=2, padding=1)
            self.conv = nn.Conv2d(channels + image_channels, 1, kernel_size=1)

    def forward(self, masks: Masks | Tensor, image: Tensor) -> Tensor:
        """Aggregate.

        Args:
            masks: masks of P prompts, computed or not: mask logits ``(B, P, m, h, w)``.
            image: normalised image ``(B, C, H, W)`` of any size.

        Returns:
            Mask logits ``(B, P, 2h, 2w)``.
        """
        if not self.correction:
            return _double(_mean(masks))
        # Between the two convolutions there is no nonlinearity, so they are one transposed convolution to one map; and
        # the image's share of it is the same for all prompts.
        channels = image.shape[1]
        weight_of_maps = self.conv.weight[0, channels:, 0, 0]
        weight = torch.einsum("ickl,c->ikl", self.deconv.weight, weight_of_maps)[:, None]
        bias = torch.mv(weight_of_maps[None], _bias(self.deconv)) + _bias(self.conv)
        mean, maps, of_maps = _ingredients(masks, weight[channels:])
        height, width = mean.shape[-2:]
        small, large = (_resize(image, size) for size in ((height, width), (2 * height, 2 * width)))
        grounding = F.conv2d(large, self.conv.weight[:, :channels], bias)
        grounding = grounding + F.conv_transpose2d(small, weight[:channels], stride=2, padding=1)
        ensemble = _double(mean)
        correction = F.conv_transpose2d(maps.flatten(0, 1), of_maps, stride=2, padding=1)
        return (ensemble + correction.view_as(ensemble) + grounding) / 2


def _ingredients(masks: Masks | Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean mask ``(B, P, h, w)``, maps ``(B, P, k, h, w)`` and what they are deconvolved with ``(k, 1, 4, 4)``.

    The kernel (m, 1, 4, 4) has 16 taps. Each wants one sum of the m masks, weighted alike at all pixels, so with the
    mean there are never more than ``MOST_COMBINED`` masks to compute.
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


def _double(x: Tensor) -> Tensor:
    return _resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """The layer's bias, which both layers of PiGMA have."""
    return cast(Tensor, layer.bias)
