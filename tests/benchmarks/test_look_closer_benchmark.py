"""The benchmark of looking closer: every true lesion is clicked once, and differences are paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import look_closer
from boltzformer_monai.demo.demo import make_demo_volumes, read_demo_volumes
from boltzformer_monai.evaluation.components import label_components
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.io.volume import Volume


def _truth(tmp_path: Path) -> dict[int, np.ndarray]:
    """The lesions of every volume, by the hash of its scan."""
    found = {}
    for volume in read_demo_volumes(tmp_path / "data"):
        scan = read_volume(volume.image, modality="CT")
        label = reorient_label(read_label_map(volume.label), scan).array
        values = [value for value, name in volume.labels.items() if name == "liver lesion"]
        found[hash(scan.array.tobytes())] = np.isin(label, values)
    return found


def test_it_pairs_every_lesion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_demo_volumes(tmp_path / "data", abdomen=8, chest=0, size=(64, 64, 12))
    truth = _truth(tmp_path)
    asked: list[RunSettings] = []

    def found(_: Any, scan: Volume, settings: RunSettings) -> np.ndarray:
        """Looking closer finds what was missed: whole slices show every other slice of a lesion."""
        asked.append(settings)
        mask = truth[hash(scan.array.tobytes())].copy()
        if not settings.look_closer:
            mask[..., ::2] = False
        return mask

    monkeypatch.setattr(look_closer, "found", found)
    monkeypatch.setattr(look_closer.VolumeSegmenter, "from_checkpoint", lambda *_: None)
    record = tmp_path / "record.json"
    arguments = ["--demo", str(tmp_path), "--split", "test", "--split", "val", "--split", "train", "--zoom", "3"]
    assert look_closer.main([*arguments, "--target", "liver lesion", "--json", str(record)]) == 0
    rows = {each["name"]: each["value"] for each in json.loads(record.read_text())["results"]}
    count = sum(label_components(mask)[1] for mask in truth.values())
    assert count > 3
    assert rows["zoom 3, all: lesions"] == count == sum(each.look_closer for each in asked)
    assert rows["zoom 3, all: Dice, looked closer"] == 1
    assert rows["zoom 3, all: Dice, whole slices"] < 1
    difference = rows["zoom 3, all: difference of Dice"]
    assert difference == pytest.approx(1 - rows["zoom 3, all: Dice, whole slices"])
    assert rows["zoom 3, all: difference, low"] <= difference <= rows["zoom 3, all: difference, high"]
    assert rows["zoom 3, below 0.1 %: lesions"] + rows["zoom 3, from 0.1 %: lesions"] == count
    assert {settings.protocol_settings.get("least_zoom") for settings in asked} == {None, 3.0}
