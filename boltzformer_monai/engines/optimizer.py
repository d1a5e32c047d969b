"""The optimizer (A.4) and its learning rate by step."""

from __future__ import annotations

import math

import torch
from torch import nn

from boltzformer_monai.engines.settings import TrainingSettings

__all__ = ["make_optimizer", "make_scheduler"]


def make_optimizer(
    network: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    decay_norms: bool = True,
    backbone_lr_factor: float = 1.0,
    text_lr_factor: float = 1.0,
) -> torch.optim.AdamW:
    """AdamW (A.4) on all parameters that are not frozen.

    Args:
        network: BoltzFormer, bare or in ``DistributedDataParallel``.
        learning_rate: of all parts without a factor.
        weight_decay: of all parameters, or without ``decay_norms`` of those with more than one dimension.
        decay_norms: whether norms and biases decay too.
        backbone_lr_factor: the backbone's learning rate is this times ``learning_rate``.
        text_lr_factor: the text encoder's.
    """
    module = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
    factors = {"backbone": backbone_lr_factor, "text_encoder": text_lr_factor}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = learning_rate * factors.get(name.partition(".")[0], 1.0)
            decay = weight_decay if decay_norms or parameter.dim() > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": each, "lr": rate, "weight_decay": decay} for (rate, decay), each in groups.items()],
        lr=learning_rate,
        fused=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, *, settings: TrainingSettings, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate schedule per step: constant, or linear warm-up and cosine decay to zero."""
    warm_up = max(1, round(settings.warm_up * steps))

    def factor(step: int) -> float:
        if settings.schedule == "constant":
            return 1.0
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
