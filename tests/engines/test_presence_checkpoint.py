"""The thresholds are chosen with the best checkpoint's weights, and stored in it, once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines import calibrate_presence, store_presence
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.weights import Description, load_checkpoint
from boltzformer_monai.transforms import PromptTokenizer
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL, small_network


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    return SliceReader(write_dataset(tmp_path_factory.mktemp("slices")))


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


def _saved(path: Path, network: BoltzFormer, *, presence: bool = True) -> Description:
    config = network_config("tiny", **{**SMALL, "presence": presence})
    description = Description(config, {"plane": "axial", "targets": []})
    torch.save({"model": network.state_dict(), "description": description.state_dict()}, path)
    return description


def test_the_rule_of_the_best_weights_goes_into_the_checkpoint(
    reader: SliceReader, tokenizer: PromptTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    best = small_network(presence=True)
    description = _saved(path, best)
    last = small_network(presence=True)  # what training ends with is not what was best
    with torch.no_grad():
        last.presence.layers[-1].bias.add_(5)
    size = description.network.image_size
    expected = calibrate_presence(best, reader, tokenizer=tokenizer, size=size)
    assert expected is not None
    assert calibrate_presence(last, reader, tokenizer=tokenizer, size=size) != expected
    store_presence(path, network=last, description=description, reader=reader, tokenizer=tokenizer)
    loaded, stored = load_checkpoint(path)
    assert stored.data["presence"] == pytest.approx(expected.as_dict())
    assert description.data["presence"] == stored.data["presence"]
    for name, value in best.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    content = path.read_bytes()
    store_presence(path, network=last, description=description, reader=reader, tokenizer=tokenizer)
    assert path.read_bytes() == content


def test_no_head_no_checkpoint_or_not_the_main_process(
    reader: SliceReader, tokenizer: PromptTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    description = _saved(path, small_network(presence=False), presence=False)
    content = path.read_bytes()
    common = {"reader": reader, "tokenizer": tokenizer}
    store_presence(path, network=small_network(presence=False), description=description, **common)
    head = small_network(presence=True)
    store_presence(path, network=head, description=description, is_main=False, **common)
    store_presence(tmp_path / "none.pt", network=head, description=description, **common)
    assert path.read_bytes() == content
    assert "presence" not in description.data
