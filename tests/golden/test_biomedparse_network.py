"""The golden check of BiomedParse v2's network: passes on the recording, passes on other sizes, and can fail."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from boltzformer_monai.networks import CounterNoise
from boltzformer_monai.networks.sampling import RecordingPolicy
from tests.golden import check
from tests.golden.biomedparse_network import build
from tests.golden.plain_decoder import Arrays
from tests.networks.published.layouts import biomedparse_v2_state
from tests.networks.published.test_biomedparse_v2 import converted, small_network

SIZES = {
    "embed_dim": 4, "depths": [1, 1, 2, 1], "dim": 16, "heads": 2, "ff": 20, "enc": 2, "dec": 3, "queries": 5,
    "edge": 2, "width": 12, "tl": 2, "th": 2, "vocab": 49408, "context": 77, "slice_batch_size": 1, "image_size": 64,
    "ratio": 0.1, "base_temp": 1,
}  # fmt: skip
# The slice before, this one, the one after; mirrored at the ends.
NEIGHBOURS = {1: [[0, 0, 0]], 2: [[1, 0, 1], [0, 1, 0]], 3: [[1, 0, 1], [0, 1, 2], [1, 2, 1]]}


@pytest.fixture(scope="module")
def recording(golden: Path) -> Path:
    path = golden.with_name("golden_biomedparse") / "biomedparse_v2_small.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@torch.no_grad()
def record(slices: int) -> Arrays:
    """One prompt alone on slices, as this package's plain form decodes it."""
    state = biomedparse_v2_state(small_network(1))
    network = build(SIZES, converted(state), fast=False)
    generator = torch.Generator().manual_seed(0)
    square = torch.randint(0, 256, (slices, 64, 64), generator=generator, dtype=torch.uint8)
    ids = torch.tensor([49406, 320, 7, 49407])
    arrays: Arrays = {f"w/{name}": weight.numpy() for name, weight in state.items()}
    arrays |= {"cfg": np.array(json.dumps(SIZES)), "in/square": square.numpy(), "in/ids/p0": ids.numpy()}
    text = network.encode_text(ids[None, None])
    found = []
    for batch in range(slices):
        image = square[NEIGHBOURS[slices][batch]].float()[None] / 255
        network.decoder.query_decoder.policy = policy = RecordingPolicy(network.decoder.query_decoder.policy)
        masks: list[torch.Tensor] = []
        handle = network.decoder.aggregation.register_forward_hook(lambda m, args, out: masks.append(args[0]))  # noqa: B023
        found.append(network.decode(network.encode_image(image), text, generator=CounterNoise(batch)))
        handle.remove()
        network.decoder.query_decoder.policy = policy.policy
        place = f"alone0/batch{batch}"
        for layer, attend in enumerate(policy.sets):
            hidden = ~attend.flatten(0, 2)
            arrays[f"{place}/mask{layer}"] = np.packbits(hidden.numpy())
            arrays[f"{place}/mask{layer}_shape"] = np.array(hidden.shape)
        arrays[f"{place}/pred_gmasks"] = masks[0].flatten(0, 1).mean((2, 3)).numpy()
        arrays[f"{place}/object_existence"] = found[-1].presence.numpy()
    for name, place in (("logits", "pred_gmasks"), ("edges", "edge_masks"), ("presence", "object_existence")):
        arrays[f"alone0/out/{place}"] = torch.cat([getattr(each, name) for each in found]).transpose(0, 1).numpy()
    arrays["alone0/out/class_emb"] = text.tokens[0, :, -1].numpy()
    return arrays


@pytest.mark.slow
def test_the_recordings(recording: Path, capsys: pytest.CaptureFixture[str]):
    assert check.main([str(recording), str(recording.with_name("keys_biomedparse_v2.json"))]) == 0
    printed = capsys.readouterr().out
    assert "BiomedParse v2, volume and network" in printed
    for name in ("together/batch0/layer5/classifier_ffn", "alone2/out/edge_masks", "together/batch0/set4"):
        assert printed.count(name) == 2  # plain and fast


@pytest.mark.parametrize(
    "name",
    [
        "alone1/out/object_existence",
        "alone1/out/edge_masks",
        "w/sem_seg_head.predictor.classifier_query.weight",
        "in/square",
    ],
)
def test_a_changed_number_is_found(recording: Path, tmp_path: Path, name: str):
    with np.load(recording) as archive:
        arrays = {each: archive[each] for each in archive.files if each.startswith(("w/", "in/", "cfg", "alone1/"))}
    changed = arrays[name].copy()
    changed.flat[3] += np.asarray(1).astype(changed.dtype)
    np.savez(tmp_path / "changed.npz", **{**arrays, name: changed})
    assert check.main([str(tmp_path / "changed.npz")]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_a_network_of_other_sizes(tmp_path: Path, slices: int):
    arrays = record(slices)
    np.savez(tmp_path / "other.npz", **arrays)
    assert check.main([str(tmp_path / "other.npz")]) == 0
    arrays["alone0/out/edge_masks"] = arrays["alone0/out/edge_masks"] + np.float32(2e-4)
    np.savez(tmp_path / "other.npz", **arrays)
    assert check.main([str(tmp_path / "other.npz")]) == 1
