"""Does every weight of a complete published model have its place, with its shape, in our preset of that size?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from boltzformer_monai.networks import create_boltzformer
from boltzformer_monai.networks.published.importing import convert, whole_names
from boltzformer_monai.networks.published.source import PublishedFile, find_source

# Ours alone: the published code normalises images outside the network, or with buffers of other names.
_OURS_ALONE = {"mean", "std"}
_QUERIES = ("sem_seg_head.predictor.query_feat.weight", "sem_seg_head.predictor.query_feat_.weight")


def check_keys(path: Path) -> Iterator[tuple[str, float]]:
    """Rows (quantity, count of misfits)."""
    shapes = json.loads(path.read_text())
    shapes = shapes if isinstance(shapes, dict) else {}
    queries = next((shapes[name][0] for name in _QUERIES if name in shapes), None)
    if queries is None:
        msg = "is not a list {state-dict key: shape} of a published model"
        raise ValueError(msg)
    preset = path.stem.removeprefix("keys_")
    # Numbers that take no memory: the importer reads the normalisation.
    published = {name: torch.ones(()).expand(shape) for name, shape in shapes.items()}
    with torch.device("meta"):
        ours = create_boltzformer(preset, queries=queries).state_dict()
    file = PublishedFile(path, published)
    converted = whole_names(convert(file, find_source(file)[1]).parts)
    yield "keys missing in the published", float(len(set(ours) - set(converted) - _OURS_ALONE))
    yield "keys without a place here", float(len(set(converted) - set(ours)))
    misfits = [name for name in converted if name in ours and converted[name].shape != ours[name].shape]
    yield "keys of another shape", float(len(misfits))
