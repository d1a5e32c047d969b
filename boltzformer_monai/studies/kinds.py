"""What runs an arm (:data:`KINDS`), and what makes a data set by name (:data:`MAKERS`)."""

from __future__ import annotations

import hashlib
import inspect
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, get_type_hints

import torch
from monai.bundle import ConfigParser
from torch import nn

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.demo.demo import ensure_demo_dataset
from boltzformer_monai.demo.hard_phantoms import ensure_hard_dataset
from boltzformer_monai.engines.bundle import (
    check_evaluation,
    check_training,
    is_expression,
    run_workflow,
    training_network_config,
)
from boltzformer_monai.engines.data import open_dataset
from boltzformer_monai.engines.evaluator import evaluation_items, evaluation_transform
from boltzformer_monai.engines.layer_supervision import supervise_layers
from boltzformer_monai.engines.resume import AUTO, STATES, weights_digest
from boltzformer_monai.engines.sampler import EpochSampler
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.errors import ConfigError, DatasetError, reject_unknown, why
from boltzformer_monai.experts.evaluate import evaluate_expert
from boltzformer_monai.experts.settings import ExpertSettings, expert_settings
from boltzformer_monai.experts.train import train_expert
from boltzformer_monai.field_types import check_value
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.limits import read_json
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import create_boltzformer
from boltzformer_monai.networks.registries import DECODERS
from boltzformer_monai.storage import file_sha256, write_json
from boltzformer_monai.studies.needle import NeedleSettings, run_needle
from boltzformer_monai.studies.plan import BOLTZFORMER, Run
from boltzformer_monai.studies.provenance import Cost, measured
from boltzformer_monai.studies.scores import ScoreRow, rows_of_evaluation

__all__ = ["KINDS", "MAKERS", "OWN_DATA", "Kind", "Outcome", "Place", "make_data"]

_OF_THE_STUDY = (
    "bundle_root", "imports", "initialize", "run", "finalize", "training", "evaluating", "dataset_dir", "demo_dir",
    "output_dir", "checkpoint", "split", "seed", "folds", "fold", "device", "resume", "plugins",
)  # fmt: skip
_MOST_EPOCHS = 1000  # of the order that is hashed
_TIMED = 5


class Outcome(NamedTuple):
    """What a run found.

    Attributes:
        rows: its scores.
        facts: others, as JSON values. The page knows ``initial`` (part → sha256 of its first weights), ``order``
            (sha256 of the examples in their order), ``parameters``, ``training`` and ``evaluation`` (costs),
            ``inference_s`` per image, ``checkpoint_sha256``, ``split``, ``held_out`` (pseudonyms),
            ``false_positive_rate``, ``gate`` (Dice with its own V, with another image's V, instances) and ``focus``
            (target → by layer).
    """

    rows: list[ScoreRow]
    facts: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a run works.

    Attributes:
        folder: of its files; it goes on with what is there.
        data: slice dataset; None for a kind that makes its own.
        device: e.g. ``"cpu"`` or ``"cuda:1"``.
        root: of the bundle.
    """

    folder: Path
    data: Path | None
    device: str
    root: Path


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of run.

    Attributes:
        check: settings of a run and the bundle's root; raises a ``BoltzFormerError`` for what cannot be used.
        run: does it.
        check_data: settings of a run and its data; the same for what these have not.
    """

    check: Callable[[Mapping[str, Any], Path], None]
    run: Callable[[Run, Place], Outcome]
    check_data: Callable[[Mapping[str, Any], SliceReader], None] = lambda *_: None


def _check_boltzformer(settings: Mapping[str, Any], root: Path) -> None:
    for part in ("training", "evaluation"):
        for key in settings[part]:
            if key.split("#")[0].split("::")[0] in _OF_THE_STUDY:
                raise ConfigError(f"{key} is set by the study itself; take it out of {part}")
    if settings["training"].get("preset", "auto") == "auto":
        msg = "training must name a preset: auto is another network on a GPU, and a run's key does not name the device"
        raise ConfigError(f'{msg}; give e.g. "preset": "tiny"')
    training, _ = check_training(settings["training"], root=root)
    check_evaluation(settings["evaluation"], root=root)
    overrides = settings["training"].get("network_overrides", {})
    if any(map(is_expression, (overrides, settings["training"].get("image_size")))):
        return
    config = training_network_config(training.preset, image_size=training.image_size, overrides=overrides)
    _check_decoder(config, training)


def _check_decoder(config: NetworkConfig, training: TrainingSettings) -> None:
    """Names and settings of its parts, and whether its layers can be supervised where they shall be."""
    with torch.random.fork_rng(devices=[]):
        decoder = DECODERS.make(config.decoder, config, settings=config.decoder_settings)
    supervise_layers(nn.ModuleDict({"decoder": decoder}), training)


def _run_boltzformer(run: Run, place: Place) -> Outcome:
    """Train by the bundle and evaluate the best checkpoint; a part that is done is not done again."""
    if place.data is None:
        raise DatasetError(f"{run}: has no slices to train on")
    folder, reader = place.folder / "training", SliceReader(place.data)
    model, trained = folder / "model.pt", place.folder / "trained.json"
    common = {"dataset_dir": str(place.data), "device": place.device}
    if not trained.is_file():
        facts: dict[str, Any] = {}

        def before(parser: ConfigParser) -> None:
            facts.update(_start(parser, run))

        folds = {} if run.fold is None else {"folds": run.settings["folds"], "fold": run.fold}
        overrides = {**run.settings["training"], **common, **folds}
        overrides |= {"output_dir": str(folder), "seed": run.seed, "resume": AUTO}
        costs = place.folder / "pieces.json"
        with _added_to(costs, place.device):
            run_workflow("train", overrides, root=place.root, before=before)
        if not model.is_file():
            raise ConfigError(f"{run}: its training left no model; see {folder}")
        write_json(trained, {**facts, "training": read_json(costs)})
    evaluation = {**run.settings["evaluation"], **common, "checkpoint": str(model), "split": _split(run, reader)}
    output = place.folder / "evaluation"
    with measured(place.device) as cost:
        run_workflow("evaluate", {**evaluation, "output_dir": str(output)}, root=place.root)
    facts = {**read_json(trained), "evaluation": vars(cost)}
    facts["inference_s"] = _inference_seconds(model, reader, place.device, split=_split(run, reader))
    return _scored(run, reader, output, model, facts)


def _scored(run: Run, reader: SliceReader, output: Path, model: Path, facts: Mapping[str, Any]) -> Outcome:
    """The outcome of an evaluation; of the training only the checkpoint and its curves are kept."""
    metrics = read_json(output / "metrics.json")
    rows = rows_of_evaluation(
        output / "scores.csv", reader, arm=run.arm, seed=run.seed, fold=run.fold, data=run.data
    )  # fmt: skip
    for left in (STATES, "model", "tensorboard", "prepared"):
        shutil.rmtree(model.parent / left, ignore_errors=True)
    (model.parent / "last.pt").unlink(missing_ok=True)
    more = {
        "checkpoint_sha256": file_sha256(model),
        "split": _split(run, reader),
        "held_out": sorted({row.patient for row in rows}),
        "false_positive_rate": _mean_of(metrics, "false_positive_rate"),
        **_of_focus(metrics),
    }
    return Outcome(rows, {**facts, **more})


def _of_focus(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Gate and focus by layer of an evaluation with ``focus``; nothing of one without."""
    found = metrics.get("focus")
    if not found:
        return {}
    small = found["small"]
    own, drop = small["dice"]["mean"], small["drop"]["mean"]
    gate = {
        "dice": own,
        "swapped": None if own is None or drop is None else own - drop,
        "instances": small["drop"]["cases"],
        "of": "below 1 % of the image",
    }
    names = {"focus": "focus", "set_size": "size", "empty": "empty"}
    layers = {
        target: [
            {**{ours: layer[theirs]["mean"] for ours, theirs in names.items()}, "instances": layer["focus"]["cases"]}
            for layer in entry["layers"]
        ]
        for target, entry in found["by_target"].items()
        if entry["layers"]
    }
    return {"gate": gate, "focus": layers}


def _split(run: Run, reader: SliceReader) -> str:
    """The split to evaluate: that of the fold, the study's, or test where there is one."""
    if run.fold is not None:
        return "val"
    if run.settings.get("split"):
        return str(run.settings["split"])
    return "test" if any(row.split == "test" and row.label is not None for row in reader.rows) else "val"


def _mean_of(metrics: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    entry = metrics["slices"]["overall"].get(name)
    return None if entry is None else {"mean": entry["mean"], "cases": entry["cases"]}


def _start(parser: ConfigParser, run: Run) -> dict[str, Any]:
    """Give a network its initial weights by name, and describe what the training starts with."""
    network, sampler = map(parser.get_parsed_content, ("network_def", "train#sampler"))
    given = parser.get("init_from") or {}
    if not isinstance(given, Mapping) or not {"decoder", "model"} & set(given):
        _share_decoder(network, parser, run)
    parts = dict(network.named_children())
    facts: dict[str, Any] = {
        "initial": {name: weights_digest(part.state_dict()) for name, part in parts.items()},
        "parameters": sum(each.numel() for each in network.parameters()),
        "decoder_parameters": sum(each.numel() for each in parts["decoder"].parameters()),
    }
    if isinstance(sampler, EpochSampler):
        epochs = int(parser.get_parsed_content("epochs"))
        facts["order"] = _order(sampler, parser.get_parsed_content("train#dataset").data, epochs)
        facts["steps"] = sampler.steps * epochs
    return facts


def _share_decoder(network: BoltzFormer, parser: ConfigParser, run: Run) -> None:
    """Copy the decoder's weights from a network of the same seed without the arm's settings, by name and shape.

    So arms of a seed differ at the start only by what their decoders have not in common; the other parts are made
    before the decoder, and are the same anyway. Scalars are settings.
    """
    config = parser.get_parsed_content("network_config")
    settings = parser.get_parsed_content("settings")
    base = training_network_config(
        settings.preset, image_size=config.image_size, overrides=run.settings.get("base_network", {})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        usual = create_boltzformer(base).decoder.state_dict()
    weights = network.decoder.state_dict()
    with torch.no_grad():
        for name, each in usual.items():
            if each.dim() and name in weights and weights[name].shape == each.shape:
                weights[name].copy_(each)


def _order(sampler: EpochSampler, items: Any, epochs: int) -> str:
    """sha256 of what a training sees: its examples and their seeds, epoch after epoch."""
    digest = hashlib.sha256()
    for item in items:
        digest.update("|".join(f"{row.image.name} {row.target}" for row in item["rows"]).encode())
    for epoch in range(min(epochs, _MOST_EPOCHS)):
        digest.update(repr([tuple(draw) for draw in sampler.epoch(epoch)]).encode())
    return digest.hexdigest()


@contextmanager
def _added_to(path: Path, device: str) -> Iterator[None]:
    """Measure a block and add its cost to that of earlier pieces in a file; a killed piece is not counted."""
    before = Cost(**read_json(path)) if path.is_file() else Cost()
    cost = Cost()
    try:
        with measured(device) as cost:
            yield
    finally:
        total = Cost(
            before.wall_s + cost.wall_s,
            before.processor_s + cost.processor_s,
            max(before.peak_mib, cost.peak_mib),
        )
        write_json(path, vars(total))


@torch.inference_mode()
def _inference_seconds(model: Path, reader: SliceReader, device: str, *, split: str) -> float | None:
    """Median time of the network on one image with all its prompts, without reading and scoring."""
    if not any(row.split == split and row.label is not None for row in reader.rows):
        return None
    segmenter = VolumeSegmenter.from_checkpoint(model, device=device)
    config = segmenter.description.network
    transform = evaluation_transform(
        reader, tokenizer=segmenter.tokenizer, size=config.image_size, neighbours=config.neighbours,
        neighbour_mm=config.neighbour_mm,
    )  # fmt: skip
    item: Any = transform(evaluation_items(reader, split=split)[0])
    image, tokens = item["image"][None].to(device), item["tokens"][None].to(device)
    seconds = []
    for _ in range(_TIMED + 1):
        started = time.perf_counter()
        segmenter.network(image, tokens, with_presence=True)
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])  # the first one allocates


def _check_expert(settings: Mapping[str, Any], root: Path) -> None:
    _expert_settings(settings)


def _check_expert_data(settings: Mapping[str, Any], reader: SliceReader) -> None:
    reject_unknown(_expert_settings(settings).targets, reader.targets, what="target")


def _expert_settings(settings: Mapping[str, Any]) -> ExpertSettings:
    """With a CPU's defaults on every device: a run's key does not name the device, so it must not decide."""
    return expert_settings("cpu", settings["settings"])


def _run_expert(run: Run, place: Place) -> Outcome:
    """Train an expert on the dataset's slices and score it as BoltzFormer is."""
    if place.data is None:
        raise DatasetError(f"{run}: has no slices to train on")
    folder, device = place.folder / "training", torch.device(place.device)
    reader = open_dataset(place.data, demo_dir="", folds=run.settings["folds"], fold=run.fold)
    model, trained = folder / "model.pt", place.folder / "trained.json"
    if not trained.is_file():
        settings, costs = _expert_settings(run.settings), place.folder / "pieces.json"
        with _added_to(costs, place.device):
            train_expert(reader, settings, output_dir=folder, device=device, seed=run.seed, resume=AUTO)
        write_json(trained, {"steps": settings.steps, "training": read_json(costs)})
    output = place.folder / "evaluation"
    with measured(place.device) as cost:
        evaluate_expert(model, place.data, output_dir=output, device=device, split=_split(run, reader))
    return _scored(run, reader, output, model, {**read_json(trained), "evaluation": vars(cost)})


def _needle(settings: Mapping[str, Any]) -> NeedleSettings:
    reject_unknown(settings, (each.name for each in fields(NeedleSettings)), what="setting of a needle test")
    return NeedleSettings(**settings)


def _check_needle(settings: Mapping[str, Any], root: Path) -> None:
    needle = _needle(settings)
    _check_decoder(needle.config, needle.trained)


def _run_needle(run: Run, place: Place) -> Outcome:
    settings = _needle(run.settings)
    with measured(place.device) as cost:
        found = run_needle(settings, seed=run.seed, device=place.device)
    instances = len(found.rows)
    layers = [
        {"focus": each.focus, "set_size": each.set_size, "empty": None, "instances": instances} for each in found.layers
    ]
    facts = {
        "initial": {"decoder": found.initial_sha256},
        "order": found.data_sha256,
        "decoder_parameters": found.parameters,
        "steps": settings.steps,
        "training": {"wall_s": found.seconds, "processor_s": found.processor_seconds, "peak_mib": cost.peak_mib},
        "gate": {"dice": found.dice, "swapped": found.dice_swapped, "instances": instances, "of": "all needles"},
        "focus": {"the needle": layers} if layers else {},
    }
    return Outcome([ScoreRow(**{**row, "arm": run.arm, "fold": None, "data": run.data}) for row in found.rows], facts)


KINDS: dict[str, Kind] = {
    BOLTZFORMER: Kind(check=_check_boltzformer, run=_run_boltzformer),
    "expert": Kind(check=_check_expert, run=_run_expert, check_data=_check_expert_data),
    "needle": Kind(check=_check_needle, run=_run_needle),
}
"""Name → what runs it."""
OWN_DATA: tuple[str, ...] = ("needle",)
"""Kinds that make their own data, of the maker of the same name."""
MAKERS: dict[str, Callable[..., Path]] = {"demo": ensure_demo_dataset, "hard_phantoms": ensure_hard_dataset}
"""Name → ``maker(folder, **settings)``, which makes a slice dataset below a folder, or finds it there complete; returns
its path."""


def make_data(name: str, folder: Path, settings: Mapping[str, Any]) -> Path:
    """Make a data set by the name of its maker, or find it complete.

    Raises:
        ConfigError: the maker does not take a setting, or its value.
    """
    maker = MAKERS[name]
    takes = [each for each in inspect.signature(maker).parameters if each != "root"]
    reject_unknown(settings, takes, what=f"setting of the maker {name!r}")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    hints = get_type_hints(maker)
    for key, value in given.items():
        check_value(key, value, hints.get(key, Any))
    try:
        return maker(folder, **given)
    except TypeError as error:
        raise ConfigError(f"the maker {name!r}: {why(error)}") from error
