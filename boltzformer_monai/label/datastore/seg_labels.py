"""Convert between named label maps and DICOM SEG on the grid of their scan, and list their lesions as DICOM SR."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from boltzformer_monai import __version__
from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import VolumeError
from boltzformer_monai.findings.lesions import find_lesions
from boltzformer_monai.findings.structured_report import ReportedTarget, write_structured_report
from boltzformer_monai.inferers.prompt_codes import segment_code
from boltzformer_monai.inferers.result_caveats import about, in_doubt, remark, seg_series
from boltzformer_monai.io.dicom.seg_writer import SegmentCode, write_dicom_seg
from boltzformer_monai.io.segmentation import Segmentation, read_segmentation
from boltzformer_monai.io.volume import Volume

_MAX_VALUE = 255


def read_label(path: Path, image: Volume, names: Mapping[int, str]) -> tuple[np.ndarray, dict[int, str]]:
    """Read an annotation of any format as a label map.

    Args:
        path: label map, .seg.nrrd or DICOM SEG; or ``.bin``: one byte a voxel in Fortran order, as OHIF sends them.
        image: the scan.
        names: value → name; missing ones are taken from the file, else ``label 3``.

    Returns:
        ``(I, J, K)`` uint8 in the axes of the image, where the smaller of overlapping segments wins, and the name of
        each value that occurs.

    Raises:
        VolumeError: damaged, not on the grid of the image, or more than 255 segments.
    """
    annotation = _raw(path, image) if path.suffix == ".bin" else read_segmentation(path, image)
    array = annotation.volume.array
    named: dict[int, str] = {}
    if annotation.segments is None:
        if int(array.max()) > _MAX_VALUE:
            raise _too_many(path, int(array.max()))
        values = np.flatnonzero(np.bincount(array.ravel()))
        labels = array
        named = {int(value): names.get(int(value), f"label {value}") for value in values if value}
    else:
        labels = np.zeros(array.shape, np.uint16)
        counts = np.bincount(array.ravel())
        members = {
            int(number): [int(value) for value in text.split("+")] for number, text in annotation.segments.items()
        }
        sizes = {number: sum(counts[value] for value in values) for number, values in members.items()}
        for number in sorted((each for each in sizes if sizes[each]), key=lambda each: -sizes[each]):
            labels[np.isin(array, members[number])] = number
            title = annotation.titles.get(str(number), "").strip()
            named[number] = names.get(number) or title or f"label {number}"
    if max(named, default=0) > _MAX_VALUE:
        raise _too_many(path, max(named))
    return labels.astype(np.uint8), named


def write_label_as_seg(
    labels: np.ndarray,
    names: Mapping[int, str],
    image: Volume,
    path: Path,
    *,
    scan: Path,
    caveats: Sequence[Caveat] | None,
) -> None:
    """Write a label map as DICOM SEG: one segment for each value, coded by its name, with its caveats.

    Args:
        labels: ``(I, J, K)`` on the grid of the image.
        names: value → name.
        image: the scan.
        path: of the SEG.
        scan: folder of the series.
        caveats: of the model's result; None for a label that a person has reviewed.

    Raises:
        VolumeError: the label map is empty, or no SEG of this series can be written.
    """

    of_model = caveats or ()

    def masks() -> Iterator[tuple[str, SegmentCode | None, np.ndarray]]:
        for value, name in sorted(names.items()):
            yield name, segment_code(name, known=not in_doubt(about(of_model, name))), labels == value

    write_dicom_seg(
        path,
        scan=scan,
        masks=masks(),
        grid=image,
        algorithm="BoltzFormer",
        version=__version__,
        description="Corrected segmentation" if caveats is None else seg_series(of_model),
        made="SEMIAUTOMATIC" if caveats is None else "AUTOMATIC",
        remarks={name: remark(of_model, name) for name in names.values()},
    )


def write_label_as_sr(
    labels: np.ndarray,
    names: Mapping[int, str],
    image: Volume,
    path: Path,
    *,
    scan: Path,
    seg: Path,
    caveats: Sequence[Caveat] | None,
) -> None:
    """Write the lesions of a label map as DICOM SR that refers to its DICOM SEG; arguments as above.

    Raises:
        VolumeError: no SR of this series can be written.
    """
    present = [value for value in sorted(names) if (labels == value).any()]
    targets = [
        ReportedTarget(names[value], find_lesions(labels == value, image), segment=number)
        for number, value in enumerate(present, 1)
    ]
    write_structured_report(
        path, scan=scan, grid=image, targets=targets, seg=seg, algorithm="BoltzFormer", version=__version__,
        remarks=["Research use only", *(each.text for each in caveats or ())],
    )  # fmt: skip


def _too_many(path: Path, value: int) -> VolumeError:
    msg = f"{path}: label values up to {value}; a label map of this server holds 1 to {_MAX_VALUE}"
    return VolumeError(msg, reason="labels")


def _raw(path: Path, image: Volume) -> Segmentation:
    size = path.stat().st_size
    if size != image.array.size:
        msg = f"{path}: has {size} bytes, but the scan has {image.array.size} voxels; send one byte for each"
        raise VolumeError(msg, reason="grid")
    content = np.fromfile(path, np.uint8)
    return Segmentation(Volume(content.reshape(image.shape, order="F"), image.affine, source=str(path)))
