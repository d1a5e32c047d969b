"""What a volume protocol must do, the parts of a run that are the same for all, and the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.data.planes import Slicing
from boltzformer_monai.data.windows import GreyScale
from boltzformer_monai.errors import CancelledError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.decoding import BatchSize, SliceDecoder
from boltzformer_monai.inferers.encoder import Encoder
from boltzformer_monai.inferers.probability_store import ProbabilityStore
from boltzformer_monai.inferers.prompt_groups import PromptGroup, prompt_groups
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer, NetworkConfig
from boltzformer_monai.registry import Registry
from boltzformer_monai.transforms.tokenizer import PADDING

__all__ = ["DEFAULT", "PROTOCOLS", "VolumeProtocol", "VolumeRun", "register_protocol", "volume_protocol"]

DEFAULT = "boltzformer"


@dataclass(frozen=True, kw_only=True)
class VolumeRun:
    """One volume on its way through a network.

    Attributes:
        volume: the scan.
        slicings: how it is sliced, as the protocol said.
        windows: for each window the prompts whose slices it prepares, by their number.
        tokens: of all prompts ``(P, N_T)``, −1 = padding.
        context: tokens that the text encoder reads at most.
        together: prompts to decode together, where the protocol leaves the choice.
        network: in evaluation mode.
        config: its settings.
        settings: of the user.
        store: takes what is found.
        encoder: slices → features; it may remember them.
        batch: slices per pass.
        stacks: makes the slices, and may remember them.
        advance: told how many slices are done, those of each window counted.
        should_stop: checked before every pass.
        tell: takes what must be known of the result and is found only while it is made.
    """

    volume: Volume
    slicings: Sequence[Slicing]
    windows: Sequence[tuple[GreyScale, Sequence[int]]]
    tokens: Tensor
    context: int
    together: int
    network: BoltzFormer
    config: NetworkConfig
    settings: RunSettings
    store: ProbabilityStore
    encoder: Encoder
    batch: BatchSize
    stacks: SliceStacks
    advance: Callable[[int], object] = lambda count: None
    should_stop: Callable[[], bool] | None = None
    tell: Callable[[Caveat], object] = lambda caveat: None

    def slices(self, window: GreyScale) -> Callable[[Slicing], np.ndarray]:
        """Slicing → its slices ``(N, H, W)`` uint8 in a window, to be read only."""
        return self.stacks.windowed(self.volume, window)

    def groups(self, members: Sequence[int]) -> list[PromptGroup]:
        """Prompts to decode together: all of them, padded to the longest, where the decoder attends to padding."""
        if not getattr(getattr(self.network, "decoder", None), "attend_padding", False):
            return prompt_groups(self.tokens, members, context=self.context, together=self.together)
        tokens = self.tokens[torch.tensor(members)]
        longest = int((tokens != PADDING).sum(dim=1).max())
        return [PromptGroup(tuple(members), tokens[:, :longest])]

    def decoder(self, groups: Sequence[PromptGroup]) -> SliceDecoder:
        """Decodes groups of prompts on slices."""
        return SliceDecoder(
            self.network, groups, seed=self.settings.seed, repeats=self.settings.repeats, encoder=self.encoder
        )

    def passes(
        self,
        slicing: Slicing,
        work: Callable[[int, int], int],
        *,
        windows: int = 1,
        between: tuple[int, int] | None = None,
    ) -> None:
        """Work on all slices, pass after pass.

        Args:
            slicing: whose slices.
            work: (first slice, slices per pass) → the first slice that is not done yet. It is tried again with fewer
                slices where the device's memory does not hold them.
            windows: that each pass does.
            between: the first slice and one after the last, of slices that are worked on again; default: all.

        Raises:
            CancelledError: ``should_stop`` said so.
            ConfigError: the memory does not hold a single slice.
        """
        start, count = between or (0, slicing.shape(self.volume)[0])
        while start < count:
            if self.should_stop is not None and self.should_stop():
                msg = f"stopped on request after {start} of {count} {slicing.plane} slices; nothing was kept"
                raise CancelledError(msg)
            first = start
            start = self._one_pass(work, first)
            if between is None:
                self.advance(windows * (start - first))

    def _one_pass(self, work: Callable[[int, int], int], start: int) -> int:
        return self.batch.attempt(lambda batch: work(start, batch))


class VolumeProtocol(Protocol):
    """How slices become the network's input, and its predictions those of the volume.

    It is registered with :func:`register_protocol` and made of the user's :class:`RunSettings`, what the checkpoint
    says of its data, and settings of its own by name.
    """

    settings: Mapping[str, Any]
    """Its own, all of them, as the manifest records them."""
    plane: str | tuple[str, ...] | None
    """Of the slices, or several that are averaged, where they are always the same; ``None`` where the scan decides."""
    rule: PresenceRule | None
    """Which slices keep a prompt's mask, given its presence; applied when the result is read."""
    needs_orientation: bool
    """Whether slices are turned by the patient's directions, which not every file states."""

    def caveats(self) -> Sequence[Caveat]:
        """What is known of all results before any scan is read."""
        ...

    def slicings(self, volume: Volume) -> Sequence[Slicing]:
        """The ways in which a volume is sliced; probabilities of several are averaged."""
        ...

    def rule_planes(self) -> Sequence[str] | None:
        """The planes whose slices the rule judges; ``None`` for all."""
        ...

    def run(self, run: VolumeRun) -> None:
        """Fill ``run.store``: for each prompt, slicing and slice its probabilities."""
        ...


PROTOCOLS: Registry[VolumeProtocol] = Registry("protocol", group="boltzformer_monai.protocols")
"""Made of :class:`RunSettings`, what a checkpoint says of its data, and their own settings."""
register_protocol = PROTOCOLS.register


def protocol_name(settings: RunSettings, data: Mapping[str, Any]) -> str:
    """The protocol that the user asks for, else the checkpoint's, else ours."""
    return settings.protocol or str(data.get("protocol") or DEFAULT)


def volume_protocol(settings: RunSettings, data: Mapping[str, Any]) -> VolumeProtocol:
    """The protocol of a run.

    Args:
        settings: may name it, and give it settings.
        data: what the checkpoint says of its data; its ``"protocol"`` and ``"protocol_settings"`` are the default.

    Raises:
        ConfigError: nobody makes such a protocol, or it does not take these settings.
        CheckpointError: the checkpoint's presence thresholds cannot be used.
    """
    name = protocol_name(settings, data)
    of_checkpoint = name == (data.get("protocol") or DEFAULT)
    own = data.get("protocol_settings", {}) if of_checkpoint else {}
    return PROTOCOLS.make(name, settings, data, settings={**own, **settings.protocol_settings})
