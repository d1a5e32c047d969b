from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers import decoding
from boltzformer_monai.inferers.decoding import BatchSize
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.transforms import PromptTokenizer
from tests.inferers.stubs import Stub, inferer


class Narrow(Stub):
    """A network on a device that holds two pictures only."""

    room = 2

    def encode_image(self, image: Tensor) -> object:
        if len(image) > self.room:
            raise decoding._OUT_OF_MEMORY("CUDA out of memory")
        return super().encode_image(image)


@pytest.fixture
def batches_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are real, as on a GPU."""
    module = "boltzformer_monai.inferers.sliding_volume.BatchSize"
    monkeypatch.setattr(module, lambda size: BatchSize(8))


@pytest.mark.usefixtures("batches_on_cpu")
def test_out_of_memory_halves_the_batch(tokenizer: PromptTokenizer, caplog: pytest.LogCaptureFixture) -> None:
    values = np.where(np.random.default_rng(0).random((6, 6, 11)) > 0.5, 100, -100).astype(np.float32)
    network = Narrow()
    with caplog.at_level(logging.WARNING):
        found = inferer(tokenizer, 64).label_map(Volume(values, np.eye(4), "CT"), network)
    np.testing.assert_array_equal(found, values > 0)
    assert network.encoded == [2, 2, 2, 2, 2, 1]
    told = [record.message for record in caplog.records if "out of memory" in record.message]
    assert told == [
        "out of memory with a batch of 8; going on with 4",
        "out of memory with a batch of 4; going on with 2",
    ]


@pytest.mark.usefixtures("batches_on_cpu")
@pytest.mark.parametrize("in_plane", ["fit", "tiles"])
def test_not_even_one_fits(tokenizer: PromptTokenizer, in_plane: str) -> None:
    network = Narrow()
    network.room = 0
    volume = Volume(np.zeros((40, 40, 2), np.float32), np.eye(4), "CT")
    with pytest.raises(ConfigError, match="does not hold a single slice"):
        inferer(tokenizer, 32, in_plane=in_plane).label_map(volume, network)


def test_on_a_cpu_a_slice_is_encoded_alone_and_once(tokenizer: PromptTokenizer) -> None:
    network = Stub()
    volume = Volume(np.zeros((8, 8, 5), np.float32), np.eye(4), "CT")
    prompts = [f"lesion {number}" for number in range(10)]
    with inferer(tokenizer, 32, prompts=prompts, batch_size=4, repeats=2).segment(volume, network):
        assert network.encoded == [1] * 5
        assert len(network.decoded) == 5 * 2 * 2  # slices, groups of eight, repeats
        assert {shape[1] for shape in network.decoded} == {8}


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_eight_bits_are_rounded_down(tokenizer: PromptTokenizer, repeats: int) -> None:
    wanted = torch.tensor([0.0, 0.001, 0.3, 0.49999, 0.5, 0.75, 0.999, 1.0])
    volume = Volume(np.zeros((32, 32, 8), np.float32), np.eye(4), "CT")
    numbers = iter(np.repeat(np.arange(8), repeats))
    network = Stub(lambda image: torch.logit(wanted[next(numbers)]).expand(image.shape))
    with inferer(tokenizer, 32, repeats=repeats).segment(volume, network) as result:
        found = result.probability(0)[0, 0]
        np.testing.assert_array_equal(result.mask(0)[0, 0], wanted.numpy() >= 0.5)
        entropy = result.entropy(0)
    assert found.tolist() == [0, 0, 76, 127, 128, 192, 255, 255]
    if repeats == 1:
        assert entropy is None
    else:
        assert entropy[0, 0, [0, 4, 7]].tolist() == [0, 255, 0]
        assert 0 < entropy[0, 0, 2] < 255


def test_repeats_are_different_draws_and_the_first_is_the_seed(tokenizer: PromptTokenizer) -> None:
    seeds = []

    class Noted(Stub):
        def decode(self, *args: object, generator: object = None) -> object:
            seeds.append(generator.seed)
            return super().decode(*args, generator=generator)

    volume = Volume(np.zeros((8, 8, 1), np.float32), np.eye(4), "CT")
    inferer(tokenizer, 32, repeats=3, seed=5).label_map(volume, Noted())
    assert seeds[0] == 5
    assert len(set(seeds)) == 3


def test_poses_of_a_slice_are_averaged_where_they_belong(tokenizer: PromptTokenizer) -> None:
    """A network that finds what is bright finds the same, whichever pose it is shown in."""
    values = np.full((40, 40, 2), -100, np.float32)
    values[8:20, 22:30] = 100
    volume = Volume(values, np.eye(4), "CT")
    once, moved = Stub(lambda image: 20 * image - 10), Stub(lambda image: 20 * image - 10)
    plain = inferer(tokenizer, 64).label_map(volume, once)
    averaged = inferer(tokenizer, 64, tta=5).label_map(volume, moved)
    assert sum(moved.encoded) == 5 * sum(once.encoded)
    assert (plain == (values > 0)).all()
    assert 2 * (averaged & plain).sum() / (averaged.sum() + plain.sum()) > 0.97
