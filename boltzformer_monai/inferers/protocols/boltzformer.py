"""The protocol of this package: what its training shows the network, prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.neighbours import Offset, blend, channel_offsets
from boltzformer_monai.data.planes import Slicing, radiological
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.presence_rule import presence_rule
from boltzformer_monai.inferers.decoding import SliceDecoder
from boltzformer_monai.inferers.encoder import Pictures
from boltzformer_monai.inferers.point import DEPTH_MM, LEAST_ZOOM, region_at
from boltzformer_monai.inferers.probability_store import ProbabilityStore
from boltzformer_monai.inferers.protocols.protocol import DEFAULT, VolumeRun, register_protocol
from boltzformer_monai.inferers.run_settings import ALL_PLANES, RunSettings
from boltzformer_monai.inferers.slice_view import RegionOfSlices, SliceView, slice_views
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.transforms.poses import first_poses

__all__ = ["BoltzFormerProtocol"]


@register_protocol(DEFAULT)
class BoltzFormerProtocol:
    """Radiological slices of the training's planes, fitted by millimetres; every prompt is found on its own.

    Args:
        settings: planes, tiles, the region to look at closer, and whether the presence head drops slices.
        data: what the checkpoint says of its data: planes and presence thresholds.
        least_zoom: how much larger than in the whole slice the region to look at closer is shown at least.

    Raises:
        CheckpointError: the checkpoint's presence thresholds cannot be used.
        ConfigError: the zoom is below 1 or no number, or given without a region to look at.
    """

    needs_orientation = True

    def __init__(self, settings: RunSettings, data: Mapping[str, Any], *, least_zoom: float | None = None) -> None:
        self.point = (settings.closer_point or settings.point) if settings.look_closer else None
        if least_zoom is not None and (self.point is None or not _is_zoom(least_zoom)):
            msg = f"least_zoom is a number from 1 to 16, used with look_closer alone, got {ascii(least_zoom)[:40]}"
            raise ConfigError(msg)
        self.least_zoom = LEAST_ZOOM if least_zoom is None else float(least_zoom)
        self.settings: Mapping[str, Any] = {} if self.point is None else {"least_zoom": self.least_zoom}
        self.only_at_point = settings.keep_lesions == "at_point"
        self.trained_planes = tuple(map(str, data.get("planes") or (data.get("plane", "axial"),)))
        self.plane: str | tuple[str, ...] | None = self.trained_planes
        if len(self.trained_planes) == 1:
            self.plane = self.trained_planes[0]
        self.planes = self.trained_planes if settings.planes in (None, (ALL_PLANES,)) else tuple(settings.planes or ())
        self.rule = presence_rule(data, use=settings.presence)

    def caveats(self) -> Sequence[Caveat]:
        """Planes that the training never saw, and what is done at a point alone."""
        return [*self._of_planes(), *self._at_point()]

    def _of_planes(self) -> list[Caveat]:
        others = [plane for plane in self.planes if plane not in self.trained_planes]
        trained = " and ".join(self.trained_planes)
        text = f"the network was trained on {trained} slices; {' and '.join(others)} ones are new to it"
        return [Caveat("another plane", text)] if others else []

    def _at_point(self) -> Iterator[Caveat]:
        if self.point is not None:
            depth = f"{DEPTH_MM:g} mm of slices to both sides"
            text = f"the region around the point was decoded again, larger than in training, with {depth}"
            yield Caveat("looked closer", text)
        if self.only_at_point:
            yield Caveat("only at the point", "each mask is the one lesion at the point; its others were dropped")

    def slicings(self, volume: Volume) -> Sequence[Slicing]:
        """The planes of the run, in radiological display."""
        return [radiological(volume, plane) for plane in self.planes]

    def rule_planes(self) -> Sequence[str] | None:
        """The training's planes, for which the thresholds were chosen, where one is among the planes."""
        return [plane for plane in self.planes if plane in self.trained_planes] or None

    def run(self, run: VolumeRun) -> None:
        """Window after window, plane after plane."""
        for window, members in run.windows:
            slices = run.slices(window)
            decoder = run.decoder(run.groups(members))
            for plane, slicing in enumerate(run.slicings):
                stack = slices(slicing)
                row, column, across = slicing.spacing(run.volume)
                tiles = run.settings.in_plane == "tiles"
                shape = (stack.shape[1], stack.shape[2])
                poses = first_poses(run.settings.tta)
                views = slice_views(shape, (row, column), run.config.image_size, tiles=tiles, poses=poses)
                config = run.config
                offsets = channel_offsets(config.neighbours, distance_mm=config.neighbour_mm, spacing_mm=across)
                run.passes(slicing, partial(_pass, stack, views, decoder, run.store, plane, offsets=offsets))
                if self.point is not None:
                    region = region_at(run.volume, slicing, self.point, config.image_size, least_zoom=self.least_zoom)
                    closer = RegionOfSlices(region, (row, column), config.image_size)
                    base = {prompt: self._kept(run.store, prompt, plane, slicing.plane) for prompt in members}
                    again = partial(_closer_pass, stack, closer, decoder, run.store, plane, base, offsets=offsets)
                    run.passes(slicing, again, between=region.slices)

    def _kept(self, store: ProbabilityStore, prompt: int, plane: int, name: str) -> np.ndarray:
        """Which slices ``(N,)`` the presence rule keeps, before any is looked at closer."""
        presence = store.presence(prompt, plane)
        judged = self.rule_planes()
        if self.rule is None or presence is None or (judged is not None and name not in judged):
            return np.ones(store.shapes[plane][0], bool)
        return self.rule.kept(presence)


def _is_zoom(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 16


def _pass(
    stack: np.ndarray,
    views: Sequence[SliceView],
    decoder: SliceDecoder,
    store: ProbabilityStore,
    plane: int,
    start: int,
    batch: int,
    *,
    offsets: Sequence[Offset],
) -> int:
    """As many slices as a pass takes, into the store; returns the number of the next one."""
    stop = min(start + min(view.slices(batch) for view in views), len(stack))
    images = Pictures(_with_neighbours(stack, start, stop, offsets), decoder.device)
    for prompt, probability, presence in decoder.decode(images, views, batch=batch):
        for offset, values in enumerate(probability):
            present = None if presence is None else float(presence[offset])
            store.put(prompt, plane, start + offset, values, present)
    return stop


def _closer_pass(
    stack: np.ndarray,
    view: RegionOfSlices,
    decoder: SliceDecoder,
    store: ProbabilityStore,
    plane: int,
    base: Mapping[int, np.ndarray],
    start: int,
    batch: int,
    *,
    offsets: Sequence[Offset],
) -> int:
    """As :func:`_pass`, of a region: its probabilities replace those of the whole slice, and fade into them.

    An object that is present in the region is in the slice. A slice that the presence rule dropped counts as empty
    around the region.
    """
    stop = min(start + view.slices(batch), view.region.slices[1])
    images = Pictures(_with_neighbours(stack, start, stop, offsets), decoder.device)
    weights = view.region.weights((stack.shape[1], stack.shape[2]))
    box = view.region.box
    for prompt, probability, presence in decoder.decode(images, [view], batch=batch):
        whole_presence = store.presence(prompt, plane)
        for offset, values in enumerate(probability):
            number = start + offset
            whole = store.get(prompt, plane, number) * base[prompt][number].astype(np.uint8)
            whole[box] = (weights * values + (1 - weights) * whole[box]).astype(np.uint8)
            present = None
            if presence is not None and whole_presence is not None:
                present = max(float(presence[offset]), float(whole_presence[number]))
            store.put(prompt, plane, number, whole, present)
    return stop


def _with_neighbours(stack: np.ndarray, start: int, stop: int, offsets: Sequence[Offset]) -> np.ndarray:
    """Slices ``(N, H, W)`` uint8 → some of them with their neighbours as channels ``(B, C, H, W)``.

    Beyond the ends of the volume its outermost slice stands in, as in
    :class:`~boltzformer_monai.transforms.load.LoadSliced`.
    """
    if len(offsets) == 1:
        return stack[start:stop, None]

    def moved(step: int) -> np.ndarray:
        return stack[np.clip(np.arange(start, stop) + step, 0, len(stack) - 1)]

    channels = [blend(moved(whole), moved(whole + 1), share) if share else moved(whole) for whole, share in offsets]
    return np.stack(channels, axis=1)
