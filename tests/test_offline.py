"""Nothing calls home: neither this package nor what it brings along. The servers of tests/label run offline, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.offline import attempts, offline

ROOT = Path(__file__).resolve().parents[1]

_DAY = """
import sys
from pathlib import Path
from monai.bundle import create_workflow  # as `python -m monai.bundle` does, before anything of ours
from boltzformer_monai.cli import main
from boltzformer_monai.demo.demo import ensure_demo_dataset, read_demo_volumes
folder, bundle = Path(sys.argv[1]), sys.argv[2]
try:
    import mlflow
except ImportError:
    pass
else:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/runs.db")
    with mlflow.start_run():
        mlflow.log_metric("loss", 1.0)
ensure_demo_dataset(folder, abdomen=2, chest=0, size=(48, 48, 4))
create_workflow(
    workflow_type="train", config_file=bundle + "/configs/train.json", logging_file=False, bundle_root=bundle,
    dataset_dir=str(folder / "slices"), output_dir=str(folder / "out"), preset="tiny", image_size=64, epochs=1,
    batch_size=4, device="cpu",
).run()
scan = next(volume.image for volume in read_demo_volumes(folder) if volume.image.is_file())
words = ["segment", str(scan), "--prompts", "liver", "--checkpoint", str(folder / "out" / "model.pt")]
sys.exit(main([*words, "--output", str(folder / "liver.nii.gz")]))
"""
_REACH = "import socket; socket.create_connection(('example.invalid', 443), 2)"


def _run(code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *words]
    environment = offline(folder / "connections.txt")
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_child_really_is_offline(tmp_path: Path) -> None:
    assert _run(_REACH, tmp_path).returncode != 0
    assert attempts(tmp_path / "connections.txt") == ["example.invalid"]


@pytest.mark.slow
def test_tracking_training_and_segmenting_reach_nobody(tmp_path: Path) -> None:
    """MLflow tracks, the bundle trains an epoch, its checkpoint segments a scan; everything on this machine."""
    done = _run(_DAY, tmp_path, str(tmp_path), str(ROOT / "bundles" / "boltzformer"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "liver.nii.gz").is_file()
    assert attempts(tmp_path / "connections.txt") == []
