"""A data set recipe of another distribution: each patient's folder holds ``scan.nii.gz`` and ``tumor.csv``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from boltzformer_monai.io.segmentation import Segmentation
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import Option

OPTIONS = (Option("margin", "0", "voxels around each box", choices=("0", "1", "2")),)


@dataclass(frozen=True)  # sliced again when a field changes; picklable, because workers draw it
class Boxes:
    path: Path
    margin: int

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def draw_on(self, image: Volume, *, tolerance: float) -> Segmentation:
        labels = np.zeros(image.shape, np.uint8)
        for row in csv.reader(self.path.open(encoding="utf-8")):
            low, high = np.array(row, int).reshape(2, 3)
            labels[tuple(map(slice, np.maximum(low - self.margin, 0), high + self.margin))] = 1
        return Segmentation(Volume(labels, image.affine, source=str(self.path)), {"1": "liver tumor"})


def cases(folder, *, modality, site, channel, margin):
    return [
        Case(scan.parent.name, scan.parent.name, scan, Boxes(scan.parent / "tumor.csv", int(margin)),
             site or "abdomen", modality=modality or "CT")
        for scan in sorted(folder.glob("*/scan.nii.gz"))
    ]  # fmt: skip
