"""Evaluation on a slice dataset: every target of every slice, scored at native resolution."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from monai.transforms import Compose
from torch import Tensor

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_png
from boltzformer_monai.engines.data import AllPromptsd, Item, group_by_slice, prompt_length
from boltzformer_monai.engines.evaluate_volumes import ScoreVolumes
from boltzformer_monai.engines.focus import MeasureFocus
from boltzformer_monai.engines.mlflow_run import detach, find_mlflow_handlers, track_evaluation
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.bootstrap import Bootstrap
from boltzformer_monai.evaluation.calibration import Reliability, add_pixels, write_calibration_csv
from boltzformer_monai.evaluation.detection import ObjectScore, find_objects, highest_confidence, write_objects_csv
from boltzformer_monai.evaluation.focus import FocusScore, focus_table, summarise_focus, verdict, write_focus_csv
from boltzformer_monai.evaluation.levels import probability_levels
from boltzformer_monai.evaluation.mask_pair import MaskPair
from boltzformer_monai.evaluation.metrics import Metric, measure, metrics_for
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.summary import SliceScore, summarise_slices
from boltzformer_monai.evaluation.tables import markdown, markdown_table, write_metrics_json, write_scores_csv
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.sampling import CounterNoise
from boltzformer_monai.storage import writing
from boltzformer_monai.transforms import LoadSliced, PromptTokenizer
from boltzformer_monai.transforms.load import slice_fit
from boltzformer_monai.transforms.poses import first_poses, mean_logits
from boltzformer_monai.transforms.square import resized_logits

_log = logging.getLogger(__name__)


class ScoreSlices:
    """Handler that scores logits: one :class:`SliceScore` per slice and target, their objects, and their calibration.

    Args:
        root: the dataset's folder; scores name images relative to it.
        size: edge of the network's input in pixels.
        threshold: smallest probability of a mask's pixels.
        tolerance: of surface metrics in mm.
        volumes: collects the masks for 3-D scores.
        metrics: of the table; by default all 2-D metrics. Objects and calibration are found for all metrics only.

    Attributes:
        scores: one per slice and target.
        objects: of all slices, and candidates.
        pixels: reliability of the probabilities.
    """

    def __init__(
        self,
        *,
        root: Path,
        size: int,
        threshold: float = 0.5,
        tolerance: float = 2.0,
        volumes: ScoreVolumes | None = None,
        metrics: Sequence[Metric] | None = None,
    ) -> None:
        self.root = root
        self.size = size
        self.tolerance = tolerance
        self.metrics = metrics_for(2) if metrics is None else metrics
        self.volumes = volumes
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold must be between 0 and 1, got {threshold}")
        self.logit = float(np.log(threshold / (1 - threshold)))
        self.in_detail = metrics is None
        self.scores: list[SliceScore] = []
        self.objects: list[ObjectScore] = []
        self.pixels: Reliability = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator; every run starts with empty scores."""
        engine.add_event_handler(Events.STARTED, lambda _: self._clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score_batch)
        ProgressBar(desc="evaluation", persist=False).attach(engine)

    def _clear(self) -> None:
        self.scores.clear()
        self.objects.clear()
        self.pixels.clear()
        if self.volumes is not None:
            self.volumes.clear()

    def score_batch(self, engine: Engine) -> None:
        """Score the output of an iteration, by the ``rows`` of its batch."""
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        prediction = output["pred"]
        decoded = prediction if isinstance(prediction, Decoded) else Decoded(prediction)
        for index, rows in enumerate(batch["rows"]):
            presence = None if decoded.presence is None else decoded.presence[index, : len(rows)]
            self.scores.extend(self.score(decoded.logits[index, : len(rows)], rows, presence=presence))

    def score(self, logits: Tensor, rows: Sequence[SliceRow], *, presence: Tensor | None = None) -> list[SliceScore]:
        """Score logits ``(P, s, s)`` of one slice's P rows in native pixels.

        Presence logits ``(P,)`` affect the masks of volumes only.
        """
        fit = slice_fit(_label_of(rows).shape, rows[0], self.size)
        return self.score_native(fit.restore(logits[None].float().cpu())[0], rows, presence=presence)

    def score_native(
        self, logits: Tensor, rows: Sequence[SliceRow], *, presence: Tensor | None = None
    ) -> list[SliceScore]:
        """As :meth:`score`, with logits ``(P, H, W)`` in native pixels."""
        values = _label_of(rows)
        native = logits.float().cpu()
        predicted, probability = (native > self.logit).numpy(), native.sigmoid().numpy()
        truths = np.stack([np.isin(values, row.label_values) for row in rows])
        probabilities = None if presence is None else presence.float().sigmoid().cpu().numpy()
        if self.volumes is not None:
            self.volumes.add(rows, predicted, truths, probabilities, probability=probability)
        shown: list[float | None] = [None] * len(rows)
        if probabilities is not None:
            shown = [float(each) for each in probabilities]
        return [self._score(*each) for each in zip(rows, predicted, truths, probability, shown, strict=True)]

    def _score(
        self, row: SliceRow, predicted: np.ndarray, truth: np.ndarray, probability: np.ndarray, presence: float | None
    ) -> SliceScore:
        masks = MaskPair(
            prediction=predicted,
            truth=truth,
            spacing=row.spacing[:2],
            tolerance_mm=self.tolerance,
            probability=probability,
            in_mm=row.in_mm,
        )
        image = row.image.relative_to(self.root).as_posix()
        objects: list[ObjectScore] = []
        if self.in_detail:
            levels = probability_levels(probability)
            add_pixels(self.pixels, (row.target, row.patient), levels, truth)
            objects = find_objects(
                masks, part="slices", case=image, patient=row.patient, target=row.target, levels=levels
            )
            self.objects += objects
        return SliceScore(
            image=image,
            volume=row.volume,
            patient=row.patient,
            target=row.target,
            prompt=row.prompts[0],
            area_fraction=row.area_fraction,
            truth=masks.truth_size,
            predicted=masks.predicted_size,
            intersection=masks.intersection,
            values=measure(masks, self.metrics),
            diameter_mm=masks.diameter_mm if self.in_detail else None,
            confidence=highest_confidence(objects),
            presence=presence,
        )


def _label_of(rows: Sequence[SliceRow]) -> np.ndarray:
    if rows[0].label is None:
        raise DatasetError(f"{rows[0].image} has no label to compare with")
    return read_png(rows[0].label)


class AveragingInferer(Inferer):
    """Run the network on each slice in several poses (test-time averaging), and average the probabilities.

    Args:
        tta: how many; 1 shows the slice as it is.
        fresh_draws: sample with numbers of every slice's own, by its content, and of every prompt's own, by its place;
            by default all slices and prompts share the numbers of a layer, head, query and patch.

    Raises:
        ConfigError: not 1 to 5, or no bool.
    """

    def __init__(self, tta: int = 1, *, fresh_draws: bool = False) -> None:
        super().__init__()
        self.poses = first_poses(tta)
        if not isinstance(fresh_draws, bool):
            raise ConfigError(f"fresh_draws must be True or False, got {fresh_draws!r}")
        self.fresh_draws = fresh_draws

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Decoded:
        """``(B, C, S, S)`` and tokens → mask and presence logits of the mean probabilities."""
        if self.fresh_draws:
            kwargs["generator"] = self.noise(inputs)
        found = [network(pose.image(inputs), *args, with_presence=True, **kwargs) for pose in self.poses]
        if len(found) == 1:
            return found[0]
        logits = [
            pose.restore(each.logits.float(), inputs.shape[-1]) if pose.moves else _enlarged(each.logits, inputs)
            for pose, each in zip(self.poses, found, strict=True)
        ]
        presence = None if found[0].presence is None else mean_logits([each.presence for each in found])
        return Decoded(mean_logits(logits), presence)

    def noise(self, inputs: Tensor) -> CounterNoise | None:
        """What ``(B, C, S, S)`` slices are sampled with; None: the numbers that all share."""
        return CounterNoise(_seeds_of(inputs)) if self.fresh_draws else None


def _seeds_of(images: Tensor) -> Tensor:
    """A seed for each image by its grey values, 0 to 2³¹ − 1, whatever the batch: ``(B, C, S, S)`` → ``(B,)``."""
    levels = (images.flatten(1) * 255).round().to(torch.int64)
    weights = torch.arange(1, levels.shape[1] + 1, device=images.device) * 0x9E3779B1 & 0x7FFFFFFF
    return (levels * weights).sum(1) & 0x7FFFFFFF


def _enlarged(logits: Tensor, inputs: Tensor) -> Tensor:
    return resized_logits(logits.float(), (inputs.shape[-2], inputs.shape[-1]))


def evaluation_items(reader: SliceReader, *, split: str) -> list[Item]:
    """Every labelled slice of the split with all its targets.

    Raises:
        DatasetError: the split has none.
    """
    rows = [row for row in reader.select(split=split) if row.label is not None]
    if not rows:
        splits = ", ".join(sorted({row.split for row in reader.rows})) or "none"
        raise DatasetError(f"{reader.root} has no labelled slices in the split {split!r}; splits there: {splits}")
    return group_by_slice(rows)


def evaluation_transform(
    reader: SliceReader, *, tokenizer: PromptTokenizer, size: int, neighbours: int = 0, neighbour_mm: float = 0.0
) -> Compose:
    """Load a slice and prompt all its targets by their canonical prompts."""
    length = prompt_length(reader, tokenizer)
    load = LoadSliced(size=size, neighbours=neighbours, neighbour_mm=neighbour_mm)
    return Compose([load, AllPromptsd(tokenizer=tokenizer, length=length)])


def run_evaluation(
    evaluator: SupervisedEvaluator,
    *,
    scorer: ScoreSlices,
    output_dir: str | Path,
    bootstrap: Bootstrap | None = None,
    model: Mapping[str, Any] | None = None,
    handlers: Sequence[object] = (),
    focus: bool = False,
) -> dict[str, Any]:
    """Evaluate once; writes metrics, tables (CSV) and ``report.html`` into ``output_dir``.

    MONAI's handlers of ``--tracking mlflow`` among ``handlers`` track the means. With ``focus``, ``focus.csv`` too.

    Returns:
        The metrics: under ``"slices"`` those of :func:`~boltzformer_monai.evaluation.summary.summarise_slices`, under
        ``"volumes"`` those of :class:`~boltzformer_monai.engines.evaluate_volumes.ScoreVolumes` where the scorer has
        one; under ``"focus"``, where wanted, those of :func:`~boltzformer_monai.evaluation.focus.summarise_focus`;
        under ``"model"`` which model was evaluated, where that is given.
    """
    if not isinstance(focus, bool):
        raise ConfigError(f"--focus must be True or False, got {focus!r}")
    trackers = find_mlflow_handlers(handlers)
    detach(evaluator, trackers)
    with writing(Path(output_dir)):
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    measured = None
    if focus:
        noise = getattr(evaluator.inferer, "noise", None)
        measured = MeasureFocus(evaluator, root=scorer.root, size=scorer.size, logit=scorer.logit, noise=noise)
        measured.attach(evaluator)
    evaluator.run()
    return write_evaluation(
        scorer,
        output_dir=output_dir,
        bootstrap=bootstrap,
        model=model,
        trackers=trackers,
        focus=None if measured is None else measured.scores,
    )


def write_evaluation(
    scorer: ScoreSlices,
    *,
    output_dir: str | Path,
    bootstrap: Bootstrap | None = None,
    model: Mapping[str, Any] | None = None,
    trackers: Sequence[Any] = (),
    focus: Sequence[FocusScore] | None = None,
) -> dict[str, Any]:
    """Write ``metrics.json``, ``scores.csv`` and ``report.html`` of what a scorer has seen; returns the metrics.

    With ``focus``, what was measured of the sampling, ``focus.csv`` too.
    """
    folder = Path(output_dir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    metrics: dict[str, Any] = {} if model is None else {"model": dict(model)}
    metrics["slices"] = summarise_slices(
        scorer.scores,
        metrics=scorer.metrics,
        bootstrap=bootstrap,
        objects=scorer.objects if scorer.in_detail else None,
        pixels=scorer.pixels if scorer.in_detail else None,
    )
    if scorer.volumes is not None:
        metrics["volumes"] = scorer.volumes.summary()
    if focus is not None:
        metrics["focus"] = summarise_focus(focus, bootstrap=bootstrap)
        write_focus_csv(focus, folder / "focus.csv")
    write_metrics_json(metrics, folder / "metrics.json")
    write_scores_csv(scorer.scores, folder / "scores.csv")
    of_volumes = [] if scorer.volumes is None else scorer.volumes.objects
    write_objects_csv([*scorer.objects, *of_volumes], folder / "objects.csv")
    write_calibration_csv(scorer.pixels, folder / "calibration.csv")
    write_report(folder / "report.html", title="Evaluation", metrics=metrics)
    files = ["metrics.json", "scores.csv", "objects.csv", "calibration.csv", "report.html"]
    files += [] if focus is None else ["focus.csv"]
    track_evaluation(trackers, folder=folder, metrics=metrics, files=files)
    _log.info("evaluated; results are in %s\n%s", folder, markdown_table(metrics))
    if focus is not None:
        _log.info("%s Focus by layer:\n%s", verdict(metrics["focus"]), markdown(*focus_table(metrics["focus"])))
    return metrics
