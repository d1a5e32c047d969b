"""Exponential moving average of the weights: what a training validates and saves, if it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["average_weights"]

_START = 10  # steps after which an average begins to look back further than they do


def average_weights(trainer: Engine, network: nn.Module, decay: float) -> AveragedModel:
    """Average a network's weights and buffers after every step of a training.

    After step n the share of the average that stays is the smaller of ``decay`` and ``n / (n + 10)``, so that random
    first weights are soon forgotten.

    Args:
        trainer: whose steps change the network.
        network: on its device.
        decay: above 0, below 1; the average looks back about ``1 / (1 - decay)`` steps.

    Returns:
        The average: ``module`` is the network with its weights. Its state goes into that of a training.
    """

    def step(averaged: Sequence[Tensor], current: Sequence[Tensor], number: Tensor | int) -> None:
        share = 1 - min(decay, int(number) / (int(number) + _START))
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), share)
        else:
            torch._foreach_copy_(list(averaged), list(current))

    average = AveragedModel(network, multi_avg_fn=step, use_buffers=True)
    average.module.requires_grad_(requires_grad=False)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda _: average.update_parameters(network))
    return average
