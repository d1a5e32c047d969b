"""Which examples a training sees, in which order and with which random numbers: functions of (seed, epoch, position).

No generator has to be carried along: an epoch's list of examples, and the seed of each, follow from the seed and the
epoch's number. So a training can go on at any step, and workers, ranks and micro-batches change nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import Dataset, Sampler

from boltzformer_monai.errors import ConfigError

_LISTS, _SEEDS, _STEPS = range(3)  # independent streams of one seed
_SEED_RANGE = 2**31


class Draw(NamedTuple):
    """An example of an epoch."""

    example: int
    """Its index in the data set."""
    seed: int
    """Of everything random about it."""


class EpochSampler(Sampler[Draw]):
    """The examples of a rank, epoch after epoch.

    Epoch e's list is a permutation, or as many weighted draws with replacement. Step s takes the examples at positions
    s·G to (s+1)·G of it, for a global batch of G, and every rank an equal part of these. The last step of an epoch may
    be smaller; the start of the list fills it up to a multiple of the ranks.

    Every ``iter()`` is the next epoch.

    Args:
        examples: their number, or the weight of each.
        seed: of lists and examples.
        global_batch: G, examples per step on all ranks; a multiple of ``world``.
        rank: of this process.
        world: number of processes.

    Raises:
        ConfigError: the ranks cannot share a global batch equally.
    """

    def __init__(
        self, examples: int | Sequence[float], *, seed: int, global_batch: int, rank: int = 0, world: int = 1
    ) -> None:
        if global_batch < 1 or global_batch % world:
            msg = f"a global batch of {global_batch} cannot be shared equally by {world} processes; take a multiple"
            raise ConfigError(msg)
        self.count = examples if isinstance(examples, int) else len(examples)
        weights = None if isinstance(examples, int) else np.asarray(examples, np.float64)
        self.probabilities = None if weights is None else weights / weights.sum()
        self.seed = seed
        self.global_batch = global_batch
        self.rank = rank
        self.world = world
        self.next_step = 0
        """The step, counted over all epochs, at which the next ``iter()`` starts."""

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.count // self.global_batch)

    def start_at(self, step: int) -> None:
        """Let the next ``iter()`` start at a step, counted from 0 over all epochs."""
        self.next_step = step

    def epoch(self, number: int) -> list[Draw]:
        """Epoch ``number``'s list, from 0, for all ranks."""
        generator = np.random.default_rng([self.seed, number, _LISTS])
        if self.probabilities is None:
            order = generator.permutation(self.count)
        else:
            order = generator.choice(self.count, self.count, p=self.probabilities)
        padded = -(-self.count // self.world) * self.world
        seeds = np.random.default_rng([self.seed, number, _SEEDS]).integers(_SEED_RANGE, size=padded)
        return list(map(Draw, np.resize(order, padded).tolist(), seeds.tolist()))

    def __iter__(self) -> Iterator[Draw]:
        """This rank's examples of the next epoch, from the step at which it starts."""
        number, first = divmod(self.next_step, self.steps)
        self.next_step = (number + 1) * self.steps
        draws = self.epoch(number)
        for start in range(first * self.global_batch, len(draws), self.global_batch):
            step = draws[start : start + self.global_batch]
            share = len(step) // self.world
            yield from step[self.rank * share : (self.rank + 1) * share]

    def __len__(self) -> int:
        """Examples of this rank in a whole epoch."""
        return -(-self.count // self.world)

    def seed_step(self, step: int) -> None:
        """Seed PyTorch, NumPy and Python for a step: for drop path and whatever else a network draws by itself."""
        state = np.random.SeedSequence([self.seed, step, self.rank, _STEPS]).generate_state(1)
        torch.manual_seed(int(state[0]))
        _seed_others(int(state[0]))


class SeededExamples(Dataset[dict[str, Any]]):
    """A data set whose examples are random by their own seed, in whatever process they are made.

    Every example has its ``seed``. An index without one, from another sampler, gets one from PyTorch's generator.

    Args:
        dataset: MONAI's; its ``transform`` is seeded for each example.
    """

    def __init__(self, dataset: Dataset[dict[str, Any]]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        """An example and its ``seed``."""
        index, seed = draw if isinstance(draw, tuple) else Draw(draw, int(torch.randint(_SEED_RANGE, ())))
        transform = getattr(self.dataset, "transform", None)
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed=seed)
        torch.default_generator.manual_seed(seed)  # for transforms that use none of their own
        _seed_others(seed)
        return {**self.dataset[index], "seed": seed}


def _seed_others(seed: int) -> None:
    np.random.seed(seed)
    random.seed(seed)
