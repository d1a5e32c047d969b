"""The same day through ``monailabel.client.MONAILabelClient``, which is what 3D Slicer's module calls."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from monailabel.client import MONAILabelClient  # noqa: E402

from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE, scan  # noqa: E402
from tests.label.day import write_block, write_studies  # noqa: E402
from tests.label.live_server import Server, running  # noqa: E402

MODEL = "boltzformer"
SURE = {"threshold": 0.3, "presence": False}
_TRAINED_S = 600


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real server."""
    studies, folder = tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("client")
    write_studies(studies)
    with running(studies, folder, {"checkpoint": checkpoint, "modality": "CT"}) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As 3D Slicer makes it."""
    return MONAILabelClient(server.url, tmpdir=str(tmp_path_factory.mktemp("replies")), client_id="user-xyz")


def voxels(file: str) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)


def test_info(client: Any) -> None:
    info = client.info()
    assert info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["config"]["prompts"] == "liver; left kidney"
    assert not client.auth_enabled()


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_prompts_as_slicer_sends_them(client: Any, server: Server, extension: str) -> None:
    """The options of its table are one text with ``;`` and plain values; it asks for .nrrd."""
    params = {"prompts": "left kidney; liver ;a bright block", "result_extension": extension, "threshold": "0.3"}
    file, reply = client.infer(MODEL, "second", {**params, "presence": False})
    assert file.endswith(extension)
    assert [each["prompt"] for each in reply["findings"]] == ["left kidney", "liver", "a bright block"]
    if extension == ".nii.gz":
        labels = voxels(file)
        assert labels.shape == SHAPE
        assert set(np.unique(labels)) - {0} == set(reply["label_names"].values())
    assert client.infer(MODEL, "second", {"prompts": "spleen", "window": "abdomen"})[1]["cached"] is True


def test_a_mistake_is_an_error_with_a_reason(client: Any) -> None:
    with pytest.raises(Exception, match="threshold should be a valid number") as caught:
        client.infer(MODEL, "second", {"prompts": "liver", "threshold": "high"})
    assert type(caught.value).__name__ == "MONAILabelClientException"


def test_an_uploaded_scan_and_a_session(client: Any, tmp_path: Path) -> None:
    file = tmp_path / "visit.nii.gz"
    write_image_file(scan(7), AFFINE, file)
    client.upload_image(str(file), "visit 7")
    assert "visit 7" in client.datastore()["objects"]
    stored = voxels(client.infer(MODEL, "visit 7", {"prompts": "liver", **SURE})[0])
    session = client.create_session(str(file))["session_id"]
    assert client.get_session(session)
    of_session = client.infer(MODEL, "", {"prompts": "liver", **SURE}, session_id=session)[0]
    assert np.array_equal(voxels(of_session), stored)
    client.remove_session(session)
    of_file = client.infer(MODEL, "", {"prompts": "liver", **SURE}, file=str(file))[0]
    assert np.array_equal(voxels(of_file), stored)


def test_a_corrected_label_is_learned(client: Any, tmp_path: Path) -> None:
    block = write_block(tmp_path / "label.nii.gz", 2)
    sample = client.next_sample("first", {})
    assert {"id", "path"} <= set(sample)
    client.save_label("first", str(block), params={"label_info": [{"name": "Bright Block", "idx": 2}]})
    assert np.array_equal(voxels(client.download_label("first", "final")), voxels(str(block)))

    assert client.train_start(MODEL, {"epochs": 1})["status"] in ("SUBMITTED", "RUNNING")
    end = time.monotonic() + _TRAINED_S
    while client.train_status()["status"] in ("SUBMITTED", "RUNNING") and time.monotonic() < end:
        time.sleep(0.2)
    assert client.train_status()["status"] == "DONE"
    assert not client.train_status(check_if_running=True)
    assert client.info()["models"][MODEL]["config"]["prompts"] == "liver; left kidney; Bright Block"
    reply = client.infer(MODEL, "second", {"prompts": "Bright Block", **SURE})[1]
    assert reply["findings"][0]["prompt"] == "Bright Block"
    assert client.next_sample("uncertainty", {})["id"] != "first"
