"""A volume protocol of a guest, chosen on the command line in a new process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest

from boltzformer_monai.registry import PLUGINS
from tests.extending.guests import ROOT, python
from tests.inferers.conftest import checkpoint

__all__ = ["checkpoint"]

GUEST = Path(__file__).parent / "guest_protocol.py"
ENVIRONMENT = {**{key: value for key, value in os.environ.items() if key != PLUGINS}, "PYTHONPATH": str(ROOT)}


def test_the_guest_is_the_example_of_the_documentation() -> None:
    page = (ROOT / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")
    assert f"```python\n{GUEST.read_text(encoding='utf-8')}```" in page


@pytest.mark.slow
def test_it_slices_in_the_plane_of_acquisition(checkpoint: Path, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(40, 100, (4, 30, 32)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([6.0, 1.0, 1.0, 1.0])), tmp_path / "scan.nii.gz")

    def manifest(*options: object) -> dict[str, object]:
        done = python("-m", "boltzformer_monai", "segment", "scan.nii.gz", "--prompts", "liver", "--modality", "CT",
                      "--checkpoint", checkpoint, "--output", "out.nii.gz", "--device", "cpu", *options,
                      env=ENVIRONMENT, cwd=tmp_path)  # fmt: skip
        assert done.returncode in (0, 4), done.stderr
        return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))

    def kinds(found: dict[str, object]) -> set[str]:
        return {each["kind"] for each in found["caveats"]}  # type: ignore[attr-defined]

    assert "acquisition plane" in kinds(manifest())
    found = manifest("--plugin", GUEST, "--protocol", "acquired", "--protocol-settings", "ratio=2")
    assert "acquisition plane" not in kinds(found)
    assert (found["protocol"], found["protocol_settings"], found["planes"]) == ("acquired", {"ratio": 2}, None)
