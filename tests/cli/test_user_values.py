"""Values that no run can use: exit code 2 and one line, before the work, for every command that takes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from boltzformer_monai.cli import main
from boltzformer_monai.engines import data
from boltzformer_monai.networks import create_boltzformer, network_config
from boltzformer_monai.networks.weights import Description, save_checkpoint
from tests.engines.cases import write_dataset
from tests.networks.cases import SMALL


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a checkpoint and configurations that cannot be used."""
    folder = tmp_path_factory.mktemp("files")
    write_dataset(folder / "slices")
    config = network_config("tiny", **SMALL)
    content = {
        "model": create_boltzformer(config).state_dict(),
        "description": Description(config, {"plane": "axial", "targets": []}).state_dict(),
    }
    save_checkpoint(content, folder / "model.pt")
    for name, text in {
        "number.yaml": "1: 2\n",
        "inside.yaml": "network_overrides: {true: 3}\n",
        "deep.yaml": "a: " + "[" * 5000 + "]" * 5000,
        "deeper.yaml": "a: " + "[" * 60 + "]" * 60,
        "itself.yaml": "a: &a {b: *a}\n",
        "deep.json": '{"a": ' + "[" * 100000 + "]" * 100000 + "}",
        "list.json": "[]",
    }.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _no_slice_is_read(bundle_in_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        pytest.fail("a slice was read")

    monkeypatch.setattr(data.LoadSliced, "__call__", never)


HUGE = 2**70
TRAIN = (
    ("image_size=None", "--image_size must not be None; leave it out for the default"),
    ("epochs=None", "epochs"),
    ("batch_size=None", "--batch_size must not be None"),
    ("plugins=None", "plugins"),
    ("network_overrides=None", "--network_overrides must not be None"),
    ("demo_dir=None", "--demo_dir must not be None"),
    ("demo_dir=3", "--demo_dir must be a text, got 3"),
    ("precision=3", "precision must be one of"),
    (f"batch_size={HUGE}", "--batch_size must be a whole number from 1 to 1048576"),
    (f"workers={HUGE}", "--workers must be a whole number from 0 to 1024"),
    (f"mask_size={HUGE}", "mask_size must be between 1 and"),
    (f"patience={HUGE}", "patience must be between 1 and"),
    (f"image_size={2**70}", "--image_size must be a whole number from 32"),
    (f"image_size={2**20}", "this network needs more than .* GB for its weights and one image"),
    (f"network_overrides={{'dim': {2**40}}}", "this network needs more than"),
    (f"network_overrides={{'layers': {10**12}}}", "this network needs more than"),
    (f"network_overrides={{'pixel_layers': {10**12}}}", "this network needs more than"),
    (f"network_overrides={{'text_layers': {10**12}}}", "this network needs more than"),
    (f"network_overrides={{'queries': {2**50}}}", "this network needs more than"),
    ("network_overrides={'pretrained': True}", "pretrained is for timm's backbones, and 'tiny' is none"),
    ("network_overrides={'normalise_features': True}", "normalise_features is for timm's backbones"),
    ("network_overrides={'std': [0.0]}", "std must be positive"),
    ("network_overrides={'mean': [0.1, 0.2]}", "mean and std need one value for each"),
    (
        "network_overrides={'sample_ratio': 0.2, 'policy_settings': {'sample_ratio': 0.3}}",
        r"sample_ratio 0.2 and policy_settings \{'sample_ratio': 0.3\} set the same",
    ),
    ("network_overrides=" + "[" * 10000 + "]" * 10000, "network_overrides must be a mapping"),
)
EVALUATE = (
    ("batch_size=None", "--batch_size must not be None"),
    ("threshold=None", "--threshold must not be None"),
    ("tolerance_mm=None", "--tolerance_mm must not be None"),
    ("resamples=None", "--resamples must not be None"),
    ("presence=None", "--presence must not be None"),
    ("threshold=2", "--threshold must be a number from 0 to 1, got 2"),
    (f"resamples={HUGE}", "--resamples must be a whole number from 1 to"),
    ("precision=3", "precision"),
)
CONFIGS = (
    ("number.yaml", "its key 1 is no text; put it in quotes"),
    ("inside.yaml", "its key True is no text"),
    ("deep.yaml", "nested too deeply"),
    ("deeper.yaml", "nested too deeply"),
    ("itself.yaml", "nested too deeply"),
    ("deep.json", "nested too deeply"),
    ("list.json", "it must be a mapping of keys to settings"),
)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must be refused; return its one line."""
    assert main([str(each) for each in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("no GPU")]
    (line,) = [each for each in lines if each.startswith("error: ")]
    assert line == lines[-1]
    return line


@pytest.mark.parametrize(("setting", "words"), TRAIN)
def test_train(setting: str, words: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", files / "slices", "--output", tmp_path / "run", "--preset", "tiny", "--device", "cpu"]
    line = refusal(capsys, "train", *common, "--set", "settings_overrides={'target_weights': {}}", "--set", setting)
    assert re.search(words, line), line


@pytest.mark.parametrize(("setting", "words"), EVALUATE)
def test_evaluate(setting: str, words: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", files / "slices", "--output", tmp_path / "scores", "--checkpoint", files / "model.pt"]
    line = refusal(capsys, "evaluate", *common, "--set", setting)
    assert words in line


@pytest.mark.parametrize(("name", "words"), CONFIGS)
def test_configurations(name: str, words: str, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--data", files / "slices", "--output", tmp_path / "run", "--preset", "tiny"]
    line = refusal(capsys, "train", *common, "--config", files / name)
    assert words in line
    assert name in line


@pytest.mark.parametrize("seed", [HUGE, 2**32, -1])
@pytest.mark.parametrize("command", ["demo", "train", "evaluate"])
def test_seeds(command: str, seed: int, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needed = {"demo": [], "train": ["--data", files / "slices"]}
    needed["evaluate"] = [*needed["train"], "--checkpoint", files / "model.pt"]
    line = refusal(capsys, command, *needed[command], "--output", tmp_path / "out", "--seed", seed)
    assert f"--seed: must be {'at most 4294967295' if seed > 0 else 'at least 0'}" in line


@pytest.mark.parametrize("number", [HUGE, 0])
def test_workers_and_sizes(number: int, files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", tmp_path / "out"]
    line = refusal(capsys, "export-dataset", "--input", files / "slices", *output, "--size", number)
    assert f"--size: must be {'at most 16384' if number else 'at least 1'}" in line
    line = refusal(capsys, "slice", "--image", files / "scan.nii.gz", *output, "--workers", number)
    assert f"--workers: must be {'at most 1024' if number else 'at least 1'}" in line


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes. Error"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64 bytes. GPU 0 has …"),
        MemoryError("Unable to allocate 64 bytes for an array with shape (8,)"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    error: Exception,
    files: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(data.LoadSliced, "__call__", fail)
    common = ["--data", files / "slices", "--output", tmp_path / "run", "--preset", "tiny", "--device", "cpu"]
    line = refusal(capsys, "train", *common, "--set", "settings_overrides={'target_weights': {}}")
    assert line.startswith("error: not enough memory (tried to allocate 64 bytes); choose smaller sizes")
