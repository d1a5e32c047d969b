"""The sampling is a distribution: its frequencies are tested against the paper's formulas written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.sampling import (
    BoltzmannSampling,
    CounterNoise,
    FullAttention,
    RecordingPolicy,
    ThresholdMask,
)

TRIALS = 20_000


def some_logits(queries: int = 3, patches: int = 40, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(queries, patches, generator=torch.Generator().manual_seed(seed))


def boltzmann_by_hand(logits: Tensor, temperature: float) -> np.ndarray:
    """Eq. 5: p ∝ exp(U/τ), U = sigmoid(logit), in float64."""
    confidence = 1 / (1 + np.exp(-logits.double().numpy()))
    weight = np.exp(confidence / temperature)
    return weight / weight.sum(-1, keepdims=True)


def frequencies(policy: BoltzmannSampling, logits: Tensor, layer: int, seed: int = 1) -> Tensor:
    """Sets of TRIALS independent draws, ``(TRIALS, m, N)``."""
    generator = torch.Generator().manual_seed(seed)
    return policy(logits.expand(TRIALS, 1, *logits.shape), layer, generator)[:, 0]


@pytest.mark.parametrize(("layer", "tau", "ratio"), [(0, 1.0, 0.1), (0, 0.25, 0.5), (8, 1.0, 0.1), (3, 2.0, 0.2)])
def test_inclusion_in_the_bernoulli_form_fits_the_formula(layer: int, tau: float, ratio: float):
    logits = some_logits()
    policy = BoltzmannSampling(tau, ratio)
    counts = frequencies(policy, logits, layer).sum(0).double().numpy()
    p = boltzmann_by_hand(logits, tau / (1 + layer))
    draws = int(ratio * logits.shape[1])
    expected = 1 - (1 - p) ** draws
    chi_square = ((counts - TRIALS * expected) ** 2 / (TRIALS * expected * (1 - expected))).sum()
    cells = counts.size
    assert abs(chi_square - cells) < 4 * math.sqrt(2 * cells)
    # The test has the power to see a temperature that is off by a quarter, or one draw too few.
    for wrong in (1 - (1 - boltzmann_by_hand(logits, 1.25 * tau / (1 + layer))) ** draws, 1 - (1 - p) ** (draws - 1)):
        off = ((counts - TRIALS * wrong) ** 2 / (TRIALS * wrong * (1 - wrong))).sum()
        assert off > cells + 8 * math.sqrt(2 * cells)


def test_patches_are_drawn_independently_in_the_bernoulli_form():
    sets = frequencies(BoltzmannSampling(1.0, 0.3), some_logits(queries=1, patches=8), 0)[:, 0].double()
    correlation = torch.corrcoef(sets.T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 4.5 / math.sqrt(TRIALS)


@pytest.mark.parametrize("layer", [0, 5])
def test_exact_draws_have_at_most_n_patches_and_the_same_inclusion(layer: int):
    logits = some_logits(queries=2, patches=30)
    policy = BoltzmannSampling(0.5, 0.2, exact=True)
    sets = frequencies(policy, logits, layer)
    draws = 6
    sizes = sets.sum(-1)
    assert 1 <= int(sizes.min()) <= int(sizes.max()) <= draws
    expected = 1 - (1 - boltzmann_by_hand(logits, 0.5 / (1 + layer))) ** draws
    deviation = (sets.double().mean(0).numpy() - expected) / np.sqrt(expected * (1 - expected) / TRIALS)
    assert np.abs(deviation).max() < 4.5
    # Draws with replacement exclude one another: sizes vary less than those of independent patches would.
    assert sizes.double().var() < 0.8 * (expected * (1 - expected)).sum(-1).min()


def test_one_exact_draw_is_the_boltzmann_distribution_itself():
    logits = some_logits(queries=1, patches=10)
    sets = frequencies(BoltzmannSampling(0.2, 0.1, exact=True), logits, 0)[:, 0]
    assert (sets.sum(-1) == 1).all()
    p = boltzmann_by_hand(logits, 0.2)[0]
    chi_square = ((sets.sum(0).numpy() - TRIALS * p) ** 2 / (TRIALS * p)).sum()
    assert chi_square < 9 + 4 * math.sqrt(18)


def test_the_temperature_is_annealed_over_the_layers():
    policy = BoltzmannSampling(2.0)
    assert [policy.temperature(layer) for layer in (0, 1, 8)] == [2.0, 1.0, pytest.approx(2 / 9)]
    logits = some_logits()
    entropy = []
    for layer in range(9):
        p = policy.distribution(logits, layer)
        np.testing.assert_allclose(p, boltzmann_by_hand(logits, 2 / (1 + layer)), rtol=1e-5)
        entropy.append(float(-(p * p.log()).sum(-1).mean()))
    assert entropy == sorted(entropy, reverse=True)
    assert len(set(entropy)) == 9


def test_without_temperature_only_the_most_confident_patch_is_drawn():
    logits = some_logits()
    for exact in (False, True):
        attend = BoltzmannSampling(1e-5, 0.2, exact=exact)(logits[None, None], 0, CounterNoise())[0, 0]
        assert torch.equal(attend, torch.nn.functional.one_hot(logits.argmax(-1), 40).bool())


def test_with_infinite_temperature_all_patches_are_alike():
    p = BoltzmannSampling(1e7).distribution(some_logits(), 0)
    torch.testing.assert_close(p, torch.full_like(p, 1 / 40))


def test_confident_patches_are_drawn_more_often_but_not_always():
    logits = torch.tensor([[-6.0] * 36 + [6.0] * 4])
    sets = frequencies(BoltzmannSampling(1.0, 0.1), logits, 8)[:, 0].double().mean(0)
    assert 0.55 < float(sets[36:].mean()) < 0.7
    assert 0 < float(sets[:36].mean()) < 1e-3


def test_threshold_option_keeps_confident_patches_and_draws_from_the_others():
    logits = some_logits()
    policy = BoltzmannSampling(1.0, 0.2, threshold=0.5)
    confident = torch.sigmoid(logits) >= 0.5
    sets = frequencies(policy, logits, 0)
    assert sets[:, confident].all()
    others = torch.where(confident, -torch.inf, torch.sigmoid(logits).double()).softmax(-1)
    expected = (1 - (1 - others) ** 8)[~confident]
    observed = sets.double().mean(0)[~confident]
    assert ((observed - expected).abs() < 4.5 * (expected * (1 - expected) / TRIALS).sqrt()).all()


@pytest.mark.parametrize("exact", [False, True])
def test_threshold_option_with_nothing_left_to_draw(exact: bool):
    policy = BoltzmannSampling(1.0, 0.2, threshold=0.5, exact=exact)
    assert policy(torch.full((1, 1, 2, 20), 3.0), 0, CounterNoise()).all()


@pytest.mark.parametrize("exact", [False, True])
def test_a_level_too_small_for_one_draw_gives_an_empty_set(exact: bool):
    policy = BoltzmannSampling(1.0, 0.1, exact=exact)
    assert policy.draws(9) == 0
    assert not policy(some_logits(patches=9)[None, None], 0, CounterNoise()).any()


def test_a_certain_patch_is_always_included():
    inclusion = BoltzmannSampling.inclusion(torch.tensor([1.0, 0.0, 1e-9]), 100)
    assert inclusion[:2].tolist() == [1.0, 0.0]
    assert float(inclusion[2]) == pytest.approx(1e-7, rel=1e-3)  # 1 − (1 − p)^N in float32 would give 0


def test_at_least_one_draw_fills_the_empty_sets_alone():
    logits = some_logits(queries=2, patches=12)
    for layer in (0, 4):
        usual = frequencies(BoltzmannSampling(0.5, 0.1), logits, layer)
        sets = frequencies(BoltzmannSampling(0.5, 0.1, at_least_one=True), logits, layer)
        empty = ~usual.any(-1)
        assert 0.3 < empty.double().mean() < 0.45  # one draw of twelve patches: 1/e
        assert torch.equal(sets[~empty], usual[~empty])
        assert (sets[empty].sum(-1) == 1).all()
        # The one patch is drawn from p; of the Bernoulli form that is −log(1 − p), which are the same where p is small.
        p = boltzmann_by_hand(logits, 0.5 / (1 + layer))
        rate = -np.log1p(-p)
        for query in range(2):
            alone = sets[:, query][empty[:, query]].double()
            expected = rate[query] / rate[query].sum()
            deviation = (alone.mean(0).numpy() - expected) / np.sqrt(expected * (1 - expected) / len(alone))
            assert np.abs(deviation).max() < 4.5


@pytest.mark.parametrize("exact", [False, True])
def test_at_least_one_draw_on_grids_without_any(exact: bool):
    logits = some_logits(queries=3, patches=9)
    without, one = (BoltzmannSampling(1.0, 0.1, exact=exact, at_least_one=each) for each in (False, True))
    assert (without.draws(9), one.draws(9), one.draws(40)) == (0, 1, 4)
    assert not frequencies(without, logits, 0).any()
    assert frequencies(one, logits, 0).any(-1).all()


def test_at_least_one_draw_beside_patches_above_a_threshold():
    logits = torch.tensor([[9.0, -1.0, -2.0, -1.0], [9.0, 9.0, 9.0, 9.0]])
    sets = frequencies(BoltzmannSampling(1.0, 0.1, threshold=0.9, at_least_one=True), logits, 0)
    assert (sets[:, 0, 1:].sum(-1) >= 1).all()
    assert sets[:, 0, 0].all()
    assert sets[:, 1].all()


def test_no_gradient_flows_through_the_sampling():
    logits = some_logits().requires_grad_()
    for policy in (BoltzmannSampling(), BoltzmannSampling(exact=True), ThresholdMask(), FullAttention()):
        attend = policy(logits[None, None], 0)
        assert attend.dtype == torch.bool
        assert not attend.requires_grad


def test_baseline_policies():
    logits = torch.tensor([[-1.0, 0.0, 1.0, 3.0]])
    assert ThresholdMask(0.5)(logits, 3).tolist() == [[False, True, True, True]]
    assert ThresholdMask(0.9)(logits, 3).tolist() == [[False, False, False, True]]
    assert FullAttention()(logits, 0).all()


def test_recording_keeps_the_sets_in_order():
    recording = RecordingPolicy(BoltzmannSampling(per_head=True))
    assert recording.per_head
    logits = some_logits()[None, None, None]
    for layer in range(3):
        attend = recording(logits, layer, CounterNoise())
        empty = ~attend.any(-1, keepdim=True)  # attends to everything in the decoder
        assert torch.equal(recording.sets[layer], attend | empty)
        assert torch.equal(recording.empty[layer], empty[..., 0])
    assert len(recording.sets) == len(recording.empty) == 3


def test_a_torch_generator_makes_the_draws_repeatable():
    logits = some_logits().expand(2, 1, -1, -1)
    first, again, other = (
        BoltzmannSampling(1.0, 0.5)(logits, 0, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_same_slice_and_prompt_get_the_same_set_whatever_the_batch():
    logits = torch.stack([some_logits(seed=seed) for seed in range(6)]).view(2, 3, 3, 40)
    for exact in (False, True):
        policy = BoltzmannSampling(1.0, 0.3, exact=exact)
        together = policy(logits, 2, CounterNoise(5))
        for image in range(2):
            for prompt in range(3):
                alone = policy(logits[image : image + 1, prompt : prompt + 1], 2, CounterNoise(5))
                assert torch.equal(alone[0, 0], together[image, prompt])


def test_sets_per_head_differ_between_heads():
    policy = BoltzmannSampling(1.0, 0.3, per_head=True)
    logits = some_logits()[None, None, None].expand(2, 3, 4, -1, -1)
    attend = policy(logits, 0, CounterNoise())
    assert attend.shape == (2, 3, 4, 3, 40)
    assert torch.equal(attend[0, 0], attend[1, 2])
    assert not torch.equal(attend[0, 0, 0], attend[0, 0, 1])


class TestCounterNoise:
    SHAPE = (1, 1, 4, 10, 4096)

    @staticmethod
    def numbers(seed: int = 0, layer: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
        return CounterNoise(seed).uniform(shape, layer=layer, device=torch.device("cpu"))

    @pytest.mark.parametrize(("seed", "layer"), [(0, 0), (0, 1), (1, 0), (2**40 + 7, 8), (-1, 3)])
    def test_numbers_are_uniform(self, seed: int, layer: int):
        numbers = self.numbers(seed, layer).flatten().double()
        assert float(numbers.min()) >= 0
        assert float(numbers.max()) < 1
        count = len(numbers)
        bins = torch.histc(numbers, 256, 0, 1)
        chi_square = float(((bins - count / 256) ** 2 / (count / 256)).sum())
        assert abs(chi_square - 255) < 4.5 * math.sqrt(2 * 255)
        grid = torch.arange(1, count + 1) / count
        assert float((numbers.sort().values - grid).abs().max()) * math.sqrt(count) < 2.0  # Kolmogorov–Smirnov

    def test_small_numbers_are_as_frequent_as_they_should_be(self):
        # Inclusion probabilities are small: what matters is the lower tail.
        numbers = torch.cat([self.numbers(seed).flatten() for seed in range(10)])
        for tail in (1e-2, 1e-3, 1e-4):
            expected = len(numbers) * tail
            assert abs(int((numbers < tail).sum()) - expected) < 4.5 * math.sqrt(expected)

    def test_neighbours_are_uncorrelated(self):
        flat = self.numbers().flatten().double() - 0.5
        for lag in (1, 2, 64, 4096):
            correlation = float((flat[:-lag] * flat[lag:]).mean() * 12)
            assert abs(correlation) < 4.5 / math.sqrt(len(flat) - lag)

    def test_layers_seeds_queries_and_heads_have_their_own_numbers(self):
        base = self.numbers()  # (heads, queries, patches)
        assert base.shape == self.SHAPE[2:]
        pairs = [
            (base, self.numbers(layer=1)),
            (base, self.numbers(seed=1)),
            (base[:, :-1], base[:, 1:]),
            (base[:-1], base[1:]),
        ]
        for one, other in pairs:
            correlation = float(((one.double() - 0.5) * (other.double() - 0.5)).mean() * 12)
            assert abs(correlation) < 4.5 / math.sqrt(one.numel())

    def test_numbers_do_not_depend_on_the_batch_nor_on_the_prompts(self):
        alone = self.numbers(shape=(1, 1, 5, 64)).expand(1, 1, 5, 64)
        assert torch.equal(self.numbers(shape=(3, 7, 5, 64)).expand(3, 7, 5, 64)[2, 6], alone[0, 0])

    def test_an_example_has_the_numbers_of_its_seed_whatever_the_batch(self):
        seeds = torch.tensor([7, 2**31 - 1, 0, 7])
        for shape in ((4, 3, 5, 64), (4, 3, 2, 5, 64)):
            together = CounterNoise(seeds).uniform(shape, layer=2, device=seeds.device)
            assert together.shape == shape
            assert torch.equal(together[0], together[3])
            for example, seed in enumerate(seeds.tolist()):
                alone = CounterNoise(torch.tensor([seed])).uniform((1, *shape[1:]), layer=2, device=seeds.device)
                assert torch.equal(alone[0], together[example])
                first = self.numbers(seed, layer=2, shape=(1, 1, *shape[2:])).expand(1, 1, *shape[2:])
                assert torch.equal(first[0, 0], together[example, 0])  # the numbers that one seed gives

    def test_examples_and_prompts_have_their_own_numbers(self):
        seeds = torch.arange(40)
        numbers = CounterNoise(seeds).uniform((40, 4, 4, 1024), layer=3, device=seeds.device).flatten(2).double()
        flat = numbers.flatten(0, 1).flatten(1) - 0.5
        correlation = flat @ flat.T * 12 / flat.shape[1] - torch.eye(160, dtype=torch.float64)
        assert float(correlation.triu(1).abs().max()) < 5.5 / math.sqrt(flat.shape[1])
        # At one query and patch the numbers of all examples and prompts are uniform too.
        at_one_place = numbers.flatten(0, 1)
        assert float((at_one_place.mean(0) - 0.5).abs().max()) < 5 / math.sqrt(12 * 160)
        counts = torch.histc(at_one_place, 64, 0, 1)
        expected = at_one_place.numel() / 64
        assert abs(float(((counts - expected) ** 2 / expected).sum()) - 63) < 4.5 * math.sqrt(126)

    def test_examples_draw_exactly_too(self):
        logits = some_logits().expand(2, 3, -1, -1)
        policy = BoltzmannSampling(1.0, 0.3, exact=True)
        attend = policy(logits, 1, CounterNoise(torch.tensor([4, 5])))
        assert torch.equal(attend[1:], policy(logits[1:], 1, CounterNoise(torch.tensor([5]))))
        assert not torch.equal(attend[0, 0], attend[1, 0])
        assert not torch.equal(attend[0, 0], attend[0, 1])

    def test_the_numbers_stay_what_they_are(self):
        # Whoever changes the hash changes every mask that was ever segmented: that must not happen unnoticed.
        def mix(x: int) -> int:
            for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
                x = ((x ^ (x >> shift)) * factor) % 2**32
            return x ^ (x >> 16)

        for seed, layer in ((0, 0), (123456789, 8)):
            key = mix((seed * 0x9E3779B1 + layer * 0x85EBCA6B + 1) % 2**32)
            expected = [mix(counter ^ key) / 2**8 // 1 / 2**24 for counter in range(2 * 3 * 50)]
            assert self.numbers(seed, layer, (1, 1, 2, 3, 50)).flatten().tolist() == expected
        first = self.numbers(shape=(1, 3)) * 2**24
        assert first.flatten().tolist() == [5829961, 13785971, 13303779]

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_numbers_are_the_same_on_the_gpu(self):
        on_gpu = CounterNoise(3).uniform(self.SHAPE, layer=2, device=torch.device("cuda"))
        assert torch.equal(on_gpu.cpu(), self.numbers(3, 2))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"base_temperature": 0}, "base_temperature must be positive"),
        ({"base_temperature": -1}, "base_temperature must be positive"),
        ({"base_temperature": float("nan")}, "base_temperature must be positive"),
        ({"sample_ratio": 0}, "sample_ratio must be in"),
        ({"sample_ratio": 1.5}, "sample_ratio must be in"),
        ({"threshold": 1.0}, "threshold must be in"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], words: str):
    with pytest.raises(ConfigError, match=words):
        BoltzmannSampling(**settings)


def test_impossible_thresholds_are_refused():
    with pytest.raises(ConfigError, match="threshold"):
        ThresholdMask(0)
