"""The moving average of weights that a training may validate and save."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from boltzformer_monai.engines.average import average_weights


def _train(steps: int, decay: float) -> tuple[list[torch.Tensor], nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    weights: list[torch.Tensor] = []

    def step(engine: Engine, batch: int) -> None:
        optimizer.zero_grad()
        network(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        weights.append(network[0].weight.detach().clone())

    trainer = Engine(step)
    average = average_weights(trainer, network, decay)
    trainer.run(range(steps), max_epochs=1)
    return weights, network, average


def test_every_step_moves_the_average_by_its_share() -> None:
    weights, network, average = _train(40, 0.7)
    expected = weights[0]  # the first step's weights, not the random ones before it
    for number, weight in enumerate(weights[1:], start=1):
        keep = min(0.7, number / (number + 10))
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(average.module[0].weight, expected)
    assert not torch.equal(average.module[0].weight, network[0].weight)
    assert not average.module[0].weight.requires_grad


def test_statistics_are_averaged_too_and_counters_follow() -> None:
    _, network, average = _train(20, 0.9)
    assert 0 < (average.module[1].running_var - network[1].running_var).abs().max() < 1
    assert average.module[1].num_batches_tracked == network[1].num_batches_tracked == 20


def test_an_average_goes_on_from_its_state() -> None:
    _, network, whole = _train(6, 0.9)
    other = average_weights(Engine(lambda engine, batch: None), network, 0.9)
    other.load_state_dict(whole.state_dict())
    for each in (whole, other):
        each.update_parameters(network)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), other.state_dict().values(), strict=True))
    assert int(other.n_averaged) == 7 == pytest.approx(int(whole.n_averaged))
