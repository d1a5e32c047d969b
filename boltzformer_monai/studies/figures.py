"""Figures of a study from its checkpoints: all systems side by side (the paper's Figure 9), and the patches that each
samples, layer by layer (its Figures 4 to 8)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_mask, read_png
from boltzformer_monai.engines.overlays import around_target
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid, sampled_patches
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.slice_prediction import SlicePrediction, predict_slice
from boltzformer_monai.studies.plan import BOLTZFORMER, Run, Study
from boltzformer_monai.studies.runner import read_result, run_folder
from boltzformer_monai.studies.scores import SMALL, ScoreRow, in_group, read_rows

__all__ = ["CHOSEN", "choose_cases", "study_figures"]

CHOSEN = (
    "Of every data set that allows it the worst, the median and the best of the smallest group of objects that it has "
    "(below 0.1 % of the image, below 1 %, all), by the Dice of the experiment's first arm with its first seed, "
    "failures included; equal ones by name. The first eight arms but experts show these, with the same seed."
)
_MOST_ARMS = 8
_MOST_SAMPLED = 4


def choose_cases(rows: Sequence[ScoreRow]) -> dict[str, ScoreRow]:
    """``"worst"``, ``"median"`` and ``"best"`` of the smallest objects by Dice; equal ones by image and target."""
    group = next((name for name in (SMALL, "below 1 %", "all") if in_group(rows, name)), None)
    if group is None:
        return {}
    ordered = sorted(in_group(rows, group), key=lambda row: (row.dice, row.image, row.target))
    places = {"worst": 0, "median": len(ordered) // 2, "best": len(ordered) - 1}
    return {name: ordered[place] for name, place in places.items()}


def study_figures(
    study: Study, folder: Path, planned: Mapping[str, Sequence[Run]], places: Mapping[str, Path | None]
) -> Iterator[tuple[str, str, bytes]]:
    """Draw the figures of the runs that are done.

    Data that allow no figures have none, nor have runs without a checkpoint.

    Args:
        study: the study.
        folder: its results.
        planned: of :func:`~boltzformer_monai.studies.runner.planned_runs`.
        places: of :func:`~boltzformer_monai.studies.runner.prepare_data`.

    Yields:
        Name of the file, caption, PNG.
    """
    for name, runs in planned.items():
        plan = study.experiments[name]
        for data in plan.data:
            place = places[data]
            if place is None or not study.data[data].figures:
                continue
            first = [run for run in runs if run.data == data and run.seed == plan.seeds[0] and run.fold in (None, 0)]
            models = {run.arm: run for run in first if _model(folder, run) is not None}
            if not models or read_result(folder, first[0]) is None:
                continue
            heading = f"{plan.title or name}, {study.data[data].title or data}"
            file = f"{name}_{data}".replace(" ", "_")
            yield from _of_data(study, folder, models, first[0], place, heading, file)


def _model(folder: Path, run: Run) -> Path | None:
    if run.kind != BOLTZFORMER:
        return None
    path = run_folder(folder, run) / "training" / "model.pt"
    return path if path.is_file() and read_result(folder, run) is not None else None


def _of_data(
    study: Study, folder: Path, models: Mapping[str, Run], reference: Run, place: Path, heading: str, name: str
) -> Iterator[tuple[str, str, bytes]]:
    cases = choose_cases(read_rows(run_folder(folder, reference) / "scores.csv"))
    reader = SliceReader(place)
    rows = {(row.image.relative_to(reader.root).as_posix(), row.target): row for row in reader.rows}
    slices = {case: rows[score.image, score.target] for case, score in cases.items()}
    if not slices:
        return
    found: dict[str, dict[str, SlicePrediction]] = {}
    for arm, run in list(models.items())[:_MOST_ARMS]:
        segmenter = VolumeSegmenter.from_checkpoint(str(_model(folder, run)))
        found[arm] = {case: predict_slice(segmenter, row) for case, row in slices.items()}
    title = {arm: study.arms[arm].title or arm for arm in found}
    panels = [
        panel
        for case, row in slices.items()
        for panel in _panels(case, row, {title[arm]: each[case].mask for arm, each in found.items()})
    ]
    said = ", ".join(f"{case}: {row.prompts[0]}, {100 * row.area_fraction:.2g} %" for case, row in slices.items())
    caption = f"Figure 9, {heading}: {' · '.join(title.values())}. {said}"
    yield f"figure_9_{name}.png", caption, overlay_grid(panels, columns=1 + len(found))
    row = slices["median"]
    sampled = [arm for arm, each in found.items() if each["median"].sets][:_MOST_SAMPLED]
    for arm in sampled:
        each = found[arm]["median"]
        caption = f"Figures 4 to 8, {heading}: patches that the first query of {title[arm]} attends to, layer by layer"
        png = sampled_patches(each.square, each.sets, each.truth, row.prompts[0])
        yield f"figure_4_{name}_{arm.replace(' ', '_')}.png", f"{caption} (median case)", png


def _panels(case: str, row: SliceRow, masks: Mapping[str, np.ndarray]) -> Iterator[OverlayPanel]:
    """Cut-outs around the target: the slice with the truth alone, then every arm's mask."""
    image, truth = read_png(row.image), read_mask(row)
    part = around_target(truth, row.spacing[:2])
    yield OverlayPanel(image[part], np.zeros_like(truth[part]), truth[part], f"{case}: {row.target}")
    for arm, mask in masks.items():
        both, predicted, true = (int(np.count_nonzero(each)) for each in (mask & truth, mask, truth))
        yield OverlayPanel(image[part], mask[part], truth[part], f"{arm}: {dice(both, predicted, true) or 0.0:.2f}")
