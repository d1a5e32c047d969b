"""DICOM series with one slice spoilt in every way that scanners, archives and networks know: refused, with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.io.dicom.test_read import STACK, SeriesWriter, refusal


def spoil_orientation(dataset: Any) -> None:
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]


def spoil_size(dataset: Any) -> None:
    dataset.Rows, dataset.Columns = dataset.Columns, dataset.Rows


def spoil_spacing(dataset: Any) -> None:
    dataset.PixelSpacing = [0.8, 0.61]


def spoil_colour(dataset: Any) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.PixelData = dataset.PixelData * 3


def spoil_frames(dataset: Any) -> None:
    dataset.NumberOfFrames = 2
    dataset.PixelData = dataset.PixelData * 2


def spoil_position(dataset: Any) -> None:
    del dataset.ImagePositionPatient


def spoil_rescale(dataset: Any) -> None:
    del dataset.RescaleIntercept


def spoil_slope(dataset: Any) -> None:
    dataset.RescaleSlope = 0


def spoil_duplicate(dataset: Any) -> None:
    dataset.ImagePositionPatient = [-100, -50, 10]


def spoil_pixels(dataset: Any) -> None:
    dataset.PixelData = dataset.PixelData[:-8]


def spoil_missing_pixels(dataset: Any) -> None:
    del dataset.PixelData


def spoil_palette(dataset: Any) -> None:
    dataset.PhotometricInterpretation = "PALETTE COLOR"


def spoil_mosaic(dataset: Any) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]


def spoil_localizer(dataset: Any) -> None:
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def spoil_huge_slope(dataset: Any) -> None:
    dataset.RescaleSlope = "1e300"


def spoil_lookup(dataset: Any) -> None:
    dataset.ModalityLUTSequence = [type(dataset)()]
    dataset.ModalityLUTSequence[0].ModalityLUTType = "HU"


def _encapsulate(dataset: Any, syntax: str, stream: bytes) -> None:
    import pydicom

    dataset.PixelData = pydicom.encaps.encapsulate([stream])
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)


def spoil_codec(dataset: Any) -> None:
    _encapsulate(dataset, "1.2.840.10008.1.2.4.100", b"a film, not a picture")


def spoil_private_syntax(dataset: Any) -> None:
    import pydicom

    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID("1.2.840.113619.5.2")  # GE's own


def spoil_stream(dataset: Any) -> None:
    _encapsulate(dataset, "1.2.840.10008.1.2.4.90", b"damaged on the way")


def spoil_fragment(dataset: Any) -> None:
    _encapsulate(dataset, "1.2.840.10008.1.2.5", bytes(64))
    first_item = 8  # after the offset table, which is empty
    value = bytearray(dataset.PixelData)
    value[first_item + 4 : first_item + 8] = (0xF0000000).to_bytes(4, "little")
    dataset.PixelData = bytes(value)


def spoil_modality(dataset: Any) -> None:
    dataset.Modality = "PT"


def spoil_frame_of_reference(dataset: Any) -> None:
    dataset.FrameOfReferenceUID = "1.2.3.10"


def spoil_patient(dataset: Any) -> None:
    dataset.PatientID = "secret-identity"


@pytest.mark.parametrize(
    ("spoil", "words", "reason"),
    [
        (spoil_orientation, "different orientations", "orientation"),
        (spoil_size, "4x3 and 3x4 pixels", "sizes"),
        (spoil_spacing, "pixel spacings", "pixel spacing"),
        (spoil_colour, "colour image ('RGB')", "colour"),
        (spoil_palette, "colour image ('PALETTE COLOR')", "colour"),
        (spoil_mosaic, "dcm2niix", "mosaic"),
        (spoil_localizer, "localizer", "localizer"),
        (spoil_frames, "multi-frame object (2 frames)", "no geometry"),
        (spoil_position, "ImagePositionPatient", "no geometry"),
        (spoil_rescale, "no Hounsfield units", "no rescale"),
        (spoil_slope, "RescaleSlope", "no rescale"),
        (spoil_huge_slope, "not finite", "not finite"),
        (spoil_lookup, "Modality LUT", "lookup table"),
        (spoil_duplicate, "same position", "same position"),
        (spoil_pixels, "end early", "truncated"),
        (spoil_missing_pixels, "missing", "truncated"),
        (spoil_codec, "neither pydicom nor SimpleITK", "codec"),
        (spoil_private_syntax, "which no decoder here knows", "codec"),
        (spoil_stream, "JPEG 2000", "damaged"),
        (spoil_fragment, "end early", "truncated"),
        (spoil_patient, "differ in patient id", "several patients"),
        (spoil_modality, "differ in modality", "mixed modalities"),
        (spoil_frame_of_reference, "differ in frame of reference", "several frames of reference"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom on pixel data that do not fit
def test_one_bad_slice_is_named(
    write_series: SeriesWriter, spoil: Callable[[Any], None], words: str, reason: str
) -> None:
    def change(dataset: Any, index: int) -> None:
        if index == 2:
            spoil(dataset)

    paths = write_series(STACK, change=change)
    message = refusal(paths[0].parent, reason=reason)
    assert words in message
    assert paths[2].name in message
    assert "secret-identity" not in message


def test_a_ct_localizer_is_no_slice(write_series: SeriesWriter) -> None:
    folder = write_series(STACK[:1], change=lambda dataset, index: spoil_localizer(dataset))[0].parent
    assert "projection" in refusal(folder, reason="localizer")


def test_a_folder_without_slices_says_what_it_holds(write_series: SeriesWriter, tmp_path: Path) -> None:
    def change(dataset: Any, index: int) -> None:
        for name in ("Rows", "Columns", "PixelData"):
            delattr(dataset, name)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
        dataset.Modality = "RTSTRUCT"

    path = write_series(STACK[:2], change=change)[0]
    assert "only 2 RT Structure Set;" in refusal(path.parent, reason="not an image")
    assert "is no scan but a DICOM RT Structure Set" in refusal(path, reason="not an image")
    (tmp_path / "niftis").mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "labels.json"):
        (tmp_path / "niftis" / name).write_bytes(b"any")
    message = refusal(tmp_path / "niftis", reason="unsupported format")
    assert "holds no DICOM slices but 2 NIfTI files; pass one of them" in message


def test_a_damaged_header_is_not_quoted(write_series: SeriesWriter) -> None:
    path = write_series(STACK[:1])[0]
    whole = path.read_bytes()
    length = whole.index(b"UL\x04\x00") + 2  # of the first element, which now swallows the header
    path.write_bytes(whole[:length] + (601).to_bytes(2, "little") + whole[length + 2 :])
    assert b"phantom-1" in whole[length : length + 601]
    assert "phantom-1" not in refusal(path.parent, reason="damaged")
