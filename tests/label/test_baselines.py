"""The label server's infer task with the decoders that the paper compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.data.windows import NAMED_WINDOWS  # noqa: E402
from boltzformer_monai.label.infer_task import BoltzFormerInferTask  # noqa: E402
from boltzformer_monai.label.server_settings import ServerSettings  # noqa: E402
from boltzformer_monai.label.service import SegmentService  # noqa: E402
from boltzformer_monai.networks import create_boltzformer, network_config  # noqa: E402
from boltzformer_monai.networks.weights import Description, save_checkpoint  # noqa: E402
from tests.label.conftest import SHAPE  # noqa: E402
from tests.networks.cases import SMALL, randomise  # noqa: E402


@pytest.mark.parametrize("decoder", ["sam", "sam2", "seem"])
def test_it_answers(decoder: str, studies: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = network_config("tiny", **{**SMALL, "decoder": decoder, "mask_bias": 0.0, "presence": True})
    window = NAMED_WINDOWS["abdomen"].to_dict()
    names = ("liver", "left kidney")
    targets = [{"target": name, "modality": "CT", "site": "abdomen", "window": window} for name in names]
    network = randomise(create_boltzformer(config))
    described = Description(config, {"plane": "axial", "targets": targets}).state_dict()
    save_checkpoint({"model": network.state_dict(), "description": described}, tmp_path / "model.pt")
    conf = {"checkpoint": str(tmp_path / "model.pt"), "modality": "CT", "device": "cpu"}
    conf["workspace"] = str(tmp_path / "workspace")
    task = BoltzFormerInferTask(SegmentService(ServerSettings.from_conf(conf, studies=str(studies))))
    request: dict[str, Any] = {"image": str(studies / "scan_0.nii.gz"), "threshold": 0.05, "presence": False}
    together = answer(task, {**request, "prompts": "; ".join(names)})
    alone = answer(task, {**request, "prompts": names[0]})
    assert together[0].shape == SHAPE
    assert [each["prompt"] for each in together[1]["findings"]] == [*names]
    assert together[1]["findings"][0]["voxels"] == alone[1]["findings"][0]["voxels"] > 0
    assert all(0 < each["presence"] < 1 for each in together[1]["findings"])


def answer(task: BoltzFormerInferTask, request: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    path, params = task(request)
    array = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    Path(str(path)).unlink()
    return array, params
