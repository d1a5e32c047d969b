"""Training of an expert: the same loop, states and outputs as BoltzFormer's, with nnU-Net's optimizer and schedule."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from ignite.metrics import Loss, Metric
from monai.data import DataLoader
from monai.data import Dataset as MonaiDataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import ValidationHandler
from torch import Tensor

from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.engines.key_metric import VAL_DICE, VAL_LOSS
from boltzformer_monai.engines.sampler import EpochSampler, SeededExamples
from boltzformer_monai.engines.trainer import run_training
from boltzformer_monai.errors import DatasetError, reject_unknown
from boltzformer_monai.experts.network import ExpertDescription, ExpertLoss, ExpertNetwork, expert_precision
from boltzformer_monai.experts.patches import FixedPatches, training_transform
from boltzformer_monai.experts.plan import Plan, make_plan
from boltzformer_monai.experts.prepare import Prepared, prepare, require_targets, take_fingerprint
from boltzformer_monai.experts.scans import Original, Scan, choose_plane, list_scans
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.storage import require_writable, write_json

__all__ = ["PseudoDice", "train_expert"]

_log = logging.getLogger(__name__)

PLAN_FILE = "plan.json"
PREPARED = "prepared"


class PseudoDice(Metric):
    """nnU-Net's: Dice of all validation patches together, one number per target, and their mean."""

    def __init__(self) -> None:
        super().__init__(output_transform=lambda output: (output["pred"], output["label"]))

    def reset(self) -> None:
        """Forget all patches."""
        self._found: Tensor | None = None

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add logits and masks ``(B, C, *patch)``."""
        predicted, truth = output[0].detach() > 0, output[1] >= 0.5
        axes = [0, *range(2, truth.ndim)]
        counts = torch.stack([(predicted & truth).sum(axes), predicted.sum(axes) + truth.sum(axes)]).cpu().double()
        self._found = counts if self._found is None else self._found + counts

    def compute(self) -> float:
        """The mean over targets that are there or predicted; NaN if none is."""
        if self._found is None or not (there := self._found[1] > 0).any():
            return math.nan
        return float((2 * self._found[0][there] / self._found[1][there]).mean())


@dataclass(frozen=True)
class Planned:
    """An expert that is planned and whose scans are listed.

    Attributes:
        plan: of the expert.
        scans: split → those that annotate all its targets.
        reader: of the dataset along the plan's plane.
    """

    plan: Plan
    scans: Mapping[str, Sequence[Scan]]
    reader: SliceReader


def plan_expert(
    reader: SliceReader, settings: ExpertSettings, *, originals: Mapping[str, Original] | None = None
) -> Planned:
    """List the scans of a dataset and plan an expert for its training scans.

    Args:
        reader: of the dataset, with the split to train on.
        settings: of the expert.
        originals: scan → what reads the original; None takes the dataset's 8-bit slices.

    Raises:
        BoltzFormerError: a target or plane is unknown, a scan cannot be read, or there is nothing to train on.
    """
    reader = choose_plane(reader, settings.plane)
    plane = str(next(iter(reader.volumes.values()))["plane"])
    reject_unknown(settings.targets, reader.targets, what="target")
    targets = settings.targets or tuple(reader.targets)
    if not targets:
        raise DatasetError(f"{reader.root} has no targets; slice its scans with --label")
    every = list_scans(reader, originals)
    scans = {}
    for split in ("train", "val"):
        listed = [scan for scan in every if scan.split == split]
        scans[split] = require_targets(listed, targets, what=split)
        if len(scans[split]) < len(listed):
            left = len(listed) - len(scans[split])
            _log.info("%d of %d %s scans do not annotate all targets and are left out", left, len(listed), split)
    fingerprint = take_fingerprint(scans["train"], targets, whole=settings.dimensions == 3)
    axis = next(number for number, side in enumerate(PLANE_AXES[plane]) if side in "LR")
    plan = make_plan(
        fingerprint, settings, targets=targets, plane=plane, original=originals is not None, lateral_axis=axis
    )
    return Planned(plan, scans, reader)


def train_expert(
    reader: SliceReader,
    settings: ExpertSettings,
    *,
    output_dir: str | Path,
    device: torch.device,
    seed: int = 0,
    originals: Mapping[str, Original] | None = None,
    resume: str | Path | None = None,
    save_minutes: float = 10,
) -> Path:
    """Plan and train; returns the best checkpoint.

    Writes ``plan.json``, ``prepared/`` (the scans as the network sees them; it may be removed afterwards) and what
    :func:`~boltzformer_monai.engines.trainer.run_training` writes. ``model.pt`` is the best by :class:`PseudoDice` of
    the validation scans' patches, ``last.pt`` the end of the schedule.

    Args:
        reader: of the dataset, with the split to train on.
        settings: of the expert.
        output_dir: made if needed.
        device: to train on.
        seed: of the weights, the order of the scans and the patches.
        originals: scan → what reads the original; None takes the dataset's 8-bit slices.
        resume: as of ``run_training``.
        save_minutes: between states.

    Raises:
        BoltzFormerError: as :func:`plan_expert`, or as ``run_training``.
        TrainingStopped: by SIGTERM or SIGUSR1, with exit code 75.
    """
    folder = Path(output_dir)
    require_writable(folder)
    planned = plan_expert(reader, settings, originals=originals)
    plan = planned.plan
    write_json(folder / PLAN_FILE, plan.as_dict())
    _log.info(
        "%d-D expert for %s: patch %s, batch %d, spacing %s mm, %d levels of %d to %d channels",
        plan.dimensions, ", ".join(plan.targets), "x".join(map(str, plan.patch)), plan.batch,
        "x".join(f"{mm:.3g}" for mm in plan.spacing[-plan.dimensions :]), len(plan.strides), plan.filters[0],
        plan.filters[-1],
    )  # fmt: skip
    both = [*planned.scans["train"], *planned.scans["val"]]
    prepared = prepare(both, plan, folder / PREPARED)
    count = len(planned.scans["train"])
    torch.manual_seed(seed)
    network = ExpertNetwork(plan, precision=expert_precision(settings.precision, device)).to(device)
    trainer, evaluator, scheduler = _engines(
        network, plan, settings, training=prepared[:count], validation=prepared[count:], device=device, seed=seed
    )
    description = ExpertDescription(plan, settings, {"training_data": training_data(planned.reader)})
    return run_training(
        trainer,
        evaluator,
        scheduler=scheduler,
        description=description,
        output_dir=folder,
        settings=settings,
        patience=settings.epochs,
        resume=resume,
        save_minutes=save_minutes,
    )


def _engines(
    network: ExpertNetwork,
    plan: Plan,
    settings: ExpertSettings,
    *,
    training: Sequence[Prepared],
    validation: Sequence[Prepared],
    device: torch.device,
    seed: int,
) -> tuple[SupervisedTrainer, SupervisedEvaluator, torch.optim.lr_scheduler.LambdaLR]:
    loss = ExpertLoss()
    patches = FixedPatches(validation, count=settings.validation_patches, plan=plan, foreground=settings.foreground)
    evaluator = SupervisedEvaluator(
        device=device,
        val_data_loader=DataLoader(patches, batch_size=plan.batch, num_workers=settings.workers),
        network=network,
        decollate=False,
        key_val_metric={VAL_DICE: PseudoDice()},
        additional_metrics={VAL_LOSS: Loss(loss, output_transform=lambda output: (output["pred"], output["label"]))},
        metric_cmp_fn=operator.gt,
    )
    # Every scan is taken about equally often: an epoch is a permutation of repetitions of all.
    examples = settings.steps_per_epoch * plan.batch
    data = [{"scan": training[number % len(training)]} for number in range(examples)]
    sampler = EpochSampler(examples, seed=seed, global_batch=plan.batch)
    loader = DataLoader(
        SeededExamples(MonaiDataset(data, training_transform(plan, settings))),
        batch_size=plan.batch,
        sampler=sampler,
        num_workers=settings.workers,
    )
    optimizer = torch.optim.SGD(
        network.parameters(), lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )  # fmt: skip
    steps = settings.epochs * settings.steps_per_epoch
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** 0.9)
    trainer = SupervisedTrainer(
        device=device,
        max_epochs=settings.epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        decollate=False,
        train_handlers=[ValidationHandler(interval=1, validator=evaluator, epoch_level=True)],
    )
    return trainer, evaluator, scheduler
