"""timm's own files, written by timm's models: against the library itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks import BoltzFormer, create_boltzformer
from boltzformer_monai.networks.published import init_from
from tests.networks.cases import SMALL, images
from tests.networks.published.layouts import focal_name
from tests.networks.published.test_sam2 import hiera

RGB = {"in_channels": 3, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}


def with_backbone(name: str, **settings: Any) -> BoltzFormer:
    torch.manual_seed(2)
    return create_boltzformer("tiny", **{**SMALL, **RGB, "backbone": name, **settings}).eval()


def test_sam2_hiera_small_by_timm(tmp_path: Path):
    torch.manual_seed(1)
    library = timm.create_model("sam2_hiera_small").eval()
    torch.save(library.state_dict(), tmp_path / "hiera.pth")
    network = with_backbone("sam2_hiera_small", neck_channels=16)
    (report,) = init_from(network, {"backbone": tmp_path / "hiera.pth"})
    image = images(1, 64, 3)
    with torch.no_grad():
        for ours, theirs in zip(
            network.backbone.backbone(image), library.forward_intermediates(image, intermediates_only=True), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    (part,) = report.parts
    assert (part.tensors, len(part.random)) == (202, 8)
    assert str(part).endswith("left at random: 8 (timm's model has no neck)")
    assert "not taken: 2 (classified images)" in str(report)


def test_a_network_of_timms_names_alone(tmp_path: Path):
    """Flattened stages (FocalNet), and a plain residual network."""
    for name in ("focalnet_tiny_srf", "test_resnet"):
        torch.manual_seed(1)
        library = timm.create_model(name).eval()
        save_file(library.state_dict(), tmp_path / f"{name}.safetensors")
        network = with_backbone(name)
        (report,) = init_from(network, {"backbone": tmp_path / f"{name}.safetensors"})
        image = images(1, 64, 3)
        with torch.no_grad():
            last = library.forward_features(image)
            ours = network.backbone(image)[-1]
        if name == "test_resnet":
            torch.testing.assert_close(ours, last, rtol=0, atol=1e-5)
        else:  # the classifier's norm comes after the last stage
            torch.testing.assert_close(library.norm(ours), last, rtol=0, atol=1e-5)
        assert not report.parts[0].random


def test_another_model_of_timm_is_refused(tmp_path: Path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"does not fit this network: weights \d+ missing"):
        init_from(with_backbone("sam2_hiera_tiny"), {"backbone": tmp_path / "resnet.pth"})


def test_norms_of_the_features_stay_at_random(tmp_path: Path):
    library = timm.create_model("focalnet_tiny_srf")
    torch.save(library.state_dict(), tmp_path / "focal.pth")
    network = with_backbone("focalnet_tiny_srf", normalise_features=True)
    (report,) = init_from(network, {"backbone": tmp_path / "focal.pth"})
    assert sorted(report.parts[0].random)[0] == "backbone.norms.0.bias"
    assert set(report.parts[0].random.values()) == {"timm's model has no norms of the features"}


def test_focalnets_original_file_by_renaming(tmp_path: Path):
    source, target = with_backbone("focalnet_tiny_srf"), with_backbone("focalnet_tiny_srf", normalise_features=True)
    torch.manual_seed(9)
    for parameter in source.backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    state = {focal_name(name): weight for name, weight in source.backbone.state_dict().items()}
    state = {n: w[:, :, 0, 0] if w.shape[2:] == (1, 1) and "modulation.h" not in n else w for n, w in state.items()}
    state |= {name: torch.ones(3) for name in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    torch.save({"model": state}, tmp_path / "focalnet.pth")
    (report,) = init_from(target, {"backbone": tmp_path / "focalnet.pth"})
    assert report.source == "FocalNet (microsoft/FocalNet)"
    for name, weight in source.backbone.state_dict().items():
        assert torch.equal(target.backbone.state_dict()[name], weight), name
    assert len(report.parts[0].random) == 8


def test_hiera_by_timm_is_not_sam2s_file(tmp_path: Path):
    torch.save(hiera(1).backbone.backbone.model.model.state_dict(), tmp_path / "timm.pth")
    (report,) = init_from(hiera(2), {"backbone": tmp_path / "timm.pth"})
    assert report.source == "timm"
