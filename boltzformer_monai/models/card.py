"""The card of a model, ``README.md`` of its folder, in the form of the Hugging Face hub. Imports no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError, DatasetError, why
from boltzformer_monai.evaluation.tables import markdown_line, markdown_table
from boltzformer_monai.limits import read_json
from boltzformer_monai.models.config import ModelConfig, read_config
from boltzformer_monai.models.describe import (
    initial_weights,
    modalities_of,
    plane_text,
    provenance_text,
    targets_of,
    training_text,
)
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import CARD, METRICS, hub_id
from boltzformer_monai.storage import replacing, write_json

__all__ = ["add_metrics", "eval_metrics", "read_metrics", "write_bundle_metrics", "write_card"]

_LIBRARY = "boltzformer-monai"
_PARTS = ("slices", "volumes")


def write_card(folder: Path, config: ModelConfig, *, name: str, metrics: Mapping[str, Any] | None = None) -> None:
    """Write ``README.md``.

    Args:
        folder: of the model.
        config: of the model.
        name: of the model.
        metrics: content of its ``metrics.json``, where it was evaluated.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence = Licence.of(config.data)
    sources = [str(each.get("source", "")) for each in initial_weights(config.data)]
    sources = [source for source in dict.fromkeys(sources) if hub_id(source) is not None]
    data = ModelCardData(
        model_name=name,
        library_name=_LIBRARY,
        pipeline_tag="image-segmentation",
        tags=["medical", "monai", "text-prompted-segmentation", *sorted(modalities_of(config.data))],
        license=None if licence is None else licence.name.lower() if _is_spdx(licence) else "other",
        license_name=None if licence is None or _is_spdx(licence) else licence.name,
        license_link=None if licence is None or _is_spdx(licence) else licence.url or None,
        base_model=sources or None,
        eval_results=None if metrics is None else _eval_results(metrics),
    )
    text = f"---\n{data.to_yaml()}\n---\n\n{_body(config, name, licence, metrics)}"
    with replacing(folder / CARD) as temporary:
        ModelCard(text).save(temporary)


def add_metrics(folder: Path, metrics: Path, *, name: str | None = None) -> dict[str, Any]:
    """Put the numbers of an evaluation into a model folder: ``metrics.json`` without single cases, and the card.

    Args:
        folder: of the model.
        metrics: ``metrics.json`` that the evaluation of this model wrote.
        name: of the model, in its card; by default the folder's.

    Returns:
        What was written as ``metrics.json``.

    Raises:
        CheckpointError: the folder holds no model.
        DatasetError: the file holds no metrics, or those of another model.
        StorageError: it cannot be written.
    """
    config = read_config(folder)
    content = read_metrics(metrics)
    model = content.get("model")
    evaluated = model.get("sha256") if isinstance(model, Mapping) else None
    if evaluated not in (config.sha256, config.checkpoint_sha256 or config.sha256):
        of = "does not say of which model it is" if evaluated is None else f"is of the model {str(evaluated)[:16]}…"
        raise DatasetError(f"{metrics} {of}, and {folder} is {config.sha256[:16]}…; evaluate this one")
    # Cases name volumes and patients: they stay with whoever evaluated.
    kept = {
        key: {name: part for name, part in value.items() if name != "cases"} if key in _PARTS else value
        for key, value in content.items()
        if key not in _PARTS or value.get("cases") != []
    }
    write_json(folder / METRICS, kept)
    write_card(folder, config, name=name or folder.resolve().name, metrics=kept)
    return kept


def read_metrics(path: Path) -> dict[str, Any]:
    """The content of a ``metrics.json``.

    Raises:
        DatasetError: it cannot be read, or holds something else.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read ({why(error)}); give the metrics.json of boltzformer evaluate"
        raise DatasetError(msg) from error
    parts = [content[part] for part in _PARTS if part in content] if isinstance(content, dict) else []
    needed = {"overall", "by_target", "metrics"}
    if not parts or not all(isinstance(part, Mapping) and needed <= set(part) for part in parts):
        raise DatasetError(f"{path}: holds no metrics; give the metrics.json of boltzformer evaluate")
    return dict(content)


def eval_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """``eval_metrics`` of a MONAI bundle: mean and interval of the main table over all targets, and by size.

    Names are of the metric and of what was measured: ``dice_slices``, ``dice_slices_low``, ``dice_volumes``,
    ``dice_slices_below_1_percent``.
    """
    found: dict[str, float] = {}
    for part in _PARTS:
        summary = metrics.get(part) or {}
        groups = {part: summary.get("overall", {})}
        groups |= {f"{part}_{stratum}": entry for stratum, entry in summary.get("strata", {}).items()}
        for group, entry in groups.items():
            for metric in _main(summary):
                estimate = entry.get(metric) or {}
                for end, suffix in (("mean", ""), ("low", "_low"), ("high", "_high")):
                    if estimate.get(end) is not None:
                        found[f"{metric}_{group}{suffix}"] = estimate[end]
    return found


def write_bundle_metrics(metrics: Mapping[str, Any], bundle: Path) -> Path:
    """Write ``eval_metrics`` into the ``metadata.json`` of a bundle.

    Raises:
        ConfigError: there is no bundle at this place.
        StorageError: it cannot be written.
    """
    path = bundle / "configs" / "metadata.json"
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({why(error)}); give the folder of a bundle") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: is no bundle's metadata; give the folder of a bundle")
    content["eval_metrics"] = eval_metrics(metrics)
    write_json(path, content, indent=4)
    return path


def _body(config: ModelConfig, name: str, licence: Licence | None, metrics: Mapping[str, Any] | None) -> str:
    data, network = config.data, config.description.get("network", {})
    targets = targets_of(data)
    prompt = targets[0]["target"] if targets else "liver"
    # NIfTI does not state it, and then it must be said unless the training knew one alone.
    modality = "" if len({row["modality"] for row in targets}) == 1 else "--modality CT "
    lines = [
        f"# {_escaped(name)}",
        "",
        "Segments what a text prompt names in slices and volumes. A model of "
        f"[{_LIBRARY}](https://github.com/boltzformer-monai/boltzformer-monai) {config.package}.",
        "",
        "```",
        f'boltzformer segment scan.nii.gz --prompts "{prompt}" {modality}--checkpoint {name} --output out.nii.gz',
        "```",
        "",
        "## Intended use",
        "",
        "Research. Not a medical device: no diagnosis or treatment may rest on its masks.",
        "",
        "## Targets",
        "",
    ]
    if targets:
        lines += _table(("target", "modality", "site", "window"), [tuple(row.values()) for row in targets])
    else:
        lines.append("The model states no vocabulary: any prompt is taken, and none is known to be understood.")
    lines += ["", f"Plane: {plane_text(data)}."]
    lines += ["", "## Training data", "", *_list(training_text(data), "Not stated.")]
    lines += ["", "## Metrics", ""]
    if metrics is None:
        lines.append("Not evaluated yet: `boltzformer evaluate`, then `boltzformer weights card`.")
    else:
        tables = markdown_table(metrics).rstrip("\n")
        lines += [
            "Mean with its 95 % confidence interval over patients, by target, over all, and by the size of the object.",
            "",
            tables,
        ]
    lines += [
        "",
        "## Limits",
        "",
        "- Slice by slice: no context across slices, other than neighbouring slices as channels where there are such.",
        "- Nothing is promised for prompts, modalities, sites and scanners other than those of the training.",
        "- A prompt for an absent object may get a mask; the metrics give the false-positive rate if it was measured.",
        "",
        "## Licence",
        "",
        "Not stated; ask whoever trained the model." if licence is None else f"{_escaped(str(licence))}.",
        "",
        "## Initial weights",
        "",
        *_list([provenance_text(each) for each in initial_weights(data)], "Random, or not stated."),
        "",
        "## Network",
        "",
        *_list(
            [
                f"backbone `{network.get('backbone')}`, {network.get('image_size')} pixels, "
                f"{network.get('queries')} queries, {network.get('layers')} layers, decoder `{network.get('decoder')}`",
                f"{config.parameters:,} parameters",
                f"sha256 of the weights: {config.weights_sha256}",
                f"sha256 of the model (weights and description): {config.sha256}",
            ],
            "",
        ),
        "",
    ]
    return "\n".join(lines)


def _eval_results(metrics: Mapping[str, Any]) -> list[Any]:
    from huggingface_hub import EvalResult

    found = []
    for part in _PARTS:
        summary = metrics.get(part) or {}
        for metric, about in _main(summary).items():
            mean = (summary["overall"].get(metric) or {}).get("mean")
            if mean is not None:
                found.append(
                    EvalResult(
                        task_type="image-segmentation",
                        dataset_type="private",
                        dataset_name=f"evaluated {part}",
                        metric_type=metric,
                        metric_name=f"{about['title']} ({part})",
                        metric_value=mean,
                    )
                )
    return found or None  # type: ignore[return-value]


def _main(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of the main table."""
    return {name: about for name, about in summary.get("metrics", {}).items() if not about.get("section")}


def _is_spdx(licence: Licence) -> bool:
    return " " not in licence.name


def _list(lines: Iterable[str], otherwise: str) -> list[str]:
    return [f"- {_escaped(line)}" for line in lines] or [otherwise]


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(headings)
    return [markdown_line(head), markdown_line(["---"] * len(head)), *map(markdown_line, rows)]


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;")
