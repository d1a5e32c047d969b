"""Scans of another modality than CT and MR, and scans that state none: DICOM, and MetaImage, which can state it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.inferers.segmenter import LoadVolumed
from boltzformer_monai.io import read_volume
from tests.io.conftest import FileWriter, SeriesWriter


@pytest.mark.parametrize("stated", ["PT", "US", "NM", "XA", "CR", "MG", "OT"])
@pytest.mark.parametrize("given", [None, "CT", "MR"])
def test_a_scan_of_another_modality_is_refused(write_series: SeriesWriter, stated: str, given: str | None) -> None:
    folder = write_series(np.zeros((3, 4, 4)), modality=stated)[0].parent
    with pytest.raises(VolumeError, match=f"say {stated}, which is neither CT nor MR") as caught:
        read_volume(folder, modality=given)
    assert caught.value.reason == "modality"
    with pytest.raises(VolumeError, match=f"say {stated}"):
        LoadVolumed(modality=given)({"image": folder})


def test_an_enhanced_pet_is_refused(write_enhanced: FileWriter) -> None:
    path = write_enhanced(np.zeros((3, 4, 4)), np.arange(3)[:, None] * (0.0, 0.0, 2.0), modality="PT")
    with pytest.raises(VolumeError, match="say PT"):
        read_volume(path, modality="CT")


def unstated(write_series: SeriesWriter, sop_class: str, *, rescaled: bool = True) -> Path:
    def change(dataset: Any, index: int) -> None:
        del dataset.Modality
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
        if not rescaled:
            del dataset.RescaleSlope, dataset.RescaleIntercept

    return write_series(np.zeros((3, 4, 4)), change=change)[0].parent


def test_a_scan_that_states_none_is_what_the_user_says(write_series: SeriesWriter) -> None:
    folder = unstated(write_series, "7")
    assert read_volume(folder).modality == "unknown"
    assert read_volume(folder, modality="CTA").modality == "CT"
    assert read_volume(folder, modality="T1w").modality == "MR"


def test_the_kind_of_object_states_it_too(write_series: SeriesWriter) -> None:
    with pytest.raises(VolumeError, match="say PT"):
        read_volume(unstated(write_series, "128"), modality="CT")


def test_a_ct_by_the_users_word_has_hounsfield_units_too(write_series: SeriesWriter) -> None:
    folder = unstated(write_series, "7", rescaled=False)
    with pytest.raises(VolumeError, match="no Hounsfield units"):
        read_volume(folder, modality="CT")
    assert read_volume(folder, modality="MR").modality == "MR"


def metaimage(folder: Path, stated: str) -> Path:
    path = folder / "scan.mha"
    header = "ObjectType = Image\nNDims = 3\nAnatomicalOrientation = RAI\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    header += f"Offset = 0 0 0\nElementSpacing = 1 1 2\nDimSize = 4 4 3\nElementType = MET_SHORT\n{stated}"
    path.write_bytes(header.encode() + b"ElementDataFile = LOCAL\n" + np.arange(48, dtype="<i2").tobytes())
    return path


@pytest.mark.parametrize("code", ["NM", "US", "PET", "OTHER"])
@pytest.mark.parametrize("given", [None, "CT"])
def test_a_metaimage_of_another_modality_is_refused(tmp_path: Path, code: str, given: str | None) -> None:
    with pytest.raises(VolumeError, match="its header says .*, which is neither CT nor MR"):
        read_volume(metaimage(tmp_path, f"Modality = MET_MOD_{code}\n"), modality=given)


def test_a_metaimage_says_ct_mr_or_nothing(tmp_path: Path) -> None:
    for code, modality in (("CT", "CT"), ("MR", "MR"), ("UNKNOWN", "unknown")):
        assert read_volume(metaimage(tmp_path, f"Modality = MET_MOD_{code}\n")).modality == modality
    assert read_volume(metaimage(tmp_path, "")).modality == "unknown"
    with pytest.raises(VolumeError, match="says MR, but CT was asked for"):
        read_volume(metaimage(tmp_path, "Modality = MET_MOD_MR\n"), modality="CT")
