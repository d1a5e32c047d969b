"""Scans in and masks out: every array travels with the affine that says where it lies in the patient."""

from __future__ import annotations

from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume, write_label_map
from boltzformer_monai.io.volume import Volume

__all__ = ["Volume", "read_label_map", "read_volume", "reorient_label", "write_label_map"]
