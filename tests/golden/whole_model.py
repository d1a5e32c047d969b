"""Does every weight of a complete published model have its place, with its shape, in our preset of that size?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from boltzformer_monai.networks import create_boltzformer
from boltzformer_monai.networks.convert_published import convert_published

# Ours alone: the published code normalises images outside the network.
_OURS_ALONE = {"mean", "std"}


def check_keys(path: Path) -> Iterator[tuple[str, float]]:
    """Rows (quantity, count of misfits)."""
    shapes: dict[str, list[int]] = json.loads(path.read_text())
    if not isinstance(shapes, dict) or "sem_seg_head.predictor.query_feat.weight" not in shapes:
        msg = "is not a list {state-dict key: shape} of a published model"
        raise ValueError(msg)
    preset = path.stem.removeprefix("keys_")
    with torch.device("meta"):
        published = {name: torch.empty(shape) for name, shape in shapes.items()}
        queries = shapes["sem_seg_head.predictor.query_feat.weight"][0]
        ours = create_boltzformer(preset, queries=queries).state_dict()
    converted = convert_published(published)
    yield "keys missing in the published", float(len(set(ours) - set(converted) - _OURS_ALONE))
    yield "keys without a place here", float(len(set(converted) - set(ours)))
    misfits = [name for name in converted if name in ours and converted[name].shape != ours[name].shape]
    yield "keys of another shape", float(len(misfits))
