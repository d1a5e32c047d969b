"""What may be an id or a tag, and what a message may show."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from tests.needs import need_module

need_module("monailabel")

from starlette.datastructures import UploadFile  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402

from boltzformer_monai.errors import ConfigError, VolumeError  # noqa: E402
from boltzformer_monai.label.safe_ids import check_id, check_tag  # noqa: E402
from boltzformer_monai.label.server.error_responses import ErrorResponses  # noqa: E402
from boltzformer_monai.label.server.uploads import upload_suffix  # noqa: E402


@pytest.mark.parametrize("name", ["a", "scan_1", "Müller, A (2) v1.0+x=3@b", "1.2.840.1", "x" * 128, "患者 7"])
def test_ordinary_names_are_ids(name: str) -> None:
    assert check_id(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/etc/passwd", "a..b", "-x", ".hidden", "a\nb", "a\0", "x" * 129, "a ", "$x"]
)
def test_what_could_lead_elsewhere_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match="not a valid id"):
        check_id(name)


@pytest.mark.parametrize("tag", ["", "../x", "a/b", "a b", ".x", "ä", "x" * 65])
def test_tags(tag: str) -> None:
    assert check_tag("final-2") == "final-2"
    with pytest.raises(ConfigError):
        check_tag(tag)


def test_messages_show_no_folder_of_the_server() -> None:
    replies = ErrorResponses([Path("/data/Ward 3/new scans"), Path("/data/Ward 3/new scans/.boltzformer")])
    shown = {
        "/data/Ward 3/new scans/a.nii.gz: damaged\n at byte 3": "a.nii.gz: damaged? at byte 3",
        "/data/Ward 3/new scans/.boltzformer/model/model.pt: no": "model/model.pt: no",
        "cannot read /etc/hosts and /var/lib/x y": "cannot read hosts and x y",
        "POST /boltzformer/api/segment, DELETE /train/, GET /datastore/?output=all": (
            "POST /boltzformer/api/segment, DELETE /train/, GET /datastore/?output=all"
        ),
        "no:/etc/x //a//b (/c/d)": "no:x b (d)",
        "a ratio of 1/2, see https://example.org/a": "a ratio of 1/2, see https://example.org/a",
    }
    for message, told in shown.items():
        assert replies.describe(VolumeError(message)) == (422, told)
    assert replies.describe(RuntimeError("a bug")) is None
    replies = ErrorResponses(["/", "/data"])
    for message, told in {
        "/datastore/cache/images/1.json: no": "1.json: no",
        "/mnt/data/x.nii: no": "x.nii: no",
        "see https://example.org/a": "see https://example.org/a",
    }.items():
        assert replies.describe(VolumeError(message)) == (422, told)


@pytest.mark.parametrize("name", ["患" * 128, "é" * 113, "😀" * 57])
def test_ids_fit_into_file_names(name: str) -> None:
    with pytest.raises(ConfigError, match="bytes is too long for a file's name|not a valid id"):
        check_id(name)
    assert check_id("患" * 74) == "患" * 74


def test_replies_name_files_and_not_their_folders() -> None:
    replies = ErrorResponses([Path("/data/scans")])
    told = {
        "image": "/data/scans/a b.nii.gz",
        "list": [{"label": "/data/scans/labels/final/a.nii.gz"}, 3, None, 0.5, True],
        "details": "reading /data/scans/a.nii.gz took 3 s",
        "name": "lesion/left",
    }
    assert replies.without_paths(told) == {
        "image": "a b.nii.gz",
        "list": [{"label": "a.nii.gz"}, 3, None, 0.5, True],
        "details": "reading a.nii.gz took 3 s",
        "name": "lesion/left",
    }


def test_what_no_memory_or_file_name_can_hold_is_the_requests_fault(tmp_path: Path) -> None:
    replies = ErrorResponses([])
    assert (replies.describe(MemoryError()) or (0,))[0] == 413
    with pytest.raises(OSError) as error:  # noqa: PT011 (the number is what counts)
        (tmp_path / ("x" * 300)).open()
    assert (replies.describe(error.value) or (0,))[0] == 400


@pytest.mark.parametrize("zeros", [0, 1, 1 << 20])
def test_an_upload_is_measured_behind_zeros_too(zeros: int) -> None:
    content = gzip.compress(bytes(352)) + bytes(zeros) + gzip.compress(bytes(3_000_000))
    assert upload_suffix(UploadFile(io.BytesIO(content), filename="a.nii.gz"), limit=3_000_352) == ".nii.gz"
    with pytest.raises(HTTPException) as caught:
        upload_suffix(UploadFile(io.BytesIO(content), filename="a.nii.gz"), limit=1_000_000)
    assert caught.value.status_code == 413
