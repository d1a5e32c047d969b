"""All prompts on all slices of a volume, in one pass: every slice is encoded once and decoded for all prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from boltzformer_monai.data.planes import extract_slices, slice_spacing, slices_to_volume
from boltzformer_monai.data.prompts import normalise_prompt
from boltzformer_monai.errors import CheckpointError, ConfigError, PromptError
from boltzformer_monai.inferers.windows import AnyWindow, PromptWindows
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer, CounterNoise, TextFeatures
from boltzformer_monai.transforms import PromptTokenizer, SquareFit
from boltzformer_monai.transforms.load import image_tensor

UNTRAINED = "there is no checkpoint, and untrained weights are not used; train one, or give --checkpoint PATH"
PROMPTS_AT_ONCE = 16
"""Prompts decoded together: memory must not grow with their number."""


class SlidingVolumeInferer(Inferer):
    """Volume + prompts → label map on the volume's grid: value i for the i-th prompt (from 1), 0 for none.

    Where several prompts claim a voxel, the most probable wins. The same volume and prompts always give the same
    labels, whatever the batch size.

    Args:
        prompts: what to look for, one text per object.
        tokenizer: the one that the network was trained with.
        image_size: edge of the square that slices are shown in, the network's.
        windows: chooses the window of each prompt.
        plane: plane to slice along, the one the network was trained on.
        neighbours: slices on either side that the network sees as channels, as many as in its training.
        modality: of scans that do not state theirs (NIfTI, NRRD).
        batch_size: slices per pass.
        threshold: probability from which a voxel belongs to an object.
        seed: of the attention sampling.
        progress: show a progress bar on standard error.
        trained: ``False`` for an untrained network, which is refused: a random mask is worse than none.

    Raises:
        PromptError: no prompts, or an empty one.
        ConfigError: batch size or threshold out of range.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        tokenizer: PromptTokenizer,
        image_size: int,
        windows: PromptWindows,
        plane: str = "axial",
        neighbours: int = 0,
        modality: str | None = None,
        batch_size: int = 4,
        threshold: float = 0.5,
        seed: int = 0,
        progress: bool = False,
        trained: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
            msg = "give at least one prompt, as a list of texts, e.g. ['left kidney', 'lung nodule']"
            raise PromptError(msg)
        texts = [normalise_prompt(prompt) for prompt in prompts]
        if repeated := [text for index, text in enumerate(texts) if text in texts[:index]]:
            msg = f"prompt {repeated[0]!r} is given twice; a voxel can have one label only"
            raise PromptError(msg)
        if batch_size < 1:
            msg = f"the batch size must be at least 1, got {batch_size}"
            raise ConfigError(msg)
        if not 0 < threshold < 1:
            msg = f"the threshold must be between 0 and 1, got {threshold}"
            raise ConfigError(msg)
        self.prompts = list(prompts)
        self.tokens = tokenizer(self.prompts)
        self.image_size = image_size
        self.windows = windows
        self.plane = plane
        self.neighbours = neighbours
        self.modality = modality
        self.batch_size = batch_size
        self.logit = math.log(threshold / (1 - threshold))
        self.seed = seed
        self.progress = progress
        self.trained = trained

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Label one volume.

        Args:
            inputs: MONAI MetaTensor ``(1, 1, I, J, K)`` or ``(1, I, J, K)`` in the scanner's units, with its affine.
            network: a BoltzFormer in evaluation mode.

        Returns:
            ``(1, 1, I, J, K)`` uint8 (uint16 for more than 255 prompts) on the CPU.
        """
        meta = getattr(inputs, "meta", {})
        affine = torch.as_tensor(getattr(inputs, "affine", torch.eye(4)))
        modality = meta.get("modality", "unknown")
        volume = Volume(
            array=np.asarray(inputs.reshape(inputs.shape[-3:]).cpu(), dtype=np.float32),
            affine=np.asarray(affine.reshape(4, 4), dtype=np.float64),
            modality=str(modality[0] if isinstance(modality, list | tuple) else modality),
        )
        return torch.from_numpy(self.label_map(volume, network))[None, None]

    @torch.inference_mode()
    def label_map(self, volume: Volume, network: BoltzFormer) -> np.ndarray:
        """Label map ``(I, J, K)`` of a volume, on its grid.

        Raises:
            CheckpointError: the network was never trained.
        """
        if not self.trained:
            raise CheckpointError(UNTRAINED)
        stated = self.modality if volume.modality == "unknown" and self.modality else volume.modality
        groups = self.windows.group(self.prompts, self.windows.modality(stated))
        row, column, _ = slice_spacing(volume, self.plane)
        shape = extract_slices(volume, self.plane).shape
        labels = np.zeros(shape, np.uint8 if len(self.prompts) <= 255 else np.uint16)
        # The winner's logit so far; anything below the threshold has lost already.
        best = np.full(shape, self.logit, np.float32)
        fit = SquareFit((shape[1], shape[2]), (row, column), self.image_size)
        total = len(groups) * shape[0]
        with tqdm(total=total, desc="slices", unit="slice", disable=not self.progress, leave=False) as bar:
            for window, members in groups:
                self._label_group(volume, network, window, members, fit, labels, best, bar)
        return slices_to_volume(labels, volume, self.plane)

    def _label_group(
        self,
        volume: Volume,
        network: BoltzFormer,
        window: AnyWindow,
        members: list[int],
        fit: SquareFit,
        labels: np.ndarray,
        best: np.ndarray,
        bar: Any,
    ) -> None:
        """All prompts that share a window, batch after batch of slices."""
        device = network.mean.device
        shown = Volume(window.apply(volume.array), volume.affine, volume.modality)
        slices = extract_slices(shown, self.plane)
        chunks = [members[i : i + PROMPTS_AT_ONCE] for i in range(0, len(members), PROMPTS_AT_ONCE)]
        texts = [network.encode_text(self.tokens[chunk][None].to(device)) for chunk in chunks]
        for start in range(0, len(slices), self.batch_size):
            part = slice(start, min(start + self.batch_size, len(slices)))
            count = part.stop - part.start
            shown_slices = fit.image(self._with_neighbours(slices, part)).to(device)
            features = network.encode_image(shown_slices)
            for chunk, text in zip(chunks, texts, strict=True):
                repeated = TextFeatures(*(x.expand(count, *x.shape[1:]) for x in text))
                decoded = network.decode(features, repeated, generator=CounterNoise(self.seed))
                highest, winner = (x.cpu().numpy() for x in fit.restore(decoded.logits).max(dim=1))
                wins = highest > best[part]
                labels[part][wins] = (np.asarray(chunk) + 1)[winner[wins]]
                best[part][wins] = highest[wins]
            bar.update(count)

    def _with_neighbours(self, slices: np.ndarray, part: slice) -> Tensor:
        """Slices ``(N, H, W)`` uint8 → those of ``part`` with their neighbours ``(B, 2K + 1, H, W)`` float32 0–1.

        Beyond the ends of the volume its outermost slice stands in, as in
        :class:`~boltzformer_monai.transforms.load.LoadSliced`.
        """
        indices = np.arange(part.start, part.stop)
        steps = range(-self.neighbours, self.neighbours + 1)
        return torch.cat([image_tensor(slices[np.clip(indices + step, 0, len(slices) - 1)]) for step in steps], dim=1)
