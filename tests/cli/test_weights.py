"""``boltzformer weights`` and ``info``: what they print, and one line for what cannot be done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli import main
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.demo.phantom_files import write_phantom_nifti
from boltzformer_monai.models.config import read_config
from tests.models.conftest import RESTRICTED, write_metrics, write_model
from tests.models.mirror import serving
from tests.offline import attempts, offline

ROOT = Path(__file__).resolve().parents[2]


def _one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    return shown.err


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["weights", "list"]) == 0
    text = capsys.readouterr().out
    for words in ("biomedparse_v2", "CC-BY-NC-SA-4.0", "microsoft/BiomedParse", "4.46 GB", "gated", "size not known"):
        assert words in text
    assert main(["weights", "list", "--json"]) == 0
    entries = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert entries["biomedparse_v2"]["licence"]["restricted"]
    assert entries["sam2_hiera_small"]["url"] == "https://huggingface.co/facebook/sam2-hiera-small"


def test_a_model_is_converted_described_evaluated_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(Path("model.pt"), licence=RESTRICTED.as_dict())
    assert main(["weights", "convert", "model.pt", "--output", "mine"]) == 0
    assert capsys.readouterr().out == "mine\n"
    assert main(["info", "mine"]) == 0
    assert "not evaluated" not in capsys.readouterr().out
    write_metrics(Path("metrics.json"), read_config(Path("mine")).sha256)
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    metadata = (bundle_root() / "configs" / "metadata.json").read_text(encoding="utf-8")
    Path("bundle/configs/metadata.json").write_text(metadata, encoding="utf-8")
    assert main(["weights", "card", "mine", "--metrics", "metrics.json", "--bundle", "bundle"]) == 0
    assert capsys.readouterr().out == f"{Path('mine/README.md')}\n{Path('bundle/configs/metadata.json')}\n"
    assert json.loads(Path("bundle/configs/metadata.json").read_text(encoding="utf-8"))["eval_metrics"]["dice_slices"]
    assert main(["info", "mine", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["metrics"]["slices"]["overall"]["dice"]["cases"] == 16

    write_phantom_nifti(*make_phantom("chest", seed=1, size=(48, 48, 4)), tmp_path, "scan")
    maps = []
    for model in ("mine", "model.pt"):
        out = f"{model}.nii.gz"
        words = ["--prompts", "lung nodule", "--modality", "CT", "--checkpoint", model, "--output", out]
        assert main(["segment", "scan.nii.gz", *words]) in (0, 4)
        maps.append(np.asarray(nibabel.load(out).dataobj))
        # A restricted licence is shown once, and goes with the result.
        assert capsys.readouterr().err.count("CC-BY-NC-SA-4.0") == 1
        manifest = json.loads(Path(f"{model}.json").read_text(encoding="utf-8"))
        assert manifest["licence"] == RESTRICTED.as_dict()
    assert np.array_equal(*maps)
    before = Path("mine/config.json").read_bytes()
    words = ["--prompts", "lung nodule", "--modality", "CT", "--checkpoint", "mine", "--output", "mine/config.nii.gz"]
    assert main(["segment", "scan.nii.gz", *words]) == 2
    assert "it is an input, which would be lost" in _one_line(capsys)
    assert Path("mine/config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("weights fetch nothing", "unknown weights 'nothing'"),
        ("weights fetch biomedparse_v2", "--accept-licence"),
        ("weights fetch sam2_hiera_small --output x", "--output is for weights that become a model folder"),
        ("weights fetch biomedparse_v2 --accept-licence --output full", "full: it holds other files (notes.txt)"),
        ("weights convert model.pt --output x --source melt", "unknown source of weights 'melt'"),
        ("weights convert nowhere.pt --output x", "no checkpoint at nowhere.pt"),
        ("weights convert full --output x", "no weights in the folder full"),
        ("weights convert model.pt --output full", "full: it holds other files (notes.txt)"),
        ("weights convert model.pt --output model.pt", "it is the input"),
        ("weights card model.pt --metrics full/notes.txt", "is a checkpoint; make a model folder"),
        ("weights card nowhere.pt --metrics full/notes.txt", "no checkpoint at nowhere.pt"),
        ("weights", "required: ACTION"),
        ("weights melt", "invalid choice: 'melt'"),
        ("info nowhere", "no checkpoint at nowhere"),
        ("info owner/name", "boltzformer weights fetch owner/name"),
        ("info full/notes.txt", "cannot be read as a checkpoint"),
        ("segment full/notes.txt --prompts x --checkpoint owner/name --output x.nii.gz", "weights fetch owner/name"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    write_model(Path("model.pt"))
    before = sorted(tmp_path.rglob("*"))
    assert main(words.split()) == 2
    assert said in _one_line(capsys)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_place_that_takes_no_folder_is_told_before_the_download(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("boltzformer_monai.models.fetch._download", lambda *_, **__: pytest.fail("it was fetched"))
    (tmp_path / "file").write_text("in the way")
    command = ["weights", "fetch", "biomedparse_v2", "--accept-licence", "--output", str(tmp_path / "file" / "mine")]
    assert main(command) == 2
    assert f"cannot write into {tmp_path / 'file'}" in _one_line(capsys)


def test_fetching_from_a_mirror_reaches_nobody_else(tmp_path: Path) -> None:
    """As from a shell, with no other address to be reached: fetch a model by its id, then say what it is, offline."""
    folder = tmp_path / "mine"
    assert main(["weights", "convert", str(write_model(tmp_path / "model.pt")), "--output", str(folder)]) == 0
    log = tmp_path / "connections.txt"
    command = [sys.executable, "-m", "boltzformer_monai"]
    with serving() as mirror:
        for file in ("config.json", "model.safetensors", "README.md"):
            mirror.files["somebody/lungs", file] = (folder / file).read_bytes()
        environment = {**offline(log), "HF_ENDPOINT": mirror.hub, "HF_HOME": str(tmp_path / "hub")}
        environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
        asked = []
        for words in (["weights", "fetch", "somebody/lungs", "--accept-licence"], ["info", "somebody/lungs"]):
            done = subprocess.run(
                [*command, *words], env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr
            asked.append(len(mirror.requests))
            environment["TRANSFORMERS_OFFLINE"] = "1"
        assert "lung nodule" in done.stdout
        assert asked[0] == asked[1] > 0
    assert attempts(log) == []
