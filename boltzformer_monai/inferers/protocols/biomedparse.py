"""The protocol of BiomedParse v2: its slices, its resizing, its suppression, on the scan's own grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import Slicing, plane_of_axis, radiological
from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.evaluation.levels import threshold_level
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.decoding import PromptTotals
from boltzformer_monai.inferers.encoder import Encoder, Pictures
from boltzformer_monai.inferers.protocols.biomedparse_steps import (
    EXISTENCE,
    PixelSquare,
    channel_indices,
    enlarged,
    in_our_order,
    kept_prompts,
    merged,
    quantised,
    slicing_axis,
)
from boltzformer_monai.inferers.protocols.protocol import VolumeRun, register_protocol
from boltzformer_monai.inferers.run_settings import ALL_PLANES, RunSettings
from boltzformer_monai.inferers.slice_view import Decode, DecodeSlices
from boltzformer_monai.io.orientation import AxisMap
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import Decoded

__all__ = ["ORIENTATIONS", "BiomedParseProtocol"]

_FLIPS = {"stored": (False, False), "flipped": (True, False), "mirrored": (False, True), "turned": (True, True)}
ORIENTATIONS = (*_FLIPS, "display")
_ROOM = 1 << 28  # bytes of probabilities of one pass
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@register_protocol("biomedparse")
class BiomedParseProtocol:
    """Slices as they are stored, squared in pixels; in each slice all prompts compete.

    Args:
        settings: of the run. At most one plane; by default the shape of the scan chooses the axis.
        data: what the checkpoint says of its data; its presence thresholds are not used.
        suppress: in each slice drop prompts that overlap a more certain one. Nested targets (a lesion in its organ)
            erase each other by it.
        orientation: ``"stored"`` (rows and columns in the file's own directions, as in the training), ``"flipped"``
            (its rows reversed), ``"mirrored"`` (its columns), ``"turned"`` (both), or ``"display"``: as radiologists
            look at it.

    Raises:
        ConfigError: there is no such orientation, or the run asks for several planes or for tiles.
    """

    def __init__(
        self, settings: RunSettings, data: Mapping[str, Any], *, suppress: bool = True, orientation: str = "stored"
    ) -> None:
        if orientation not in ORIENTATIONS:
            msg = f"unknown orientation {orientation[:30]!r} of the protocol biomedparse; "
            raise ConfigError(msg + did_you_mean(orientation, ORIENTATIONS))
        if settings.planes is not None and (len(settings.planes) > 1 or settings.planes == (ALL_PLANES,)):
            raise ConfigError("the protocol biomedparse slices a scan along one axis, not along several planes")
        if settings.in_plane != "fit":
            raise ConfigError(f"the protocol biomedparse shows whole slices; leave in_plane {settings.in_plane!r} out")
        if settings.look_closer:
            raise ConfigError("the protocol biomedparse shows whole slices; leave look_closer out")
        if settings.tta > 1:
            raise ConfigError(f"the protocol biomedparse shows each slice once; leave tta {settings.tta} out")
        self.settings: Mapping[str, Any] = {"suppress": suppress, "orientation": orientation}
        self.suppress = suppress
        self.orientation = orientation
        self.needs_orientation = orientation == "display"
        self.plane: str | None = None if settings.planes is None else settings.planes[0]
        self.rule = PresenceRule(high=EXISTENCE, low=EXISTENCE) if settings.presence else None
        self._sided = [prompt for prompt in settings.prompts if _SIDE.search(prompt)]

    def caveats(self) -> Sequence[Caveat]:
        """Prompts that name a side."""
        text = "the model was trained on mirrored slices without renaming left and right; check the side of {}"
        return [Caveat("laterality", text.format(ascii(prompt)), prompt) for prompt in self._sided]

    def slicings(self, volume: Volume) -> Sequence[Slicing]:
        """One, along the axis that the shape of the array in SimpleITK's order (z, y, x) chooses."""
        names = [plane_of_axis(volume, axis) for axis in (2, 1, 0)]
        axis = slicing_axis(volume.shape[::-1]) if self.plane is None else names.index(self.plane)
        if self.orientation == "display":
            return [radiological(volume, names[axis])]
        order = (2 - axis, *(2 - other for other in range(3) if other != axis))
        return [Slicing(names[axis], AxisMap(order, (False, *_FLIPS[self.orientation])))]

    def rule_planes(self) -> Sequence[str] | None:
        """All."""
        return None

    def run(self, run: VolumeRun) -> None:
        """Slice after slice: all prompts, in all windows, before any of them is kept."""
        (slicing,) = run.slicings
        inputs = [(run.slices(window)(slicing), run.decoder(run.groups(members))) for window, members in run.windows]
        count, rows, columns = slicing.shape(run.volume)
        square = PixelSquare((rows, columns), run.config.image_size)
        views = [_SquareView(square.size)]

        suppressed = np.zeros((2, len(run.tokens)), int)
        most = max(1, _ROOM // (4 * len(run.tokens) * square.size**2))

        def work(start: int, batch: int) -> int:
            stop = min(start + min(batch, most), count)
            channels = in_our_order(channel_indices(count, start, stop, run.config.neighbours))
            found: dict[int, PromptTotals] = {}
            for stack, decoder in inputs:
                pixels = square.image(torch.from_numpy(stack[channels])).numpy()
                totals = decoder.totals(Pictures(pixels, decoder.device), views, batch=batch)
                found.update((each.prompt, each) for each in totals)
            of_prompt = [found[prompt] for prompt in range(len(found))]
            counts = [self._keep(run, square, start + offset, offset, of_prompt) for offset in range(stop - start)]
            suppressed[:] += np.sum(counts, axis=0)  # at the end: a pass that the memory does not hold is tried again
            return stop

        run.passes(slicing, work, windows=len(inputs))
        for prompt, dropped, found in zip(run.settings.prompts, *suppressed.tolist(), strict=True):
            if dropped:
                text = f"{prompt!r} was left out in {dropped} of its {found} slices, for a more certain prompt there"
                run.tell(Caveat("suppressed", f"{text}; the protocol's setting suppress=false keeps it", prompt))

    def _keep(
        self, run: VolumeRun, square: PixelSquare, index: int, offset: int, found: Sequence[PromptTotals]
    ) -> np.ndarray:
        """One slice: which prompts keep their mask, whose each pixel is, and all probabilities.

        Returns:
            Which prompts were suppressed, and which have a mask before that, bool ``(2, P)``.
        """
        probability = torch.stack([each.total[offset] for each in found]) / run.settings.repeats
        limit = threshold_level(run.settings.threshold) / 256
        existence = [float(each.presence[offset]) for each in found if each.presence is not None] or None
        masks = probability > limit
        kept = kept_prompts(masks, existence, presence=run.settings.presence, suppress=self.suppress)
        winner = square.restore(merged(probability, kept, limit)).cpu().numpy()
        run.store.put_winner(0, index, winner.astype(np.uint16))
        values = square.restore(quantised(probability)).cpu().numpy()
        for prompt, each in enumerate(values):
            present = None if existence is None else existence[prompt]
            run.store.put(prompt, 0, index, each, present, kept=kept[prompt])
        candidates = kept_prompts(masks, existence, presence=run.settings.presence, suppress=False)
        there = np.array(candidates) & masks.flatten(1).any(1).cpu().numpy()
        return np.stack([there & ~np.array(kept), there])


class _SquareView:
    """Slices that are the network's square already; logits are enlarged to it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def slices(self, batch: int) -> int:
        """All of the batch."""
        return batch

    def encode(self, pictures: Pictures, encoder: Encoder, *, batch: int) -> DecodeSlices:
        """Encode them in one pass."""
        features = encoder.fitted(pictures, _as_it_is, "as it is")

        def decode_slices(decode: Decode) -> Decoded:
            decoded = decode(features)
            return Decoded(enlarged(decoded.logits, self.size), decoded.presence)

        return decode_slices


def _as_it_is(images: Tensor) -> Tensor:
    return images
