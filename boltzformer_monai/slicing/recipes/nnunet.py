"""The ``dataset.json`` of nnU-Net (version 2): what the channels of its scans and the values of its labels are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boltzformer_monai.data.label_names import LabelMap, canonical_labels
from boltzformer_monai.errors import BoltzFormerError, DatasetError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.modality import modality_of_channel

__all__ = ["NNUNET_FILE", "read_nnunet_names"]

NNUNET_FILE = "dataset.json"


def read_nnunet_names(path: Path, *, channel: int | None) -> LabelMap | None:
    """Read names of labels, and the modality from the name of a channel.

    ``{"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "kidney": [2, 3]}}``; a region is a target
    of several values. Only channels called as a modality say one; that of "zscore" is given by ``--modality``.

    Args:
        path: the file.
        channel: which channel is taken; None for the only one.

    Returns:
        The names; None for a ``dataset.json`` of another kind.

    Raises:
        DatasetError: it is damaged, the channel is of another modality than CT and MR, two labels mean the same voxels,
            or some voxels say "ignore", which nothing here can express.
    """
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read as JSON ({why(error)})"
        raise DatasetError(msg) from None
    if not isinstance(content, dict) or "channel_names" not in content:
        return None
    channels, labels = content["channel_names"], content.get("labels")
    if not isinstance(channels, dict) or not isinstance(labels, dict):
        msg = f"{path}: its channel_names and labels must be objects, as nnU-Net writes them"
        raise DatasetError(msg)
    if any(name.strip().lower() == "ignore" for name in labels):
        msg = f'{path}: has a label "ignore", whose voxels are neither a target nor its absence; remove these scans'
        raise DatasetError(msg)
    values = {name: _value(path, name, value) for name, value in labels.items() if name.strip().lower() != "background"}
    named = {value: name for name, value in values.items()}
    if len(named) < len(values):
        msg = f"{path}: two of its labels have the same values"
        raise DatasetError(msg)
    try:
        canonical_labels(named)
        spoken = modality_of_channel(str(channels.get(str(channel or 0), "")))
    except BoltzFormerError as error:
        msg = f"{path}: {error}"
        raise DatasetError(msg) from None
    return LabelMap(named, spoken or "unknown")


def _value(path: Path, name: str, value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in values):
        msg = f'{path}: the values of "{name}" must be whole numbers above 0, not {value!r}'
        raise DatasetError(msg)
    return "+".join(map(str, sorted(values)))
