"""The slice data set on disk: names and columns, shared by reader and writer.

::

    OUT/dataset.json     format, version, name, volumes {id: patient, modality, site, plane, shape, affine, …}
    OUT/manifest.csv     a row per slice and annotated target, or a row per slice where there is no label
    OUT/volumes/<volume>.json  the record of one volume, written last: it makes the volume complete
    OUT/images/<volume>_<plane>_<index>.png   uint8 grey, native resolution, once per slice
    OUT/labels/<volume>_<plane>_<index>.png   uint8 or uint16 label values, same size
    OUT/report.json      scans that the last run of boltzformer slice accepted, and why it refused others

The two tables are made of the records, in the order of the volume ids.

``dataset.json`` names every volume with its geometry: the slices of a scan along one plane. Where a scan was sliced
along several, each plane is a volume, and ``scan`` names the scan that it is of; else that is the volume's own id.
``"in_mm": false`` says that the volume is a picture without a scale: a millimetre stands for every pixel.
``value`` in the manifest is a label value or several joined by
``+``; ``prompts`` is a JSON list, ``spacing`` "row x col x slice" in mm, ``window`` JSON, ``area_fraction`` the
target's share of the slice's pixels. ``patient`` is a keyed hash; nothing else identifies a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FORMAT = "boltzformer-slices"
VERSION = 2
DATASET_FILE = "dataset.json"
MANIFEST_FILE = "manifest.csv"
RECORDS_FOLDER = "volumes"
REPORT_FILE = "report.json"
SPLITS = ("train", "val", "test")
COLUMNS = (
    "image", "label", "value", "target", "prompts", "modality", "site", "plane",
    "slice_index", "spacing", "window", "area_fraction", "patient", "volume", "split",
)  # fmt: skip

VOLUME_FIELDS = (
    "patient", "modality", "site", "plane", "shape", "affine",
    "spacing", "window", "targets", "slices", "every", "neighbours", "min_area", "complete",
)  # fmt: skip


def scan_of(volume_id: str, entry: Mapping[str, Any]) -> str:
    """The scan that a volume of ``dataset.json`` is a plane of."""
    return str(entry.get("scan", volume_id))


def slice_name(volume_id: str, plane: str, index: int) -> str:
    """File name of a slice, the same in ``images/`` and ``labels/``."""
    return f"{volume_id}_{plane}_{index:04d}.png"


MOST_SLICES = 1 << 17
"""Of a volume; a table that claims more is damaged."""


def stored_slices(slices: int, every: int, neighbours: int) -> set[int]:
    """Indices of a volume's slices on disk: every n-th one from 0, with its neighbours on either side."""

    def wanted(index: int) -> bool:
        before = index % every
        after = every - before
        return before <= neighbours or (after <= neighbours and index + after < slices)

    return {index for index in range(slices) if wanted(index)}
