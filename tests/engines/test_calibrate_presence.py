"""The thresholds come from what the network says of every slice and target of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines import calibrate_presence
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.networks.boltzformer import Decoded
from boltzformer_monai.transforms import PromptTokenizer
from tests.engines.cases import write_dataset
from tests.networks.cases import small_network


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
