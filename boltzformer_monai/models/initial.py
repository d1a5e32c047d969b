"""The weights that a training starts from: where they are on this machine, whose they are, and under which licence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import CheckpointError, did_you_mean
from boltzformer_monai.models.catalogue import CATALOGUE, Entry, whole_model_of
from boltzformer_monai.models.config import check_weights, is_model_folder, read_config
from boltzformer_monai.models.describe import initial_weights
from boltzformer_monai.models.fetch import stated_sha256
from boltzformer_monai.models.licence import KEY, Licence
from boltzformer_monai.models.place import WEIGHTS, hub_id, locate
from boltzformer_monai.networks.published.reading import read_published
from boltzformer_monai.networks.published.source import find_source
from boltzformer_monai.storage import file_sha256

__all__ = ["describe_initial", "initial_path"]

_ANY_MODEL = ("model.safetensors", "pytorch_model.bin")  # names that say nothing of whose weights a file holds


def initial_path(place: str | Path) -> Path:
    """The file or folder of weights; nothing is fetched. A model folder is checked by its hash.

    Args:
        place: a file or folder of published weights, a model of this package as
            :func:`~boltzformer_monai.models.place.locate` finds it, or a name of ``boltzformer weights list``.

    Raises:
        CheckpointError: there is none, or the model was changed.
    """
    path = Path(place).expanduser()
    if not path.exists():
        if (entry := CATALOGUE.get(str(place))) is not None:
            return _fetched(entry)
        if hub_id(place) is None:
            folder = path.parent
            near = [each.name for each in folder.iterdir()] if folder.is_dir() else []
            hint = did_you_mean(path.name, [*near, *CATALOGUE], otherwise="give a file, a folder or a name of it")
            raise CheckpointError(f"no weights at {place}; {hint} (boltzformer weights list shows the public ones)")
        path = locate(place).path
    elif path.name == WEIGHTS and is_model_folder(path.parent):
        path = path.parent
    elif is_model_folder(path / "model"):  # of a training
        path = path / "model"
    if is_model_folder(path):
        check_weights(path, read_config(path))
    return path


def describe_initial(places: Mapping[str, Path]) -> dict[str, Any]:
    """What a model's description says of the weights that its training started from.

    A licence that restricts the use stays with the model.

    Args:
        places: part of the network, or ``"model"`` → :func:`initial_path`.

    Returns:
        ``"initial_weights"``: ``part``, ``source``, ``file``, ``sha256`` and, where known, ``licence`` each; weights
        that a model of this package started from itself follow it. ``"licence"`` where one is restricted.

    Raises:
        CheckpointError: a file cannot be read, or is of no known source.
    """
    entries: list[dict[str, Any]] = []
    licences: list[Licence] = []
    for part, path in places.items():
        file = read_published(path)
        name, source = find_source(file)
        first = {"part": part, "source": source.title, "file": file.path.name, "sha256": file_sha256(file.path)}
        data = file.about.get("data", {}) if name == "checkpoint" else {}
        known = _entry_of(file.path, name, first["sha256"])
        licence = Licence.of(data) if known is None else known.licence
        if known is not None:
            first["source"] = known.repo
        if licence is not None:
            first["licence"] = licence.name
            licences.append(licence)
        whole = part == "model"
        earlier = [dict(each) for each in initial_weights(data) if whole or each.get("part") in (part, "model")]
        entries += [first, *earlier]
    if not entries:
        return {}
    restricted = _together(each for each in licences if each.restricted)
    return {"initial_weights": entries, **({} if restricted is None else {KEY: restricted.as_dict()})}


def _fetched(entry: Entry) -> Path:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(entry.repo, entry.file)
    if not isinstance(found, str):
        raise CheckpointError(f"{entry.name} was not fetched; boltzformer weights fetch {entry.name}")
    expected, by = stated_sha256(Path(found), entry)
    if expected is not None and file_sha256(Path(found)) != expected:
        msg = f"{found} is not what the {by} says, by its sha256; boltzformer weights fetch {entry.name}"
        raise CheckpointError(msg)
    return Path(found)


def _entry_of(path: Path, source: str, sha256: str) -> Entry | None:
    """What the catalogue knows of a file: by its hash, or by its place or name where no hash is known."""
    for entry in CATALOGUE.values():
        in_cache = f"models--{entry.repo.replace('/', '--')}" in path.parts
        named = path.name == entry.file and (in_cache or path.name not in _ANY_MODEL)
        if entry.sha256 == sha256 or (entry.sha256 is None and entry.source == source and named):
            return entry
    return whole_model_of(source)


def _together(licences: Iterable[Licence]) -> Licence | None:
    found = list(dict.fromkeys(licences))
    if len(found) < 2:
        return found[0] if found else None
    terms = "; ".join(each.terms for each in found if each.terms)
    return Licence(name=" and ".join(each.name for each in found), restricted=True, url=found[0].url, terms=terms)
