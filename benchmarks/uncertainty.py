"""Rank correlation (Spearman) of the uncertainty of repeated decodings with the errors of the mask, case by case.

    python benchmarks/uncertainty.py --input Task04_Hippocampus --slices runs/hippocampus/slices \
        --checkpoint runs/hippocampus/axial/model.pt --json benchmarks/results/hippocampus_uncertainty.json

For every volume and target of the split: the rank correlation, over all voxels, between the entropy and the error
(1 where mask and truth differ). Across cases: between what the mask's confidence lacks to 1, and what its Dice lacks.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.data.slices.reader import SliceReader  # noqa: E402
from boltzformer_monai.evaluation.mask_pair import dice  # noqa: E402
from boltzformer_monai.inferers.run_settings import RunSettings  # noqa: E402
from boltzformer_monai.inferers.segmenter import VolumeSegmenter  # noqa: E402
from boltzformer_monai.io.label_map import reorient_label  # noqa: E402
from boltzformer_monai.io.read import read_label_map, read_volume  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One target of one volume."""

    volume: str
    target: str
    spearman: float
    """Of entropy and error over the voxels; NaN without an error or without any uncertainty."""
    dice: float | None
    confidence: float


def cases_of(segmenter: VolumeSegmenter, reader: SliceReader, task: Path, volume: str, repeats: int) -> list[Case]:
    rows = {row.target: row for row in reader.rows if row.scan == volume}
    scan = read_volume(task / "imagesTr" / f"{volume}.nii.gz", modality=next(iter(rows.values())).modality)
    label = reorient_label(read_label_map(task / "labelsTr" / f"{volume}.nii.gz"), scan).array
    inferer = segmenter.inferer(RunSettings(prompts=[row.prompts[0] for row in rows.values()], repeats=repeats))
    cases = []
    with inferer.segment(scan, segmenter.network) as found:
        for index, row in enumerate(rows.values()):
            truth = np.isin(label, row.label_values)
            mask, entropy = found.mask(index), found.entropy(index)
            if entropy is None or not truth.any():
                continue
            wrong = mask != truth
            overlap = dice(int((mask & truth).sum()), int(mask.sum()), int(truth.sum()))
            confidence = found.findings[index].confidence or 0.0
            informative = wrong.any() and entropy.any()
            rank = float(spearmanr(entropy.ravel(), wrong.ravel()).statistic) if informative else float("nan")
            cases.append(Case(volume, row.target, rank, overlap, confidence))
    return cases


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", type=Path, required=True, metavar="TASK_DIR", help="Decathlon task that was sliced")
    parser.add_argument("--slices", type=Path, required=True, metavar="DIR")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE")
    parser.add_argument("--split", default="val")
    parser.add_argument("--repeats", type=int, default=8, metavar="K")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    reader = SliceReader(arguments.slices)
    segmenter = VolumeSegmenter.from_checkpoint(arguments.checkpoint)
    volumes = dict.fromkeys(row.scan for row in reader.select(split=arguments.split))
    cases = [
        case for volume in volumes for case in cases_of(segmenter, reader, arguments.input, volume, arguments.repeats)
    ]
    ranks = np.array([case.spearman for case in cases if np.isfinite(case.spearman)])
    across = spearmanr([1 - case.confidence for case in cases], [1 - (case.dice or 0.0) for case in cases]).statistic
    low, median, high = np.quantile(ranks, [0, 0.5, 1])
    rows = [
        result("spearman_entropy_error_median", float(median), "rank correlation"),
        result("spearman_entropy_error_lowest", float(low), "rank correlation"),
        result("spearman_entropy_error_highest", float(high), "rank correlation"),
        result("spearman_confidence_dice_across_cases", float(across), "rank correlation"),
        result("cases", len(cases), "cases"),
        result("repeats", arguments.repeats, "decodings"),
        result("mean_dice_3d_of_the_mean", float(np.mean([case.dice or 0.0 for case in cases])), "Dice"),
        *(result(f"spearman {case.volume} {case.target}", case.spearman, "rank correlation") for case in cases),
        result("time_total", (time.monotonic() - started) / 60, "min"),
    ]
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
