"""A small studies folder, a checkpoint with random weights, and the app behind MONAI Label's own web application."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.io.formats import write_image_file
from boltzformer_monai.networks import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description
from tests.label.orthanc import Orthanc, orthanc
from tests.needs import need_module

SHAPE = (40, 36, 6)
AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def scan(seed: int) -> np.ndarray:
    """A CT-like picture with a bright block, int16."""
    random = np.random.default_rng(seed)
    array = random.normal(0, 60, SHAPE)
    array[8:20, 10:24, 1:5] += 150
    return np.asarray(array, np.int16)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt`` that claims to know two targets."""
    torch.manual_seed(0)
    config = network_config("tiny", image_size=64, mask_bias=0.0)
    abdomen = NAMED_WINDOWS["abdomen"].to_dict()
    targets = [
        {"target": name, "modality": "CT", "site": "abdomen", "window": abdomen} for name in ("liver", "left kidney")
    ]
    model = create_boltzformer(config)
    with torch.no_grad():  # spread the logits around zero, so that masks are neither empty nor full
        model.decoder.query_decoder.mask_head.layers[-1].weight.mul_(100)
        model.decoder.aggregation.conv.bias.sub_(2.5)
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    description = Description(config, {"plane": "axial", "targets": targets})
    torch.save({"model": model.state_dict(), "description": description.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scans, one of them a link to a file outside."""
    folder = tmp_path_factory.mktemp("studies")
    for number in range(3):
        write_image_file(scan(number), AFFINE, folder / f"scan_{number}.nii.gz")
    outside = tmp_path_factory.mktemp("outside") / "secret.nii.gz"
    write_image_file(scan(9), AFFINE, outside)
    (folder / "linked.nii.gz").symlink_to(outside)
    (folder / "picture.png").write_bytes(b"no scan")  # MONAI Label would list it
    return folder


@pytest.fixture(scope="session")
def client(checkpoint: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The running web application."""
    need_module("monailabel")
    from fastapi.testclient import TestClient
    from monailabel.config import settings

    app_dir = tmp_path_factory.mktemp("app")
    (app_dir / "main.py").write_text("from boltzformer_monai.label.app import BoltzFormerApp\n")
    os.environ.setdefault("PYTHONPATH", "")
    settings.MONAI_LABEL_APP_DIR = str(app_dir)
    settings.MONAI_LABEL_STUDIES = str(studies)
    settings.MONAI_LABEL_APP_CONF = {"checkpoint": str(checkpoint), "modality": "CT", "upload_mb": "1"}
    settings.MONAI_LABEL_SESSION_PATH = str(tmp_path_factory.mktemp("sessions"))
    settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD = False
    from monailabel.app import app

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    from tests.label.browser import chromium

    with chromium() as opened:
        yield opened


@pytest.fixture
def stub() -> Iterator[tuple[str, Any]]:
    """Address of the page before a stand-in for the server, and the stand-in."""
    from tests.label.page_stub import serve_phantoms

    with serve_phantoms() as served:
        yield served


@pytest.fixture(scope="module")
def orthanc_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A DICOMweb server; it ends with the module, since other tests watch what is written near to its files."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def archive(orthanc_server: Orthanc) -> Orthanc:
    """It, empty: the last test's scans are gone."""
    orthanc_server.empty()
    return orthanc_server


@pytest.fixture
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of a DICOMweb server are never taken from memory."""
    monkeypatch.setattr("boltzformer_monai.label.datastore.dicomweb_client.LIST_S", 0.0)
