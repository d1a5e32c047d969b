"""A Decathlon task of a few small scans, and the slice dataset of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from boltzformer_monai.cli import main
from boltzformer_monai.io.formats import write_image_file

SCANS = 5
SPACING = (1.0, 1.0, 1.5)


def write_task(folder: Path, *, shape: tuple[int, int, int] = (24, 28, 20)) -> Path:
    """Bright balls (posterior) beside dark ones (anterior) in noise; posterior to anterior is the second axis."""
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    affine = np.diag([*SPACING, 1.0])
    places = np.indices(shape)
    for number in range(1, SCANS + 1):
        rng = np.random.default_rng(number)
        label = np.zeros(shape, np.uint8)
        for value, middle in ((1, 8), (2, 20)):
            centre = np.array([12, middle, 10])[:, None, None, None] + rng.integers(-1, 2, 3)[:, None, None, None]
            label[((places - centre) ** 2).sum(0) < 25] = value
        image = rng.normal(200, 10, shape) + np.array([0, -60, 60])[label]
        name = f"hippocampus_{number:03d}.nii.gz"
        write_image_file(image.round().astype(np.int16), affine, folder / "imagesTr" / name)
        write_image_file(label, affine, folder / "labelsTr" / name)
    names = [f"hippocampus_{number:03d}.nii.gz" for number in range(1, SCANS + 1)]
    content = {
        "name": "Hippocampus",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": SCANS,
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
        "test": [],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def slice_task(task: Path, slices: Path, *options: str) -> Path:
    """The slice dataset of a task; one scan of five validates."""
    given = ["--recipe", "msd", "--input", str(task), "--output", str(slices), "--val-fraction", "0.2"]
    assert main(["slice", *given, *options]) == 0
    return slices
