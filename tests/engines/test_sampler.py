"""Examples and their random numbers are functions of (seed, epoch, position): whoever asks, wherever it starts."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, Transform
from torch import Tensor
from torch.utils.data import SequentialSampler

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.data import prompt_length, slice_sampler, training_items, training_transform
from boltzformer_monai.engines.sampler import Draw, EpochSampler, SeededExamples
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms import PromptTokenizer
from tests.engines.cases import write_dataset


def test_an_epoch_has_every_example_once_in_an_order_of_its_own():
    sampler = EpochSampler(50, seed=3, global_batch=8)
    epochs = [[draw.example for draw in sampler] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert (len(sampler), sampler.steps) == (50, 7)
    assert [draw.example for draw in EpochSampler(50, seed=3, global_batch=8)] == epochs[0]
    assert [draw.example for draw in EpochSampler(50, seed=4, global_batch=8)] != epochs[0]


def test_seeds_are_all_different():
    sampler = EpochSampler(200, seed=0, global_batch=8)
    seeds = [draw.seed for _ in range(3) for draw in sampler]
    assert len(set(seeds)) == 600
    assert 0 <= min(seeds) <= max(seeds) < 2**31


@pytest.mark.parametrize("step", [0, 1, 6, 7, 20])
def test_it_goes_on_at_any_step(step: int):
    whole = EpochSampler(50, seed=3, global_batch=8)
    steps = [epoch[i : i + 8] for epoch in (list(whole) for _ in range(4)) for i in range(0, 50, 8)]
    rest = EpochSampler(50, seed=3, global_batch=8)
    rest.start_at(step)
    found: list[Draw] = []
    while rest.next_step < 28:
        found.extend(rest)
    assert found == [draw for each in steps[step:] for draw in each]


@pytest.mark.parametrize(("count", "world"), [(48, 2), (50, 4), (3, 4), (47, 3)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranks_share_every_step_of_one_process(count: int, world: int, weighted: bool):
    examples: Any = np.linspace(1, 3, count).tolist() if weighted else count
    alone = list(EpochSampler(examples, seed=1, global_batch=12))
    samplers = [EpochSampler(examples, seed=1, global_batch=12, rank=rank, world=world) for rank in range(world)]
    ranks = [list(sampler) for sampler in samplers]
    assert {len(rank) for rank in ranks} == {len(samplers[0])} == {-(-count // world)}
    share = 12 // world
    together = [
        draw for start in range(0, len(ranks[0]), share) for rank in ranks for draw in rank[start : start + share]
    ]
    assert together[:count] == alone
    assert [draw.example for draw in together[count:]] == [
        alone[i % count].example for i in range(len(together) - count)
    ]


def test_weights_hold_over_all_ranks():
    weights = [1.0, 2.0, 5.0] * 40
    counts = np.zeros(120)
    samplers = [EpochSampler(weights, seed=7, global_batch=8, rank=rank, world=2) for rank in range(2)]
    epochs = 200
    for sampler in samplers:
        for _ in range(epochs):
            np.add.at(counts, [draw.example for draw in sampler], 1)
    expected = epochs * 120 * np.asarray(weights) / sum(weights)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert abs(chi_square - 119) < 4 * np.sqrt(2 * 119)


def test_a_batch_that_ranks_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="a global batch of 9 cannot be shared equally by 2 processes"):
        EpochSampler(50, seed=0, global_batch=9, world=2)


class _Global(Transform):
    """Somebody's transform that draws from the global generators."""

    def __call__(self, data: Any) -> Any:
        return {**data, "drawn": torch.tensor([float(torch.rand(())), np.random.rand(), random.random()])}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    return SliceReader(write_dataset(tmp_path_factory.mktemp("slices"), patients=5))


@pytest.fixture(scope="module")
def settings() -> TrainingSettings:
    return replace(SETTINGS["tiny"], image_size=64, mask_size=32, prompts_per_image=2, batch_size=4)


def batches(reader: SliceReader, settings: TrainingSettings, *, workers: int, cached: float, step: int = 0) -> list:
    tokenizer = PromptTokenizer()
    length = prompt_length(reader, tokenizer)
    transform = training_transform(settings, tokenizer=tokenizer, length=length, augment=True)
    items = training_items(reader, split="train", prompts_per_image=2)
    dataset = CacheDataset(
        items, Compose([*transform.transforms, _Global()]), cache_rate=cached, copy_cache=False, progress=False
    )
    sampler = slice_sampler(items, settings, seed=5)
    sampler.start_at(step)
    loader = DataLoader(SeededExamples(dataset), batch_size=4, sampler=sampler, num_workers=workers)
    found: list[dict[str, Tensor]] = []
    while sampler.next_step < 4:  # two epochs of two steps
        found.extend(loader)
    return found


def test_workers_cache_and_the_place_to_start_change_no_example(reader: SliceReader, settings: TrainingSettings):
    expected = batches(reader, settings, workers=0, cached=0.0)
    assert len(expected) == 4
    assert not torch.equal(expected[0]["image"], expected[2]["image"])
    assert len({tuple(row.tolist()) for batch in expected for row in batch["drawn"]}) == 16
    for arguments in ({"workers": 2, "cached": 0.0}, {"workers": 0, "cached": 1.0}, {"workers": 3, "cached": 0.5}):
        torch.manual_seed(11)
        for step in (0, 1):
            found = batches(reader, settings, step=step, **arguments)  # type: ignore[arg-type]
            assert len(found) == 4 - step
            for one, other in zip(found, expected[step:], strict=True):
                assert one.keys() == other.keys() == {"image", "tokens", "label", "seed", "drawn"}
                assert all(torch.equal(one[key], other[key]) for key in one)


def test_other_samplers_get_seeds_from_pytorch(reader: SliceReader, settings: TrainingSettings):
    tokenizer = PromptTokenizer()
    transform = training_transform(settings, tokenizer=tokenizer, length=30, augment=True)
    items = training_items(reader, split="train", prompts_per_image=2)
    dataset = SeededExamples(CacheDataset(items, transform, cache_rate=0.0))
    torch.manual_seed(0)
    one = [dataset[index] for index in SequentialSampler(dataset)]
    assert len({example["seed"] for example in one}) == len(items)
    torch.manual_seed(1)
    assert dataset[0]["seed"] != one[0]["seed"]
    again = dataset[Draw(0, one[0]["seed"])]
    assert torch.equal(again["image"], one[0]["image"])


def test_a_step_seeds_what_draws_by_itself():
    sampler = EpochSampler(8, seed=2, global_batch=4)

    def drawn(sampler: EpochSampler, step: int) -> tuple[float, ...]:
        sampler.seed_step(step)
        return float(torch.rand(())), float(np.random.rand()), random.random()

    first = drawn(sampler, 1)
    assert drawn(sampler, 2) != first
    assert drawn(sampler, 1) == first
    assert drawn(EpochSampler(8, seed=2, global_batch=4, rank=1, world=2), 1) != first


def test_the_largest_seed_is_a_seed():
    sampler = EpochSampler(8, seed=2**32 - 1, global_batch=4)
    sampler.seed_step(10**6)
    assert len(list(sampler)) == 8
