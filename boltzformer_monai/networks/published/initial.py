"""Start a network from published weights, part by part."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from boltzformer_monai.errors import CheckpointError, ConfigError, reject_unknown
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.mapped import load_weights
from boltzformer_monai.networks.published.importing import convert, report_of, whole_names
from boltzformer_monai.networks.published.names import PublishedNames
from boltzformer_monai.networks.published.reading import read_published
from boltzformer_monai.networks.published.rename import Tensors, below, placed
from boltzformer_monai.networks.published.report import ImportReport, PartReport, parts_table
from boltzformer_monai.networks.published.source import PARTS, Converted, PublishedFile, Source, find_source
from boltzformer_monai.networks.weights import compare

WHOLE = "model"
"""Stands for all parts."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What a file gives to a network: nothing is copied before every file has its plan."""

    weights: Tensors
    report: ImportReport


def init_from(network: BoltzFormer, paths: Mapping[str, str | Path]) -> list[ImportReport]:
    """Start a network from published weights. A part is taken whole or refused; nothing is copied before all fit.

    Args:
        network: changed in place.
        paths: ``"backbone"``, ``"pixel_decoder"``, ``"text_encoder"``, ``"decoder"`` or ``"model"``, which is all four
            → a file or folder that :func:`~boltzformer_monai.networks.published.importing.import_weights` reads. A part
            that is named beside ``"model"`` is taken from its own file.

    Returns:
        What was taken of each file, dropped and left at random.

    Raises:
        ConfigError: there is no such part, or the network computes otherwise than the source of the weights.
        CheckpointError: a file cannot be read, is of no known source, lacks the part, or does not fit.
    """
    reject_unknown(paths, (*PARTS, WHOLE), what="part to start from")
    wanted = {key: [key] for key in paths if key != WHOLE}
    if WHOLE in paths:
        wanted = {WHOLE: [part for part in PARTS if part not in paths], **wanted}
    plans = [_plan(network, paths[key], parts) for key, parts in wanted.items()]
    for plan in plans:
        for part in PARTS:
            load_weights(getattr(network, part), below(plan.weights, f"{part}."), strict=False)
    return [plan.report for plan in plans]


def describe_parts(network: BoltzFormer, reports: Sequence[ImportReport]) -> list[str]:
    """A table for the log: where each part of a network comes from, what is at random, what is frozen."""
    rows: list[tuple[str, ...]] = [("part", "tensors", "from", "at random", "frozen")]
    for part in PARTS:
        parameters = dict(getattr(network, part).named_parameters())
        found = [(report, each) for report in reports for each in report.parts if each.part == part]
        where = ", ".join(f"{Path(report.path).name} ({report.source})" for report, _ in found)
        left = sum(len(each.random) for _, each in found) if found else len(parameters)
        frozen = sum(not parameter.requires_grad for parameter in parameters.values())
        rows.append((part, str(len(parameters)), where or "random weights", str(left or "–"), str(frozen or "–")))
    return parts_table(rows)


def _plan(network: BoltzFormer, path: str | Path, parts: Sequence[str]) -> _Plan:
    file = read_published(path)
    _, source = find_source(file)
    converted = convert(file, source)
    if absent := [part for part in parts if not converted.parts.get(part)]:
        has = ", ".join(part for part in PARTS if converted.parts.get(part))
        raise CheckpointError(f"{file.path} ({source.title}) holds no {absent[0]}; it holds {has}")
    dropped, reports = dict(converted.dropped), []
    weights: Tensors = {}
    for part in parts:
        _check_settings(network, part, converted.settings.get(part, {}), where=f"{file.path} ({source.title})")
        names = partial(_published_names, file, source, part, network)
        taken, surplus, random = _place(network, part, converted, where=str(file.path), names=names)
        dropped |= surplus
        weights |= taken
        reports.append(PartReport(part, len(taken), sum(each.numel() for each in taken.values()), random))
    report = report_of(file, source, converted, tuple(reports))
    notes = (*report.notes, *_normalisation_note(network, converted, parts))
    return _Plan(weights, dataclasses.replace(report, dropped=dropped, notes=notes))


def _place(
    network: BoltzFormer, part: str, converted: Converted, *, where: str, names: Callable[[], PublishedNames]
) -> tuple[Tensors, dict[str, str], dict[str, str]]:
    """Compare one part with the network's.

    Returns:
        The weights to copy, by their names in the network; what the network has no place for, and what is left at
        random, each with the reason.

    Raises:
        CheckpointError: they do not fit.
    """
    own = {name: weight for name, weight in network.state_dict().items() if name.startswith(f"{part}.")}
    weights = _as_here(part, converted, own)
    surplus = {
        name: why
        for name in sorted(weights.keys() - own.keys())
        for pattern, why in converted.surplus.items()
        if re.search(pattern, name.removeprefix(f"{part}."))
    }
    weights = {name: weight for name, weight in weights.items() if name not in surplus}
    random = {
        name: why
        for name in sorted(own.keys() - weights.keys())
        for start, why in converted.lacks.items()
        if name.startswith(start)
    }
    for name in weights.keys() & own.keys() & converted.optional.keys():
        if weights[name].shape != own[name].shape:
            random[name] = converted.optional[name]
    needed = {name: weight for name, weight in own.items() if name not in random}
    weights = {name: weight for name, weight in weights.items() if name not in random}
    compare(needed, weights, source=where, names=names)
    return weights, surplus, random


def _published_names(file: PublishedFile, source: Source, part: str, network: BoltzFormer) -> PublishedNames:
    own = network.state_dict()
    return PublishedNames(file, lambda each: _as_here(part, source.convert(each), own))


def _as_here(part: str, converted: Converted, own: Collection[str]) -> Tensors:
    """The weights of a part by their names in the network.

    A backbone's may have a neck around it there, or none, and are named as timm's features are.
    """
    weights = whole_names({part: converted.parts[part]})
    if part != "backbone":
        return weights
    places = {_bare(name): name for name in own if name.startswith("backbone.")}
    return placed((places.get(_bare(name), name), weight) for name, weight in weights.items())


def _bare(name: str) -> str:
    """A name as in timm's own model: without what this package and timm's features-only models put before it."""
    name = re.sub(r"^backbone\.(backbone\.)?(model\.)*", "", name)
    name = re.sub(r"^([a-z]+)_(\d+)\.", r"\1.\2.", name)  # layers_0 → layers.0
    return re.sub(r"\.norm(\d)_post\.", r".norm\1.", name)  # FocalNet's norms, before or after a block


def _check_settings(network: BoltzFormer, part: str, settings: Mapping[str, Any], *, where: str) -> None:
    """Compare what no weight shows.

    Raises:
        ConfigError: the network computes otherwise.
    """
    here = _settings(network).get(part, {})
    for name, value in settings.items():
        if name in here and here[name] != value:
            msg = (
                f"the {part} of {where} computes with {name} {value!r}, this network with {here[name]!r}; "
                f"set network_overrides {{{name!r}: {value!r}}}"
            )
            raise ConfigError(msg)


def _settings(network: BoltzFormer) -> dict[str, dict[str, Any]]:
    """What no weight shows, as far as the network's modules tell it: others' may have no such settings."""

    def found(places: Mapping[str, str]) -> dict[str, Any]:
        values = {}
        for name, place in places.items():
            value: Any = network
            for attribute in place.split("."):
                value = value[int(attribute)] if attribute.isdigit() and len(value) else getattr(value, attribute, None)
                if value is None:
                    break
            else:
                values[name] = value
        return values

    return {
        "text_encoder": found(
            {
                "text_norm_eps": "text_encoder.model.config.layer_norm_eps",
                "text_activation": "text_encoder.model.config.hidden_act",
                "text_heads": "text_encoder.model.config.num_attention_heads",
            }
        ),
        "pixel_decoder": found(
            {"heads": "pixel_decoder.encoder.0.self_attn.heads", "pre_norm": "pixel_decoder.encoder.0.pre_norm"}
        ),
        "decoder": found({"heads": "decoder.query_decoder.heads"}),
    }


def _normalisation_note(network: BoltzFormer, converted: Converted, parts: Sequence[str]) -> tuple[str, ...]:
    """Weights of a backbone that saw other numbers are good initial weights all the same: say so."""
    if "backbone" not in parts or not converted.buffers:
        return ()
    here = {name: _numbers(getattr(network, name)) for name in converted.buffers}
    there = {name: _numbers(value) for name, value in converted.buffers.items()}
    if here == there:
        return ()
    return (f"its images were normalised with {there}, this network's with {here} (mean and std of network_overrides)",)


def _numbers(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten().tolist()]
