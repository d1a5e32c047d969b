"""PiGMA, the pixel-grounded mask aggregation (Sec. 3.3, Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


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

    def forward(self, masks: Tensor, image: Tensor) -> Tensor:
        """Aggregate.

        Args:
            masks: mask logits ``(B, P, m, h, w)``.
            image: normalised image ``(B, C, H, W)`` of any size.

        Returns:
            Mask logits ``(B, P, 2h, 2w)``.
        """
        height, width = masks.shape[-2:]
        double = (2 * height, 2 * width)
        ensemble = _resize(masks.mean(2), double)
        if not self.correction:
            return ensemble
        prompts = masks.shape[1]
        small, large = (_resize(image, size) for size in ((height, width), double))
        grounded = self.deconv(torch.cat((small[:, None].expand(-1, prompts, -1, -1, -1), masks), dim=2).flatten(0, 1))
        grounded = torch.cat((large.repeat_interleave(prompts, dim=0), grounded), dim=1)
        correction = self.conv(grounded).view_as(ensemble)
        return (ensemble + correction) / 2
