"""Small scans, label maps and Decathlon tasks on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from boltzformer_monai.io.read import write_label_map
from boltzformer_monai.io.volume import Volume

AFFINE = np.diag([-0.8, -0.8, 5.0, 1.0])


def write_image(path: Path, *, channels: int = 0, seed: int = 0) -> Path:
    import nibabel as nib

    shape = (10, 8, 4, channels) if channels else (10, 8, 4)
    array = np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def write_label(path: Path, *values: int) -> Path:
    array = np.zeros((10, 8, 4), np.uint8)
    for number, value in enumerate(values):
        array[number * 2, 1:3, 1:3] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    write_label_map(array, Volume(array, AFFINE), path)
    return path


def make_task(
    folder: Path, *, cases: int = 2, task: str = "LITS", modality: tuple[str, ...] = ("CT",),
    labels: tuple[str, ...] = ("liver", "cancer"), channels: int = 0,
) -> Path:  # fmt: skip
    training = []
    for number in range(cases):
        file = f"liver_{number:03d}.nii.gz"
        write_image(folder / "imagesTr" / file, channels=channels, seed=number)
        write_label(folder / "labelsTr" / file, 1, *((2,) if number else ()))
        (folder / "imagesTr" / f"._{file}").write_bytes(b"macOS")
        training += [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in (file, f"._{file}")]
    content = {
        "name": task,
        "modality": {str(number): text for number, text in enumerate(modality)},
        "labels": {"0": "background", **{str(number): text for number, text in enumerate(labels, 1)}},
        "training": training,
        "test": ["./imagesTs/liver_900.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder
