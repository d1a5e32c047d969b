"""The draws are what the paper says they are: goodness of fit over many draws, with fixed seeds."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise

PATCHES, REPEATS = 48, 6000
# Standard deviations of a chi-square statistic above its mean that a right answer exceeds once in 30,000 times.
UNLIKELY = 4.0


def make_logits() -> Tensor:
    return torch.randn(PATCHES, generator=torch.Generator().manual_seed(3)) * 2


def draw(policy: BoltzmannSampling, logits: Tensor, *, layer: int, seed: int = 0) -> Tensor:
    """Many sets of one query, ``(REPEATS, N_v)`` bool."""
    generator = torch.Generator().manual_seed(seed)
    return policy(logits.expand(REPEATS, 1, -1), layer, generator)[:, 0]


def misfit(observed: Tensor, probability: Tensor, trials: int) -> float:
    """How far counts of independent binomials lie from what is expected, in standard deviations of chi-square."""
    variance = trials * probability * (1 - probability)
    statistic = float(((observed - trials * probability) ** 2 / variance).sum())
    freedom = observed.numel()
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("layer", [0, 4, 8])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("ratio", [0.05, 0.25])
def test_a_patch_is_in_the_set_as_often_as_it_should_be(layer: int, exact: bool, ratio: float):
    policy = BoltzmannSampling(1.0, ratio, exact=exact)
    logits = make_logits()
    sets = draw(policy, logits, layer=layer)
    p = policy.distribution(logits, layer).double()
    inclusion = 1 - (1 - p) ** policy.draws(PATCHES)
    assert abs(misfit(sets.sum(0).double(), inclusion, REPEATS)) < UNLIKELY
    # The test can fail: another layer's temperature does not fit.
    other = 1 - (1 - policy.distribution(logits, (layer + 4) % 12).double()) ** policy.draws(PATCHES)
    assert misfit(sets.sum(0).double(), other, REPEATS) > UNLIKELY


def test_the_bernoulli_form_draws_patches_independently_and_the_exact_form_does_not():
    logits = make_logits()
    draws = BoltzmannSampling(1.0, 0.25).draws(PATCHES)
    p = BoltzmannSampling(1.0, 0.25).distribution(logits, 2).double()
    alone = 1 - (1 - p) ** draws
    neither = (1 - p[:, None] - p[None, :]).clamp_min(0) ** draws
    pairs = torch.ones(PATCHES, PATCHES, dtype=torch.bool).triu(1)
    expected = {False: alone[:, None] * alone[None, :], True: alone[:, None] + alone[None, :] - (1 - neither)}
    for exact, joint in expected.items():
        sets = draw(BoltzmannSampling(1.0, 0.25, exact=exact), logits, layer=2).double()
        together = (sets.T @ sets) / REPEATS
        error = (together - joint)[pairs] / (joint * (1 - joint) / REPEATS).sqrt()[pairs]
        # Pairs share patches, so their sum is no chi-square; its mean is still right.
        assert float(error.square().mean()) < 1.3
        wrong = (together - expected[not exact])[pairs] / (joint * (1 - joint) / REPEATS).sqrt()[pairs]
        assert float(wrong.square().mean()) > 1.5


def test_the_exact_union_has_the_size_of_a_union():
    logits = make_logits()
    policy = BoltzmannSampling(1.0, 0.25, exact=True)
    sizes = draw(policy, logits, layer=0).sum(1).double()
    p = policy.distribution(logits, 0).double()
    draws = policy.draws(PATCHES)
    alone = 1 - (1 - p) ** draws
    joint = alone[:, None] + alone[None, :] - (1 - (1 - p[:, None] - p[None, :]) ** draws)
    joint.fill_diagonal_(0)
    mean = float(alone.sum())
    variance = float(alone.sum() + joint.sum()) - mean**2
    assert float(sizes.max()) <= draws
    assert abs(float(sizes.mean()) - mean) < UNLIKELY * math.sqrt(variance / REPEATS)
    assert float(sizes.var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize("exact", [False, True])
def test_cold_sets_concentrate_and_hot_ones_are_uniform(exact: bool):
    logits = make_logits()
    best = int(logits.argmax())
    cold = draw(BoltzmannSampling(1e-4, 0.25, exact=exact), logits, layer=0)
    assert cold.sum(1).eq(1).all()
    assert cold[:, best].all()
    hot = BoltzmannSampling(1e6, 0.25, exact=exact)
    draws = hot.draws(PATCHES)
    uniform = torch.full((PATCHES,), 1 - (1 - 1 / PATCHES) ** draws, dtype=torch.float64)
    assert abs(misfit(draw(hot, logits, layer=0).sum(0).double(), uniform, REPEATS)) < UNLIKELY


def test_annealing_narrows_the_distribution_layer_by_layer():
    policy, logits = BoltzmannSampling(1.0, 0.1), make_logits()
    entropies = []
    for layer in range(9):
        assert policy.temperature(layer) == pytest.approx(1 / (1 + layer))
        p = policy.distribution(logits, layer).double()
        entropies.append(float(-(p * p.log()).sum()))
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[0] - entropies[-1] > 0.5


def test_the_counter_s_numbers_are_uniform_and_independent():
    shape, device = (2, 3, 4, 64, 1024), torch.device("cpu")
    values = torch.stack([CounterNoise(seed).uniform(shape, layer=layer, device=device)
                          for seed in range(3) for layer in range(3)]).double()  # fmt: skip
    counts = torch.histc(values.flatten(), bins=256, min=0, max=1)
    assert abs(misfit(counts, torch.full((256,), 1 / 256, dtype=torch.float64), values.numel())) < UNLIKELY
    centred = (values - 0.5) * math.sqrt(12)
    limit = 5 / math.sqrt(values[0].numel())
    for axis in (-1, -2, -3):  # neighbouring patches, queries and heads
        one, other = centred.narrow(axis, 0, values.shape[axis] - 1), centred.narrow(axis, 1, values.shape[axis] - 1)
        assert abs(float((one * other).mean())) < limit
    flat = centred.flatten(1)
    correlation = flat @ flat.T / flat.shape[1]  # seeds and layers
    assert float((correlation - torch.eye(9, dtype=torch.float64)).abs().max()) < 5 / math.sqrt(flat.shape[1])


def test_sets_drawn_by_the_counter_fit_over_seeds():
    policy, logits = BoltzmannSampling(1.0, 0.25), make_logits()
    sets = torch.stack([policy(logits[None], 3, CounterNoise(seed))[0] for seed in range(2000)])
    inclusion = 1 - (1 - policy.distribution(logits, 3).double()) ** policy.draws(PATCHES)
    assert abs(misfit(sets.sum(0).double(), inclusion, 2000)) < UNLIKELY
