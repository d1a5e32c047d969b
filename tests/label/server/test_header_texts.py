"""What a stored scan's header says besides geometry stays on the server."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from boltzformer_monai.errors import VolumeError
from boltzformer_monai.io import read_volume
from tests.label.conftest import AFFINE, scan
from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.label.server.header_texts import strip_texts  # noqa: E402

_SECRET = "SCHMIDT^ANNA"


def _nifti(path: Path, kind: Any = nibabel.Nifti1Image, order: str = "<") -> None:
    image = kind(scan(1), AFFINE, kind.header_class(endianness=order))
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = image.header["aux_file"] = image.header["intent_name"] = _SECRET
    if "db_name" in image.header:
        image.header["db_name"] = _SECRET
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", _SECRET.encode()))
    content = image.to_bytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _named_gzip(path: Path) -> None:
    image = nibabel.Nifti1Image(scan(1), AFFINE)
    image.header.set_xyzt_units("mm")
    with path.open("wb") as file, gzip.GzipFile(f"{_SECRET}.nii", "wb", fileobj=file) as packed:
        packed.write(image.to_bytes())


def _itk(path: Path) -> None:
    image = SimpleITK.GetImageFromArray(scan(1).T)
    image.SetSpacing((2.0, 2.0, 5.0))
    image.SetMetaData("PatientsName", _SECRET)
    SimpleITK.WriteImage(image, str(path), useCompression=path.stem == "packed")


_KINDS: dict[str, Callable[[Path], None]] = {
    "a.nii": _nifti,
    "a.nii.gz": _nifti,
    "big.nii": lambda path: _nifti(path, order=">"),
    "two.nii.gz": lambda path: _nifti(path, nibabel.Nifti2Image),
    "named.nii.gz": _named_gzip,
    "plain.nrrd": _itk,
    "packed.nrrd": _itk,
    "plain.mha": _itk,
    "packed.mha": _itk,
}


@pytest.mark.parametrize("name", _KINDS)
def test_the_same_voxels_in_the_same_place_without_a_text(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / name, tmp_path / f"sent-{name}"
    _KINDS[name](source)
    assert _SECRET[:8].encode() in source.read_bytes() + _unpacked(source)
    assert strip_texts(source, target)
    assert _SECRET[:8].encode() not in target.read_bytes() + _unpacked(target)
    before, after = read_volume(source), read_volume(target)
    assert np.array_equal(before.array, after.array)
    assert before.array.dtype == after.array.dtype
    assert np.array_equal(before.affine, after.affine)
    assert not strip_texts(target, tmp_path / f"again-{name}")
    if not name.startswith("two"):  # ITK reads no NIfTI-2
        assert np.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(target))), scan(1).T)


def test_scaled_values_stay_scaled(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(scan(1), AFFINE)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = _SECRET
    image.header.set_slope_inter(2.0, -1024.0)
    content = bytearray(image.to_bytes())
    (tmp_path / "a.nii").write_bytes(content)
    assert strip_texts(tmp_path / "a.nii", tmp_path / "b.nii")
    assert np.array_equal(read_volume(tmp_path / "a.nii").array, read_volume(tmp_path / "b.nii").array)
    assert nibabel.load(tmp_path / "b.nii").dataobj.inter == nibabel.load(tmp_path / "a.nii").dataobj.inter


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.dcm"])
def test_what_cannot_be_read_is_not_sent(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b" + _SECRET.encode() if name.endswith("gz") else _SECRET.encode())
    with pytest.raises(VolumeError):
        strip_texts(tmp_path / name, tmp_path / f"sent-{name}")


def test_neither_route_sends_the_texts(client: Any, studies: Path) -> None:
    path = studies / "named_texts.nii.gz"
    _nifti(path)
    store = client.app.state.boltzformer.datastore()
    store.refresh()
    try:
        for route in ("/datastore/image?image=named_texts", "/boltzformer/api/images/named_texts/scan.nii.gz"):
            reply = client.get(route)
            assert reply.status_code == 200, reply.text
            content = gzip.decompress(reply.content)
            assert _SECRET[:8].encode() not in content
            image = nibabel.Nifti1Image.from_bytes(content)
            assert np.array_equal(np.asarray(image.dataobj), scan(1))
    finally:
        path.unlink()
        store.refresh()


def test_a_copy_that_is_not_sent_is_deleted_too(
    client: Any, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = studies / "more_texts.nii.gz"
    _nifti(path)
    store = client.app.state.boltzformer.datastore()
    store.refresh()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        for route in ("/datastore/image?image=more_texts", "/boltzformer/api/images/more_texts/scan.nii.gz"):
            assert client.get(route, headers={"Range": "bytes=99999999-"}).status_code == 416
            assert client.get(route).status_code == 200
        assert list(tmp_path.iterdir()) == []
    finally:
        path.unlink()
        store.refresh()


def _unpacked(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else b""
