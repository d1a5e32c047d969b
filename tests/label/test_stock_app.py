"""MONAI Label's own ``monaibundle`` app runs the bundle as it is, offline, and its user types the prompts."""

from __future__ import annotations

import io
import json
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.needs import missing, need_module

need_module("monailabel")

import monailabel  # noqa: E402

from boltzformer_monai.data.prompts import split_prompts  # noqa: E402
from boltzformer_monai.inferers import RunSettings, VolumeSegmenter  # noqa: E402
from boltzformer_monai.io.read import read_volume  # noqa: E402
from tests.label.conftest import SHAPE  # noqa: E402
from tests.label.live_server import Server, running  # noqa: E402

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"
OFFLINE = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}


def stock_app() -> Path:
    """Where the package keeps its sample apps, which depends on how it was installed."""
    places = [Path(sysconfig.get_paths()["data"]) / "monailabel" / "sample-apps"]
    packages = Path(monailabel.__file__).parents[1]
    places += [packages.parent / "sample-apps", *packages.glob("monailabel-*.data/data/monailabel/sample-apps")]
    found = next((place / "monaibundle" for place in places if (place / "monaibundle" / "main.py").is_file()), None)
    if found is None:
        missing("this installation of MONAI Label has no sample apps")
    return found


@pytest.fixture(scope="module")
def server(checkpoint: Path, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The stock app with a copy of the bundle, without a way to the network."""
    folder = tmp_path_factory.mktemp("stock")
    app = folder / "monaibundle"
    shutil.copytree(stock_app(), app)
    bundle = app / "model" / "boltzformer"
    shutil.copytree(BUNDLE, bundle, ignore=shutil.ignore_patterns("models", "eval", "__pycache__"))
    (bundle / "models").mkdir()
    shutil.copyfile(checkpoint, bundle / "models" / "model.pt")
    scans = folder / "studies"
    scans.mkdir()
    shutil.copyfile(studies / "scan_0.nii.gz", scans / "scan_0.nii.gz")
    conf = {"models": "boltzformer", "zoo_source": "local", "sam2": "false"}
    with running(scans, folder, conf, app=app, environment=OFFLINE) as server:
        yield server


def label_map(content: bytes) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_bytes(content).dataobj)


def segment(server: Server, **params: Any) -> tuple[np.ndarray, dict[str, Any]]:
    parts = server.infer("scan_0", output="all", result_extension=".nii", **params).parts()
    return label_map(parts["image"]), json.loads(parts["params"])


def test_the_prompt_is_a_text_to_edit(server: Server) -> None:
    model = server.get("/info/").json()["models"]["boltzformer"]
    configured = json.loads((BUNDLE / "configs" / "inference.json").read_text())["displayable_configs"]
    assert model["config"]["prompts"] == configured["prompts"] == "liver; liver lesion"
    assert model["labels"]["first prompt"] == 1


@pytest.mark.slow
def test_what_is_typed_is_what_is_segmented(server: Server, checkpoint: Path, studies: Path) -> None:
    """The same voxels as of our own way, for each prompt; and the other prompt is another mask."""
    segmenter = VolumeSegmenter.from_checkpoint(checkpoint)
    volume = read_volume(studies / "scan_0.nii.gz", modality="CT")
    maps = []
    for prompts in ("left kidney", "liver", "left kidney; liver"):
        labels, params = segment(server, prompts=prompts)
        wanted = segmenter.inferer(RunSettings(prompts=split_prompts(prompts))).label_map(volume, segmenter.network)
        assert labels.shape == SHAPE
        np.testing.assert_array_equal(labels, wanted)
        assert params["label_names"]["second prompt"] == 2
        maps.append(labels)
    assert maps[0].any()
    assert not np.array_equal(maps[0], maps[1])


def test_the_label_map_has_the_asked_type(server: Server) -> None:
    reply = server.infer("scan_0", output="image", result_extension=".nii", result_dtype="uint8", prompts="liver")
    assert reply.status == 200
    assert nibabel.Nifti1Image.from_stream(io.BytesIO(reply.content)).get_data_dtype() == np.uint8
