"""Runs of other data are not taken for a study's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.studies.plan import Study
from boltzformer_monai.studies.runner import prepare_data, require_same_data
from tests.engines.cases import write_dataset
from tests.studies.cases import content


def _require(folder: Path, **data: Path) -> None:
    study = Study.model_validate(
        content(data={name: {"folder": str(place)} for name, place in data.items()}, experiments__main__data=[*data])
    )
    require_same_data(study, prepare_data(study, folder, ["main"]), folder)


def test_the_same_volumes_with_another_split_are_refused(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write_dataset(one)
    shutil.copytree(one, other)
    _require(tmp_path, a=one)
    _require(tmp_path, a=one, b=one)
    _require(tmp_path, a=other)  # the same in another place
    with pytest.raises(ConfigError, match="data.b: has the volumes of data.a"):
        _require(tmp_path, a=one, b=other)
    manifest = other / "manifest.csv"
    lines = manifest.read_text().splitlines()
    manifest.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    _require(tmp_path, a=other)
    manifest.write_text(
        "\n".join(line.removesuffix(",train") + ",val" * line.endswith(",train") for line in lines) + "\n"
    )
    with pytest.raises(ConfigError, match="other has other labels or another split than the runs in .* had"):
        _require(tmp_path, a=other)
    _require(tmp_path / "fresh", a=other)
    (tmp_path / "data.json").write_text("[]")
    with pytest.raises(ConfigError, match="data.json: is no description of a study's data"):
        _require(tmp_path, a=one)
