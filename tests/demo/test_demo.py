"""The demo data set: complete or absent, the same every time, and made by the ordinary way of the data."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.demo import demo
from boltzformer_monai.demo.demo import DemoVolume, ensure_demo_dataset, make_demo_volumes, read_demo_volumes
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.errors import ConfigError, DatasetError

SMALL = {"abdomen": 5, "chest": 2, "seed": 3, "size": (48, 48, 6)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo")
    ensure_demo_dataset(root, **SMALL)
    return root


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _by_id(volumes: list[DemoVolume]) -> dict[str, DemoVolume]:
    return {volume.volume_id: volume for volume in volumes}


def test_volumes_formats_and_splits(made: Path) -> None:
    volumes = _by_id(read_demo_volumes(made))
    assert {name: volume.split for name, volume in volumes.items()} == {
        "abdomen_000": "train",
        "abdomen_001": "train",
        "abdomen_002": "train",
        "abdomen_003": "val",
        "abdomen_004": "test",
        "chest_000": "train",
        "chest_001": "val",
    }
    assert [name for name, volume in volumes.items() if volume.image.is_dir()] == [
        "abdomen_000",
        "abdomen_004",
        "chest_001",
    ]
    assert volumes["chest_000"].image.name == "chest_000.nii.gz"
    assert volumes["chest_001"].labels[10] == "lung nodule"
    assert all(volume.label.is_file() for volume in volumes.values())
    assert len({volume.patient for volume in volumes.values()}) == len(volumes)


def test_the_description_on_disk_is_relative(made: Path) -> None:
    text = (made / "volumes" / "volumes.json").read_text()
    assert str(made) not in text
    entry = next(entry for entry in json.loads(text)["volumes"] if entry["id"] == "abdomen_004")
    assert entry["image"] == "abdomen_004"
    assert (entry["modality"], entry["site"], entry["split"]) == ("CT", "abdomen", "test")


def test_slices_are_what_the_phantom_shows(made: Path) -> None:
    reader = SliceReader(made / "slices")
    assert set(reader.volumes) == {volume.volume_id for volume in read_demo_volumes(made)}
    for name, index, site in (("abdomen_001", 1, "abdomen"), ("abdomen_004", 4, "abdomen"), ("chest_001", 1, "chest")):
        image, label = make_phantom(site, seed=3 * 10_000 + index, size=SMALL["size"])
        grey = NAMED_WINDOWS[site].apply(image.array)
        row = next(row for row in reader.select(volume=name) if row.slice_index == 4 and row.target == "aorta")
        np.testing.assert_array_equal(read_png(row.image), grey[:, :, 4].T)  # DICOM and NIfTI alike
        np.testing.assert_array_equal(read_mask(row), label.array[:, :, 4].T == 5)
        assert row.prompts[0] == f"aorta in {'abdominal' if site == 'abdomen' else 'chest'} CT"
    assert {row.split for row in reader.rows if row.volume == "abdomen_004"} == {"test"}
    assert {row.split for row in reader.rows if row.volume == "chest_001"} == {"val"}


def test_same_settings_same_bytes_other_seed_other_patients(made: Path, tmp_path: Path) -> None:
    again = ensure_demo_dataset(tmp_path / "again", **SMALL)
    assert _snapshot(again) == _snapshot(made / "slices")
    assert _snapshot(tmp_path / "again" / "volumes") == _snapshot(made / "volumes")
    other = ensure_demo_dataset(tmp_path / "other", **{**SMALL, "seed": 4, "chest": 0})
    name = "images/abdomen_000_axial_0002.png"
    assert (other / name).read_bytes() != (again / name).read_bytes()


def test_a_complete_data_set_is_reused_without_writing(
    made: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(demo, "make_phantom", never)
    monkeypatch.setattr(demo, "SliceWriter", never)
    with caplog.at_level(logging.INFO):
        assert ensure_demo_dataset(made, **SMALL) == made / "slices"
    assert not caplog.records


def test_making_it_says_so_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="boltzformer_monai.demo.demo"):
        ensure_demo_dataset(tmp_path, abdomen=1, chest=0, size=(32, 32, 4))
    messages = [record.getMessage() for record in caplog.records if record.name == "boltzformer_monai.demo.demo"]
    assert len(messages) == 1
    assert "making the demo data set" in messages[0]
    assert str(tmp_path / "slices") in messages[0]


def test_an_interrupted_run_leaves_nothing_and_the_next_one_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupted(*args: object, **settings: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return make_phantom(*args, **settings)

    monkeypatch.setattr(demo, "make_phantom", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_demo_volumes(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []
    assert len(make_demo_volumes(tmp_path, **SMALL)) == 7


def test_interrupted_slicing_keeps_the_volumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"abdomen": 2, "chest": 0, "size": (32, 32, 4)}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, "SliceWriter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_demo_dataset(tmp_path, **settings)
    assert [path.name for path in tmp_path.iterdir()] == ["volumes"]
    before = (tmp_path / "volumes" / "volumes.json").stat().st_mtime_ns
    assert len(SliceReader(ensure_demo_dataset(tmp_path, **settings)).volumes) == 2
    assert (tmp_path / "volumes" / "volumes.json").stat().st_mtime_ns == before


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks that start together both end with the same complete data set."""
    settings = {"abdomen": 2, "chest": 0, "size": (32, 32, 4)}
    slow = demo._slice_volumes

    def overtaken(*args: object) -> None:
        monkeypatch.setattr(demo, "_slice_volumes", slow)
        ensure_demo_dataset(tmp_path, **settings)
        slow(*args)

    monkeypatch.setattr(demo, "_slice_volumes", overtaken)
    folder = ensure_demo_dataset(tmp_path, **settings)
    assert len(SliceReader(folder).volumes) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slices", "volumes"]


def test_other_settings_or_foreign_files_are_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="other settings"):
        ensure_demo_dataset(made, **{**SMALL, "seed": 4})
    with pytest.raises(DatasetError, match="other settings"):
        make_demo_volumes(made, **{**SMALL, "abdomen": 6})
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "thesis.txt").write_text("precious")
    with pytest.raises(DatasetError, match="not made as demo data"):
        make_demo_volumes(tmp_path, **SMALL)
    assert (tmp_path / "volumes" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "boltzformer-demo-volumes", "version": 99}'])
def test_a_damaged_description_is_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(DatasetError, match=r"volumes\.json"):
        read_demo_volumes(tmp_path)
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "volumes.json").write_text(text)
    with pytest.raises(DatasetError, match=r"volumes\.json"):
        read_demo_volumes(tmp_path)


@pytest.mark.parametrize("settings", [{"abdomen": 0, "chest": 0}, {"abdomen": -1}, {"seed": -1}, {"size": (8, 8, 2)}])
def test_bad_numbers_are_refused(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ConfigError):
        make_demo_volumes(tmp_path, **{"abdomen": 1, "chest": 1, **settings})
    assert list(tmp_path.iterdir()) == []


def test_default_numbers_give_2160_training_slices() -> None:
    plan = list(demo._plan(demo.DEFAULT_ABDOMEN, demo.DEFAULT_CHEST))
    assert sum(each.split == "train" for each in plan) * demo.DEFAULT_SIZE[2] == 2160
    for split, counts in {"val": (14, 5), "test": (14, 5)}.items():
        kinds = [each.kind for each in plan if each.split == split]
        assert (kinds.count("abdomen"), kinds.count("chest")) == counts
    assert {each.kind for each in plan if each.split == "test" and each.dicom} == {"abdomen", "chest"}


def test_several_processes_make_the_same_volumes(tmp_path: Path) -> None:
    settings: dict = {"abdomen": 2, "chest": 1, "size": (48, 48, 6)}
    for workers in (1, 2):
        make_demo_volumes(tmp_path / str(workers), workers=workers, **settings)
    one, two = (tmp_path / str(workers) / "volumes" for workers in (1, 2))
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(two)) for path in two.rglob("*") if path.is_file())
    assert [name for name in names if (one / name).read_bytes() != (two / name).read_bytes()] == []
