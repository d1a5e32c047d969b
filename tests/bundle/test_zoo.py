"""What MONAI's model zoo asks of a bundle, and the bundle alone in a folder: nothing beside it but the package."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, create_workflow, verify_metadata, verify_net_in_out

from boltzformer_monai import __version__
from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli import main
from boltzformer_monai.demo.demo import ensure_demo_dataset, read_demo_volumes
from boltzformer_monai.errors import user_line
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.models.zoo import LARGEST_FILE
from boltzformer_monai.storage import file_sha256
from tests.models.conftest import RESTRICTED, write_metrics, write_model

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"

# MONAI's bundle specification: what metadata.json must hold, and what it must say of every tensor.
TEXT, WHOLE = {"type": "string", "minLength": 1}, {"type": "integer", "minimum": 1}
VERSION = {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"}
TENSOR = {
    "type": "object",
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "format": TEXT,
        "modality": TEXT,
        "num_channels": WHOLE,
        "spatial_shape": {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 1, "maxItems": 3},
        "dtype": TEXT,
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object", "patternProperties": {r"^\d+$": TEXT}, "additionalProperties": False},
    },
}
TENSOR["required"] = [name for name in TENSOR["properties"] if name != "modality"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "schema": {"type": "string", "pattern": "^https://"},
        "version": VERSION,
        "changelog": {"type": "object", "additionalProperties": TEXT},
        **dict.fromkeys(("monai_version", "pytorch_version", "numpy_version"), VERSION),
        "required_packages_version": {"type": "object", "additionalProperties": VERSION},
        **dict.fromkeys(("name", "task", "description", "authors", "copyright", "data_source", "intended_use"), TEXT),
        "eval_metrics": {"type": "object", "additionalProperties": {"type": "number"}},
        "network_data_format": {
            "type": "object",
            "properties": {
                "inputs": {"type": "object", "required": ["image"], "additionalProperties": TENSOR},
                "outputs": {"type": "object", "required": ["pred"], "additionalProperties": TENSOR},
            },
            "required": ["inputs", "outputs"],
        },
    },
}
SCHEMA["required"] = list(SCHEMA["properties"])

HEADINGS = {
    "Authors", "Tags", "Model Description", "Data", "Preprocessing", "Performance", "System Configuration",
    "Limitations", "Citation Info", "References", "License", "MONAI Bundle Commands", "Input", "Output",
}  # fmt: skip
TRAIN_KEYS = (
    "bundle_root", "device", "dataset_dir", "output_dir", "val_interval", "key_metric", "train#trainer#max_epochs",
    "train#dataset#data", "train#handlers", "train#preprocessing", "train#inferer", "validate#evaluator",
    "validate#handlers", "validate#dataset#data", "validate#preprocessing", "validate#inferer",
)  # fmt: skip
INFERENCE_KEYS = ("bundle_root", "device", "dataset_dir", "output_dir", "network_def", "inferer")


def _check_form(bundle: Path) -> dict[str, Any]:
    """The zoo's rules that hold for every bundle; its metadata."""
    for name in (
        "LICENSE",
        "configs/metadata.json",
        "configs/inference.json",
        "docs/README.md",
        "docs/data_license.txt",
    ):
        assert (bundle / name).is_file(), name
    metadata: dict[str, Any] = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["version"] in metadata["changelog"]
    assert metadata["required_packages_version"]["boltzformer-monai"] == __version__
    schema = bundle / "eval" / "schema.json"  # where MONAI looks before it fetches one
    schema.parent.mkdir(exist_ok=True)
    schema.write_text(json.dumps(SCHEMA), encoding="utf-8")
    verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=schema)
    for file in (each for each in bundle.rglob("*") if each.suffix in (".json", ".md", ".conf", ".txt", ".yml")):
        personal = re.search(r"/home/|/Users/|/root/|[A-Z]:\\", file.read_text(encoding="utf-8"))
        assert personal is None, (file, personal)
    return metadata


def _has(config: Any, key: str) -> bool:
    for part in key.split("#"):
        if not isinstance(config, dict) or part not in config:
            return False
        config = config[part]
    return True


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle, and the current folder."""
    ignored = shutil.ignore_patterns("models", "eval", "demo_data")
    shutil.copytree(BUNDLE, tmp_path / "boltzformer", ignore=ignored)
    monkeypatch.chdir(tmp_path / "boltzformer")
    return tmp_path / "boltzformer"


def test_the_bundle_has_the_zoo_s_form(alone: Path) -> None:
    metadata = _check_form(alone)
    assert metadata["eval_metrics"] == {}, "numbers without weights"
    assert max(file.stat().st_size for file in alone.rglob("*") if file.is_file()) < LARGEST_FILE
    readme = (alone / "docs" / "README.md").read_text(encoding="utf-8")
    assert HEADINGS - set(re.findall(r"^#{2,4} (.+)$", readme, re.MULTILINE)) == set()
    for name, keys in (("train", TRAIN_KEYS), ("evaluate", INFERENCE_KEYS), ("inference", INFERENCE_KEYS)):
        config = json.loads((alone / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        assert [key for key in keys if not _has(config, key)] == [], name
    train = json.loads((alone / "configs" / "train.json").read_text(encoding="utf-8"))
    validation = next(each for each in train["train"]["handlers"] if each["_target_"] == "ValidationHandler")
    assert validation["interval"] == "@val_interval"


def test_every_command_of_the_readme_names_what_is_there(alone: Path) -> None:
    readme = (alone / "docs" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:python|torchrun) .+$", readme, re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert all((alone / file).is_file() for file in re.findall(r"configs/\w+\.\w+", command)), command
        assert "run" in command.split() or "verify_" in command, command
        # Of our configurations: `start` refuses the rest.
        names = re.findall(r"configs/(?!meta)\w+\.json", command)
        config = json.loads((alone / names[0]).read_text(encoding="utf-8")) if names else {}
        options = set(re.findall(r"--([a-z_]+) ", command.partition("monai.bundle")[2]))
        monai = {"meta_file", "config_file", "logging_file", "filepath", "net_id"}
        assert options - monai - set(config) == set(), command


def test_channels_say_what_a_text_prompted_network_gives(alone: Path) -> None:
    """MONAI checks the shape of ``pred`` against the network; MONAI Label takes labels and result from it, by name."""
    verify_net_in_out(net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")
    outputs = json.loads(Path("configs/metadata.json").read_text(encoding="utf-8"))["network_data_format"]["outputs"]
    assert list(outputs) == ["pred"]
    assert outputs["pred"]["num_channels"] == 1
    assert outputs["pred"]["channel_def"]["0"] == "background"
    assert outputs["pred"]["channel_def"]["1"] == "first prompt"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    ensure_demo_dataset(folder, abdomen=3, chest=0, size=(48, 48, 6))
    return folder


def _run(name: str, **overrides: Any) -> None:
    workflow = create_workflow(
        workflow_type="train" if name == "train" else "infer",
        config_file=f"configs/{name}.json",
        meta_file="configs/metadata.json",
        logging_file=False,  # it would redirect the logs of other tests
        **overrides,
    )
    assert workflow.check_properties() == []
    workflow.run()
    workflow.finalize()


@pytest.mark.slow
def test_the_bundle_alone_trains_evaluates_and_segments_and_so_does_a_model_s_zip(
    alone: Path, demo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"preset": "tiny", "image_size": 64, "epochs": 1, "batch_size": 4, "device": "cpu", "workers": 0}
    _run("train", dataset_dir=str(demo / "slices"), **small)
    _run("evaluate", dataset_dir=str(demo / "slices"), resamples=10, update_card=True)
    scan = next(volume.image for volume in read_demo_volumes(demo) if volume.image.is_file())
    _run("inference", dataset_dir=str(scan), prompts=["liver", "spleen"])  # the zoo's name of the input
    found = nibabel.load("eval/segmentation.nii.gz")
    assert found.shape == nibabel.load(scan).shape
    numbers = json.loads(Path("configs/metadata.json").read_text(encoding="utf-8"))["eval_metrics"]
    assert 0 <= numbers["dice_slices"] <= 1
    assert {each.name for each in alone.iterdir()} == {"LICENSE", "configs", "docs", "models", "eval"}

    empty = alone.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    capsys.readouterr()
    assert main(["weights", "bundle", str(alone / "models" / "model"), "--output", "liver_ct_segmentation"]) == 0
    assert capsys.readouterr().out.split() == ["liver_ct_segmentation", "liver_ct_segmentation.zip"]
    shutil.rmtree("liver_ct_segmentation")
    with zipfile.ZipFile("liver_ct_segmentation.zip") as archive:
        archive.extractall()
    monkeypatch.chdir("liver_ct_segmentation")
    metadata = _check_form(Path.cwd())
    assert metadata["eval_metrics"] == numbers
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == [64, 64]
    verify_net_in_out(net_id="network_def", meta_file="configs/metadata.json", config_file="configs/inference.json")
    _run("inference", image=str(scan), prompts=["liver", "spleen"])
    again = nibabel.load("eval/segmentation.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), np.asarray(found.dataobj))


def test_a_model_s_bundle_carries_card_numbers_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("model.pt"), licence=RESTRICTED.as_dict())
    assert main(["weights", "convert", "model.pt", "--output", "mine"]) == 0
    write_metrics(Path("metrics.json"), load_model("mine").sha256)
    assert main(["weights", "card", "mine", "--metrics", "metrics.json"]) == 0
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        output = f"{name}/nodule_ct_segmentation"
        assert main(["weights", "bundle", "mine", "--output", output, "--url", "https://example.org/model.pt"]) == 0
    assert Path("one/nodule_ct_segmentation.zip").read_bytes() == Path("two/nodule_ct_segmentation.zip").read_bytes()
    bundle = Path("one/nodule_ct_segmentation")
    assert _check_form(bundle)["eval_metrics"]["dice_slices"] > 0
    packed, given = (load_model(place).network.state_dict() for place in (bundle / "models" / "model.pt", "mine"))
    assert all(torch.equal(packed[name], each) for name, each in given.items())
    assert (bundle / "docs" / "model_card.md").read_bytes() == Path("mine/README.md").read_bytes()
    assert (bundle / "LICENSE.weights").read_text(encoding="utf-8").splitlines() == [
        "CC-BY-NC-SA-4.0", "research only", "https://example.org/licence",
    ]  # fmt: skip
    (large,) = ConfigParser.load_config_file(bundle / "large_files.yml")["large_files"]
    assert large["path"] == "models/model.pt"
    assert large["url"] == "https://example.org/model.pt"
    assert (large["hash_val"], large["hash_type"]) == (file_sha256(bundle / "models" / "model.pt"), "sha256")
    capsys.readouterr()
    for words, said in (
        (["mine", "--output", "one/nodule_ct_segmentation"], "is there already"),
        (["mine", "--output", "."], "is there already"),
        (["model.pt", "--output", "three"], "make a model folder of it first"),
        (["nowhere", "--output", "three"], "nowhere"),
        (["mine", "--output", "three", "--url", "ftp://example.org"], "--url must begin with https://"),
    ):
        assert main(["weights", "bundle", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert said in error
        assert error.count("\n") == 1
    assert not Path("three").exists()


def test_outside_of_the_bundle_it_says_where_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = bundle_root() / "configs" / "inference.json"
    with pytest.raises(RuntimeError) as caught:
        create_workflow(workflow_type="infer", config_file=str(config), logging_file=False)
    assert "no bundle at .; run in the bundle's folder or give --bundle_root" in str(user_line(caught.value))
