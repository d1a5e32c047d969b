"""One slice of a dataset as the network sees it: its mask, and the patches that its queries attend to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from boltzformer_monai.data.slices.reader import SliceRow, read_mask
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.transforms import LoadSliced
from boltzformer_monai.transforms.load import slice_fit

__all__ = ["SlicePrediction", "predict_slice"]


@dataclass(frozen=True, eq=False)
class SlicePrediction:
    """The network's prediction for one target of one slice.

    Attributes:
        mask: ``(H, W)`` bool, on the slice.
        square: the network's input, of several channels the middle one, ``(S, S)`` uint8.
        truth: the target in that square, ``(S, S)`` bool.
        sets: the first query's attention set per layer, ``(h, w)`` bool on the level's grid; empty for a decoder
            without attention sets.
    """

    mask: np.ndarray
    square: np.ndarray
    truth: np.ndarray
    sets: list[np.ndarray]


@torch.inference_mode()
def predict_slice(segmenter: VolumeSegmenter, row: SliceRow) -> SlicePrediction:
    """Segment the target of a row by its canonical prompt.

    Raises:
        DatasetError: the row has no label, or a file is missing or damaged.
    """
    network, config = segmenter.network, segmenter.description.network
    load = LoadSliced(size=config.image_size, neighbours=config.neighbours, neighbour_mm=config.neighbour_mm)
    image = load({"rows": [row]})["image"]
    truth = read_mask(row)
    fit = slice_fit(truth.shape, row, config.image_size)
    features = network.encode_image(image[None].to(network.mean.device))
    text = network.encode_text(segmenter.tokenizer([row.prompts[0]])[None].to(network.mean.device))
    logits = network.decode(features, text).logits.cpu()
    return SlicePrediction(
        mask=(fit.restore(logits)[0, 0] > 0).numpy(),
        square=(image[len(image) // 2] * 255).round().to(torch.uint8).numpy(),
        truth=fit.label(torch.from_numpy(truth).float()[None, None])[0, 0].bool().numpy(),
        sets=[each.flatten(0, -4)[0, 0].cpu().numpy() for each in network.attention_sets(features, text)],
    )
