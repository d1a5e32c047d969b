"""A small labelled volume, and what puts it into a slice data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boltzformer_monai.data.slices.writer import AddedVolume, SliceWriter
from boltzformer_monai.io.volume import Volume

AFFINE = np.array([[-0.8, 0, 0, 10], [0, 0.9, 0, -5], [0, 0, 5, 2], [0, 0, 0, 1]], float)  # LAS
LABELS = {1: "liver", "2": "kidney right", "1+2": "viscera", 9: "spleen"}


def make_volume(modality: str = "CT", seed: int = 0) -> tuple[Volume, Volume]:
    rng = np.random.default_rng(seed)
    image = Volume(rng.normal(40, 150, (12, 10, 6)).astype(np.float32), AFFINE, modality=modality, source="scan")
    values = np.zeros((12, 10, 6), np.uint8)
    values[6:9, 2:5, 1:4] = 1
    values[0:2, 0:2, 3] = 2
    return image, Volume(values, AFFINE, source="label")


def add(writer: SliceWriter, volume_id: str = "case1", **changes: object) -> AddedVolume:
    image, label = make_volume()
    settings = {"volume_id": volume_id, "patient": volume_id, "site": "abdomen", **changes}
    return writer.add_volume(
        settings.pop("image", image), settings.pop("label", label), settings.pop("labels", LABELS), **settings
    )


def one_volume(root: Path, **changes: object) -> Path:
    """Make a data set of one volume."""
    add(SliceWriter(root, name="unit"), **changes)
    return root


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a data set with its bytes."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
