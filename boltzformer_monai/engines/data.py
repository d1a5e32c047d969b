"""Examples, transforms, sampler and collation for training, validation and evaluation on a slice dataset."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.data import list_data_collate
from monai.transforms import Compose, Transform

from boltzformer_monai.data.planes import PLANE_AXES, checked_planes
from boltzformer_monai.data.slices.folds import Fold, choose_fold, fold_of_model
from boltzformer_monai.data.slices.format import scan_of
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.data.slices.summary import training_data
from boltzformer_monai.data.split import check_folds
from boltzformer_monai.demo.demo import ensure_demo_dataset
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.engines.step import global_batch_of
from boltzformer_monai.errors import DatasetError, reject_unknown
from boltzformer_monai.transforms import (
    LoadSliced,
    PromptTokenizer,
    SelectPromptsd,
    light_augmentation,
    paper_augmentation,
    strong_augmentation,
)
from boltzformer_monai.transforms.tokenizer import PADDING

_log = logging.getLogger(__name__)

Item = dict[str, Any]


def open_dataset(
    dataset_dir: str | Path | None,
    *,
    demo_dir: str | Path,
    folds: int | None = None,
    fold: int | None = None,
    model: Mapping[str, Any] | None = None,
    planes: str | Sequence[str] | None = None,
) -> SliceReader:
    """Open the slice dataset at ``dataset_dir``; by default the demo dataset, created in ``demo_dir`` if needed.

    Args:
        dataset_dir: the dataset.
        demo_dir: of the demo dataset.
        folds: divide the patients of train and val into so many folds.
        fold: the fold that validates, from 0; the others train.
        model: data of the description of a model to evaluate; one that was trained on a fold of this dataset is
            evaluated with that split.
        planes: take the slices along these alone; default: along all that there are.

    Raises:
        DatasetError: the folder is missing, empty or not a slice dataset, has fewer patients than folds, or no slices
            along these planes.
        ConfigError: ``folds`` or ``fold`` is out of range, or only one is given; or a plane is unknown.
    """
    check_folds(folds, fold)
    chosen = () if planes is None else checked_planes(planes)
    if dataset_dir is None or str(dataset_dir) == "":
        _log.info("no data set given: using the demo data set (synthetic CT phantoms) in %s", demo_dir)
        dataset_dir = ensure_demo_dataset(demo_dir)
    reader = _of_fold(SliceReader(dataset_dir), folds=folds, fold=fold, model=model)
    reader = reader if planes is None else reader.along(chosen)
    if model:
        _warn_of_another_split(reader, model)
    return reader


def _of_fold(
    reader: SliceReader, *, folds: int | None, fold: int | None, model: Mapping[str, Any] | None
) -> SliceReader:
    """The dataset with the split that is asked for, or that the model was trained on."""
    if folds is not None and fold is not None:
        reader = choose_fold(reader, folds=folds, fold=fold)
        counts = [len({row.patient for row in reader.select(split=split)}) for split in ("train", "val")]
        _log.info("fold %d of 0 to %d: %d patients train, %d validate", fold, folds - 1, *counts)
    if model and (trained := Fold.of(model)) is not None:
        if (same := fold_of_model(reader, model)) is not None:
            _log.info("the split is that of the model's training: %s", trained)
            return same
        _log.warning(
            "the model was trained on %s of another dataset, or of an earlier state of this one: "
            "the split of this one may hold patients that trained it",
            trained,
        )
    return reader


def _warn_of_another_split(reader: SliceReader, model: Mapping[str, Any]) -> None:
    """Say so where a model was trained on these very volumes, divided otherwise."""
    known = model.get("training_data")
    if not isinstance(known, Mapping) or "fold" in known or "split_sha256" not in known:
        return
    now = training_data(reader)
    if known.get("sha256") == now["sha256"] and known["split_sha256"] != now["split_sha256"]:
        _log.warning(
            "%s is split otherwise than in the model's training: patients of its val or test may have trained it",
            reader.root,
        )


def training_items(
    reader: SliceReader, *, split: str, prompts_per_image: int, negatives: float | None = 0.0
) -> list[Item]:
    """Training examples: with one prompt per image one per slice and present target (as in the paper), else per slice.

    Slices without any target serve as negatives only: they are excluded if ``negatives`` is 0.

    Raises:
        DatasetError: the split has no slice with a label.
    """
    items: list[Item] = []
    for present, absent in _slices(reader, split):
        if present and prompts_per_image == 1:
            # With the absent targets of the slice, from which negatives are sampled.
            items.extend({"rows": [row, *absent]} for row in present)
        elif present or negatives != 0:
            items.append({"rows": [*present, *absent]})
    return _not_empty(items, reader, split)


def validation_items(
    reader: SliceReader, *, split: str, prompts_per_image: int, negatives: float | None = 0.0
) -> list[Item]:
    """Validation examples: each present target of a slice is prompted once; absent ones fill the last example.

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
    """Tokens of the longest prompt in the dataset, the padded length of all prompts."""
    prompts = {prompt for row in reader.rows for prompt in row.prompts}
    return max((len(tokenizer.encode(prompt)) for prompt in prompts), default=3)


def training_transform(
    settings: TrainingSettings,
    *,
    tokenizer: PromptTokenizer,
    length: int,
    augment: bool,
    neighbours: int = 0,
    neighbour_mm: float = 0.0,
    seed: int = 0,
) -> Compose:
    """Load → augment → select prompts; deterministic without ``augment`` (validation)."""
    augmentations: Mapping[str, Sequence[Callable[..., Any]]] = {
        "paper": paper_augmentation(),
        "light": light_augmentation(),
        "strong": strong_augmentation(),
        "none": [],
    }
    steps: list[Callable[..., Any]] = [
        LoadSliced(size=settings.image_size, neighbours=neighbours, neighbour_mm=neighbour_mm)
    ]
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


def slice_sampler(
    items: Sequence[Item], settings: TrainingSettings, *, seed: int, global_batch: int | None = None
) -> EpochSampler:
    """Sample slices by their largest target weight; without target weights every epoch has each of them once.

    Args:
        items: of the training.
        settings: batch size and target weights.
        seed: of the draws.
        global_batch: examples of a step on all processes, by default one batch each.

    Raises:
        ConfigError: a weight is for a target that the data set does not have, or the processes cannot share the global
            batch in batches.
    """
    rank, world = idist.get_rank(), idist.get_world_size()
    batch = global_batch_of(global_batch, batch_size=settings.batch_size)
    if not settings.target_weights:
        return EpochSampler(len(items), seed=seed, global_batch=batch, rank=rank, world=world)
    targets = {row.target for item in items for row in item["rows"]}
    # The preset's targets may be missing from a dataset; those that the user names must exist.
    given = set(settings.target_weights) - set(SETTINGS[settings.preset].target_weights)
    reject_unknown(given, targets, what="target in target_weights")
    weights = [
        max([settings.target_weights.get(row.target, 1.0) for row in item["rows"] if row.present], default=1.0)
        for item in items
    ]
    return EpochSampler(weights, seed=seed, global_batch=batch, rank=rank, world=world)


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
    """Stack slices with different numbers of prompts: missing prompts are padding, and have no ``rows``."""
    prompts = max(len(item["tokens"]) for item in items)
    length = items[0]["tokens"].shape[1]
    tokens = torch.full((len(items), prompts, length), PADDING, dtype=torch.int64)
    for out, item in zip(tokens, items, strict=True):
        out[: len(item["tokens"])] = item["tokens"]
    return {
        "image": torch.stack([item["image"] for item in items]),
        "tokens": tokens,
        "rows": [item["rows"] for item in items],
    }


def collate_examples(items: Sequence[Item]) -> Item:
    """MONAI's collation; ``rows`` stay a list per example."""
    tensors = [{key: value for key, value in item.items() if key != "rows"} for item in items]
    return {**list_data_collate(tensors), "rows": [item["rows"] for item in items]}


def describe_data(reader: SliceReader) -> dict[str, Any]:
    """What inference needs to know: plane, and every combination of target, modality, site and window.

    ``planes`` are there where scans were sliced along several: inference averages them.

    Combinations without any present target come last, so that others take precedence.
    """
    targets: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    seen = {(row.volume, row.target) for row in reader.rows if row.present}
    for volume_id, volume in reader.volumes.items():
        for name in volume["targets"]:
            entry = {"target": name, **{key: volume[key] for key in ("modality", "site", "window")}}
            if entry not in (kind := targets[(volume_id, name) in seen]):
                kind.append(entry)
    planes = Counter(volume["plane"] for volume in reader.volumes.values())
    most_common = sorted(planes, key=lambda plane: (-planes[plane], list(PLANE_AXES).index(plane)))
    scans = Counter(scan_of(volume_id, entry) for volume_id, entry in reader.volumes.items())
    several = max(scans.values()) > 1
    if len(planes) > 1 and not several:
        _log.warning("the dataset mixes planes (%s); inference will use %s", ", ".join(most_common), most_common[0])
    return {
        "plane": most_common[0],
        **({"planes": most_common} if several else {}),
        "targets": targets[True] + [entry for entry in targets[False] if entry not in targets[True]],
        "training_data": training_data(reader),
    }
