"""A backbone: average pooling and one convolution for each stride."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.networks import NetworkConfig, register_backbone


@register_backbone("pooled")
class PooledBackbone(nn.Module):
    def __init__(self, config: NetworkConfig, *, width: int = 16) -> None:
        super().__init__()
        self.channels = [width] * 4
        self.convs = nn.ModuleList(nn.Conv2d(config.in_channels, width, 3, padding=1) for _ in self.channels)

    def forward(self, image: Tensor) -> list[Tensor]:
        return [conv(F.avg_pool2d(image, stride)) for conv, stride in zip(self.convs, (4, 8, 16, 32), strict=True)]
