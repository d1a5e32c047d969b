"""What the tests of the folder recipe share."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import load_recipe

folder_recipe = load_recipe("folder")

CT_NAMES = {"modality": "CT", "site": "abdomen", "labels": {"1": "liver", "2": "kidney right"}}
STACK = np.random.default_rng(0).integers(0, 2000, (4, 6, 8))


def listed(folder: Path, **options: Any) -> dict[str, Case]:
    cases = pickle.loads(pickle.dumps(folder_recipe(folder, **options)))
    assert not any(case.public for case in cases)
    assert len({case.volume_id for case in cases}) == len(cases)
    return {case.volume_id: case for case in cases}


def write_names(folder: Path, names: object = CT_NAMES) -> None:
    (folder / "labels.json").write_text(json.dumps(names))
