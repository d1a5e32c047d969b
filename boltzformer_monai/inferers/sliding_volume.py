"""All prompts on all slices of a volume, in one pass: every slice is encoded once and decoded for all prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import PLANE_AXES, slice_spacing, stack_shape
from boltzformer_monai.errors import CancelledError, CheckpointError, ConfigError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.decoding import BatchSize, SliceDecoder, one_by_one
from boltzformer_monai.inferers.encoder import Encoder, Pictures
from boltzformer_monai.inferers.feature_cache import FeatureCache
from boltzformer_monai.inferers.probability_store import SliceSpool
from boltzformer_monai.inferers.prompt_groups import TOGETHER, checked_prompts, prompt_groups
from boltzformer_monai.inferers.result_caveats import collect_caveats, log_caveats
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.inferers.slice_view import SliceView, slice_view
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.modality import stated_modality
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.transforms import PromptTokenizer

_log = logging.getLogger(__name__)

UNTRAINED = "there is no checkpoint, and untrained weights are not used; train one, or give --checkpoint PATH"
IN_PLANE = ("fit", "tiles")


class SlidingVolumeInferer(Inferer):
    """Volume + prompts → for each prompt a probability and a mask on the volume's grid.

    The same volume and prompt always give the same bytes, whatever the batch size and the other prompts, on a CPU: a
    slice is encoded alone there, which costs no time, and prompts are decoded in groups of one shape. On a GPU batches
    are real, and results are equal to rounding.

    Memory grows with the volume, not with the number of prompts.

    Args:
        prompts: what to look for, one text per object.
        tokenizer: the one that the network was trained with.
        image_size: edge of the square that slices are shown in, the network's.
        windows: chooses the window of each prompt.
        plane: the one plane to slice along; short for ``planes=(plane,)``.
        planes: planes to slice along (axial, where neither is given), whose probabilities are averaged; best are those
            that the network was trained on.
        neighbours: slices on either side that the network sees as channels, as many as in its training.
        modality: of scans that do not state theirs (NIfTI, NRRD).
        batch_size: slices (or tiles) per pass on a GPU; halved, with a warning, where its memory is too small.
        threshold: probability from which a voxel belongs to an object.
        seed: of the attention sampling.
        repeats: draws of the attention sampling, whose probabilities are averaged; with several there is an entropy.
        presence: drops slices that the network's presence head says the object is not in; without that head, nothing.
        presence_plane: the plane that this rule was calibrated in. Where it is among the planes, only its slices are
            judged; the others' probabilities count as they are.
        in_plane: ``"fit"`` scales whole slices into the square; ``"tiles"`` covers slices that are larger than it by
            overlapping squares of their own resolution.
        together: prompts decoded together. The bytes of a result depend on it in the last digit, as they do on the
            device; fewer make a single prompt cheaper, and many prompts dearer.
        slices_together: on a CPU, slices decoded together (they are encoded one by one); with few prompts this is
            several times as fast as one by one. A volume is always parted alike, so its bytes stay the same.
        features: keeps the image features, so that the same volume is not encoded again for other prompts.
        stacks: keeps the slices themselves.
        progress: show a progress bar on standard error.
        should_stop: asked before every pass; ``True`` stops the work with a ``CancelledError``.
        trained: ``False`` for an untrained network, which is refused: a random mask is worse than none.
        caveats: what is known of all results beforehand; each result holds them with those of its scan.
        literal: show the network the prompts exactly as they are, also with words that it does not understand.

    Raises:
        PromptError: no prompts, or one that is empty, too long, no valid text or given twice; or one with a negation,
            size or count that is not meant literally.
        ConfigError: another setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        prompts: Sequence[str],
        tokenizer: PromptTokenizer,
        image_size: int,
        windows: PromptWindows,
        plane: str | None = None,
        planes: Sequence[str] | None = None,
        neighbours: int = 0,
        modality: str | None = None,
        batch_size: int = 4,
        threshold: float = 0.5,
        seed: int = 0,
        repeats: int = 1,
        presence: PresenceRule | None = None,
        presence_plane: str | None = None,
        in_plane: str = "fit",
        together: int = TOGETHER,
        slices_together: int = 1,
        features: FeatureCache | None = None,
        stacks: SliceStacks | None = None,
        progress: bool = False,
        should_stop: Callable[[], bool] | None = None,
        trained: bool = True,
        caveats: Sequence[Caveat] = (),
        literal: bool = False,
    ) -> None:
        super().__init__()
        self.prompts = checked_prompts(prompts)
        self.tokenizer = tokenizer
        self.readings = windows.read(self.prompts, literal=literal)
        self.tokens = tokenizer([reading.shown for reading in self.readings])
        self.planes = _checked_planes(plane, planes)
        for name, value in (
            ("batch size", batch_size),
            ("number of repeats", repeats),
            ("number of prompts together", together),
            ("number of slices together", slices_together),
        ):
            if value < 1:
                msg = f"the {name} must be at least 1, got {value}"
                raise ConfigError(msg)
        if not 0 < threshold < 1:
            msg = f"the threshold must be between 0 and 1, got {threshold}"
            raise ConfigError(msg)
        if in_plane not in IN_PLANE:
            msg = f"unknown in_plane {in_plane!r}; known are {', '.join(IN_PLANE)}"
            raise ConfigError(msg)
        self.image_size = image_size
        self.windows = windows
        self.neighbours = neighbours
        self.modality = None if modality is None else stated_modality(modality)
        self.batch_size = batch_size
        self.threshold = threshold
        self.seed = seed
        self.repeats = repeats
        self.presence = presence
        self.presence_planes = tuple(each for each in self.planes if each == presence_plane) or self.planes
        self.in_plane = in_plane
        self.together = together
        self.slices_together = slices_together
        self.features = features
        self.stacks = SliceStacks() if stacks is None else stacks
        self.progress = progress
        self.should_stop = should_stop
        self.trained = trained
        self.caveats = tuple(caveats)
        self._said: set[Caveat] = set()

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Label one volume.

        Args:
            inputs: MONAI MetaTensor ``(1, 1, I, J, K)`` or ``(1, I, J, K)`` in the scanner's units, with its affine.
            network: a BoltzFormer in evaluation mode.

        Returns:
            ``(1, 1, I, J, K)`` uint8 (uint16 for more than 255 prompts) on the CPU.

        Raises:
            VolumeError: the volume is empty.
        """
        meta = getattr(inputs, "meta", {})
        affine = torch.as_tensor(getattr(inputs, "affine", torch.eye(4)))
        modality = meta.get("modality", "unknown")
        volume = Volume(
            array=np.asarray(inputs.reshape(inputs.shape[-3:]).cpu(), dtype=np.float32),
            affine=np.asarray(affine.reshape(4, 4), dtype=np.float64),
            modality=str(_first(modality)),
            caveats=tuple(Caveat.of(each) for each in json.loads(_first(meta.get("caveats", "[]")))),
        )
        return torch.from_numpy(np.ascontiguousarray(self.label_map(volume, network)))[None, None]

    def label_map(self, volume: Volume, network: BoltzFormer) -> np.ndarray:
        """Label map ``(I, J, K)``: value i for the i-th prompt (from 1), 0 for none; the most probable wins.

        Raises:
            As :meth:`segment`.
        """
        with self.segment(volume, network) as result:
            labels = result.label_map()
        there = set(np.unique(labels).tolist())
        if missing := [prompt for value, prompt in enumerate(self.prompts, 1) if value not in there]:
            _log.info("not found: %s", "; ".join(missing))
        return labels

    @torch.inference_mode()
    def segment(self, volume: Volume, network: BoltzFormer) -> VolumeResult:
        """Segment a volume; close the result after use, or use it as a context manager.

        Raises:
            CheckpointError: the network was never trained.
            ConfigError: the modality is not known, or the device's memory does not hold a single slice.
            CancelledError: ``should_stop`` said so.
            StorageError: the temporary folder is full.
        """
        if not self.trained:
            raise CheckpointError(UNTRAINED)
        stated = self.modality if volume.modality == "unknown" and self.modality else volume.modality
        modality = self.windows.modality(stated)
        caveats = collect_caveats(
            volume,
            stated=stated,
            modality=modality,
            planes=self.planes,
            windows=self.windows,
            readings=self.readings,
            known=self.caveats,
        )
        log_caveats(caveats, volume, self._said)
        groups = self.windows.group(self.readings, modality)
        shapes = [stack_shape(volume, plane) for plane in self.planes]
        on_cpu = network.mean.device.type == "cpu"
        encode = one_by_one(network.encode_image) if on_cpu and self.slices_together > 1 else network.encode_image
        encoder = Encoder(encode) if self.features is None else self.features.encoder(network, encode)
        batch = BatchSize(self.slices_together if on_cpu else self.batch_size)
        if self.features is not None:
            batch.release = self.features.clear
        total = len(groups) * sum(shape[0] for shape in shapes)
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(total=total, desc="slices", unit="slice", disable=not self.progress, leave=False)
            )
            unfinished = stack.enter_context(contextlib.ExitStack())
            spool = SliceSpool(len(self.prompts), shapes)
            unfinished.callback(spool.close)
            for window, members in groups:
                shown = self.stacks.shown(volume, window)
                alike = prompt_groups(self.tokens, members, context=self.tokenizer.context, together=self.together)
                decoder = SliceDecoder(network, alike, seed=self.seed, repeats=self.repeats, encoder=encoder)
                for plane in range(len(self.planes)):
                    self._run_plane(volume, shown(self.planes[plane]), plane, decoder, spool, batch, bar)
            unfinished.pop_all()
        return VolumeResult(
            prompts=self.prompts,
            grid=volume if volume.modality == modality else dataclasses.replace(volume, modality=modality),
            caveats=caveats,
            shown=[reading.shown for reading in self.readings],
            planes=self.planes,
            spool=spool,
            threshold=self.threshold,
            rule=self.presence,
            rule_planes=self.presence_planes,
            repeats=self.repeats,
        )

    def _run_plane(
        self,
        volume: Volume,
        slices: np.ndarray,
        plane: int,
        decoder: SliceDecoder,
        spool: SliceSpool,
        batch: BatchSize,
        bar: Any,
    ) -> None:
        """All slices of a plane in one window, pass after pass."""
        row, column, _ = slice_spacing(volume, self.planes[plane])
        tiles = self.in_plane == "tiles"
        view = slice_view((slices.shape[1], slices.shape[2]), (row, column), self.image_size, tiles=tiles)
        start = 0
        while start < len(slices):
            if self.should_stop is not None and self.should_stop():
                msg = f"stopped as asked after {start} of {len(slices)} {self.planes[plane]} slices; nothing was kept"
                raise CancelledError(msg)
            stop = batch.attempt(partial(self._run_pass, slices, start, view, decoder, spool, plane))
            bar.update(stop - start)
            start = stop

    def _run_pass(
        self,
        slices: np.ndarray,
        start: int,
        view: SliceView,
        decoder: SliceDecoder,
        spool: SliceSpool,
        plane: int,
        batch: int,
    ) -> int:
        """As many slices as a pass takes, into the spool; returns the number of the next one."""
        stop = min(start + view.slices(batch), len(slices))
        pictures = Pictures(self._with_neighbours(slices, start, stop), decoder.device)
        for prompt, probability, presence in decoder.decode(pictures, view, batch=batch):
            for offset, values in enumerate(probability):
                present = None if presence is None else float(presence[offset])
                spool.put(prompt, plane, start + offset, values, present)
        return stop

    def _with_neighbours(self, slices: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Slices ``(N, H, W)`` uint8 → some of them with their neighbours ``(B, 2K + 1, H, W)``.

        Beyond the ends of the volume its outermost slice stands in, as in
        :class:`~boltzformer_monai.transforms.load.LoadSliced`.
        """
        if not self.neighbours:
            return slices[start:stop, None]
        indices = np.arange(start, stop)
        steps = range(-self.neighbours, self.neighbours + 1)
        return np.stack([slices[np.clip(indices + step, 0, len(slices) - 1)] for step in steps], axis=1)


def _first(value: Any) -> Any:
    """A value of a MetaTensor's ``meta``, which a loader may have put into a list of one."""
    return value[0] if isinstance(value, list | tuple) else value


def _checked_planes(plane: str | None, planes: Sequence[str] | None) -> tuple[str, ...]:
    if plane is not None and planes is not None:
        msg = f"give either plane ({plane!r}) or planes ({', '.join(planes)}), not both"
        raise ConfigError(msg)
    chosen = (plane,) if plane is not None else ("axial",) if planes is None else tuple(planes)
    if isinstance(planes, str) or not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(PLANE_AXES):
        msg = (
            f"planes must be different ones of {', '.join(PLANE_AXES)}, got {plane if plane is not None else planes!r}"
        )
        raise ConfigError(msg)
    return chosen
