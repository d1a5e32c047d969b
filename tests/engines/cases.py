"""A slice data set small enough to train on in a test."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boltzformer_monai.data.slices.writer import SliceWriter
from boltzformer_monai.io.volume import Volume

LABELS = {1: "liver", 2: "spleen", "1+2": "viscera", 9: "stomach"}


def write_dataset(root: Path, *, patients: int = 3, slices: int = 2, labelled: bool = True, val: int = 0) -> Path:
    """``patients`` volumes of 32×32 pixels: liver in all slices, spleen in the first, stomach nowhere; val is one."""
    rng = np.random.default_rng(0)
    writer = SliceWriter(root, name="unit")
    for number in range(patients):
        affine = np.diag([-2.0, -2.0, 5.0, 1.0])
        values = np.zeros((32, 32, slices), np.uint8)
        values[4:14, 6:16] = 1
        values[20:26, 20:26, 0] = 2
        hounsfield = rng.normal(0, 30, values.shape) + 100.0 * (values > 0)
        writer.add_volume(
            Volume(hounsfield.astype(np.float32), affine, modality="CT", source="scan"),
            Volume(values, affine, source="label") if labelled else None,
            LABELS if labelled else {},
            volume_id=f"case{number}",
            patient=f"patient{number}",
            site="abdomen",
            split="val" if number == val else "train",
        )
    return root
