"""Ids that lead nowhere but into the studies folder, and JSON that cannot hurt."""

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
_LONGEST_ID = 224  # bytes of the 255 that a file's name may have; endings and marks of temporary files come on top
_DEEPEST = 12
_LONGEST_TEXT = 20_000
_MOST_VALUES = 20_000


class UnknownIdError(VolumeError):
    """No image or label of that id is in the datastore."""


def check_id(image_id: str) -> str:
    """An id that may become part of a file name.

    Raises:
        ConfigError: it may not, or the name would be too long: systems count bytes, and a letter may have up to four.
    """
    if not _ID.fullmatch(image_id) or ".." in image_id or image_id != image_id.strip():
        msg = f"{image_id[:60]!a} cannot be an id; use letters, digits, spaces and . _ -, a letter or digit first"
        raise ConfigError(msg)
    if (size := len(image_id.encode())) > _LONGEST_ID:
        msg = f"an id of {size} bytes is too long for a file's name; at most {_LONGEST_ID} are taken"
        raise ConfigError(msg)
    return image_id


def check_tag(tag: str) -> str:
    """A label tag, which becomes the name of a folder.

    Raises:
        ConfigError: it cannot.
    """
    if not _TAG.fullmatch(tag) or ".." in tag:
        msg = f"{tag[:60]!a} cannot be a label tag; use letters, digits and _ . - only, e.g. final"
        raise ConfigError(msg)
    return tag


def root_of(datastore: Datastore) -> Path:
    """The folder that all files of a datastore lie in: the studies folder, or the cache of a DICOMweb server."""
    return Path(str(getattr(datastore, "_datastore_path"))).resolve()  # noqa: B009 (MONAI Label has no public name)


def image_path(datastore: Datastore, image_id: str) -> Path:
    """Path of an image of the datastore.

    Raises:
        ConfigError: the id cannot be one.
        UnknownIdError: there is none of that id, or it is a link that leads out of the studies folder.
    """
    if image_id not in datastore.list_images():
        check_id(image_id)
        msg = f"no image {image_id!a} in the datastore; GET /datastore/?output=all lists them"
        raise UnknownIdError(msg, reason="missing")
    # Of a DICOMweb server the series itself: get_image_uri makes a NIfTI file of it for clients to load.
    place = getattr(datastore, "image_folder", datastore.get_image_uri)
    return _inside(datastore, place(image_id), image_id)


def label_path(datastore: Datastore, label_id: str, tag: str) -> Path:
    """Path of a label of the datastore; raises as :func:`image_path`."""
    check_id(label_id)
    check_tag(tag)
    uri = datastore.get_label_uri(label_id, tag) if tag in datastore.get_labels_by_image_id(label_id) else ""
    if not uri:
        msg = f"no label {label_id!a} with the tag {tag!a} in the datastore"
        raise UnknownIdError(msg, reason="missing")
    return _inside(datastore, uri, label_id)


def check_target(datastore: Datastore, *parts: str) -> None:
    """Refuse a file to be written that a link takes out of the studies folder.

    Raises:
        UnknownIdError: it would lie elsewhere.
    """
    root = root_of(datastore)
    if not root.joinpath(*parts).resolve().is_relative_to(root):
        msg = f"{parts[-1]!a} would be written outside the studies folder"
        raise UnknownIdError(msg, reason="missing")


def _inside(datastore: Datastore, uri: str, name: str) -> Path:
    path = Path(uri).resolve() if uri else None
    if path is None or not path.exists() or not path.is_relative_to(root_of(datastore)):
        msg = f"{name!a} is no file inside the studies folder"
        raise UnknownIdError(msg, reason="missing")
    return path


def parse_json(text: str, what: str) -> dict[str, Any]:
    """A JSON object of a form field.

    Raises:
        ConfigError: it is none, or holds what no reply or file could repeat.
    """
    try:
        content = json.loads(text) if text else {}
    except (ValueError, RecursionError):
        msg = f"{what} must be a JSON object, got {text[:40]!a}"
        raise ConfigError(msg) from None
    return check_json(content, what)


def check_json(content: Any, what: str) -> dict[str, Any]:
    """A JSON object that can be stored and sent back.

    Raises:
        ConfigError: it is no object, is too large or deep, or holds NaN, infinity or broken Unicode.
    """
    if not isinstance(content, dict):
        msg = f"{what} must be a JSON object, got {type(content).__name__}"
        raise ConfigError(msg)
    waiting: list[tuple[Any, int]] = [(content, 0)]
    count = 0
    while waiting:
        value, depth = waiting.pop()
        count += 1
        problem = ""
        if depth > _DEEPEST or count > _MOST_VALUES:
            problem = "is too large or too deep"
        elif isinstance(value, float) and not math.isfinite(value):
            problem = "holds a number that is not finite"
        elif isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**63:
            problem = "holds a number that is too large"
        elif isinstance(value, str) and len(value) > _LONGEST_TEXT:
            problem = "holds a text that is too long"
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            problem = "holds broken Unicode"
        if problem:
            msg = f"{what} {problem}"
            raise ConfigError(msg)
        if isinstance(value, dict):
            waiting.extend((each, depth + 1) for pair in value.items() for each in pair)
        elif isinstance(value, list):
            waiting.extend((each, depth + 1) for each in value)
    return content
