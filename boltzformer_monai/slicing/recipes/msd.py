"""Medical Segmentation Decathlon (Task01 … Task10, or any folder with such a ``dataset.json``).

Only volumes named as the published ones keep their names in the slice data set; those of others may name patients.

Every label value is one target, as the data set draws it: the pancreas or the liver does not include its tumor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.modality import modality_of_channel, settled_modality, stated_modality
from boltzformer_monai.slicing.cases import Case, LabelFile
from boltzformer_monai.slicing.recipes.dataset_json import DESCRIPTION_FILE, entries, read_description, target_labels


@dataclass(frozen=True)
class _Task:
    names: tuple[str, ...]  # of the task folder and in dataset.json, letters only
    site: str
    labels: Mapping[str, str]  # the data set's own names ("cancer", "PZ") do not say of what
    prefix: str  # of the published scans: liver_12, la_003


_TASKS = (
    _Task(
        ("braintumour", "brats"),
        "brain",
        {"1": "peritumoral edema", "2": "non-enhancing tumor", "3": "enhancing tumor"},
        "brats",
    ),
    _Task(("heart", "leftatrium"), "heart", {"1": "left atrium"}, "la"),
    _Task(("liver", "lits"), "liver", {"1": "liver", "2": "liver tumor"}, "liver"),
    _Task(("hippocampus",), "brain", {"1": "anterior hippocampus", "2": "posterior hippocampus"}, "hippocampus"),
    _Task(("prostate",), "prostate", {"1": "prostate peripheral zone", "2": "prostate transition zone"}, "prostate"),
    _Task(("lung",), "chest", {"1": "lung tumor"}, "lung"),
    _Task(("pancreas",), "abdomen", {"1": "pancreas", "2": "pancreas tumor"}, "pancreas"),
    _Task(("hepaticvessel", "hepaticvessels"), "abdomen", {"1": "hepatic vessel", "2": "liver tumor"}, "hepaticvessel"),
    _Task(("spleen",), "abdomen", {"1": "spleen"}, "spleen"),
    _Task(("colon",), "abdomen", {"1": "colon tumor"}, "colon"),
)


def cases(folder: Path, *, modality: str | None, site: str | None, channel: int | None) -> list[Case]:
    """List the training volumes of a task (its test volumes have no labels); a task of none of the ten needs a site.

    Raises:
        DatasetError: ``dataset.json`` is missing, damaged, or names files that are not there.
        ConfigError: the task needs a channel, a site or a modality, has no such channel, or is neither CT nor MR.
        VolumeError: the task says another modality than ``modality``.
    """
    path = folder / DESCRIPTION_FILE
    content = read_description(path, what="one Decathlon task, such as Task04_Hippocampus")
    labels = target_labels(content)
    task = _find_task(folder, content, labels)
    if task is None and site is None:
        msg = f"{path}: {content.get('name')!r} is none of the ten Decathlon tasks; give its body site by --site"
        raise ConfigError(msg)
    name, picked = _channel(path, content["modality"], channel)
    spoken = _modality(path, name, modality)
    site = site or ("" if task is None else task.site)
    named = labels if task is None else task.labels
    published = re.compile("$." if task is None else rf"(?i){task.prefix}_\d{{1,3}}")
    listed = [
        Case(
            stem,
            stem,
            image,
            LabelFile(label, named),
            site,
            modality=spoken,
            channel=picked,
            public=bool(published.fullmatch(stem)),
        )
        for stem, image, label in entries(path, content, "training")
    ]
    if not listed:
        raise DatasetError(f"{path}: lists no training volumes")
    return listed


def _find_task(folder: Path, content: Mapping[str, Any], labels: Mapping[str, str]) -> _Task | None:
    """Recognise a task by folder or name; one that has other label values than the published one is not it."""
    found = re.sub(r"[^a-z]", "", re.sub(r"(?i)^task\d+_", "", folder.resolve().name).lower())
    names = (found, re.sub(r"[^a-z]", "", str(content.get("name", "")).lower()))
    for task in _TASKS:
        if any(name in task.names for name in names) and set(task.labels) == set(labels):
            return task
    return None


def _channel(path: Path, channels: Mapping[str, str], channel: int | None) -> tuple[str, int | None]:
    """Return what the channel is called and the channel to take from a 4-D file (None for an ordinary one)."""
    listed = ", ".join(f"{number} {name}" for number, name in channels.items())
    if len(channels) > 1 and channel is None:
        raise ConfigError(f"{path}: every scan has {len(channels)} channels ({listed}); choose one with --channel")
    name = channels.get(str(channel or 0))
    if name is None:
        raise ConfigError(f"{path}: has no channel {channel}; it has {listed or 'none'}")
    return name, channel if len(channels) > 1 else None


def _modality(path: Path, name: str, given: str | None) -> str:
    """Return CT or MR for what a channel is called; what is given decides where that says neither."""
    try:
        stated = modality_of_channel(name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    wanted = None if given is None else stated_modality(given)
    settled = settled_modality(stated, wanted, source=f"{path}: its channel {name!r} says")
    if settled == "unknown":
        raise ConfigError(f"{path}: its channel {name!r} does not say its modality; add --modality CT or --modality MR")
    return settled
