"""A small model as a checkpoint, as training writes it, and metrics as evaluation writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from boltzformer_monai.data.windows import NAMED_WINDOWS
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.summary import SliceScore, VolumeScore, summarise_slices, summarise_volumes
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.networks import network_config
from boltzformer_monai.networks.weights import Description, save_checkpoint
from tests.networks.cases import SMALL, small_network

RESTRICTED = Licence(name="CC-BY-NC-SA-4.0", restricted=True, url="https://example.org/licence", terms="research only")
CHEST = NAMED_WINDOWS["chest"].to_dict()
BODY = {"kind": "percentiles", "lower": 1.0, "upper": 99.0}
DATA: dict[str, Any] = {
    "plane": "coronal",
    "targets": [
        {"target": "lung nodule", "modality": "CT", "site": "chest", "window": CHEST},
        {"target": "liver | lesion", "modality": "MR", "site": "abdomen", "window": BODY},
    ],
    "presence": {"high": 0.625, "low": 0.25},
    "training_data": {
        "splits": {"train": {"volumes": 3, "patients": 2, "slices": 17}},
        "modalities": {"CT": 2, "MR": 1},
        "pixel_spacing_mm": [0.5, 0.75, 1.0],
        "sha256": "5" * 64,
    },
    "initial_weights": [{"part": "backbone", "source": "facebook/sam2-hiera-small", "sha256": "9" * 64,
                         "licence": "Apache-2.0"}],
}  # fmt: skip


def write_model(path: Path, *, seed: int = 7, **data: Any) -> Path:
    """A checkpoint of a small network that says ``DATA`` of itself."""
    content = {
        "model": small_network(seed, presence=True).state_dict(),
        "description": Description(
            network_config("tiny", **{**SMALL, "presence": True}), {**DATA, **data}
        ).state_dict(),
    }
    save_checkpoint(content, path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "model.pt")


def write_metrics(path: Path, sha256: str | None) -> dict[str, Any]:
    """Metrics of two patients and two targets, as an evaluation of the model of this hash writes them."""
    bootstrap = Bootstrap(resamples=50)
    slices = [
        SliceScore(
            image=f"{number}.png", volume=f"v{number // 4}", patient=f"p{number // 4}", target=target, prompt=target,
            area_fraction=area, truth=40, predicted=40 + number, intersection=30,
            values={"dice": 60 / (80 + number), "missed": 0.0, "false_positive_rate": None},
        )
        for number in range(8)
        for target, area in (("lung nodule", 0.001), ("liver | lesion", 0.2))
    ]  # fmt: skip
    volumes = [
        VolumeScore(
            volume=f"v{number}", patient=f"p{number}", target="lung nodule", prompt="lung nodule", truth_ml=3.0,
            predicted_ml=2.0, values={"dice": 0.5 + number / 10},
        )
        for number in range(2)
    ]  # fmt: skip
    from boltzformer_monai.evaluation.metrics import metrics_for

    twos = [metric for metric in metrics_for(2) if metric.name in ("dice", "missed", "false_positive_rate")]
    threes = [metric for metric in metrics_for(3) if metric.name == "dice"]
    content: dict[str, Any] = {} if sha256 is None else {"model": {"sha256": sha256}}
    content["slices"] = summarise_slices(slices, metrics=twos, bootstrap=bootstrap)
    content["volumes"] = summarise_volumes(volumes, metrics=threes, bootstrap=bootstrap)
    path.write_text(json.dumps(content), encoding="utf-8")
    return content
