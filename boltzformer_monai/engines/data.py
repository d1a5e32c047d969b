"""A slice data set on disk → MONAI data sets for training, validation and evaluation."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose, Transform
from torch.utils.data import WeightedRandomSampler

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.demo.demo import ensure_demo_dataset
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.errors import DatasetError, reject_unknown
from boltzformer_monai.transforms import (
    LoadSliced,
    PromptTokenizer,
    SelectPromptsd,
    light_augmentation,
    paper_augmentation,
)

_log = logging.getLogger(__name__)

Item = dict[str, Any]


def open_dataset(dataset_dir: str | Path | None, *, demo_dir: str | Path) -> SliceReader:
    """The slice data set at ``dataset_dir``; with none given, the demo data set, made in ``demo_dir`` if need be.

    Raises:
        DatasetError: the folder is missing, empty or not a slice data set.
    """
    if dataset_dir is None or str(dataset_dir) == "":
        _log.info("no data set given: using the demo data set (synthetic CT phantoms) in %s", demo_dir)
        dataset_dir = ensure_demo_dataset(demo_dir)
    return SliceReader(dataset_dir)


def training_items(
    reader: SliceReader, *, split: str, prompts_per_image: int, negatives: float | None = 0.0
) -> list[Item]:
    """One item per example: with one prompt per image a row of a present target (the paper's epoch), else a slice.

    Slices that show no target can only be asked for absent ones: they are left out where ``negatives`` is 0.

    Raises:
        DatasetError: the split has no slice with a label.
    """
    items: list[Item] = []
    for present, absent in _slices(reader, split):
        if present and prompts_per_image == 1:
            # The absent targets of the slice ride along, so that negatives can be drawn.
            items.extend({"rows": [row, *absent]} for row in present)
        elif present or negatives != 0:
            items.append({"rows": [*present, *absent]})
    return _not_empty(items, reader, split)


def validation_items(
    reader: SliceReader, *, split: str, prompts_per_image: int, negatives: float | None = 0.0
) -> list[Item]:
    """As many items per slice as it takes to ask for every present target once; absent ones fill the last item.

    Raises:
        DatasetError: the split has no slice with a label.
    """
    items: list[Item] = []
    for present, absent in _slices(reader, split):
        chunks = [present[i : i + prompts_per_image] for i in range(0, len(present), prompts_per_image)]
        if not chunks and negatives != 0:
            chunks = [absent[:prompts_per_image]]
        filler = absent if negatives != 0 else []
        items.extend({"rows": [*chunk, *filler][: max(prompts_per_image, len(chunk))]} for chunk in chunks)
    return _not_empty(items, reader, split)


def _slices(reader: SliceReader, split: str) -> Iterator[tuple[list[SliceRow], list[SliceRow]]]:
    """Present and absent rows of every labelled slice."""
    for item in group_by_slice(row for row in reader.select(split=split) if row.label is not None):
        rows: list[SliceRow] = item["rows"]
        yield [row for row in rows if row.present], [row for row in rows if not row.present]


def _not_empty(items: list[Item], reader: SliceReader, split: str) -> list[Item]:
    if not items:
        msg = f"{reader.root} has no labelled slices in the split {split!r}; slice volumes with --label, or see --split"
        raise DatasetError(msg)
    return items


def group_by_slice(rows: Iterable[SliceRow]) -> list[Item]:
    """``{"rows": all rows of one slice}`` per slice, in manifest order."""
    slices: dict[Path, list[SliceRow]] = defaultdict(list)
    for row in rows:
        slices[row.image].append(row)
    return [{"rows": group} for group in slices.values()]


def prompt_length(reader: SliceReader, tokenizer: PromptTokenizer) -> int:
    """Tokens of the longest prompt in the data set: what all prompts are padded to."""
    prompts = {prompt for row in reader.rows for prompt in row.prompts}
    return max((len(tokenizer.encode(prompt)) for prompt in prompts), default=3)


def training_transform(
    settings: TrainingSettings,
    *,
    tokenizer: PromptTokenizer,
    length: int,
    augment: bool,
    neighbours: int = 0,
    seed: int = 0,
) -> Compose:
    """Load → augment → choose prompts; without ``augment`` every example is the same each time (validation)."""
    augmentations: Mapping[str, Sequence[Callable[..., Any]]] = {
        "paper": paper_augmentation(),
        "light": light_augmentation(),
        "none": [],
    }
    steps: list[Callable[..., Any]] = [LoadSliced(size=settings.image_size, neighbours=neighbours)]
    if augment:
        steps.extend(augmentations[settings.augmentation])
    steps.append(
        SelectPromptsd(
            tokenizer=tokenizer,
            prompts_per_image=settings.prompts_per_image,
            mask_size=settings.mask_size,
            negatives=settings.negatives,
            weights=settings.target_weights,
            length=length,
            random=augment,
        )
    )
    return Compose(steps).set_random_state(seed)


def slice_sampler(items: Sequence[Item], settings: TrainingSettings, *, seed: int) -> WeightedRandomSampler | None:
    """Draws slices by the weight of the rarest target they show; ``None`` (a plain shuffle) without target weights."""
    if not settings.target_weights:
        return None
    targets = {row.target for item in items for row in item["rows"]}
    # The preset's own weights name targets that many data sets do not have; the user's must be there.
    given = set(settings.target_weights) - set(SETTINGS[settings.preset].target_weights)
    reject_unknown(given, targets, what="target in target_weights")
    weights = [
        max([settings.target_weights.get(row.target, 1.0) for row in item["rows"] if row.present], default=1.0)
        for item in items
    ]
    return WeightedRandomSampler(weights, len(items), generator=torch.Generator().manual_seed(seed))


class AllPromptsd(Transform):
    """Evaluation: adds ``tokens`` ``(P, N_T)`` of every row's canonical prompt and keeps the rows."""

    def __init__(self, *, tokenizer: PromptTokenizer, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length

    def __call__(self, data: Mapping[str, Any]) -> Item:
        prompts = [row.prompts[0] for row in data["rows"]]
        tokens = self.tokenizer(prompts, length=self.length)
        return {"image": data["image"], "tokens": tokens, "rows": data["rows"]}


def collate_slices(items: Sequence[Item]) -> Item:
    """Stack slices with differing numbers of prompts: the missing ones are padding only, and ``rows`` omits them."""
    prompts = max(len(item["tokens"]) for item in items)
    length = items[0]["tokens"].shape[1]
    tokens = torch.full((len(items), prompts, length), -1, dtype=torch.int64)
    for out, item in zip(tokens, items, strict=True):
        out[: len(item["tokens"])] = item["tokens"]
    return {
        "image": torch.stack([item["image"] for item in items]),
        "tokens": tokens,
        "rows": [item["rows"] for item in items],
    }


def describe_data(reader: SliceReader) -> dict[str, Any]:
    """What goes with a model trained on these slices: plane, targets and what the dataset holds.

    Targets are every combination of target, modality, site and window. Those in which the target was
    never seen come last: they decide nothing where another one can.
    """
    targets: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    seen = {(row.volume, row.target) for row in reader.rows if row.present}
    for volume_id, volume in reader.volumes.items():
        for name in volume["targets"]:
            entry = {"target": name, **{key: volume[key] for key in ("modality", "site", "window")}}
            if entry not in (kind := targets[(volume_id, name) in seen]):
                kind.append(entry)
    planes = Counter(volume["plane"] for volume in reader.volumes.values()).most_common()
    if len(planes) > 1:
        _log.warning("the data set mixes planes (%s); inference will use %s", ", ".join(dict(planes)), planes[0][0])
    return {
        "plane": planes[0][0],
        "targets": targets[True] + [entry for entry in targets[False] if entry not in targets[True]],
        "training_data": training_data(reader),
    }
