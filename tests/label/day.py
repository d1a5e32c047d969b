"""Small studies for a day of use: real scans made coarse where they are at hand, and made-up ones beside them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.io.read import read_volume
from tests.label.conftest import AFFINE, SHAPE, scan

REAL = {
    "amos": ("amos_0018/image.nii.gz", (10, 10, 21)),
    "chest": ("lung1_001/image.nii.gz", (10, 10, 17)),
    "torso": ("ts_ct_3mm/image.nii.gz", (2, 2, 10)),
}
MADE_UP = ("first", "second", "third")


def write_studies(folder: Path) -> list[str]:
    """Write the scans and return their ids."""
    shared = Path(os.environ.get("BOLTZFORMER_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    for name, (file, steps) in REAL.items():
        if not (shared / file).is_file():
            continue
        volume = read_volume(shared / file, modality="CT")
        coarse = volume.array[:: steps[0], :: steps[1], :: steps[2]]
        affine = volume.affine.copy()
        affine[:3, :3] *= steps
        write_image_file(np.asarray(np.rint(coarse), np.int16), affine, folder / f"{name}.nii.gz")
    for seed, name in enumerate(MADE_UP):
        write_image_file(scan(seed), AFFINE, folder / f"{name}.nii.gz")
    return sorted(path.name.removesuffix(".nii.gz") for path in folder.glob("*.nii.gz"))


def write_block(path: Path, value: int) -> Path:
    """A corrected label of a made-up scan: its bright block."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:20, 10:24, 1:5] = value
    write_image_file(labels, AFFINE, path)
    return path
