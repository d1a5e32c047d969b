"""Which slices of a volume are on disk."""

from __future__ import annotations

import itertools

from boltzformer_monai.data.slices.format import stored_slices


def test_every_nth_slice_is_stored_with_its_neighbours() -> None:
    for slices, every, reach in itertools.product(range(12), range(1, 6), (0, 1, 2, 20)):
        near = {index + step for index in range(0, slices, every) for step in range(-reach, reach + 1)}
        assert stored_slices(slices, every, reach) == near & set(range(slices))


def test_a_claim_of_many_neighbours_costs_nothing() -> None:
    assert stored_slices(1000, 1, 10**15) == set(range(1000))
