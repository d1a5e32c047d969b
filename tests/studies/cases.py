"""A study of trainings that take a second each."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from tests.networks.cases import SMALL

CONTENT: dict[str, Any] = {
    "name": "unit",
    "title": "A study of seconds",
    "question": "Does it run?",
    "training": {"preset": "tiny", "image_size": 64, "epochs": 2, "val_interval": 1, "batch_size": 2, "overlays": 0},
    "network": {key: value for key, value in SMALL.items() if key != "image_size"},
    "evaluation": {"resamples": 10},
    "data": {"slices": {"folder": "slices", "licence": "none needed"}},
    "arms": {
        "boltzmann": {"title": "Boltzmann", "paper": {"3": "Boltzmann sampling", "7": "text-conditioned"}},
        "full": {"title": "full attention", "network": {"policy": "full"}, "paper": {"3": "full attention"}},
        "no prior": {"network": {"text_prior": False}, "paper": {"7": "unconditioned"}},
    },
    "experiments": {"main": {"title": "Main", "data": ["slices"], "arms": ["boltzmann", "full"], "seeds": 2}},
    "comparisons": [{"arm": "boltzmann", "against": "full", "claim": "sampling helps"}],
}


def content(**changes: Any) -> dict[str, Any]:
    """The study with other values; ``a__b=…`` sets that of b in a."""
    study = copy.deepcopy(CONTENT)
    for key, value in changes.items():
        part = study
        *parents, name = key.split("__")
        for parent in parents:
            part = part.setdefault(parent.replace("_", " "), {}) if parent not in part else part[parent]
        part[name] = value
    return study


def write(folder: Path, **changes: Any) -> Path:
    """Its file; the slices are in ``slices`` beside it."""
    path = folder / "study.json"
    path.write_text(json.dumps(content(**changes)))
    return path
