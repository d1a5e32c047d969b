"""The program of docs/how-to/deploy.md finds what the package finds in the same scan, without PyTorch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.data.planes import extract_slices, slices_to_volume
from boltzformer_monai.demo.phantom import make_phantom
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.volume import Volume

pytest.importorskip("onnxruntime")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "deploy.md"
PROMPT = "lung nodule"


def program() -> str:
    (text,) = re.findall(r"```python\n(\"\"\"python segment.py.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return text


@pytest.mark.parametrize("presence", [True, False])
def test_the_program_of_the_page(presence: bool, small_model: Path, small_onnx: Path, tmp_path: Path) -> None:
    array = make_phantom("chest", seed=1, size=(70, 90, 4))[0].array
    volume = Volume(array, np.diag([-1.5, -2.0, 5.0, 1.0]), modality="CT")
    segmenter = VolumeSegmenter.from_checkpoint(small_model, precision="fp32")
    inferer = segmenter.inferer(RunSettings(prompts=[PROMPT], presence=presence))
    expected = inferer.label_map(volume, segmenter.network)

    np.save(tmp_path / "slices.npy", extract_slices(volume, "axial"))
    folder = tmp_path / "model"
    folder.mkdir()
    for path in small_onnx.iterdir():
        (folder / path.name).symlink_to(path)
    if not presence:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        del about["description"]["data"]["presence"]
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    (tmp_path / "segment.py").write_text(
        program() + "assert not {'torch', 'boltzformer_monai'} & set(sys.modules)\n", encoding="utf-8"
    )
    words = [folder, tmp_path / "slices.npy", "2.0", "1.5", PROMPT, tmp_path / "mask.npy"]
    subprocess.run([sys.executable, tmp_path / "segment.py", *map(str, words)], check=True, cwd=tmp_path)
    found = slices_to_volume(np.load(tmp_path / "mask.npy"), volume, "axial")
    assert found.shape == expected.shape
    assert 0.1 < found.mean() < 0.9
    assert (found == (expected > 0)).mean() >= 0.9999


def test_the_program_is_short() -> None:
    assert len([line for line in program().splitlines() if line.strip()]) <= 43
