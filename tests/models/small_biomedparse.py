"""A model folder of BiomedParse v2's form with random weights, everything small, that keeps its masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from boltzformer_monai.models.catalogue import CATALOGUE
from boltzformer_monai.models.folder import save_model
from boltzformer_monai.networks import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description

SMALL: dict[str, Any] = {
    "backbone": "tiny", "backbone_settings": {}, "normalise_features": False,
    "image_size": 64, "dim": 32, "heads": 4, "hidden": 48, "queries": 6,
    "layers": 3, "pixel_layers": 1, "text_width": 32, "text_layers": 1, "text_heads": 4,
    "decoder_settings": {"edge_queries": 2, "attend_padding": True},
}  # fmt: skip
LICENCE = CATALOGUE["biomedparse_v2"].licence
# As a conversion of the published weights describes them.
DATA: dict[str, Any] = {
    "protocol": "biomedparse", "targets": [], "modalities": ["CT", "MR", "US", "PET"], "licence": LICENCE.as_dict(),
}  # fmt: skip


def write_small_biomedparse(folder: Path) -> Path:
    """Write it: masks are neither empty nor full, and every object is said to exist."""
    torch.manual_seed(0)
    config = network_config("biomedparse_v2", **SMALL)
    network = create_boltzformer(config)
    with torch.no_grad():
        network.decoder.query_decoder.mask_head.layers[-1].weight.mul_(30)
        network.decoder.presence.head.bias.fill_(4)
    save_model({"model": network.state_dict(), "description": Description(config, DATA).state_dict()}, folder)
    return folder
