"""``boltzformer export``: what it prints, and one line for what cannot be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from boltzformer_monai.cli import main
from boltzformer_monai.deploy.formats import FORMATS
from boltzformer_monai.networks import network_config
from tests.deploy.conftest import TINIEST, write_balanced
from tests.deploy.test_export import Untranslated


def test_a_model_is_exported_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "torch", Untranslated())
    monkeypatch.chdir(tmp_path)
    write_balanced(Path("model"), network_config("tiny", **TINIEST))
    assert main(["export", "model", "--to", "torch", "--output", "graphs", "--prompts", "Left  lobe", "cyst"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "graphs\n"
    assert "decoder.onnx" in shown.err
    assert "as the network: 100.0000 % of the pixels are equal" in shown.err
    assert {"left lobe", "cyst"} <= set(json.loads(Path("graphs/prompts.json").read_text(encoding="utf-8")))
    assert main(["export", "model", "--to", "torch", "--output", "graphs"]) == 0  # an older export is replaced
    assert "cyst" not in json.loads(Path("graphs/prompts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["nowhere.pt", "--to", "tflite"], "invalid choice: 'tflite'"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    words: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *words, "--output", "out"]) == 2
    shown = capsys.readouterr()
    assert line in shown.err
    assert shown.err.count("\n") == 1
    assert not Path("out").exists()
