"""The memory layout of a network: channels last, which convolutions are faster with, where it is safe."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

__all__ = ["set_layout", "training_is_safe"]

_Network = TypeVar("_Network", bound=nn.Module)


def set_layout(network: _Network, *, trains: bool) -> _Network:
    """Turn the weights to channels last, except where that is unsafe: there they are contiguous.

    On Apple's GPU it never is: PyTorch's Metal kernels had wrong convolutions in that layout more than once
    (pytorch#141009, pytorch#180984).

    Args:
        network: on its device.
        trains: whether it will run backward.
    """
    on_metal = any(weight.device.type == "mps" for weight in network.parameters())
    safe = not on_metal and (not trains or training_is_safe(network))
    return network.to(memory_format=torch.channels_last if safe else torch.contiguous_format)  # type: ignore[call-overload, no-any-return]


def training_is_safe(network: nn.Module) -> bool:
    """Whether a network trains in channels last.

    PyTorch 2.15 writes beyond its memory on CPUs in the backward pass of a 1×1 convolution with a stride, as in
    ResNet's shortcuts: a crash, sooner or later. It was found with 2 to 7 channels on AVX2, and with 12 and 24 on
    AVX-512, so no number of channels is trusted, nor an older version. Other kernels, strides and GPUs are sound.
    """
    return not any(
        isinstance(each, nn.Conv2d)
        and each.kernel_size == (1, 1)
        and each.stride != (1, 1)
        and each.weight.device.type == "cpu"
        for each in network.modules()
    )
