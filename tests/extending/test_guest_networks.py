"""Decoders, backbones and attention policies of guests: trained, saved, and segmenting in a new process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from boltzformer_monai.cli import main
from boltzformer_monai.io.read import read_label_map
from boltzformer_monai.networks import create_boltzformer
from boltzformer_monai.networks.registries import BACKBONES, DECODERS, POLICIES
from boltzformer_monai.networks.weights import load_checkpoint
from boltzformer_monai.registry import PLUGINS, load_plugin
from tests.engines.cases import write_dataset
from tests.extending.guests import ROOT, python
from tests.networks.cases import SMALL, images, prompts
from tests.slicing.scan_files import write_image

HERE = Path(__file__).parent
DECODER, POLICY, BACKBONE = (HERE / f"guest_{kind}.py" for kind in ("decoder", "policy", "backbone"))
BUNDLE = ROOT / "bundles" / "boltzformer"
TINY = {"dim": 16, "heads": 2, "hidden": 24, "queries": 3, "layers": 3, "text_width": 16, "text_layers": 1,
        "text_heads": 2, "presence": False, "pretrained": False}  # fmt: skip
ENVIRONMENT = {**{key: value for key, value in os.environ.items() if key != PLUGINS}, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices to train on: two steps of one slice each."""
    return write_dataset(tmp_path_factory.mktemp("guests") / "slices", slices=1)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scan") / "scan.nii.gz"
    write_image(path, seed=1)
    return path


@pytest.fixture(autouse=True)
def no_guests_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(PLUGINS, "")
    registries = (DECODERS, BACKBONES, POLICIES)
    before = [dict(each._factories) for each in registries]
    yield
    for registry, factories in zip(registries, before, strict=True):
        registry._factories = factories


def register(guest: Path) -> None:
    sys.modules.pop(load_plugin(str(guest)).__name__)  # the next test registers it again


def segment(scan: Path, checkpoint: Path, *options: object) -> None:
    """Segment in a new process, with a threshold that the logits pass somewhere after two steps."""
    output = checkpoint.parent / "found.nii.gz"
    done = python("-m", "boltzformer_monai", "segment", scan, "--prompts", "liver", "--modality", "CT",
                  "--checkpoint", checkpoint, "--output", output, "--device", "cpu", "--threshold", 0.05, *options,
                  env=ENVIRONMENT, cwd=checkpoint.parent)  # fmt: skip
    assert done.returncode in (0, 4), done.stderr
    found = read_label_map(output).array
    assert found.shape == (10, 8, 4)
    assert found.any()


def train(slices: Path, folder: Path, *options: str, network: dict[str, object], image_size: int = 64) -> Path:
    arguments = ["train", "--data", slices, "--output", folder, "--preset", "tiny", "--epochs", 1, "--device", "cpu"]
    settings = {"image_size": image_size, "batch_size": 1, "network_overrides": {**TINY, **network}}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    assert main([*map(str, arguments), *sets, *options]) == 0
    return folder / "model.pt"


def test_guests_are_the_examples_of_the_documentation() -> None:
    page = (ROOT / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")
    for guest in (DECODER, POLICY, BACKBONE):
        text = guest.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 40
        assert f"```python\n{text}```" in page, guest.name


@pytest.mark.slow
def test_a_decoder_is_trained_by_the_bundle_and_segments(
    slices: Path, scan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {**TINY, "decoder": "dot", "decoder_settings": {"scale": 2.0}}
    done = python("-m", "monai.bundle", "run", "training", "--config_file", BUNDLE / "configs" / "train.json",
                  "--bundle_root", BUNDLE, "--dataset_dir", slices, "--output_dir", tmp_path, "--preset", "tiny",
                  "--image_size", 64, "--epochs", 1, "--batch_size", 1, "--network_overrides", str(network),
                  "--plugins", str([str(DECODER)]), env=ENVIRONMENT, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    segment(scan, tmp_path / "model.pt", "--plugin", DECODER)
    capsys.readouterr()
    arguments = ["segment", scan, "--prompts", "liver", "--modality", "CT", "--checkpoint", tmp_path / "model.pt",
                 "--output", tmp_path / "no.nii.gz", "--device", "cpu"]  # fmt: skip
    for option, words in (
        ([], "unknown decoder 'dot'"),
        (["--plugin", "no.py"], "the plugin no.py cannot be imported"),
    ):
        assert main([*map(str, arguments), *option]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert option or "--plugin MODULE" in line
    assert not (tmp_path / "no.nii.gz").exists()
    register(DECODER)
    loaded, description = load_checkpoint(tmp_path / "model.pt")
    assert description.network.decoder_settings == {"scale": 2.0}
    assert loaded.decoder.factor == pytest.approx(2 / 4)


@pytest.mark.slow
def test_a_policy_is_trained_and_segments(slices: Path, scan: Path, tmp_path: Path) -> None:
    network = {"policy": "top", "policy_settings": {"share": 0.25}}
    checkpoint = train(slices, tmp_path / "run", "--plugin", str(POLICY), network=network)
    policy = load_checkpoint(checkpoint)[0].decoder.query_decoder.policy
    assert policy.share == 0.25
    logits = torch.rand(2, 3, 16)
    assert policy(logits, 0).sum(-1).eq(4).all()
    segment(scan, checkpoint, "--plugin", POLICY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_a_timm_backbone_needs_settings_alone(name: str, slices: Path, scan: Path, tmp_path: Path) -> None:
    network = {"backbone": name, "backbone_settings": {"drop_path_rate": 0.1}}
    checkpoint = train(slices, tmp_path / "run", network=network, image_size=192)
    assert load_checkpoint(checkpoint)[0].backbone.image_size == 192
    segment(scan, checkpoint)


def test_a_backbone_of_a_guest_feeds_the_network() -> None:
    register(BACKBONE)
    network = create_boltzformer("tiny", **SMALL, backbone="pooled", backbone_settings={"width": 6}).eval()
    assert network.backbone.channels == [6] * 4
    assert network(images(1), prompts(3)).shape == (1, 1, 32, 32)


@pytest.mark.slow
def test_a_backbone_of_a_guest_is_trained_and_segments(slices: Path, scan: Path, tmp_path: Path) -> None:
    network = {"backbone": "pooled", "backbone_settings": {"width": 6}}
    checkpoint = train(slices, tmp_path / "run", "--plugin", str(BACKBONE), network=network)
    segment(scan, checkpoint, "--plugin", BACKBONE)
