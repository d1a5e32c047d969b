"""A model → a folder of three graphs with all that a program needs beside them; nothing wrong is ever written.

``config.json`` says what goes in and what comes out, and repeats the model's description: windows, targets, plane,
presence thresholds, licence. ``prompts.json`` and ``tokenizer.json`` turn prompts into tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from boltzformer_monai import __version__
from boltzformer_monai.deploy.formats import graph_format
from boltzformer_monai.deploy.graphs import axes_of, channels_of, graphs_of, plain_network
from boltzformer_monai.deploy.parity import Parity, compare, made_up_image, reference
from boltzformer_monai.deploy.tokens import prompt_table, tokenizer_json
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import read_json
from boltzformer_monai.models.folder import LoadedModel, load_model, show_licence
from boltzformer_monai.storage import file_sha256, replacing_folder
from boltzformer_monai.transforms.tokenizer import PADDING, PromptTokenizer

__all__ = ["CONFIG", "FORMAT", "VERSION", "export_model"]

CONFIG, PROMPTS, TOKENIZER = "config.json", "prompts.json", "tokenizer.json"
FORMAT = "boltzformer-export"
VERSION = 1
THRESHOLD = 0.5
_CHECKED = ((1, 1, 0), (2, 3, 1))
"""Images, prompts and seed of the comparisons: other numbers than those that the graphs are traced with."""
_TEXTS = ("liver", "left kidney in abdominal CT", "nodule")
_log = logging.getLogger(__name__)


def export_model(place: str | Path, output: str | Path, *, to: str, prompts: Sequence[str] = ()) -> Parity:
    """Write the graphs of a model.

    Args:
        place: see :func:`~boltzformer_monai.models.place.locate`.
        output: the folder to write; an older export there is replaced.
        to: ``"onnx"`` or ``"torch"``.
        prompts: for the table of prompts, beside those of the training.

    Returns:
        How the graphs compare with the network.

    Raises:
        CheckpointError: as :func:`~boltzformer_monai.models.folder.load_model`.
        ConfigError: packages are missing, there are other files at ``output``, a part of the network cannot be
            exported, or its graph finds other masks.
        PromptError: a prompt is empty, or longer than the text encoder reads.
        StorageError: it cannot be written; an older export stays as it was.
    """
    form, target = graph_format(to), Path(output)
    _require_replaceable(target)
    model = load_model(place)
    show_licence(model)
    config = model.description.network
    tokenizer = PromptTokenizer(context=int(model.network.text_encoder.context), path=config.text_model)  # type: ignore[arg-type]
    table = prompt_table(model.description.data, tokenizer, prompts)

    tokens = tokenizer(_TEXTS)
    cases = [
        reference(
            model.network,
            made_up_image(images, channels_of(config), config.image_size, seed=seed),
            tokens[:count],
            seed=seed,
        )
        for images, count, seed in _CHECKED
    ]
    graphs = graphs_of(plain_network(model.network, config), config, cases[0].expected)
    with replacing_folder(target) as folder:
        written = {}
        values: list[dict[str, Tensor]] = [case.inputs() for case in cases]
        for graph in graphs:
            path = folder / f"{graph.name}{form.suffix}"
            form.write(graph, path)
            run = form.load(graph, path)
            values = [{**known, **run(known)} for known in values]
            files = sorted(folder.glob(f"{path.name}*"))  # the graph, and its weights where they are large
            size = sum(each.stat().st_size for each in files)
            written[graph.name] = {
                "file": path.name,
                "bytes": size,
                "sha256": {each.name: file_sha256(each) for each in files},
                "inputs": [_about(name, values[0][name]) for name in graph.inputs],
                "outputs": [_about(name, values[0][name]) for name in graph.outputs],
            }
            _log.info("%s: %.1f MB", path.name, size / 1e6)
        parity = compare(cases, values)
        if not parity.holds:
            raise ConfigError(f"the graphs of {place} find other masks than the network ({parity}); nothing is written")
        _log.info("as the network: %s", parity)
        content = {**_content(model, to), "graphs": written, "parity": parity.as_dict()}
        _write_json(folder / PROMPTS, table)
        if (text := tokenizer_json(tokenizer)) is not None:
            (folder / TOKENIZER).write_text(text, encoding="utf-8")
        content["text"] = {
            "padding": PADDING,
            "longest": tokenizer.context,
            "prompts": PROMPTS,
            "tokenizer": None if text is None else TOKENIZER,
        }
        _write_json(folder / CONFIG, content)
    return parity


def _content(model: LoadedModel, to: str) -> dict[str, Any]:
    """What is known of the model."""
    config = model.description.network
    return {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "to": to,
        "model_sha256": model.sha256,
        "licence": None if model.licence is None else model.licence.as_dict(),
        "image": {"size": config.image_size, "channels": channels_of(config)},
        "threshold": THRESHOLD,
        "seed": model.network.seed,
        "description": model.description.state_dict(),
    }


def _about(name: str, value: Tensor) -> dict[str, Any]:
    return {"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": axes_of(name, value.shape)}


def _require_replaceable(folder: Path) -> None:
    """Refuse a place where something else than an export would be lost."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        content = read_json(folder / CONFIG)
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigError(f"cannot write {folder}: it holds something else, which would be lost; give another --output")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
