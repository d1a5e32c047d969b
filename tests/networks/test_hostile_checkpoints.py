"""Checkpoints that would take more memory than they have bytes are refused before they do."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.weights import Description, load_checkpoint, read_weights
from tests.networks.cases import SMALL, small_network


def _saved(path: Path, change: Callable[[dict[str, Any]], None] = lambda content: None) -> Path:
    content = {
        "model": small_network(7).state_dict(),
        "description": Description(network_config("tiny", **SMALL), {}).state_dict(),
    }
    change(content)
    torch.save(content, path)
    return path


def test_records_that_inflate_are_refused(tmp_path: Path) -> None:
    whole, packed = _saved(tmp_path / "whole.pt"), tmp_path / "packed.pt"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            target.writestr(record.filename, source.read(record))
        target.writestr("archive/data/bomb", bytes(50_000_000))
    with pytest.raises(CheckpointError, match="compressed or overlapping records"):
        read_weights(packed)
    assert load_checkpoint(whole)[1].network == network_config("tiny", **SMALL)


def test_records_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "shared.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(100_000))
        first = archive.infolist()[0]
        for number in range(1, 50):
            again = zipfile.ZipInfo(f"archive/data/{number}")
            again.header_offset, again.file_size, again.compress_size = 0, first.file_size, first.compress_size
            again.CRC = first.CRC
            archive.filelist.append(again)
    with pytest.raises(CheckpointError, match="compressed or overlapping records"):
        read_weights(path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden": 10**9}, "does not fit this network"),
        ({"queries": 10**12}, "does not fit this network"),
        ({"text_width": 4 * 10**9}, "description cannot be used"),
        ({"layers": 10**12}, "more layers than it holds weights"),
        ({"text_layers": 10**12}, "more layers than it holds weights"),
        ({"pixel_layers": 10**12}, "more layers than it holds weights"),
    ],
)
def test_a_description_of_any_size_allocates_nothing(tmp_path: Path, settings: dict[str, int], words: str) -> None:
    path = _saved(tmp_path / "model.pt", lambda content: content["description"]["network"].update(settings))
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_weights_that_repeat_a_few_bytes_are_refused(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["description"]["network"]["queries"] = 10**9
        for name, weight in content["model"].items():
            if weight.ndim == 2 and weight.shape[0] == SMALL.get("queries", 10):
                content["model"][name] = torch.zeros(1).expand(10**9, weight.shape[1])

    with pytest.raises(CheckpointError, match="fewer bytes than its weights claim"):
        load_checkpoint(_saved(tmp_path / "model.pt", change))


def test_a_pipe_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "model.pt")
