"""False positives of prompts for absent targets, as cases and as volume, with the presence head and without it.

    make demo
    python benchmarks/presence.py --checkpoint runs/demo/model.pt --json benchmarks/results/presence.json

New phantoms, which the demo does not have; every second one is healthy. The prompts are all targets of both kinds
(abdomen and chest): lesions and nodules are absent from healthy ones, hearts from abdomens. "Head off" is the same
decoding with every mask kept. A case is one prompt in one volume.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.demo.phantom import ALL_PHANTOM_LABELS, PhantomKind, labels_of, make_phantom  # noqa: E402
from boltzformer_monai.evaluation.mask_pair import MaskPair  # noqa: E402
from boltzformer_monai.inferers.run_settings import RunSettings  # noqa: E402
from boltzformer_monai.inferers.segmenter import VolumeSegmenter  # noqa: E402

KINDS: tuple[tuple[PhantomKind, str], ...] = (("abdomen", "abdominal"), ("chest", "chest"))
WAYS = ("on", "off")
FIRST_SEED = 7_000_000  # the demo's phantoms have seeds below 10,000 for its seed 0


@dataclass(frozen=True)
class Measured:
    """A mask against the truth."""

    present: bool
    predicted: bool
    dice: float | None
    predicted_ml: float
    found: int
    """Components of the truth that the mask touches."""
    lesions: int
    intersection: int

    @classmethod
    def of(cls, mask: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...]) -> Measured:
        pair = MaskPair(prediction=mask, truth=truth, spacing=spacing)
        return cls(pair.present, pair.predicted, pair.dice, pair.predicted_ml, *pair.lesions, pair.intersection)


@dataclass(frozen=True)
class Case:
    """One prompt in one volume, with the head and without it."""

    kind: str
    target: str
    on: Measured
    off: Measured


def cases_of(segmenter: VolumeSegmenter, kind: PhantomKind, adjective: str, number: int) -> list[Case]:
    """All prompts in one new phantom."""
    volume, label = make_phantom(kind, seed=FIRST_SEED + number, lesion=number % 2 == 0)
    prompts = [f"{name} in {adjective} CT" for name in ALL_PHANTOM_LABELS.values()]
    inferer = segmenter.inferer(RunSettings(prompts=prompts))
    cases = []
    with inferer.segment(volume, segmenter.network) as found:
        rule = found.rule
        for index, (value, name) in enumerate(ALL_PHANTOM_LABELS.items()):
            truth = label.array == value
            measured = []
            for applied in (rule, None):
                found.rule = applied
                measured.append(Measured.of(found.mask(index), truth, volume.spacing))
            cases.append(Case(kind, name, *measured))
    return cases


def summarise(cases: list[Case]) -> list[dict[str, object]]:
    absent = [case for case in cases if not case.on.present]
    present = [case for case in cases if case.on.present]
    own = [case for case in absent if case.target in labels_of(case.kind).values()]
    other = [case for case in absent if case not in own]
    rows = []
    for name, group in (("absent", absent), ("absent_lesions", own), ("absent_other_anatomy", other)):
        rows.append(result(f"{name}_cases", len(group), "cases"))
        for way in WAYS:
            predicted = [getattr(case, way).predicted for case in group]
            rows.append(result(f"not_found_{name}_head_{way}", 1 - float(np.mean(predicted)), "share"))
    wrong = {way: sum(getattr(case, way).predicted_ml for case in absent) for way in WAYS}
    rows.extend(result(f"false_positive_ml_head_{way}", ml, "ml") for way, ml in wrong.items())
    # Nothing false at all cannot be divided by: then the ratio is at least what one millilitre would give.
    rows.append(result("false_positive_volume_falls", wrong["off"] / (wrong["on"] or 1.0), "times"))
    rows.append(result("present_cases", len(present), "cases"))
    measures = {
        "sensitivity_cases": {way: float(np.mean([getattr(c, way).found > 0 for c in present])) for way in WAYS},
        "sensitivity_components": {
            way: sum(getattr(c, way).found for c in present) / sum(c.on.lesions for c in present) for way in WAYS
        },
        "mean_dice_3d": {way: float(np.mean([getattr(c, way).dice for c in present])) for way in WAYS},
    }
    for name, ways in measures.items():
        rows.extend(result(f"{name}_head_{way}", value, "share") for way, value in ways.items())
        rows.append(result(f"loss_{name}", 1 - ways["on"] / ways["off"], "share"))
    voxels = [sum(getattr(case, way).intersection for case in present) for way in WAYS]
    rows.append(result("loss_right_voxels", 1 - voxels[0] / voxels[1], "share"))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="of the demo")
    parser.add_argument("--volumes", type=int, default=40, help="new phantoms of each kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    segmenter = VolumeSegmenter.from_checkpoint(arguments.checkpoint)
    if "presence" not in segmenter.description.data:
        parser.error(f"{arguments.checkpoint} has no presence thresholds")
    started = time.monotonic()
    cases = [
        case
        for kind, adjective in KINDS
        for number in range(arguments.volumes)
        for case in cases_of(segmenter, kind, adjective, number)
    ]
    rows = [*summarise(cases), result("time_total", (time.monotonic() - started) / 60, "min")]
    report(rows, arguments.json, settings={"rule": segmenter.description.data["presence"]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
