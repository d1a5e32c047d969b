"""What BiomedParse v2 does before and after its network: the recordings, files of other sizes, and changed numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.golden import check
from tests.golden.plain_decoder import Arrays


def square(volume: np.ndarray, size: int) -> Arrays:
    """One volume, sliced, padded and resized, written anew."""
    _, height, width = volume.shape
    axis = int(np.argmin(volume.shape)) if abs(height - width) >= (height + width) / 4 else 0
    stack = np.moveaxis(volume, axis, 0)
    edge = max(stack.shape[1:])
    widths = [(0, 0)] + [((edge - n) // 2, edge - n - (edge - n) // 2) for n in stack.shape[1:]]
    resized = F.interpolate(torch.from_numpy(np.pad(stack, widths))[:, None], size=size, mode="bicubic")[:, 0].numpy()
    arrays = {"in": volume, "square": resized.astype(np.int32), "pad_width": np.array(widths)}
    arrays |= {"square_float": resized} if volume.dtype == np.float32 else {}
    return {**arrays, "padded_size": np.array(edge), "axis": np.array(axis)}


def record(*, size: int, prompts: int, seed: int = 0) -> Arrays:
    """A file of the form of the recording."""
    rng = np.random.default_rng(seed)
    volumes = {
        "wide": rng.integers(0, 256, (5, 31, 50), np.uint8),
        "deep": rng.integers(0, 256, (70, 30, 4), np.uint8),
        "real": rng.normal(100, 80, (3, 40, 22)).astype(np.float32),
    }
    arrays = {f"pre/{name}/{key}": value for name, v in volumes.items() for key, value in square(v, size).items()}
    arrays["axis/shapes"] = np.array([volume.shape for volume in volumes.values()])
    arrays["axis/axis"] = np.array([arrays[f"pre/{name}/axis"] for name in volumes])
    logits = torch.from_numpy(rng.normal(0, 3, (prompts, 5, size // 4, size // 4)).astype(np.float32))
    existence = rng.normal(0.5, 1, (prompts, 5)).astype(np.float32)
    larger = F.interpolate(logits, size=size, mode="bicubic", antialias=True)
    p, there = larger.sigmoid().numpy(), torch.from_numpy(existence).sigmoid().numpy()
    kept = np.zeros((prompts, 5), bool)
    for i in range(5):
        for k in np.argsort(-there[:, i], kind="stable"):
            masks = p[:, i] > 0.5
            others = [masks[j] for j in range(prompts) if kept[j, i]]
            overlap = [(masks[k] & mask).sum() / (masks[k] | mask).sum() for mask in others]
            kept[k, i] = there[k, i] >= 0.5 and masks[k].any() and all(each <= 0.5 for each in overlap)
    ids = np.array([0, *(10 + 3 * np.arange(prompts))])
    merged = ids[np.argmax([np.full(p.shape[1:], np.float32(0.5)), *(p * kept[..., None, None])], axis=0)]
    alone = ids[np.argmax([np.full(p.shape[1:], np.float32(0.5)), p[0] * (there[0] > 0.5)[:, None, None]], axis=0)]
    rows = [int(np.float32(n) * np.float32(size / 50)) for n in range(50)]
    labels = merged[:, rows][:, :, rows][:, 9:40]
    post = {"logits": logits.numpy(), "existence": existence, "ids": ids[1:], "upsampled": larger.numpy(), "kept": kept,
            "merged": merged, "single_merged": alone, "labels_wide": labels}  # fmt: skip
    return {**arrays, **{f"post/{name}": value for name, value in post.items()}}


def run(path: Path, arrays: Arrays) -> int:
    np.savez(path, **arrays)
    return check.main([str(path)])


def test_the_published_recordings(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = golden.with_name("golden_biomedparse")
    files = sorted(str(path) for path in folder.glob("*.npz"))
    if not files:
        pytest.skip(f"no recordings in {folder}")
    assert check.main(files) == 0, capsys.readouterr().out
    assert capsys.readouterr().out.count("passed: largest absolute error") == len(files)


@pytest.mark.parametrize(("size", "prompts"), [(48, 3), (64, 7), (100, 1)])
def test_other_sizes(tmp_path: Path, size: int, prompts: int, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = record(size=size, prompts=prompts)
    if prompts > 1:
        assert 0 < arrays["post/kept"].sum() < arrays["post/kept"].size
        assert run(tmp_path / "volume.npz", arrays) == 0, capsys.readouterr().out
    else:  # one prompt alone has the strict rule
        arrays["post/kept"] = arrays["post/kept"] & (arrays["post/existence"] > 0)
        assert run(tmp_path / "volume.npz", arrays) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    ["axis/axis", "pre/wide/square", "pre/real/square_float", "pre/deep/pad_width", "pre/wide/padded_size",
     "post/upsampled", "post/kept", "post/merged", "post/single_merged", "post/labels_wide", "post/logits"],
)  # fmt: skip
def test_a_changed_number_is_found(tmp_path: Path, name: str) -> None:
    arrays = record(size=48, prompts=3)
    changed = arrays[name].copy()
    changed.flat[-1] = not changed.flat[-1] if changed.dtype == bool else changed.flat[-1] + 1
    assert run(tmp_path / "volume.npz", {**arrays, name: changed}) == 1
