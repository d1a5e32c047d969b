"""Slices on disk and rows that name them, without a data set around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from boltzformer_monai.data.slices.reader import SliceRow
from boltzformer_monai.data.windows import Window


def make_row(
    target: str = "liver",
    *,
    values: tuple[int, ...] = (1,),
    present: bool = True,
    prompts: tuple[str, ...] = (),
    image: Path = Path("images/a.png"),
    label: Path | None = Path("labels/a.png"),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> SliceRow:
    return SliceRow(
        image=image,
        label=label,
        label_values=values,
        target=target,
        prompts=prompts or (f"{target} in abdominal CT", target),
        modality="CT",
        site="abdomen",
        plane="axial",
        slice_index=0,
        spacing=spacing,
        window=Window(40, 400),
        area_fraction=0.1 if present else 0.0,
        patient="p",
        volume="v",
        split="train",
    )


def write_slice(folder: Path, image: np.ndarray, label: np.ndarray | None, **row: object) -> SliceRow:
    """A row whose pictures are on disk."""
    paths = {"image": folder / "image.png", "label": None if label is None else folder / "label.png"}
    Image.fromarray(image).save(paths["image"])
    if label is not None:
        Image.fromarray(label).save(paths["label"])
    return make_row(**paths, **row)
