"""A model as a bundle of its own, in the form of MONAI's model zoo."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.models.card import eval_metrics, read_metrics
from boltzformer_monai.models.folder import read_model
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.models.place import CARD, METRICS, locate
from boltzformer_monai.networks.weights import Description, read_description, save_checkpoint
from boltzformer_monai.storage import atomic_path, file_sha256, replacing_folder, write_json, writing

__all__ = ["LARGEST_FILE", "write_bundle"]

LARGEST_FILE = 25_000_000
"""Bytes of a file in the zoo's repository; a larger one is named in ``large_files.yml``."""
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first time that a zip file can state


def write_bundle(model: str | Path, output: Path, *, url: str = "") -> Path:
    """Write the package's bundle with a model in it, and ``<output>.zip``.

    ``models/model.pt`` are the weights, ``docs/model_card.md`` is the model's card. ``metadata.json`` states the sizes
    of its network and the numbers of its evaluation; ``LICENSE.weights`` the licence of the weights, where they have
    one.

    Args:
        model: model folder.
        output: the bundle's folder, which must not be there yet.
        url: where weights too large for the zoo's repository can be fetched, for ``large_files.yml``.

    Returns:
        The zip file. The same model gives the same bytes.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: it is a checkpoint without a card, or something is at ``output`` already.
        StorageError: it cannot be written.
    """
    place = locate(model)
    if not place.is_folder:
        msg = f"{model} is a checkpoint; make a model folder of it first: boltzformer weights convert"
        raise ConfigError(msg)
    if output.exists():  # first: folders like . and / have no name
        raise ConfigError(f"{output} is there already; give another --output, or remove it")
    archive = output.with_name(f"{output.name}.zip")
    if archive.exists():
        raise ConfigError(f"{archive} is there already; give another --output, or remove it")
    content = read_model(place.path)
    description = read_description(content["description"], place.path)
    with replacing_folder(output) as folder:
        shutil.copytree(bundle_root(), folder, dirs_exist_ok=True, ignore=_made_by_runs)
        weights = folder / "models" / "model.pt"
        weights.parent.mkdir()
        save_checkpoint(content, weights)
        shutil.copyfile(place.path / CARD, folder / "docs" / "model_card.md")
        _describe(folder / "configs" / "metadata.json", description, place.path / METRICS)
        if (licence := Licence.of(description.data)) is not None:
            lines = (licence.name, licence.terms, licence.url)
            text = "\n".join(line for line in lines if line)
            (folder / "LICENSE.weights").write_text(f"{text}\n", encoding="utf-8")
        if url:
            (folder / "large_files.yml").write_text(_large_files(weights, url), encoding="utf-8")
    with writing(archive), atomic_path(archive) as temporary:
        _pack(output, temporary)
    return archive


def _made_by_runs(folder: str, names: list[str]) -> list[str]:
    """What runs leave in the bundle of a clone."""
    return [name for name in names if name in ("models", "eval", "demo_data", "__pycache__")]


def _describe(path: Path, description: Description, metrics: Path) -> None:
    metadata: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    size, formats = description.network.image_size, metadata["network_data_format"]
    image, masks = formats["inputs"]["image"], formats["outputs"]["pred"]
    image["num_channels"] = 2 * description.network.neighbours + 1
    if description.network.neighbours:
        names = range(-description.network.neighbours, description.network.neighbours + 1)
        image["channel_def"] = {str(i): f"slice {name:+d}, windowed to 0-1" for i, name in enumerate(names)}
    image["spatial_shape"], masks["spatial_shape"] = [size, size], [size // 2, size // 2]
    metadata["eval_metrics"] = eval_metrics(read_metrics(metrics)) if metrics.is_file() else {}
    write_json(path, metadata, indent=4)


def _large_files(weights: Path, url: str) -> str:
    fields = {"path": "models/model.pt", "url": url, "hash_val": file_sha256(weights), "hash_type": "sha256"}
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    return "large_files:\n  - " + "\n    ".join(lines) + "\n"


def _pack(folder: Path, archive: Path) -> None:
    """Zip a folder below its own name, in alphabetical order and without times."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = zipfile.ZipInfo((folder.name / file.relative_to(folder)).as_posix(), _EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            with (
                packed.open(entry, "w", force_zip64=file.stat().st_size >= 1 << 31) as target,
                file.open("rb") as source,
            ):
                shutil.copyfileobj(source, target, 1 << 20)
