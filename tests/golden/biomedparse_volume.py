"""Golden checks of what BiomedParse v2 does before and after its network: volume to squares, logits to labels.

Where values must be equal, a row is the number of those that are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch

from boltzformer_monai.inferers.protocols.biomedparse_steps import (
    PixelSquare,
    enlarged,
    kept_prompts,
    merged,
    slicing_axis,
)

Rows = Iterator[tuple[str, float]]


def check_volume(arrays: Mapping[str, np.ndarray]) -> Rows:
    """Rows of a file of nothing but these steps: ``axis``, ``pre/<name>``, ``post``."""
    found = [slicing_axis(shape) for shape in arrays["axis/shapes"].tolist()]
    yield "slicing axes (wrong)", _differing(np.array(found), arrays["axis/axis"])
    names = sorted({name.split("/")[1] for name in arrays if name.startswith("pre/")})
    for name in names:
        own = {
            key.removeprefix(f"pre/{name}/"): value for key, value in arrays.items() if key.startswith(f"pre/{name}/")
        }
        for row, error in _check_square(own, own["in"]):
            yield f"pre/{name}/{row}", error
    size = arrays["post/upsampled"].shape[-1]
    logits = torch.from_numpy(arrays["post/logits"])  # (P, N, h, w)
    larger = enlarged(logits.transpose(0, 1), size)
    yield "post/upsampled", _worst(larger.transpose(0, 1).numpy(), arrays["post/upsampled"])
    kept, merged_slices = _merged(larger, arrays["post/existence"])
    ids = np.array([0, *arrays["post/ids"].tolist()])
    yield "post/kept (wrong)", _differing(kept, arrays["post/kept"])
    yield "post/merged (wrong)", _differing(ids[merged_slices], arrays["post/merged"])
    _, alone = _merged(larger[:, :1], arrays["post/existence"][:1])
    yield "post/single_merged (wrong)", _differing(ids[alone], arrays["post/single_merged"])
    for name in names:
        if (wanted := arrays.get(f"post/labels_{name}")) is not None:
            axis = int(arrays[f"pre/{name}/axis"])
            yield f"post/labels_{name} (wrong)", _differing(_restored(ids[merged_slices], wanted.shape, axis), wanted)


def check_cases(arrays: Mapping[str, np.ndarray]) -> Rows:
    """Rows of a file that also holds the network: its volume as squares, and the label map of every case."""
    own = {key.removeprefix("in/"): value for key, value in arrays.items() if key.startswith("in/")}
    for row, error in _check_square(own, own["volume"]):
        yield f"in/{row}", error
    for case in sorted(name.removesuffix("/post/labels") for name in arrays if name.endswith("/post/labels")):
        masks = torch.from_numpy(arrays[f"{case}/out/pred_gmasks"])
        larger = enlarged(masks.transpose(0, 1), own["square"].shape[-1])
        kept, labels = _merged(larger, arrays[f"{case}/out/object_existence"])
        yield f"{case}/post/probabilities_kept (wrong)", _differing(kept, arrays[f"{case}/post/probabilities_kept"])
        ids, wanted = np.array([0, *arrays[f"{case}/post/ids"].tolist()]), arrays[f"{case}/post/labels"]
        yield f"{case}/post/labels (wrong)", _differing(_restored(ids[labels], wanted.shape, int(own["axis"])), wanted)


def _check_square(arrays: Mapping[str, np.ndarray], volume: np.ndarray) -> Rows:
    axis = slicing_axis(volume.shape)
    yield "axis (wrong)", _differing(np.array(axis), arrays["axis"])
    stack = np.moveaxis(volume, axis, 0)
    square = PixelSquare((stack.shape[1], stack.shape[2]), arrays["square"].shape[-1])
    (top, left), (rows, columns) = square.before, square.shape
    widths = [(0, 0), (top, square.edge - rows - top), (left, square.edge - columns - left)]
    yield "pad_width (wrong)", _differing(np.array(widths), arrays["pad_width"])
    yield "padded_size (wrong)", _differing(np.array(square.edge), arrays["padded_size"])
    found = square.image(torch.from_numpy(np.ascontiguousarray(stack))[:, None])[:, 0].numpy()
    if "square_float" in arrays:
        yield "square_float", _worst(found, arrays["square_float"])
    yield "square (wrong)", _differing(found.astype(np.int32), arrays["square"])


def _merged(larger: torch.Tensor, existence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits ``(N, P, s, s)`` and existence logits ``(P, N)`` → which are kept ``(P, N)``, and 0…P ``(N, s, s)``."""
    present = torch.from_numpy(existence).sigmoid()
    kept, labels = [], []
    for number, logits in enumerate(larger):
        probability = logits.sigmoid()
        kept.append(kept_prompts(probability > 0.5, present[:, number].tolist()))
        labels.append(merged(probability, kept[-1]).numpy())
    return np.array(kept).T, np.stack(labels)


def _restored(labels: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    rows, columns = (shape[other] for other in range(3) if other != axis)
    return np.moveaxis(
        PixelSquare((rows, columns), labels.shape[-1]).restore(torch.from_numpy(labels)).numpy(), 0, axis
    )


def _differing(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.count_nonzero(found != wanted)) if found.shape == wanted.shape else float("nan")


def _worst(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("nan")
