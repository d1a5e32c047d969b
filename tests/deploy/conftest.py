"""A small model whose masks are neither empty nor full, exported once for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from boltzformer_monai.deploy.parity import made_up_image, reference
from boltzformer_monai.models.folder import save_model
from boltzformer_monai.networks import BoltzFormer, NetworkConfig, create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description
from boltzformer_monai.transforms import PromptTokenizer
from tests.models.conftest import DATA
from tests.networks.cases import SMALL, randomise

TINIEST: dict[str, Any] = {**SMALL, "layers": 2, "presence": True}
"""Tracing takes seconds a layer."""
TEXTS = ("lung nodule", "left kidney in abdominal CT", "liver", "a lesion of the spleen", "aorta")


def balanced(config: NetworkConfig, seed: int = 0) -> BoltzFormer:
    """A network of random weights, in evaluation mode, whose masks cover half of an image and are thought present."""
    torch.manual_seed(seed)
    network = create_boltzformer(config).eval()
    randomise(network, seed)
    image = made_up_image(1, 1, config.image_size)
    found = reference(network, image, PromptTokenizer()(TEXTS[:1]), seed=0).expected
    bias: Any = network.decoder.aggregation.conv.bias  # type: ignore[union-attr]
    with torch.no_grad():
        bias -= 2 * found.logits.median()  # the aggregation halves it
    if found.presence is not None:
        found = reference(network, image, PromptTokenizer()(TEXTS[:1]), seed=0).expected
        with torch.no_grad():
            network.presence.layers[-1].bias += 1 - found.presence.mean()  # type: ignore[operator, union-attr]
    return network


def write_balanced(folder: Path, config: NetworkConfig, **data: Any) -> Path:
    """A model folder of such a network."""
    description = Description(config, {**DATA, "plane": "axial", **data}).state_dict()
    save_model({"model": balanced(config).state_dict(), "description": description}, folder)
    return folder


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_balanced(tmp_path_factory.mktemp("deploy") / "model", network_config("tiny", **TINIEST))


@pytest.fixture(scope="session")
def small_onnx(small_model: Path) -> Path:
    """The same in ONNX."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from boltzformer_monai.deploy.export import export_model

    output = small_model.with_name("onnx")
    export_model(small_model, output, to="onnx", prompts=["The  Spleen"])
    return output
