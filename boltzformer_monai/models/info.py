"""What a model is, read from its files: a model folder without PyTorch, a checkpoint without building the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.models.config import check_weights, model_sha256, read_config, unchanged
from boltzformer_monai.models.describe import (
    initial_weights,
    modalities_of,
    plane_text,
    provenance_text,
    readable,
    targets_of,
    training_text,
)
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import METRICS, WEIGHTS, locate

__all__ = ["info_text", "model_info"]

_NETWORK = (
    "backbone", "image_size", "in_channels", "neighbours", "neighbour_mm", "dim", "queries", "layers", "decoder",
    "policy", "presence",
)  # fmt: skip


def model_info(place: str | Path) -> dict[str, Any]:
    """Everything that a model says of itself; its weights are checked by their hash.

    Args:
        place: see :func:`~boltzformer_monai.models.place.locate`.

    Raises:
        CheckpointError: there is no model, it is damaged, or was changed.
    """
    found = locate(place)
    metrics = None
    if found.is_folder:
        config = read_config(found.path)
        weights = found.path / WEIGHTS
        check_weights(found.path, config)
        description, sha256, parameters = config.description, config.sha256, config.parameters
        if (found.path / METRICS).is_file():
            metrics = _metrics(found.path / METRICS)
    else:
        weights = found.path
        with unchanged(weights):
            sha256 = model_sha256(found)
            description, parameters = _checkpoint(weights)
    data, network = _part(description, "data"), _part(description, "network")
    licence, rule = Licence.of(data), PresenceRule.of(data)
    return {
        "path": str(found.path),
        "kind": "model folder" if found.is_folder else "checkpoint",
        "sha256": sha256,
        "bytes": weights.stat().st_size,
        "licence": None if licence is None else licence.as_dict(),
        "targets": targets_of(data),
        "modalities": sorted(name.upper() for name in modalities_of(data)),
        "plane": plane_text(data),
        "protocol": data.get("protocol"),
        "network": {**{name: network.get(name) for name in _NETWORK}, "parameters": parameters},
        "presence": None if rule is None else rule.as_dict(),
        "training_data": data.get("training_data"),
        "initial_weights": [dict(each) for each in initial_weights(data)],
        "learned": _learned(data),
        "metrics": metrics,
    }


def info_text(info: Mapping[str, Any]) -> str:
    """The same for people."""
    network = info["network"]
    lines = [
        f"{info['path']}: {info['kind']}, {_size(info['bytes'])}, sha256 {info['sha256']}",
        f"licence: {_licence(info['licence'])}",
        f"network: backbone {network['backbone']}, {network['image_size']} pixels, "
        f"{network['parameters']:,} parameters; decoder {network['decoder'] or 'boltzmann'}, "
        f"{network['queries']} queries, {network['layers']} layers",
        f"plane: {info['plane']}" + (f"; protocol: {info['protocol']}" if info["protocol"] else ""),
        _presence(info["presence"], has_head=bool(network["presence"]), protocol=info["protocol"]),
    ]
    if info["modalities"]:
        lines.append(f"modalities: {', '.join(info['modalities'])}")
    if info["targets"]:
        lines += ["targets:", *_rows([["target", "modality", "site", "window"], *map(_values, info["targets"])])]
    else:
        lines.append("targets: not stated; any prompt is taken, and none is known to be understood")
    if info["learned"]:
        lines.append(f"learned from corrected labels: {', '.join(info['learned'])}")
    if text := training_text(info):
        lines += ["training data:", *(f"  {line}" for line in text)]
    provenance = [provenance_text(each) for each in info["initial_weights"]]
    lines += ["initial weights: random, or not stated"] if not provenance else ["initial weights:"]
    lines += [f"  {line}" for line in provenance]
    if info["metrics"] is None:
        lines.append("metrics: none; boltzformer evaluate, then boltzformer weights card")
    else:
        from boltzformer_monai.evaluation.tables import markdown_table

        with readable("metrics"):
            lines += ["metrics:", markdown_table(info["metrics"]).rstrip("\n")]
    return "\n".join(lines) + "\n"


def _checkpoint(path: Path) -> tuple[Mapping[str, Any], int]:
    from torch import Tensor

    from boltzformer_monai.networks.weights import read_weights

    content = read_weights(path, mapped=True)
    if not all(isinstance(content.get(part), Mapping) for part in ("model", "description")):
        msg = f"{path} has no description of its network; boltzformer weights convert makes a model of known weights"
        raise CheckpointError(msg)
    return content["description"], sum(each.numel() for each in content["model"].values() if isinstance(each, Tensor))


def _learned(data: Mapping[str, Any]) -> list[str]:
    with readable("learned names"):
        return [str(each) for each in (data.get("learned") or {}).get("names", [])]


def _part(description: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = description.get(name)
    if not isinstance(part, Mapping):
        raise CheckpointError(f"the model's description lacks its {name}; train, fetch or convert it again")
    return part


def _metrics(path: Path) -> dict[str, Any]:
    from boltzformer_monai.models.card import read_metrics

    return read_metrics(path)


def _values(row: Mapping[str, str]) -> list[str]:
    return list(row.values())


def _rows(rows: Iterable[list[str]]) -> list[str]:
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return ["  " + "  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _licence(content: Mapping[str, Any] | None) -> str:
    if content is None:
        return "not stated"
    return str(Licence(**content)) + (" (restricted)" if content["restricted"] else "")


def _presence(rule: Mapping[str, float] | None, *, has_head: bool, protocol: str | None) -> str:
    if rule is not None:
        return f"presence thresholds: high {rule['high']:.3f}, low {rule['low']:.3f}"
    if has_head and protocol:
        return f"presence thresholds: those of the protocol {protocol}"
    return "presence thresholds: none, though the network has a presence head" if has_head else "presence head: none"
