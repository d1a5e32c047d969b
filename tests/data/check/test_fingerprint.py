"""Every kind of finding is provoked once, on a data set that has none; numbers are compared with plain NumPy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.check import measured
from boltzformer_monai.data.check.findings import KINDS, LEVELS, MAX_EXAMPLES, Findings
from boltzformer_monai.data.check.fingerprint import Checked, check_data_sets
from boltzformer_monai.data.slices.reader import SliceReader, read_mask, read_png
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import Window
from boltzformer_monai.errors import DatasetError
from tests.data.check.unsound import (
    COMPANIONS,
    PROVOKED,
    add_more,
    edit_rows,
    edit_volume,
    labelled,
    picture,
    scan,
    sound,
)


def codes(checked: Checked) -> set[str]:
    return {finding.code for finding in checked.findings}


def check(root: Path) -> Checked:
    return check_data_sets([path for path in (root, root.with_name("other")) if path.exists()])


def test_every_kind_is_provoked_below():
    assert set(PROVOKED) == set(KINDS)
    assert {kind.level for kind in KINDS.values()} == set(LEVELS)


@pytest.mark.parametrize("settings", [SliceSettings(every=5), SliceSettings(min_area=50)])
def test_values_in_left_out_slices_do_occur(tmp_path: Path, settings: SliceSettings):
    add_more(sound(tmp_path / "set"), "more", labels={1: "spleen", 2: "kidney right", 9: "aorta"}, settings=settings)
    label = labelled({1: np.s_[6:9, 2:5, 1:4], 4: np.s_[0:2, 0:2, 3]})
    names = {1: "liver", 4: "tumor", 9: "aorta"}
    add_more(tmp_path / "set", "another", label=label, labels=names, settings=settings)
    lines = {finding.code: finding.listed for finding in check(tmp_path / "set").findings}
    assert lines["value-never-occurs"] == "9: aorta"
    assert "tumor" in lines["target-left-out"]
    assert "no-target" not in lines


def test_a_sound_data_set_has_no_finding(tmp_path: Path):
    assert [finding.line for finding in check(sound(tmp_path / "set")).findings] == []


@pytest.mark.parametrize("code", PROVOKED)
def test_finding(tmp_path: Path, code: str):
    root = sound(tmp_path / "set")
    PROVOKED[code](root)
    checked = check(root)
    assert codes(checked) - COMPANIONS.get(code, set()) == {code}
    finding = next(finding for finding in checked.findings if finding.code == code)
    assert finding.examples
    assert "\n" not in finding.line
    assert str(tmp_path) not in json.dumps(checked.content)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [12, 10]},
        {"affine": np.zeros((4, 4)).tolist()},
        {"plane": "oblique"},
        {"spacing": "none"},
        {"slices": 7},
    ],
)
def test_an_impossible_geometry_is_a_finding(tmp_path: Path, changes: dict[str, object]):
    root = sound(tmp_path)
    edit_volume(root, **changes)
    assert "wrong-geometry" in codes(check(root))


@pytest.mark.parametrize("changes", [{"targets": ["liver"]}, {"targets": {"liver": "x"}}, {"slices": None}])
def test_a_damaged_description_is_a_finding(tmp_path: Path, changes: dict[str, object]):
    root = sound(tmp_path)
    edit_volume(root, **changes)
    checked = check(root)
    assert codes(checked) == {"unreadable"}
    assert checked.content["data_sets"] == []


def test_findings_are_counted_and_sorted_and_keep_few_examples():
    findings = Findings()
    for number in range(9):
        findings.add("flat-picture", "b", f"picture {number % 7}")
    findings.add("wrong-area", "a", "picture")
    findings.add("stray-picture", "a", "picture")
    worst, _, last = findings.sorted()
    assert (worst.code, last.code, last.count, len(last.examples)) == ("wrong-area", "flat-picture", 9, MAX_EXAMPLES)
    assert last.listed == "picture 0; picture 1; picture 2; picture 3; picture 4; …"
    assert worst.line == (
        "error [wrong-area] a: area_fraction differs from the recounted pixels: 1 (picture) - "
        "labels were changed after slicing: slice again"
    )


def test_every_missing_picture_is_named(tmp_path: Path):
    root = sound(tmp_path / "set")
    picture(root).unlink()
    picture(root, "labels", "case2").unlink()
    finding = next(finding for finding in check(root).findings if finding.code == "missing-picture")
    assert finding.examples == ["images/case1_axial_0002.png", "labels/case2_axial_0002.png"]


def test_table9_is_what_the_masks_say(tmp_path: Path):
    root = sound(tmp_path)
    add_more(root, "more", label=labelled({1: np.s_[0:12, 0:10, 5]}), labels={1: "liver"}, patient="case1")
    rows = {row["target"]: row for row in check(root).content["table9"]}
    areas = [100 * read_mask(row).mean() for row in SliceReader(root).select(targets=["liver"], present=True)]
    liver = rows["liver"]
    assert (liver["support"], liver["volumes"], liver["patients"], liver["modality"]) == (10, 4, 3, "CT")
    assert liver["area_percent"] == pytest.approx(
        {"mean": np.mean(areas), "median": np.median(areas), "min": 7.5, "max": 100}
    )
    assert liver["negatives"] == 4 * 6 - 10
    assert rows["right kidney"]["support"] == 3


def test_fingerprint_numbers(tmp_path: Path):
    root = sound(tmp_path, window=Window(40, 200))
    content = check(root).content
    (data_set,) = content["data_sets"]
    pixels = np.stack([read_png(path) for path in sorted((root / "images").glob("*.png"))])
    grey = data_set["grey"]
    assert grey["mean"] == pytest.approx(pixels.mean(), rel=1e-5)
    assert grey["std"] == pytest.approx(pixels.std(), rel=1e-5)
    assert grey["black"] == pytest.approx((pixels == 0).mean(), rel=1e-5)
    assert grey["white"] == pytest.approx((pixels == 255).mean(), rel=1e-5)
    assert grey["percentiles"] == {
        str(q): int(np.percentile(pixels, q, method="inverted_cdf")) for q in (1, 5, 25, 50, 75, 95, 99)
    }
    assert data_set["slices"]["rows"] == {"min": 10, "median": 10, "max": 10}
    assert data_set["slices"]["columns"]["max"] == 12
    assert data_set["spacing_mm"]["slice"]["median"] == 5
    assert data_set["counts"]["window"] == {"hu 40 200": 3}
    assert data_set["counts"]["orientation"] == {"LAS": 3}
    assert data_set["splits"]["val"] == {
        "patients": 1, "volumes": 1, "slices": 6, "rows": 12, "positives": 4, "negatives": 8,
    }  # fmt: skip
    assert data_set["targets"]["liver"]["train"] == {"positives": 3, "negatives": 3}
    assert data_set["volume"]["case2"]["label_values"] == [1, 2]


def test_smallest_and_largest_objects(tmp_path: Path):
    root = sound(tmp_path)
    add_more(root, "more", label=labelled({1: np.s_[0:12, 0:10, 5], 2: np.s_[0, 0, 4]}))
    checked = check(root)
    assert [(each.row.target, round(each.area * 120)) for each in checked.smallest] == [
        ("liver", 9),
        ("right kidney", 1),
    ]
    assert [(each.row.target, round(each.area * 120)) for each in checked.largest] == [
        ("liver", 120),
        ("right kidney", 4),
    ]


def test_pictures_without_rows_are_neither_stray_nor_missed(tmp_path: Path):
    root = sound(tmp_path)
    add_more(root, "more", negatives=0.0)
    checked = check(root)
    assert codes(checked) == set()
    assert checked.content["data_sets"][0]["pictures_without_rows"] == 3


def test_a_slice_without_rows_must_be_there_all_the_same(tmp_path: Path):
    root = sound(tmp_path)
    add_more(root, "more", negatives=0.0)
    picture(root, volume="more", index=5).unlink()
    picture(root, volume="more", index=4).rename(picture(root, volume="more", index=6))
    found = {finding.code: finding.examples for finding in check(root).findings}
    assert found == {"incomplete-volume": ["more: slice 4"], "stray-picture": ["images/more_axial_0006.png"]}


def drop_slices_1_3_5(rows: list[dict[str, str]]) -> None:
    del rows[2:4], rows[4:6], rows[6:8]  # two targets a slice; the rows behind move up


def test_every_nth_slice_is_not_incomplete(tmp_path: Path):
    root = sound(tmp_path)
    edit_volume(root, every=2, neighbours=0, complete=False)
    edit_rows(root, drop_slices_1_3_5)
    for index in (1, 3, 5):
        picture(root, index=index).unlink()
        picture(root, "labels", index=index).unlink()
    assert "incomplete-volume" not in codes(check(root))
    edit_volume(root, neighbours=1)
    found = {finding.code: finding.examples for finding in check(root).findings}
    assert found["incomplete-volume"] == ["case1: slice 1"]


def test_every_picture_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, read = sound(tmp_path), []

    def counted(path: Path) -> np.ndarray:
        read.append(path)
        return read_png(path)

    monkeypatch.setattr(measured, "read_png", counted)
    steps: list[tuple[int, int]] = []
    check_data_sets([root], progress=lambda done, total: steps.append((done, total)))
    assert sorted(read) == sorted([*root.glob("images/*.png"), *root.glob("labels/*.png")])
    assert steps == [(number, 18) for number in range(1, 19)]


def test_a_third_copy_in_another_split_is_found(tmp_path: Path):
    root = sound(tmp_path)
    add_more(root, "copy", image=scan(0), patient="case1")
    add_more(root, "copy2", image=scan(0), split="test")
    (found,) = (finding for finding in check(root).findings if finding.code == "same-picture-in-two-splits")
    assert (found.count, found.examples) == (6, ["case1 (train) = copy2 (test)"])


def test_two_data_sets_of_one_name_stay_apart(tmp_path: Path):
    roots = [sound(tmp_path / name) for name in ("a", "b")]
    checked = check_data_sets(roots)
    assert [data_set["name"] for data_set in checked.content["data_sets"]] == ["unit", "unit (2)"]
    assert [row["data_set"] for row in checked.content["table9"]] == ["unit"] * 2 + ["unit (2)"] * 2
    assert {finding.data_set for finding in checked.findings} == {""}


def test_what_is_no_data_set_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="not a slice data set"):
        check_data_sets([tmp_path])
    with pytest.raises(DatasetError, match="given twice"):
        check_data_sets([sound(tmp_path / "set"), tmp_path / "set" / "." / ""])


def test_a_real_scan(shared_data: Path, tmp_path: Path):
    from boltzformer_monai.io.read import read_label_map, read_volume

    folder = shared_data / "amos_0018"
    names = json.loads((folder / "labels.json").read_text())["labels"]
    label = read_label_map(folder / "label.nii.gz")
    SliceWriter(tmp_path).add_volume(
        read_volume(folder / "image.nii.gz", modality="CT"), label, names,
        volume_id="amos_0018", patient="18", site="abdomen", split="train",
    )  # fmt: skip
    checked = check(tmp_path)
    assert checked.count("error") == 0
    (liver,) = (row for row in checked.content["table9"] if row["target"] == "liver")
    value = next(int(value) for value, name in names.items() if name == "liver")
    areas = 100 * (label.array == value).mean(axis=(0, 1))
    areas = areas[areas > 0]
    assert liver["support"] == len(areas)
    assert liver["area_percent"] == pytest.approx(
        {"mean": areas.mean(), "median": np.median(areas), "min": areas.min(), "max": areas.max()}, rel=1e-5
    )
