"""The decoders that the paper compares with, and its ablations: trained by the bundle, saved, loaded, segmenting."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from torch import distributed

from boltzformer_monai.cli import main
from boltzformer_monai.io.read import read_label_map
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.networks.weights import load_checkpoint
from tests.engines.cases import write_dataset
from tests.engines.ranks import BUNDLE
from tests.networks.cases import SMALL, images, prompts, small_network
from tests.sizes import cases
from tests.slicing.scan_files import write_image

DECODERS: dict[str, dict[str, Any]] = {
    "sam": {"width": 16, "heads": 2, "hidden": 24},
    "sam2": {"width": 16, "heads": 2, "hidden": 24},
    "seem": {"queries": 9},
}
ABLATIONS: list[dict[str, Any]] = [
    {"policy": "threshold", "text_prior": False, "queries": 1},
    {"base_temperature": 0.5, "sample_ratio": 0.2, "pigma_correction": False},
]
MORE: list[dict[str, Any]] = [
    {"policy": "full"},
    {"policy": "threshold"},
    {"policy": "threshold", "threshold": 0.3},
    {"base_temperature": 2.0},
    {"sample_ratio": 0.05},
    {"sample_ratio": 0.5},
    {"queries": 1},
    {"queries": 32},
    {"text_prior": False},
    {"pigma_correction": False},
    {"exact": True},
]


@pytest.fixture(scope="module")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight slices to train on, two to validate."""
    return write_dataset(tmp_path_factory.mktemp("baselines") / "slices", patients=5)


def train(slices: Path, output: Path, *, epochs: int, **network: Any) -> list[dict[str, float]]:
    """Train by the command; the history."""
    small = {name: value for name, value in SMALL.items() if name != "image_size"}
    overrides = {**small, "presence": True, **network}
    settings = {"image_size": 64, "batch_size": 2, "learning_rate": 3e-3, "network_overrides": overrides}
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = ["train", "--data", slices, "--output", output, "--preset", "tiny", "--epochs", epochs]
    assert main([*map(str, arguments), "--device", "cpu", *sets]) == 0
    return json.loads((output / "history.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("decoder", DECODERS)
def test_two_epochs_lower_the_loss_and_the_checkpoint_segments(
    decoder: str, slices: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history = train(slices, tmp_path, epochs=2, decoder=decoder, decoder_settings=DECODERS[decoder])
    first, second = (row["train_loss"] for row in history)
    assert second < first
    network, description = load_checkpoint(tmp_path / "model.pt")
    assert description.network.decoder == decoder
    assert description.network.decoder_settings == DECODERS[decoder]
    folder = load_model(tmp_path / "model").network
    with torch.no_grad():
        masks = [each(images(1), prompts(4, 2)) for each in (network, folder)]
    assert torch.equal(*masks)
    scan, output = write_image(tmp_path / "scan.nii.gz", seed=1), tmp_path / "found.nii.gz"
    given = ["segment", scan, "--prompts", "liver", "--modality", "CT", "--checkpoint", tmp_path / "model.pt",
             "--output", output, "--device", "cpu", "--threshold", "0.01", "--presence", "off"]  # fmt: skip
    assert main([*map(str, given)]) in (0, 4), capsys.readouterr().err
    found = read_label_map(output).array
    assert found.shape == (10, 8, 4)
    assert found.any()


@pytest.mark.parametrize("overrides", cases(ABLATIONS, thorough=MORE), ids=str)
def test_the_ablations_train(overrides: dict[str, Any], slices: Path, tmp_path: Path) -> None:
    (row,) = train(slices, tmp_path, epochs=1, **overrides)
    assert 0 < row["train_loss"] < 100
    network, description = load_checkpoint(tmp_path / "model.pt")
    assert {name: getattr(description.network, name) for name in overrides} == overrides
    decoder: Any = network.decoder
    assert hasattr(decoder.query_decoder, "prior_inter") == overrides.get("text_prior", True)
    assert decoder.aggregation.correction == overrides.get("pigma_correction", True)
    assert decoder.query_decoder.query_feat.weight.shape[0] == overrides.get("queries", SMALL["queries"])
    for name in ("base_temperature", "sample_ratio", "threshold", "exact"):
        if name in overrides:
            assert getattr(decoder.query_decoder.policy, name) == overrides[name]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("decoder", ["boltzmann", *DECODERS])
def test_it_trains_on_several_processes(decoder: str) -> None:
    configuration = ConfigParser.load_config_file(str(BUNDLE / "configs" / "multi_gpu_train.json"))
    network: BoltzFormer = small_network(
        0, decoder=decoder, decoder_settings=DECODERS.get(decoder, {}), presence=True
    ).train()
    parser = ConfigParser({"network": configuration["network"], "network_def": network, "device": torch.device("cpu")})
    parser["imports"] = ["$import torch"]
    parallel = parser.get_parsed_content("network")
    assert isinstance(parallel, torch.nn.parallel.DistributedDataParallel)
    for _ in range(3):  # a parameter without gradient is an error of the step after
        decoded = parallel(images(1), prompts(3), with_presence=True)
        (decoded.logits.mean() + decoded.presence.mean()).backward()
