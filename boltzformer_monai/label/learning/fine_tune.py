"""Fine-tune the checkpoint in use on the corrected labels for a few epochs; a stopped run resumes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from boltzformer_monai import engines
from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.key_metric import VAL_LOSS, find_key_metric, has_improved, key_value
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.label.files import write_object
from boltzformer_monai.limits import read_json
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.layout import set_layout
from boltzformer_monai.networks.presets import PRESETS
from boltzformer_monai.networks.weights import Description, load_strictly, read_weights
from boltzformer_monai.storage import replacing
from boltzformer_monai.transforms import PromptTokenizer

_log = logging.getLogger(__name__)

_EVEN = 0.5
# There are too few labels for a validation split: validation uses the training scans.
_VALIDATION_ITEMS = (
    "$engines.validation_items(@reader, split='train', prompts_per_image=@prompts_per_image,"
    " negatives=@settings.negatives)"
)
# Labels are few: an epoch has every slice once.
_EVERY_SLICE = "$engines.EpochSampler(len(@train#dataset), seed=@seed, global_batch=@batch_size)"


@dataclasses.dataclass(kw_only=True)
class Progress:
    """Progress of a training, for its resumption; ``job.json`` in its folder."""

    job: str
    """Digest of labels and settings; another job starts anew."""
    epochs: int = 0
    """Done."""
    best: float | None = None
    """Key metric of ``model.pt``."""

    @classmethod
    def read(cls, folder: Path, job: str) -> Progress:
        """Progress of the same job, or of a new one, whose folder is emptied."""
        try:
            found = cls(**read_json(folder / "job.json"))
            if found.job == job and (folder / "last.pt").is_file() and (folder / "model.pt").is_file():
                return found
        except (OSError, ValueError, TypeError):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        return cls(job=job)

    def write(self, folder: Path) -> None:
        write_object(folder / "job.json", dataclasses.asdict(self))


def fine_tune(
    *,
    checkpoint: Path,
    dataset: Path,
    folder: Path,
    output: Path,
    device: torch.device,
    precision: str,
    epochs: int,
    learning_rate: float,
    learned: Mapping[str, Any],
    key_metric: str = VAL_LOSS,
    seed: int = 0,
) -> float | None:
    """Train and publish the checkpoint; returns the best key metric, which is measured on the training scans.

    Args:
        checkpoint: to start from.
        dataset: slice dataset of the corrected labels.
        folder: for checkpoints of the run, until it is finished.
        output: the new checkpoint, replaced in one step at the end.
        epochs: in all, those of a stopped run included.
        learned: names and labels, for the description in the checkpoint.
        key_metric: selects the best epoch: ``"val_loss"`` or a 2-D metric of the table.
        seed: of shuffling and augmentation.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DatasetError: there is nothing to train on.
        ConfigError: a setting is out of range, the key metric is unknown, or the loss became infinite.
    """
    find_key_metric(key_metric)
    model = load_model(checkpoint, device=device)
    network, description = model.network, model.description
    # A run that started from other weights cannot resume.
    settings = [model.sha256, dict(learned), epochs, learning_rate, key_metric, seed]
    job = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    progress = Progress.read(folder, job)
    reader = SliceReader(dataset)
    description.data = described(description.data, engines.describe_data(reader), learned)
    if progress.epochs:
        _log.info("going on after %d of %d epochs", progress.epochs, epochs)
        load_strictly(network, read_weights(folder / "last.pt")["model"], source="last.pt")
    if progress.epochs < epochs:
        set_layout(network, trains=True).set_precision(precision)
        _train(network, description, reader, folder, progress, epochs, learning_rate, key_metric, device, seed)
    _spare_the_labels(folder / "model.pt", network, description, reader, device)
    with replacing(output) as temporary:
        shutil.copyfile(folder / "model.pt", temporary)
    shutil.rmtree(folder, ignore_errors=True)
    return progress.best


def described(old: Mapping[str, Any], new: Mapping[str, Any], learned: Mapping[str, Any]) -> dict[str, Any]:
    """The old description with the new targets."""
    data = copy.deepcopy(dict(old))
    targets = list(data.get("targets", []))
    data["targets"] = targets + [entry for entry in new["targets"] if entry not in targets]
    data["learned"] = dict(learned)
    return data


def _spare_the_labels(
    best: Path, network: BoltzFormer, description: Description, reader: SliceReader, device: torch.device
) -> None:
    """Lower the presence thresholds where they would hide labelled objects.

    They never rise: they were calibrated on many volumes, present and absent targets, while the corrected labels are
    few, were trained on and name few absent targets. The upper one stays at 0.5 or above, since it holds for all other
    objects too.
    """
    rule = PresenceRule.of(description.data)
    if rule is None:
        return

    def lowered(found: PresenceRule) -> PresenceRule:
        return PresenceRule(high=min(rule.high, max(found.high, _EVEN)), low=min(rule.low, found.low))

    engines.calibrate_checkpoint(
        best,
        network=network,
        description=description,
        reader=reader,
        tokenizer=PromptTokenizer(path=description.network.text_model),
        split="train",
        device=device,
        adjust=lowered,
    )


def _train(
    network: BoltzFormer,
    description: Description,
    reader: SliceReader,
    folder: Path,
    progress: Progress,
    epochs: int,
    learning_rate: float,
    key_metric: str,
    device: torch.device,
    seed: int,
) -> None:
    """The bundle's training, with the settings of this one."""
    config = description.network
    alike = [name for name, each in PRESETS.items() if each.backbone == config.backbone] or ["tiny"]
    preset = next((name for name in alike if PRESETS[name].decoder == config.decoder), alike[0])
    defaults = engines.training_settings(preset, device, overrides={"epochs": epochs, "learning_rate": learning_rate})
    settings = dataclasses.replace(
        defaults,
        image_size=config.image_size,
        mask_size=engines.mask_size_for(defaults, config.image_size),
        schedule="constant",  # a run that is continued has no schedule to lose
        workers=0,
        val_interval=1,
    )
    seed += progress.epochs
    trainer, evaluator, scheduler = engines.make_training(
        {
            "device": device,
            "seed": seed,
            "defaults": settings,
            "key_metric": key_metric,
            "reader": reader,
            "network_config": config,
            "network_def": network,
            "description": description,
            "train#trainer#max_epochs": epochs - progress.epochs,
            "train#dataset#progress": False,
            "train#sampler": _EVERY_SLICE,
            "validate#dataset#progress": False,
            "validate#dataset#data": _VALIDATION_ITEMS,
        },
        root=bundle_root(),
    )

    def keep(_: Engine) -> None:
        if has_improved(evaluator, progress.best):
            progress.best = key_value(evaluator)
        progress.epochs += 1
        progress.write(folder)

    # Added when the training starts, so that it runs after the handlers that write the checkpoints.
    trainer.add_event_handler(Events.STARTED, lambda engine: engine.add_event_handler(Events.EPOCH_COMPLETED, keep))
    engines.run_training(
        trainer,
        evaluator,
        scheduler=scheduler,
        description=description,
        output_dir=folder,
        settings=settings,
        patience=settings.epochs + 1,
        best=progress.best,
    )
