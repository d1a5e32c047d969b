"""Copies of mapped weights are right, and what was changed in memory is not lost with the file's pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from boltzformer_monai.networks import mapped


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Weights of a mapped file, several in a portion."""
    monkeypatch.setattr(mapped, "_PORTION", 3 * 4 * 5000)
    torch.save({f"{index}": torch.arange(5000.0) + index for index in range(10)}, tmp_path / "model.pt")
    return torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)


def test_weights_are_copied_portion_after_portion(weights: dict[str, Tensor]) -> None:
    assert [list(portion) for portion in mapped.portions(weights)] == [list("012"), list("345"), list("678"), ["9"]]


def test_weights_are_loaded_and_their_pages_given_back_on_the_way(
    weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = torch.nn.ModuleDict({name: torch.nn.Linear(5000, 1, bias=False) for name in weights})
    given: list[int] = []
    monkeypatch.setattr(mapped, "_give_back", lambda those: given.append(len(those)))
    mapped.load_weights(network, {f"{name}.weight": weight[None] for name, weight in weights.items()})
    for index in range(10):
        assert torch.equal(network[f"{index}"].weight[0], torch.arange(5000.0) + index)
    assert given == [3, 3, 3, 1]
    assert not any(module._load_state_dict_post_hooks for module in network.modules())


def test_weights_that_were_changed_in_memory_stay_changed(weights: dict[str, Tensor]) -> None:
    weights["3"].mul_(-1)  # as a source may that others register
    for _ in mapped.portions(weights):
        pass
    assert torch.equal(weights["3"], -(torch.arange(5000.0) + 3))
    assert torch.equal(weights["4"], torch.arange(5000.0) + 4)


def test_weights_in_memory_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "_PORTION", 1 << 20)
    own = {"a": torch.ones(1 << 20), "none": torch.zeros(0), "meta": torch.zeros(4, device="meta")}
    for _ in mapped.portions(own):
        pass
    assert bool((own["a"] == 1).all())
