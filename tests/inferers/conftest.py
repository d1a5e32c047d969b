"""A small checkpoint with random weights, made as training makes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from boltzformer_monai.networks import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description
from boltzformer_monai.transforms import PromptTokenizer
from tests.networks.cases import SMALL


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.pt`` of an untrained network that claims to know two targets with different windows."""
    from boltzformer_monai.data.windows import NAMED_WINDOWS

    torch.manual_seed(0)
    config = network_config("tiny", **{**SMALL, "presence": True, "mask_bias": 0.0})
    targets = [
        {"target": "left kidney", "modality": "CT", "site": "abdomen", "window": NAMED_WINDOWS["abdomen"].to_dict()},
        {"target": "lung nodule", "modality": "CT", "site": "chest", "window": NAMED_WINDOWS["chest"].to_dict()},
    ]
    description = Description(config, {"plane": "axial", "targets": targets})
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    model = create_boltzformer(config)
    with torch.no_grad():  # spread the logits around zero, so that masks are neither empty nor full
        model.decoder.query_decoder.mask_head.layers[-1].weight.mul_(100)
        prompts = PromptTokenizer()([each["target"] for each in targets])[None]
        model.decoder.aggregation.conv.bias.sub_(model(torch.rand(1, 1, 64, 64), prompts).quantile(0.7))
    torch.save({"model": model.state_dict(), "description": description.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def tokenizer() -> PromptTokenizer:
    """The default one; making it takes a while."""
    return PromptTokenizer()
