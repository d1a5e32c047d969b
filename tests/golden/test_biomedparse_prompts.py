"""BiomedParse v2 from prompts and a volume to the label map, through this package's inferer: the recorded one.

The prompts of a call are of different lengths, and the recording's decoder attended to their padding.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.inferers import RunSettings, SlidingVolumeInferer
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks.published.biomedparse_v2 import BiomedParseV2Source
from boltzformer_monai.networks.published.source import PublishedFile
from boltzformer_monai.networks.weights import Description
from tests.golden.biomedparse_network import build
from tests.golden.decoder import recorded_sets
from tests.golden.modules import state_dict

TEXTS = ("p0", "p1", "p2")


class ReplayedBatches:
    """A policy that attends to the recorded sets of one batch of slices after the other."""

    per_head = True

    def __init__(self, batches: list[list[Tensor]]) -> None:
        self.waiting = batches
        self.sets: list[Tensor] = []

    def __call__(self, logits: Tensor, layer: int, generator: object = None) -> Tensor:
        if layer == 0:
            self.sets = self.waiting.pop(0)
        return self.sets[layer].view(logits.shape)


@pytest.mark.parametrize("protocol", ["biomedparse", "boltzformer"])
@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
def test_prompts_of_a_call_are_padded_to_its_longest(golden: Path, fast: bool, protocol: str) -> None:
    path = golden.with_name("golden_biomedparse") / "biomedparse_v2_small.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    sizes = json.loads(str(arrays["cfg"]))
    network = build(sizes, BiomedParseV2Source().convert(PublishedFile(path, state_dict(arrays))), fast=fast)
    shown: list[tuple[int, ...]] = []
    real = network.encode_text
    network.encode_text = lambda tokens: shown.append(tuple(tokens.shape)) or real(tokens)  # type: ignore[method-assign]

    def tokenizer(texts: list[str]) -> Tensor:
        ids = [torch.from_numpy(arrays[f"in/ids/{text}"]).flatten() for text in texts]
        return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1).long()

    tokenizer.context = sizes["context"]  # type: ignore[attr-defined]
    settings: Any = SimpleNamespace(image_size=sizes["image_size"], neighbours=1, neighbour_mm=0.0, presence=True)
    inferer = SlidingVolumeInferer(
        RunSettings(prompts=TEXTS, modality="CT", window={"kind": "stored"}, protocol=protocol),
        description=Description(settings, {"protocol": "biomedparse"}),
        tokenizer=tokenizer,  # type: ignore[arg-type]
        slices_together=sizes["slice_batch_size"],
    )
    batches = range(-(-len(arrays["in/volume"]) // sizes["slice_batch_size"]))
    sets = [recorded_sets(arrays, f"together/batch{batch}", sizes["dec"]) for batch in batches]
    network.decoder.query_decoder.policy = ReplayedBatches(sets)
    volume = Volume(arrays["in/volume"].transpose(2, 1, 0).astype(np.float32), np.diag([1.0, 1, 3, 1]), "CT")
    labels = inferer.label_map(volume, network).transpose(2, 1, 0)
    assert shown == [(1, 3, 9)]  # not filled up to any other length
    if protocol == "biomedparse":
        values = np.array([0, *arrays["together/post/ids"].tolist()])
        np.testing.assert_array_equal(values[labels], arrays["together/post/labels"])
