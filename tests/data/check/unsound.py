"""A sound data set, and for every kind of finding what makes it unsound in just that way."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from boltzformer_monai.data.slices.reader import read_png
from boltzformer_monai.data.slices.volume import SliceSettings
from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.data.windows import Window
from boltzformer_monai.io.volume import Volume
from tests.data.slice_cases import AFFINE, add, make_volume

NAMES = {1: "liver", 2: "kidney right"}
SPLITS = {"case1": "train", "case2": "val", "case3": "test"}
WIDE = Window(40, 4000)  # clips none of the noise


def scan(seed: int = 0) -> Volume:
    return make_volume(seed=seed)[0]


def labelled(values: dict[int, tuple[slice, slice, slice]]) -> Volume:
    array = np.zeros((12, 10, 6), np.uint8)
    for value, where in values.items():
        array[where] = value
    return Volume(array, AFFINE)


def add_more(root: Path, volume_id: str, **changes: object) -> None:
    add(
        SliceWriter(root), volume_id, **{"image": scan(9), "labels": NAMES, "window": WIDE, "split": "train", **changes}
    )


def sound(root: Path, **changes: object) -> Path:
    for number, (volume_id, split) in enumerate(SPLITS.items()):
        writer = SliceWriter(root, name="unit")
        add(writer, volume_id, **{"image": scan(number), "labels": NAMES, "window": WIDE, "split": split, **changes})
    return root


def edit_rows(root: Path, change: Callable[[list[dict[str, str]]], object]) -> None:
    path = root / "manifest.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    change(rows)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def edit_volume(root: Path, **changes: object) -> None:
    path = root / "dataset.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["volumes"]["case1"].update(changes)
    path.write_text(json.dumps(content), encoding="utf-8")


def repaint(path: Path, value: int, dtype: type = np.uint8) -> None:
    pixels = read_png(path).astype(dtype)
    pixels[-1, -1] = value
    Image.fromarray(pixels).save(path)


def picture(root: Path, folder: str = "images", volume: str = "case1", index: int = 2) -> Path:
    return root / folder / f"{volume}_axial_{index:04d}.png"


def stored_values() -> Volume:
    """Soft tissue with the offset of 1024 that a rescale would take off."""
    tissue = np.random.default_rng(3).normal(1070, 15, (12, 10, 6))
    return Volume(tissue.astype(np.float32), AFFINE, modality="CT")


def thick_slices() -> Volume:
    """The scan of ``scan`` as if its sagittal slices had been acquired one by one."""
    affine = AFFINE.copy()
    affine[:3, 0] *= 20
    return Volume(scan(9).array, affine, modality="CT")


def flat_slices(*indices: int) -> Volume:
    image = scan(5)
    array = image.array.copy()
    array[:, :, list(indices)] = 40
    return Volume(array, AFFINE, modality="CT")


def repeated_slices() -> Volume:
    array = scan(5).array.copy()
    array[:, :, 3] = array[:, :, 2]
    return Volume(array, AFFINE, modality="CT")


def dark_kidney() -> Volume:
    array = scan(5).array.copy()
    array[0:2, 0:2, 3] = -5000
    return Volume(array, AFFINE, modality="CT")


def second_row_is_doubled(rows: list[dict[str, str]]) -> None:
    rows.insert(1, dict(rows[1]))


def first_row_says(**changes: str) -> Callable[[list[dict[str, str]]], None]:
    return lambda rows: rows[0].update(changes)


LIVER_ONLY = {1: np.s_[6:9, 2:5, 1:4]}
PROVOKED: dict[str, Callable[[Path], object]] = {
    "unreadable": lambda root: edit_rows(root, first_row_says(spacing="wide")),
    "missing-picture": lambda root: picture(root).unlink(),
    "damaged-picture": lambda root: picture(root).write_bytes(picture(root).read_bytes()[:60]),
    "wrong-picture-size": lambda root: Image.fromarray(np.eye(5, dtype=np.uint8)).save(picture(root)),
    "wrong-picture-type": lambda root: repaint(picture(root), 3, np.uint16),
    "wrong-geometry": lambda root: edit_volume(root, spacing=[0.9, 0.7, 5.0]),
    "wrong-row": lambda root: edit_rows(root, first_row_says(modality="MR")),
    "repeated-row": lambda root: edit_rows(root, second_row_is_doubled),
    "wrong-area": lambda root: repaint(picture(root, "labels"), 1),
    "incomplete-volume": lambda root: edit_volume(root, complete=False),
    "patient-in-two-splits": lambda root: edit_rows(root, first_row_says(split="val")),
    "same-picture-in-two-splits": lambda root: add_more(root, "copy", image=scan(0), split="val"),
    "same-picture-of-two-patients": lambda root: add_more(root, "copy", image=scan(0)),
    "same-picture-in-two-data-sets": lambda root: add_more(root.with_name("other"), "case1", image=scan(0)),
    "same-volume": lambda root: add_more(root, "copy", image=scan(0), patient="case1"),
    "patient-in-two-data-sets": lambda root: add_more(root.with_name("other"), "case1", split="val"),
    "unnamed-value": lambda root: repaint(picture(root, "labels"), 77),
    "value-never-occurs": lambda root: add_more(root, "more", labels={**NAMES, 9: "spleen"}),
    "mixed-label-types": lambda root: repaint(picture(root, "labels"), 0, np.uint16),
    "shared-prompt": lambda root: edit_rows(root, first_row_says(prompts='["right kidney in abdominal CT"]')),
    "no-target": lambda root: add_more(root, "more", label=labelled({})),
    "target-left-out": lambda root: add_more(root, "more", settings=SliceSettings(every=5)),
    "no-rows": lambda root: add_more(root, "more", label=labelled({}), negatives=0.0),
    "no-contrast": lambda root: add_more(root, "more", image=flat_slices(*range(6))),
    "hidden-target": lambda root: add_more(root, "more", image=dark_kidney()),
    "empty-split": lambda root: edit_rows(root, lambda rows: [row.update(split="train") for row in rows]),
    "target-not-trained": lambda root: add_more(root, "more", split="val", labels={1: "spleen", 2: "kidney right"}),
    "doubtful-values": lambda root: add_more(root, "more", image=stored_values()),
    "other-plane": lambda root: add_more(root, "more", image=thick_slices(), label=None, labels=None),
    "stray-picture": lambda root: picture(root, index=17).with_name("notes.png").write_bytes(b""),
    "target-not-validated": lambda root: add_more(root, "more", labels={1: "spleen", 2: "kidney right"}),
    "no-negatives": lambda root: add_more(root, "case1", image=scan(0), negatives=0.0),
    "target-absent": lambda root: add_more(root, "more", label=labelled(LIVER_ONLY)),
    "no-label": lambda root: add_more(root, "more", label=None, labels=None),
    "repeated-picture": lambda root: add_more(root, "more", image=repeated_slices()),
    "flat-picture": lambda root: add_more(root, "more", image=flat_slices(2)),
    "no-test": lambda root: edit_rows(root, lambda rows: [row.update(split="val") for row in rows[12:]]),
}
# What cannot come alone: the same fault seen from another side.
COMPANIONS = {
    "missing-picture": {"unreadable"},
    "same-picture-in-two-splits": {"same-volume"},
    "same-picture-of-two-patients": {"same-volume"},
    "same-picture-in-two-data-sets": {"same-volume", "empty-split", "no-test"},
    "patient-in-two-data-sets": {"empty-split", "no-test"},
    "no-contrast": {"flat-picture"},
    "empty-split": {"no-test"},
    "other-plane": {"no-label"},
    "value-never-occurs": {"target-absent", "target-not-validated"},
}
