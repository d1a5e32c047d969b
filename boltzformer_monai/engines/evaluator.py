"""Evaluation on a slice data set: every target of every slice, scored at the slice's native resolution."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from ignite.handlers.tqdm_logger import ProgressBar
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose
from torch import Tensor

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_png
from boltzformer_monai.engines.data import AllPromptsd, Item, group_by_slice, prompt_length
from boltzformer_monai.engines.evaluate_volumes import ScoreVolumes
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.evaluation.metrics import SliceScore, summarise
from boltzformer_monai.evaluation.tables import write_metrics_json, write_scores_csv
from boltzformer_monai.networks.boltzformer import Decoded
from boltzformer_monai.storage import writing
from boltzformer_monai.transforms import LoadSliced, PromptTokenizer
from boltzformer_monai.transforms.load import slice_fit

_log = logging.getLogger(__name__)


class ScoreSlices:
    """Handler that turns the evaluator's logits into one :class:`SliceScore` per slice and target.

    Args:
        root: the data set's folder; scores name images relative to it.
        size: edge of the network's square in pixels.
        threshold: probability from which a pixel belongs to the mask.
        volumes: takes the masks of all slices, for scores in three dimensions.
    """

    def __init__(self, *, root: Path, size: int, threshold: float = 0.5, volumes: ScoreVolumes | None = None) -> None:
        self.root = root
        self.size = size
        self.volumes = volumes
        if not 0 < threshold < 1:
            msg = f"threshold must be between 0 and 1, got {threshold}"
            raise ConfigError(msg)
        self.logit = float(np.log(threshold / (1 - threshold)))
        self.scores: list[SliceScore] = []

    def attach(self, engine: Engine) -> None:
        """Start afresh with every run; listen to every iteration."""
        engine.add_event_handler(Events.STARTED, lambda _: self._clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        ProgressBar(desc="evaluation", persist=False).attach(engine)

    def _clear(self) -> None:
        self.scores.clear()
        if self.volumes is not None:
            self.volumes.clear()

    def _iteration(self, engine: Engine) -> None:
        output: Any = engine.state.output
        batch: Any = engine.state.batch
        prediction = output["pred"]
        decoded = prediction if isinstance(prediction, Decoded) else Decoded(prediction)
        for index, rows in enumerate(batch["rows"]):
            presence = None if decoded.presence is None else decoded.presence[index, : len(rows)]
            self.scores.extend(self.score(decoded.logits[index, : len(rows)], rows, presence=presence))

    def score(self, logits: Tensor, rows: Sequence[SliceRow], *, presence: Tensor | None = None) -> list[SliceScore]:
        """Logits ``(P, s, s)`` of one slice's P rows → their scores in native pixels.

        Presence logits ``(P,)`` go to the volumes' scores only: a slice's own are those of the masks as they are.
        """
        if rows[0].label is None:
            msg = f"{rows[0].image} has no label to compare with"
            raise DatasetError(msg)
        values = read_png(rows[0].label)
        fit = slice_fit(values.shape, rows[0], self.size)
        predicted = (fit.restore(logits[None].float().cpu())[0] > self.logit).numpy()
        truths = np.stack([np.isin(values, row.label_values) for row in rows])
        if self.volumes is not None:
            probabilities = None if presence is None else presence.float().sigmoid().cpu().numpy()
            self.volumes.add(rows, predicted, truths, probabilities)
        scores = []
        for mask, truth, row in zip(predicted, truths, rows, strict=True):
            scores.append(
                SliceScore(
                    image=row.image.relative_to(self.root).as_posix(),
                    volume=row.volume,
                    patient=row.patient,
                    target=row.target,
                    prompt=row.prompts[0],
                    area_fraction=row.area_fraction,
                    truth=int(truth.sum()),
                    predicted=int(mask.sum()),
                    intersection=int((mask & truth).sum()),
                )
            )
        return scores


def evaluation_items(reader: SliceReader, *, split: str) -> list[Item]:
    """Every labelled slice of the split with all its targets.

    Raises:
        DatasetError: the split has none.
    """
    rows = [row for row in reader.select(split=split) if row.label is not None]
    if not rows:
        splits = ", ".join(sorted({row.split for row in reader.rows})) or "none"
        msg = f"{reader.root} has no labelled slices in the split {split!r}; splits there: {splits}"
        raise DatasetError(msg)
    return group_by_slice(rows)


def evaluation_transform(reader: SliceReader, *, tokenizer: PromptTokenizer, size: int, neighbours: int = 0) -> Compose:
    """Load a slice and ask for all its targets by their canonical prompts."""
    length = prompt_length(reader, tokenizer)
    return Compose([LoadSliced(size=size, neighbours=neighbours), AllPromptsd(tokenizer=tokenizer, length=length)])


def run_evaluation(
    evaluator: SupervisedEvaluator, *, reader: SliceReader, scorer: ScoreSlices, output_dir: str | Path
) -> dict[str, Any]:
    """Evaluate once; writes ``metrics.json`` and ``scores.csv`` into ``output_dir`` and returns the metrics.

    They are those of :func:`~boltzformer_monai.evaluation.metrics.summarise`, and under ``"volumes"`` those of
    :class:`~boltzformer_monai.engines.evaluate_volumes.ScoreVolumes` where the scorer has one.
    """
    folder = Path(output_dir)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    evaluator.run()
    counts = Counter(score.volume for score in scorer.scores)
    # 3-D scores only where every slice was scored for every target, absent ones included.
    complete = {
        name
        for name, volume in reader.volumes.items()
        if volume["complete"] and counts[name] == volume["slices"] * len(volume["targets"])
    }
    metrics = summarise(scorer.scores, complete_volumes=complete)
    if scorer.volumes is not None:
        metrics["volumes"] = scorer.volumes.summary()
    write_metrics_json(metrics, folder / "metrics.json")
    write_scores_csv(scorer.scores, folder / "scores.csv")
    mean = metrics["mean_dice"]
    _log.info("mean Dice %s; %s", "–" if mean is None else f"{mean:.3f}", folder / "metrics.json")
    return metrics
