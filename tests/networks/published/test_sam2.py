"""SAM 2's original checkpoint, made by renaming a random network's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks import BoltzFormer, create_boltzformer
from boltzformer_monai.networks.published import import_weights, init_from
from tests.networks.cases import SMALL, images
from tests.networks.published.layouts import hiera_name
from tests.networks.test_backbone import SMALL_HIERA

OTHERS = ("memory_attention.norm.weight", "sam_mask_decoder.iou_token.weight", "no_mem_embed", "obj_ptr_proj.bias")


def hiera(seed: int, **overrides: Any) -> BoltzFormer:
    torch.manual_seed(seed)
    settings = {"backbone": "sam2_hiera_tiny", "backbone_settings": SMALL_HIERA, "neck_channels": 8, "in_channels": 3}
    settings |= {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "mask_bias": None}
    return create_boltzformer("tiny", **{**SMALL, **settings, **overrides}).eval()


def sam2_state(network: BoltzFormer) -> dict[str, Tensor]:
    ours = network.backbone.state_dict()
    state = {f"image_encoder.{hiera_name(name)}": weight for name, weight in ours.items()}
    return {**state, **{name: torch.zeros(2) for name in OTHERS}}


def test_trunk_and_neck(tmp_path: Path):
    source, target = hiera(1), hiera(2)
    torch.save({"model": sam2_state(source)}, tmp_path / "sam2.pt")
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    (report,) = init_from(target, {"backbone": tmp_path / "sam2.pt"})
    image = images(1, 64, 3)
    for ours, theirs in zip(target.backbone(image), source.backbone(image), strict=True):
        assert torch.equal(ours, theirs)
    changed = {
        name.split(".")[0] for name, weight in target.state_dict().items() if not torch.equal(weight, before[name])
    }
    assert changed == {"backbone"}
    assert report.parts[0].tensors == len(source.backbone.state_dict())
    assert not report.parts[0].random
    assert "not taken: 2 (SAM 2's memory of other frames)" not in str(report)  # three are of the memory
    assert "3 (SAM 2's memory of other frames), 1 (SAM 2's prompts and masks)" in str(report)


def test_a_network_without_a_neck_takes_the_trunk(tmp_path: Path):
    source, target = hiera(1), hiera(2, neck_channels=None)
    torch.save({"model": sam2_state(source)}, tmp_path / "sam2.pt")
    (report,) = init_from(target, {"backbone": tmp_path / "sam2.pt"})
    image = images(1, 64, 3)
    for ours, theirs in zip(target.backbone(image), source.backbone.backbone(image), strict=True):
        assert torch.equal(ours, theirs)
    assert "8 (the network has no neck)" in str(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda s: s.pop("image_encoder.trunk.pos_embed"),
            r"1 missing \(image_encoder.trunk.pos_embed \(here backbone",
        ),
        (lambda s: s.update({"image_encoder.flux": torch.ones(1)}), "weight 'image_encoder.flux' has no place"),
        (lambda s: s.update({"flux.weight": torch.ones(1)}), "weight 'flux.weight' has no place"),
        (
            lambda s: s.update({"image_encoder.trunk.flux": torch.ones(1)}),
            r"1 unknown \(image_encoder.trunk.flux \(here backbone.*flux\)\)",
        ),
    ],
)
def test_nothing_is_taken_of_what_does_not_fit(tmp_path: Path, change: Any, words: str):
    target, state = hiera(2), sam2_state(hiera(1))
    change(state)
    torch.save({"model": state}, tmp_path / "sam2.pt")
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        init_from(target, {"backbone": tmp_path / "sam2.pt"})
    assert all(torch.equal(weight, before[name]) for name, weight in target.state_dict().items())


def test_it_is_no_whole_network(tmp_path: Path):
    torch.save({"model": sam2_state(hiera(1))}, tmp_path / "sam2.pt")
    imported = import_weights(tmp_path / "sam2.pt")
    assert imported.source == "sam2"
    assert set(imported.parts) == {"backbone"}
    with pytest.raises(CheckpointError, match="holds no whole network but the backbone of SAM 2"):
        imported.network()
    with pytest.raises(CheckpointError, match=r"holds no text_encoder; it holds backbone"):
        init_from(hiera(2), {"text_encoder": tmp_path / "sam2.pt"})
