"""Published weights become a model folder: whole, with licence and provenance, ready to segment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_nifti
from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.inferers import RunSettings, VolumeSegmenter
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.models.catalogue import CATALOGUE
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.models.info import info_text, model_info
from boltzformer_monai.networks import NetworkConfig, create_boltzformer, network_config, register_backbone
from boltzformer_monai.networks.presets import PRESETS
from boltzformer_monai.networks.published import import_weights, init_from
from boltzformer_monai.storage import file_sha256
from tests.golden.biomedparse_network import focal_backbone
from tests.models.conftest import write_model
from tests.models.mirror import serving
from tests.networks.cases import images, prompts, randomise, small_network
from tests.networks.published.layouts import biomedparse_v2_state
from tests.networks.published.test_biomedparse_v2 import lightning

SMALL: dict[str, Any] = {
    "backbone": "focal_for_tests", "backbone_settings": {}, "normalise_features": False,
    "image_size": 64, "dim": 32, "heads": 8, "hidden": 24,
    "queries": 6, "layers": 3, "pixel_layers": 1, "text_width": 16, "text_layers": 1, "text_heads": 8,
    "decoder_settings": {"edge_queries": 2, "attend_padding": True},
}  # fmt: skip


@register_backbone("focal_for_tests")
def focal_for_tests(config: NetworkConfig) -> nn.Module:
    """FocalNet-L's form made small, which no name of timm offers."""
    return focal_backbone(embed_dim=4, depths=[1, 1, 2, 1])


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """BiomedParse v2 made small, and the file that its training would have written."""
    monkeypatch.setitem(PRESETS, "biomedparse_v2", network_config("biomedparse_v2", **SMALL))
    torch.manual_seed(0)
    network = create_boltzformer("biomedparse_v2").eval()
    randomise(network)
    torch.save(lightning(biomedparse_v2_state(network)), tmp_path / "biomedparse_v2.ckpt")
    return network, tmp_path / "biomedparse_v2.ckpt"


@pytest.mark.slow
def test_biomedparse_becomes_a_model(published: tuple[Any, Path], tmp_path: Path) -> None:
    network, file = published
    convert(file, tmp_path / "mine")
    model = load_model(tmp_path / "mine")
    expected = network.state_dict()
    found = model.network.state_dict()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.allclose(found[name], weight, rtol=1e-6), name  # mean and deviation go through 0–255
    image, tokens = images(1, 64, 3), prompts(4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.network(image, tokens), network(image, tokens), atol=1e-4, rtol=1e-4)
    data = model.description.data
    assert (data["protocol"], data["targets"], data["modalities"]) == ("biomedparse", [], ["CT", "MR", "US", "PET"])
    assert model.licence == CATALOGUE["biomedparse_v2"].licence
    assert data["initial_weights"] == [
        {"part": "model", "source": "microsoft/BiomedParse", "file": file.name, "sha256": file_sha256(file),
         "licence": "CC-BY-NC-SA-4.0"}
    ]  # fmt: skip
    text = info_text(model_info(tmp_path / "mine"))
    for words in ("CC-BY-NC-SA-4.0", "protocol: biomedparse", "targets: not stated; any prompt is taken"):
        assert words in text
    convert(tmp_path / "mine", tmp_path / "back.pt")
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "back.pt").network(image, tokens), model.network(image, tokens))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.pop("model.sem_seg_head.predictor.decoder_norm.weight"),
            "1 missing .*mask_head.norm.weight",
        ),
        (lambda state: state.update({"model.sem_seg_head.predictor.stray": torch.ones(1)}), "stray"),
        (lambda state: state.update({"model.backbone.norm0.bias": torch.ones(3)}), "norm"),
    ],
)
def test_weights_that_do_not_fit_leave_nothing(
    published: tuple[Any, Path], tmp_path: Path, change: Any, words: str
) -> None:
    content = torch.load(published[1], weights_only=True)
    change(content["state_dict"])
    torch.save(content, published[1])
    with pytest.raises(CheckpointError, match=words) as caught:
        convert(published[1], tmp_path / "mine")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "mine").exists()


def test_the_network_sees_its_channels_in_the_order_that_it_was_trained_in(
    published: tuple[Any, Path], tmp_path: Path
) -> None:
    """Published: the slice, the one before, the one after; whatever importer and protocol make of it."""
    convert(published[1], tmp_path / "mine")
    segmenter = VolumeSegmenter.from_checkpoint(tmp_path / "mine")
    stem = torch.load(published[1], weights_only=True)["state_dict"]["model.backbone.patch_embed.proj.weight"]
    ours = segmenter.network.state_dict()["backbone.model.stem.proj.weight"]
    names = [next(n for n in range(3) if torch.equal(ours[:, c], stem[:, n])) for c in range(3)]
    shown: list[torch.Tensor] = []
    real = segmenter.network.encode_image
    segmenter.network.encode_image = lambda image: shown.append(image) or real(image)  # type: ignore[method-assign]
    grey = np.broadcast_to(np.arange(10, 60, 10, np.float32), (64, 64, 5)).copy()
    settings = RunSettings(prompts=["liver"], modality="CT", window={"kind": "stored"})
    with segmenter.inferer(settings).segment(Volume(grey, np.diag([1, 1, 3, 1.0]), "CT"), segmenter.network):
        pass
    seen = [[round(float(channel.mean()) * 255) for channel in each] for image in shown for each in image]
    as_published = [[values[names.index(n)] for n in range(3)] for values in seen]
    assert as_published == [[10, 20, 20], [20, 10, 30], [30, 20, 40], [40, 30, 50], [50, 40, 40]]


def test_parts_of_a_model_are_no_model(published: tuple[Any, Path], tmp_path: Path) -> None:
    text = {"text_projection": torch.zeros(8, 8)}
    torch.save(text, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="no known source"):
        convert(tmp_path / "odd.pt", tmp_path / "mine")
    with pytest.raises(ConfigError, match="unknown source of weights 'biomedparse_v3'"):
        convert(published[1], tmp_path / "mine", source="biomedparse_v3")
    assert not (tmp_path / "mine").exists()


def test_a_model_folder_gives_initial_weights(tmp_path: Path) -> None:
    convert(write_model(tmp_path / "model.pt"), tmp_path / "mine")
    expected, network = load_model(tmp_path / "mine").network, small_network(9, presence=True)
    init_from(network, {"model": tmp_path / "mine"})
    assert all(torch.equal(network.state_dict()[name], each) for name, each in expected.state_dict().items())
    assert import_weights(tmp_path / "mine").config == load_model(tmp_path / "model.pt").description.network


@pytest.mark.slow
def test_fetch_then_segment(
    published: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's first example, with a small file of the same form on a mirror."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    entry = CATALOGUE["biomedparse_v2"]
    with serving() as mirror:
        mirror.files[entry.repo, entry.file] = published[1].read_bytes()
        monkeypatch.setenv("HF_ENDPOINT", mirror.hub)
        assert main(["weights", "fetch", "biomedparse_v2", "--accept-licence"]) == 0
    assert capsys.readouterr().out == "biomedparse_v2\n"
    write_phantom_nifti(*make_phantom("abdomen", seed=1, size=(48, 48, 5)), tmp_path, "scan")
    words = ["--prompts", "liver", "left kidney", "--modality", "CT", "--checkpoint", "biomedparse_v2"]
    assert main(["segment", str(tmp_path / "scan.nii.gz"), *words, "--output", "out.nii.gz"]) in (0, 4)
    assert nibabel.load("out.nii.gz").shape == (48, 48, 5)
    manifest = json.loads(Path("out.json").read_text(encoding="utf-8"))
    assert manifest["licence"] == entry.licence.as_dict()
    assert "no vocabulary" in {each["kind"] for each in manifest["caveats"]}
    assert not {"unknown prompt"} & {each["kind"] for each in manifest["caveats"]}
    assert np.asarray(nibabel.load("out.nii.gz").dataobj).max() <= 2


@pytest.mark.parametrize("source", [None, "checkpoint"])
def test_changed_weights_are_refused_by_their_own_path_too(tmp_path: Path, source: str | None) -> None:
    convert(write_model(tmp_path / "model.pt"), tmp_path / "mine")
    file = tmp_path / "mine" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for place in (file, tmp_path / "mine"):
        with pytest.raises(CheckpointError, match="is not the file that"):
            convert(place, tmp_path / "copy", source=source)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("place", ["model.pt", "mine", "mine/model.safetensors"])
def test_naming_the_source_loses_nothing_of_the_description(tmp_path: Path, place: str) -> None:
    convert(write_model(tmp_path / "model.pt"), tmp_path / "mine")
    convert(tmp_path / place, tmp_path / "copy", source="checkpoint")
    assert load_model(tmp_path / "copy").description.data == load_model(tmp_path / "model.pt").description.data


@pytest.mark.parametrize("output", ["mine", "other.pt"])
def test_a_checkpoint_that_lacks_a_weight_becomes_nothing(tmp_path: Path, output: str) -> None:
    content = torch.load(write_model(tmp_path / "model.pt"), weights_only=True)
    name = next(iter(content["model"]))
    del content["model"][name]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\)"):
        convert(tmp_path / "model.pt", tmp_path / output)
    assert not (tmp_path / output).exists()
