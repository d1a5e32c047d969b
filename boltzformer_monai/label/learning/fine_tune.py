"""Fine-tune the checkpoint in use on the corrected labels for a few epochs: the bundle's training, which resumes."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boltzformer_monai import __version__, engines
from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.engines.key_metric import VAL_LOSS, find_key_metric
from boltzformer_monai.engines.resume import AUTO, find_state
from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.layout import set_layout
from boltzformer_monai.networks.presets import PRESETS
from boltzformer_monai.networks.weights import Description
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
        folder: for the training's results and states, until it is finished; one of other labels or settings is removed.
        output: the new checkpoint, replaced in one step at the end.
        epochs: in all.
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
    reader = SliceReader(dataset)
    set_layout(network, trains=True).set_precision(precision)
    slices = training_data(reader)
    settings = [__version__, model.sha256, dict(learned), slices, epochs, learning_rate, key_metric, seed]
    job = _folder_of_job(folder, [*settings, network.precision])
    description.data = described(description.data, engines.describe_data(reader), learned)
    best = _train(network, description, reader, job, epochs, learning_rate, key_metric, device, seed)
    _spare_the_labels(job / "model.pt", network, description, reader, device)
    with replacing(output) as temporary:
        shutil.copyfile(job / "model.pt", temporary)
    shutil.rmtree(folder, ignore_errors=True)
    return best


def _folder_of_job(folder: Path, settings: Sequence[Any]) -> Path:
    """The folder of a training with these settings; those of others, and one with damaged states, are removed."""
    job = folder / hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]
    for other in folder.glob("*"):
        if other != job:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    try:
        find_state(AUTO, job)
    except CheckpointError as error:
        _log.warning("%s; the training begins anew", error)
        shutil.rmtree(job)
    return job


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
    epochs: int,
    learning_rate: float,
    key_metric: str,
    device: torch.device,
    seed: int,
) -> float | None:
    """The bundle's training, with the settings of this one; returns the best key metric."""
    config = description.network
    alike = [name for name, each in PRESETS.items() if each.backbone == config.backbone] or ["tiny"]
    preset = next((name for name in alike if PRESETS[name].decoder == config.decoder), alike[0])
    defaults = engines.training_settings(preset, device, overrides={"epochs": epochs, "learning_rate": learning_rate})
    settings = dataclasses.replace(
        defaults,
        image_size=config.image_size,
        mask_size=engines.mask_size_for(defaults, config.image_size),
        schedule="constant",  # a few epochs from trained weights
        workers=0,
        val_interval=1,
    )
    trainer, evaluator, scheduler = engines.make_training(
        {
            "device": device,
            "seed": seed,
            "defaults": settings,
            "key_metric": key_metric,
            "reader": reader,
            "network_config": config,
            "network_def": network,
            "overlays": 0,  # nobody would see them
            "description": description,
            "train#trainer#max_epochs": epochs,
            "train#dataset#progress": False,
            "train#sampler": _EVERY_SLICE,
            "validate#dataset#progress": False,
            "validate#dataset#data": _VALIDATION_ITEMS,
        },
        root=bundle_root(),
    )

    engines.run_training(
        trainer,
        evaluator,
        scheduler=scheduler,
        description=description,
        output_dir=folder,
        settings=settings,
        patience=settings.epochs + 1,
        resume=AUTO,
    )
    best: float | None = evaluator.state.best_metric
    return best
