from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.errors import BoltzFormerError, ConfigError, DatasetError, VolumeError
from boltzformer_monai.io.volume import Volume
from tests.data.slice_cases import AFFINE, add, contents, make_volume, one_volume


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return one_volume(tmp_path / "set")


def test_adding_again_replaces(root: Path):
    add(SliceWriter(root), "case2")
    added = add(SliceWriter(root), plane="sagittal", labels={1: "liver"})
    assert added.replaced
    reader = SliceReader(root)
    assert set(reader.volumes) == {"case1", "case2"}
    assert {row.plane for row in reader.select(volume="case1")} == {"sagittal"}
    assert len(reader.rows) == 12 + 24
    assert len(list((root / "images").iterdir())) == len(list((root / "labels").iterdir())) == 12 + 6


def test_absent_targets_have_rows_and_negatives_thin_them_out(tmp_path: Path):
    assert len(SliceReader(one_volume(tmp_path / "all", negatives=1.0)).select(targets=["spleen"])) == 6
    none = SliceReader(one_volume(tmp_path / "none", negatives=0.0))
    assert none.rows
    assert all(row.present for row in none.rows)
    assert len(list((tmp_path / "none" / "images").iterdir())) == 6  # every slice is on disk all the same
    half = SliceReader(one_volume(tmp_path / "half", negatives=0.5)).rows
    again = SliceReader(one_volume(tmp_path / "again", negatives=0.5)).rows
    assert [(row.target, row.slice_index) for row in half] == [(row.target, row.slice_index) for row in again]
    assert len(none.rows) < len(half) < 24
    other = SliceReader(one_volume(tmp_path / "other", negatives=0.5, seed=1)).rows
    assert [(row.target, row.slice_index) for row in half] != [(row.target, row.slice_index) for row in other]


def test_negatives_are_thinned_out_for_training_only(tmp_path: Path):
    for split in ("val", "test"):
        assert (
            len(SliceReader(one_volume(tmp_path / split, negatives=0.0, split=split)).select(targets=["spleen"])) == 6
        )


def test_a_label_on_another_grid_is_refused_and_nothing_is_written(tmp_path: Path):
    _, label = make_volume()
    with pytest.raises(VolumeError, match="grid"):
        add(SliceWriter(tmp_path / "x"), label=Volume(label.array[:-1], AFFINE))
    assert not (tmp_path / "x").exists()


def test_splits_are_by_patient_and_can_be_pinned(tmp_path: Path):
    with SliceWriter(tmp_path, val_fraction=0.25, seed=5) as writer:
        for number in range(8):
            add(writer, f"v{number}", patient=f"p{number // 2}")
        add(writer, "held", patient="out", split="test")
    reader = SliceReader(tmp_path)
    splits = {volume: {row.split for row in reader.select(volume=volume)} for volume in reader.volumes}
    assert all(len(split) == 1 for split in splits.values())
    assert [splits[f"v{n}"] == splits[f"v{n + 1}"] for n in (0, 2, 4, 6)] == [True] * 4
    assert sorted(next(iter(splits[f"v{n}"])) for n in range(0, 8, 2)) == ["train", "train", "train", "val"]
    assert splits["held"] == {"test"}
    add(SliceWriter(tmp_path), "more", patient="out")  # the pin and the settings stay with the data set
    reader = SliceReader(tmp_path)
    assert {row.split for row in reader.select(volume="more")} == {"test"}
    assert json.loads((tmp_path / "dataset.json").read_text())["split"] == {"val_fraction": 0.25, "seed": 5}


def test_no_identity_and_no_path_is_stored(tmp_path: Path):
    image, label = make_volume()
    secret = Volume(image.array, image.affine, modality="CT", source="/home/doe/JANE_DOE.nii.gz")
    add(SliceWriter(tmp_path / "set", key="k"), image=secret, label=label, patient="JANE DOE")
    for name in ("dataset.json", "manifest.csv"):
        text = (tmp_path / "set" / name).read_text(encoding="utf-8")
        assert "DOE" not in text
        assert "/home" not in text
        assert str(tmp_path) not in text


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_volume_leaves_the_finished_ones(tmp_path: Path, stop: type[BaseException]):
    def show(done: int, total: int) -> None:
        if done == 4:
            raise stop

    def write() -> None:
        with SliceWriter(tmp_path) as writer:
            add(writer, "a")
            add(writer, "b")
            add(writer, "c", progress=show)

    with pytest.raises(stop):
        write()
    assert set(SliceReader(tmp_path).volumes) == {"a", "b"}
    assert len(list((tmp_path / "images").iterdir())) == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock", "dataset.json", "images", "labels", "manifest.csv", "volumes",
    ]  # fmt: skip
    add(SliceWriter(tmp_path), "c")
    assert set(SliceReader(tmp_path).volumes) == {"a", "b", "c"}


def test_an_interrupted_replacement_keeps_the_old_volume(root: Path):
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = SliceReader(root).rows
    with pytest.raises(KeyboardInterrupt):
        add(SliceWriter(root), plane="coronal", progress=stop)
    assert SliceReader(root).rows == before


def test_an_interrupt_while_pictures_are_moved_leaves_no_stray_ones(root: Path, monkeypatch: pytest.MonkeyPatch):
    rename, calls = os.replace, []

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == 9:
            raise KeyboardInterrupt
        rename(source, target)

    writer = SliceWriter(root)
    monkeypatch.setattr("boltzformer_monai.data.slices.volume.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        add(writer, "second")
    monkeypatch.undo()
    assert set(SliceReader(root).volumes) == {"case1"}
    assert len(list((root / "images").iterdir())) == len(list((root / "labels").iterdir())) == 6


def test_tables_are_not_rewritten_for_every_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []
    flush = SliceWriter.flush
    monkeypatch.setattr(SliceWriter, "flush", lambda self: (written.append(1), flush(self))[1])
    with SliceWriter(tmp_path) as writer:
        for number in range(10):
            add(writer, f"v{number}")
        assert len(written) < 5
    assert len(SliceReader(tmp_path).volumes) == 10


def test_two_writers_may_take_turns_but_not_write_at_once(root: Path):
    first, second = SliceWriter(root), SliceWriter(root)
    add(first, "a")
    add(second, "b")
    with first, pytest.raises(DatasetError, match="another process"):
        add(second, "c")
    assert set(SliceReader(root).volumes) == {"case1", "a", "b"}


def test_the_order_of_writing_leaves_no_trace(tmp_path: Path):
    for name, order in (("one", "abc"), ("two", "cab")):
        with SliceWriter(tmp_path / name, name="unit") as writer:
            for volume in order:
                add(writer, volume)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_every_nth_slice_neighbours_and_the_smallest_area(tmp_path: Path):
    settings = SliceSettings(every=3, neighbours=1, min_area=5)
    add(SliceWriter(tmp_path), settings=settings)
    reader = SliceReader(tmp_path)
    entry = reader.volumes["case1"]
    assert (entry["every"], entry["neighbours"], entry["min_area"], entry["complete"]) == (3, 1, 5, False)
    assert {row.slice_index for row in reader.rows} == {0, 3}
    stored = [int(path.stem[-4:]) for path in sorted((tmp_path / "images").iterdir())]
    assert stored == [0, 1, 2, 3, 4]
    # In slice 3 the kidney has 4 pixels, fewer than 5: neither shown nor absent there, but absent in slice 0.
    assert [row.slice_index for row in reader.select(targets=["right kidney"])] == [0]
    assert [row.present for row in reader.select(targets=["liver"])] == [False, True]


def test_of_several_pins_the_one_furthest_from_training_counts(tmp_path: Path):
    for volume, split in (("a", "test"), ("b", "train"), ("c", None)):
        add(SliceWriter(tmp_path), volume, patient="same", split=split)
    assert {row.split for row in SliceReader(tmp_path).rows} == {"test"}


def test_replacing_without_a_label_leaves_no_label_pictures(root: Path):
    add(SliceWriter(root), label=None, labels=None)
    assert not list((root / "labels").iterdir())
    assert all(row.label is None for row in SliceReader(root).rows)


@pytest.mark.parametrize("content", ["{", "[]", '{"volume": "case1"}', '{"volume": "other"}'])
def test_a_damaged_record_is_one_clear_line(root: Path, content: str):
    (root / "volumes" / "case1.json").write_text(content)
    with pytest.raises(DatasetError, match=r"case1\.json.*slice (its|the) volume again"):
        add(SliceWriter(root), "b")


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(DatasetError, match="not a slice data set"):
        SliceWriter(tmp_path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"volume_id": "../x"}, "volume id"),
        ({"volume_id": ""}, "volume id"),
        ({"split": "validation"}, "unknown split"),
        ({"negatives": 1.5}, "between 0 and 1"),
        ({"plane": "oblique"}, "unknown plane"),
        ({"patient": ""}, "identity"),
        ({"labels": {}}, "needs names"),
        ({"label": None}, "need a label map"),
        ({"labels": {0: "liver"}}, "label value"),
        ({"labels": {"2+2": "liver"}}, "label value"),
        ({"labels": {"x": "liver"}}, "label value"),
        ({"labels": {1: "kidney right", 2: "right kidney"}}, r'both named "right kidney".*1\+2'),
        ({"labels": {1: " "}}, "empty name"),
        ({"image": make_volume("unknown")[0]}, "modality"),
    ],
)
def test_mistakes_are_one_clear_line_and_write_nothing(tmp_path: Path, changes: dict, match: str):
    with pytest.raises(BoltzFormerError, match=match) as error:
        add(SliceWriter(tmp_path / "x"), **changes)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_a_bad_validation_fraction_is_refused_at_once(tmp_path: Path):
    with pytest.raises(ConfigError, match="fraction"):
        SliceWriter(tmp_path / "x", val_fraction=2)
