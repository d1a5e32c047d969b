"""Validate ids, label tags, paths and JSON from clients."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore

from boltzformer_monai.errors import ConfigError, VolumeError

UPLOADS = (".nii.gz", ".nii", ".nrrd", ".mha", ".zip", ".dcm", ".seg.nrrd", ".bin")
_ID = re.compile(r"[\w][\w .,+=@()-]{0,127}")
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_MAX_ID_BYTES = 224  # of the 255 of a file name; extensions and temporary names need the rest
_MAX_DEPTH = 12
_MAX_TEXT = 20_000
_MAX_VALUES = 20_000


class UnknownIdError(VolumeError):
    """The datastore has no image or label of this id."""


def check_id(image_id: str) -> str:
    """An id that is safe in a file name.

    Raises:
        ConfigError: it is not, or has too many bytes in UTF-8.
    """
    if not _ID.fullmatch(image_id) or ".." in image_id or image_id != image_id.strip():
        msg = f"{image_id[:60]!a} is not a valid id; use letters, digits, spaces and . _ -, a letter or digit first"
        raise ConfigError(msg)
    if (size := len(image_id.encode())) > _MAX_ID_BYTES:
        raise ConfigError(f"an id of {size} bytes is too long for a file's name; at most {_MAX_ID_BYTES} are allowed")
    return image_id


def check_tag(tag: str) -> str:
    """A label tag that is safe as a folder name.

    Raises:
        ConfigError: it is not.
    """
    if not _TAG.fullmatch(tag) or ".." in tag:
        raise ConfigError(f"{tag[:60]!a} is not a valid label tag; use letters, digits and _ . - only, e.g. final")
    return tag


def root_of(datastore: Datastore) -> Path:
    """The folder of all files of a datastore: the studies folder, or the cache of a DICOMweb server."""
    return Path(str(getattr(datastore, "_datastore_path"))).resolve()  # noqa: B009 (MONAI Label has no public name)


def image_path(datastore: Datastore, image_id: str) -> Path:
    """Path of an image of the datastore.

    Raises:
        ConfigError: the id is not valid.
        UnknownIdError: there is none, or it is a link to a file outside the studies folder.
    """
    if image_id not in datastore.list_images():
        check_id(image_id)
        msg = f"no image {image_id!a} in the datastore; GET /datastore/?output=all lists them"
        raise UnknownIdError(msg, reason="missing")
    # DICOMweb: the folder of the series; get_image_uri would convert it to NIfTI for clients.
    locate = getattr(datastore, "image_folder", datastore.get_image_uri)
    return _inside(datastore, locate(image_id), image_id)


def label_path(datastore: Datastore, label_id: str, tag: str) -> Path:
    """Path of a label of the datastore; raises as :func:`image_path`."""
    check_id(label_id)
    check_tag(tag)
    uri = datastore.get_label_uri(label_id, tag) if tag in datastore.get_labels_by_image_id(label_id) else ""
    if not uri:
        raise UnknownIdError(f"no label {label_id!a} with the tag {tag!a} in the datastore", reason="missing")
    return _inside(datastore, uri, label_id)


def check_target(datastore: Datastore, *parts: str) -> None:
    """Refuse to write through a link that leaves the studies folder.

    Raises:
        UnknownIdError: the file would lie outside.
    """
    root = root_of(datastore)
    if not root.joinpath(*parts).resolve().is_relative_to(root):
        raise UnknownIdError(f"{parts[-1]!a} would be written outside the studies folder", reason="missing")


def _inside(datastore: Datastore, uri: str, name: str) -> Path:
    path = Path(uri).resolve() if uri else None
    if path is None or not path.exists() or not path.is_relative_to(root_of(datastore)):
        raise UnknownIdError(f"{name!a} is not a file inside the studies folder", reason="missing")
    return path


def parse_json(text: str, what: str) -> dict[str, Any]:
    """Parse a form field as a JSON object; raises as :func:`check_json`."""
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        raise ConfigError(f"{what} must be a JSON object, got {text[:40]!a}") from None
    return check_json(content, what)


def check_json(content: Any, what: str) -> dict[str, Any]:
    """A JSON object that can be stored and sent back.

    Raises:
        ConfigError: not an object, too large or too deeply nested, or it holds NaN, infinity or broken Unicode.
    """
    if not isinstance(content, dict):
        raise ConfigError(f"{what} must be a JSON object, got {type(content).__name__}")
    stack: list[tuple[Any, int]] = [(content, 0)]
    count = 0
    while stack:
        value, depth = stack.pop()
        count += 1
        problem = ""
        if depth > _MAX_DEPTH or count > _MAX_VALUES:
            problem = "is too large or too deep"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = "holds a number that is not finite"
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63:
            problem = "holds a number that is too large"
        elif isinstance(value, str) and len(value) > _MAX_TEXT:
            problem = "holds a text that is too long"
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            problem = "holds broken Unicode"
        if problem:
            raise ConfigError(f"{what} {problem}")
        if isinstance(value, dict):
            stack.extend((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list):
            stack.extend((each, depth + 1) for each in value)
    return content
