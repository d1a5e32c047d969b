"""Which published name a weight of this package has, for messages to whoever holds the published file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.published.source import PublishedFile

Place = Callable[[PublishedFile], Mapping[str, Tensor]]
"""Renames the weights of a file as this package does."""


class PublishedNames:
    """Our name → ours with the published one, as far as it can be told.

    A conversion is run on weights that hold nothing but their number, so that each shows where it came from. The
    published name of a missing weight is guessed from weights beside it, and kept where the conversion confirms it.

    Args:
        file: what was read.
        place: the conversion.
    """

    def __init__(self, file: PublishedFile, place: Place) -> None:
        self._file = file
        self._place = place
        self._order = list(file.weights)
        self._numbered = {name: _filled(index, file.weights[name]) for index, name in enumerate(self._order)}
        self._published = self._origins(self._numbered)

    def __call__(self, name: str) -> str:
        """``published (here OURS)``."""
        found = self._published.get(name) or next(self._guesses(name), None)
        return name if found in (None, name) else f"{found} (here {name})"

    def _origins(self, weights: Mapping[str, Tensor]) -> dict[str, str]:
        order = [*weights]
        try:
            placed = self._place(dataclasses.replace(self._file, weights=weights))
        except CheckpointError:  # of a weight without a place: told already
            return {}
        first = {name: weight[(0,) * weight.dim()] for name, weight in placed.items() if weight.numel()}
        return {name: order[int(number)] for name, number in first.items() if number < len(order)}

    def _guesses(self, name: str) -> Iterator[str]:
        """Names of weights that differ in one word, with this word changed, that find the wanted place."""
        words = name.split(".")
        for ours, published in self._published.items():
            others = ours.split(".")
            changed = [pair for pair in zip(others, words, strict=False) if pair[0] != pair[1]]
            if len(others) != len(words) or len(changed) != 1:
                continue
            old, new = changed[0]
            guess = new.join(published.rsplit(old, 1))
            if guess not in self._file.weights:
                added = {**self._numbered, guess: _filled(len(self._order), self._file.weights[published])}
                if self._origins(added).get(name) == guess:
                    yield guess


def _filled(number: int, like: Tensor) -> Tensor:
    """A number in the shape of a weight, without its memory."""
    return torch.tensor(float(number)).expand(like.shape)
