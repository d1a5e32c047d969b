"""Metrics of guests: in metrics.json, the tables and the report of an evaluation that imports them as plugins."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import create_workflow

from boltzformer_monai.evaluation import metrics
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.registry import load_plugin
from tests.engines.cases import write_dataset
from tests.extending.guests import install, python

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "bundles" / "boltzformer" / "configs"
GUESTS = [HERE / "guest_metric_2d.py", HERE / "guest_metric_3d.py"]


@pytest.fixture
def table() -> Iterator[dict[tuple[int, str], metrics.Metric]]:
    """The table with the guests in it; afterwards it is as it was."""
    before = dict(metrics.METRICS)
    for guest in GUESTS:
        sys.modules.pop(load_plugin(str(guest)).__name__)
    yield metrics.METRICS
    metrics.METRICS.clear()
    metrics.METRICS.update(before)


def test_a_guest_fits_on_a_page() -> None:
    assert all(len(guest.read_text().splitlines()) <= 40 for guest in GUESTS)


def test_guests_measure_in_millimetres(table: dict[tuple[int, str], metrics.Metric]) -> None:
    truth = np.zeros((4, 12, 12), bool)
    truth[1:3, 2:6, 2:6] = True
    moved = np.roll(truth, 3, 2)
    flat = MaskPair(prediction=moved[1], truth=truth[1], spacing=(1.0, 2.0))
    assert table[2, "centre_distance_mm"].of(flat) == pytest.approx(6.0)
    solid = MaskPair(prediction=np.roll(truth, 1, 0), truth=truth, spacing=(5.0, 1.0, 1.0))
    assert 0 < table[3, "surface_distance_mm"].of(solid) < 5
    assert (
        table[3, "surface_distance_mm"].of(MaskPair(prediction=~truth & truth, truth=truth, spacing=(1, 1, 1))) is None
    )


@pytest.mark.slow
def test_an_installed_package_offers_one(tmp_path: Path) -> None:
    site = tmp_path / "site"
    offer = "[boltzformer_monai.metrics]\ncentre = guest_centre\n"
    env = install(site, "guest-centre", modules={"guest_centre": GUESTS[0]}, entry_points=offer)
    show = "from boltzformer_monai.evaluation.metrics import metrics_for; print(*(m.name for m in metrics_for({})))"
    assert python("-c", show.format(2), env=env, cwd=tmp_path).stdout.split()[-1] == "centre_distance_mm"
    assert "centre_distance_mm" not in python("-c", show.format(3), env=env, cwd=tmp_path).stdout
    (site / "guest_centre-1.0.dist-info" / "entry_points.txt").write_text(f"{offer}list = guest_centre:__all__\n")
    (site / "guest_centre.py").write_text("__all__ = []\n")
    assert (
        "the metric 'list': guest_centre:__all__ must be a Metric"
        in python("-c", show.format(2), env=env, cwd=tmp_path).stderr
    )
    (site / "guest_centre.py").write_text("import no_such_module\n")
    failed = python("-c", show.format(2), env=env, cwd=tmp_path)
    assert "the metric 'centre' cannot be imported from guest_centre (ModuleNotFoundError" in failed.stderr


@pytest.mark.slow
def test_guests_appear_in_everything_that_an_evaluation_writes(tmp_path: Path) -> None:
    slices = write_dataset(tmp_path / "slices")
    common = {"dataset_dir": str(slices), "bundle_root": str(CONFIGS.parent)}
    two_steps = {"image_size": 64, "epochs": 1, "batch_size": 2, "device": torch.device("cpu"), "preset": "tiny"}
    train = create_workflow(
        workflow_type="train", config_file=str(CONFIGS / "train.json"), logging_file=False,
        output_dir=str(tmp_path), settings_overrides={"target_weights": {}}, **two_steps, **common,
    )  # fmt: skip
    train.run()
    train.finalize()
    flags = {**common, "checkpoint": str(tmp_path / "model.pt"), "output_dir": str(tmp_path), "device": "cpu",
             "threshold": "0.0001", "presence": "False", "plugins": str([str(guest) for guest in GUESTS])}  # fmt: skip
    command = ["-m", "monai.bundle", "run", "evaluating", "--config_file", CONFIGS / "evaluate.json"]
    command += [part for key, value in flags.items() for part in (f"--{key}", value)]
    done = python(*command, env=os.environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "metrics.json").read_text())
    printed, page = done.stdout + done.stderr, (tmp_path / "report.html").read_text()
    for part, name, title in (
        ("slices", "centre_distance_mm", "centre distance"),
        ("volumes", "surface_distance_mm", "mean surface distance"),
    ):
        assert content[part]["by_target"]["liver"][name]["mean"] >= 0
        about = content[part]["metrics"][name]
        assert (about["title"], about["unit"], about["better"]) == (title, "mm", "lower")
        assert f"| {title}, mm |" in printed
        assert f'<th scope="col">{title}, mm</th>' in page
    assert (tmp_path / "scores.csv").read_text().splitlines()[0].endswith(",pq_iou50,centre_distance_mm")
    assert all("surface_distance_mm" in case for case in content["volumes"]["cases"])


def test_the_page_shows_the_guest() -> None:
    page = (HERE.parents[1] / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")
    assert f"```python\n{GUESTS[1].read_text(encoding='utf-8')}```" in page
