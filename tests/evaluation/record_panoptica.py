"""Record what panoptica finds in random volumes: ``panoptica.json``, which ``test_components.py`` compares with.

panoptica binds other packages to versions of its own, so it runs in an environment of its own:

    python -m venv .venv-panoptica && .venv-panoptica/bin/pip install panoptica
    .venv-panoptica/bin/python tests/evaluation/record_panoptica.py
"""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
from panoptica import (
    ConnectedComponentsInstanceApproximator,
    InputType,
    MaxBipartiteMatching,
    Metric,
    Panoptica_Evaluator,
)

SHAPE = (16, 20, 24)
# panoptica takes an IoU that reaches the threshold, we one that exceeds it.
THRESHOLDS = {"iou0": 1e-9, "iou10": 0.1 + 1e-9, "iou50": 0.5 + 1e-9}


def _mask(boxes: list[list[int]]) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    for box in boxes:
        mask[tuple(slice(start, start + length) for start, length in zip(box[:3], box[3:], strict=True))] = 1
    return mask


def _boxes(rng: np.random.Generator, count: int) -> list[list[int]]:
    found = []
    for _ in range(count):
        size = rng.integers(1, 8, 3)
        found.append([*rng.integers(0, np.array(SHAPE) - size + 1).tolist(), *size.tolist()])
    return found


def _moved(rng: np.random.Generator, box: list[int]) -> list[int]:
    """A box, perhaps a voxel away, larger or smaller."""
    by, larger = rng.integers(-1, 2, (2, 3)) * (rng.random((2, 3)) < 0.4)
    size = np.maximum(np.array(box[3:]) + larger, 1)
    corner = np.clip(np.array(box[:3]) + by, 0, np.array(SHAPE) - size)
    return [*corner.tolist(), *size.tolist()]


def _case(rng: np.random.Generator) -> dict[str, object]:
    truth = _boxes(rng, int(rng.integers(0, 9)))
    prediction = [_moved(rng, box) for box in truth if rng.random() < 0.8] + _boxes(rng, int(rng.integers(0, 4)))
    return {"prediction": prediction, "truth": truth, "found": {}}


def main() -> None:
    """Write the recording."""
    rng = np.random.default_rng(0)
    cases = [_case(rng) for _ in range(200)]
    for suffix, threshold in THRESHOLDS.items():
        evaluator = Panoptica_Evaluator(
            expected_input=InputType.SEMANTIC,
            instance_approximator=ConnectedComponentsInstanceApproximator(),
            instance_matcher=MaxBipartiteMatching(matching_metric=Metric.IOU, matching_threshold=threshold),
            instance_metrics=[Metric.IOU],
            global_metrics=[],
            verbose=False,
        )
        for case in cases:
            arrays = (_mask(case[name]) for name in ("prediction", "truth"))  # type: ignore[arg-type]
            result = evaluator.evaluate(*arrays)["ungrouped"]
            numbers = [result.tp, result.n_pred_instances, result.n_ref_instances]
            quality = [float(result.sq), float(result.pq)] if result.tp else [math.nan, 0.0]
            case["found"][suffix] = [int(n) for n in numbers] + [None if math.isnan(q) else q for q in quality]  # type: ignore[index]
    content = {"panoptica": version("panoptica"), "shape": SHAPE, "cases": cases}
    path = Path(__file__).with_name("panoptica.json")
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in content.pop("cases"))  # type: ignore[union-attr]
    path.write_text(f'{json.dumps(content)[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
