"""The thresholds come from what the network says of every slice and target of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines import calibrate_checkpoint, calibrate_presence
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.weights import Description, load_checkpoint
from boltzformer_monai.transforms import PromptTokenizer
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL, small_network


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> SliceReader:
    return SliceReader(write_dataset(tmp_path_factory.mktemp("slices"), slices=3))


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


class _Oracle(nn.Module):
    """Knows the phantom: prompts in the order of the rows, the spleen in the first slice only."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = nn.Identity()
        self.seen = 0
        self.modes: list[bool] = []

    def forward(self, image: Tensor, tokens: Tensor, *, with_presence: bool) -> Decoded:
        assert with_presence
        self.modes.append(self.training)
        batch, prompts = tokens.shape[:2]
        logits = torch.full((batch, prompts), 2.0)
        for index in range(batch):
            logits[index, 1] = 3.0 if self.seen + index == 0 else -2.0
            logits[index, 3] = -4.0
        self.seen += batch
        return Decoded(torch.ones(batch, prompts, 8, 8), logits)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_thresholds_of_a_head_that_knows(reader: SliceReader, tokenizer: PromptTokenizer, batch_size: int) -> None:
    oracle: Any = _Oracle()
    rule = calibrate_presence(oracle, reader, tokenizer=tokenizer, size=32, batch_size=batch_size)
    assert rule is not None
    assert oracle.seen == 3  # the slices of the only validation volume
    # A third of the way from −2, the spleen two slices away, to 2, the weakest object: log-odds of −2/3.
    assert rule.high == pytest.approx(0.339, abs=0.001)
    assert rule.low == pytest.approx(rule.high)  # never above high, though all slices with a target reach 2
    assert oracle.modes == [False] * len(oracle.modes)
    assert oracle.training


def test_a_real_network(reader: SliceReader, tokenizer: PromptTokenizer) -> None:
    network = small_network(presence=True)
    rule = calibrate_presence(network, reader, tokenizer=tokenizer, size=64, batch_size=2)
    assert rule is not None
    assert 0 < rule.low <= rule.high < 1
    assert rule == calibrate_presence(network, reader, tokenizer=tokenizer, size=64, batch_size=2)
    assert not network.training


def test_without_a_head_there_is_no_rule(reader: SliceReader, tokenizer: PromptTokenizer) -> None:
    assert calibrate_presence(small_network(presence=False), reader, tokenizer=tokenizer, size=64) is None


def test_a_split_without_slices(reader: SliceReader, tokenizer: PromptTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no labelled slices"):
        calibrate_presence(small_network(presence=True), reader, tokenizer=tokenizer, size=64, split="test")


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
    calibrate_checkpoint(path, network=last, description=description, reader=reader, tokenizer=tokenizer)
    loaded, stored = load_checkpoint(path)
    assert stored.data["presence"] == pytest.approx(expected.as_dict())
    assert description.data["presence"] == stored.data["presence"]
    for name, value in best.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, rtol=0, atol=0)
    content = path.read_bytes()
    calibrate_checkpoint(path, network=last, description=description, reader=reader, tokenizer=tokenizer)
    assert path.read_bytes() == content


def test_no_head_no_checkpoint_or_not_the_main_process(
    reader: SliceReader, tokenizer: PromptTokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    description = _saved(path, small_network(presence=False), presence=False)
    content = path.read_bytes()
    common = {"reader": reader, "tokenizer": tokenizer}
    calibrate_checkpoint(path, network=small_network(presence=False), description=description, **common)
    head = small_network(presence=True)
    calibrate_checkpoint(path, network=head, description=description, is_main=False, **common)
    calibrate_checkpoint(tmp_path / "none.pt", network=head, description=description, **common)
    assert path.read_bytes() == content
    assert "presence" not in description.data


class _Blind(nn.Module):
    """Finds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.presence = nn.Identity()

    def forward(self, image: Tensor, tokens: Tensor, *, with_presence: bool) -> Decoded:
        batch, prompts = tokens.shape[:2]
        return Decoded(torch.full((batch, prompts, 8, 8), -1.0), torch.zeros(batch, prompts))


def test_where_nothing_can_be_calibrated_the_checkpoint_stays(
    tokenizer: PromptTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A single slice with every target in it, and no mask that overlaps one."""
    monkeypatch.setattr("tests.engines.cases.LABELS", {1: "liver", 2: "spleen"})
    reader = SliceReader(write_dataset(tmp_path / "slices", slices=1))
    blind: Any = _Blind()
    assert calibrate_presence(blind, reader, tokenizer=tokenizer, size=32) is None
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "presence cannot be calibrated: no mask overlaps its object" in record.getMessage()

    network = small_network(presence=True)
    description = _saved(tmp_path / "model.pt", network)
    content = (tmp_path / "model.pt").read_bytes()
    monkeypatch.setattr(network, "forward", blind.forward)
    calibrate_checkpoint(
        tmp_path / "model.pt", network=network, description=description, reader=reader, tokenizer=tokenizer
    )
    assert (tmp_path / "model.pt").read_bytes() == content
    assert "presence" not in description.data
