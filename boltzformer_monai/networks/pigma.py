"""PiGMA, the pixel-grounded mask aggregation (Sec. 3.3, Fig. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PiGMA(nn.Module):
    """m mask logits and the image → one mask logit map of twice the resolution.

    The output averages the upsampled mean mask (Eq. 7) and a pixel-grounded correction: a transposed convolution ×2
    on [image, masks] to ``channels`` maps, then a 1×1 convolution on [image, those maps].
    Any mask size works; the published code hard-codes 256 → 512.
    :class:`~boltzformer_monai.networks.fast.pigma.FastPiGMA` computes the same function faster.

    Args:
        queries: m.
        image_channels: channels of the image.
        channels: c of the paper, 10.
        correction: ``False`` returns the ensemble mean alone (the paper's ablation "no pixel-grounded correction").
    """

    def __init__(self, *, queries: int, image_channels: int = 3, channels: int = 10, correction: bool = True) -> None:
        super().__init__()
        self.correction = correction
        if correction:
            self.deconv = nn.ConvTranspose2d(queries + image_channels, channels, kernel_size=4, stride=2, padding=1)
            self.conv = nn.Conv2d(channels + image_channels, 1, kernel_size=1)

    def forward(self, masks: Tensor, image: Tensor) -> Tensor:
        """Aggregate masks.

        Args:
            masks: mask logits ``(B, P, m, h, w)`` of P prompts.
            image: normalised image ``(B, C, H, W)`` of any size.

        Returns:
            Mask logits ``(B, P, 2h, 2w)``.
        """
        ensemble = double(masks.mean(2))
        if not self.correction:
            return ensemble
        height, width = masks.shape[-2:]
        small, large = (resize(image, size) for size in ((height, width), (2 * height, 2 * width)))
        prompts = masks.shape[1]
        # One image per prompt. onnxscript translates repeat_interleave to something else.
        small, large = (x[:, None].expand(-1, prompts, -1, -1, -1).flatten(0, 1) for x in (small, large))
        lifted = self.deconv(torch.cat((small, masks.flatten(0, 1)), dim=1))
        correction = self.conv(torch.cat((large, lifted), dim=1))
        return (ensemble + correction.view_as(ensemble)) / 2


def double(x: Tensor) -> Tensor:
    """Upsample ``(B, C, h, w)`` → ``(B, C, 2h, 2w)``, bilinear."""
    return resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(B, C, h, w)``, bilinear (align_corners=False)."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
