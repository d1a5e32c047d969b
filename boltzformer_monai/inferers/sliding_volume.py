"""Segment a volume slice by slice: every slice is encoded once and decoded for all prompts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor
from tqdm.auto import tqdm

from boltzformer_monai.caveats import Caveat
from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.inferers.decoding import BatchSize, one_by_one
from boltzformer_monai.inferers.encoder import Encoder
from boltzformer_monai.inferers.feature_cache import FeatureCache
from boltzformer_monai.inferers.point import voxel_at
from boltzformer_monai.inferers.probability_store import ProbabilityStore
from boltzformer_monai.inferers.prompt_groups import TOGETHER
from boltzformer_monai.inferers.protocols import DEFAULT, VolumeRun, protocol_name, volume_protocol
from boltzformer_monai.inferers.result_caveats import collect_caveats, in_order, log_caveats
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.networks.weights import Description
from boltzformer_monai.transforms import PromptTokenizer

_log = logging.getLogger(__name__)

UNTRAINED = "there is no checkpoint, and untrained weights are not used; train one, or give --checkpoint PATH"


class SlidingVolumeInferer(Inferer):
    """Volume + prompts → for each prompt a probability and a mask on the volume's grid.

    How slices are shown and answers merged is the protocol's, see :mod:`boltzformer_monai.inferers.protocols`; what
    follows is said of ours.

    On a CPU the same volume and prompt always give the same bytes, whatever the batch size and the other prompts: a
    slice is encoded alone there, which costs no time, and prompts are decoded in groups of one shape. On a GPU slices
    are encoded in batches, and results are equal up to rounding.

    Memory grows with the volume, not with the number of prompts. Planes, windows and presence rule are those of the
    training unless the settings say otherwise; the rule judges slices of the training's planes where one is among the
    planes, else of all.

    Args:
        settings: what to look for, and how.
        description: the checkpoint's: image size, neighbours, plane, presence thresholds, targets and their windows.
        tokenizer: the one that the network was trained with.
        trained: ``False`` for an untrained network, which :meth:`segment` refuses: a random mask is worse than none.
        together: prompts decoded together. The bytes of a result depend on it in the last digit, as they do on the
            device; fewer make a single prompt cheaper, and many prompts dearer.
        slices_together: on a CPU, slices decoded together (they are encoded one by one); with few prompts this is
            several times as fast as one by one. A volume is always split alike, so its bytes stay the same.
        features: keeps the image features, so that the same volume is not encoded again for other prompts.
        stacks: keeps the slices themselves.
        progress: show a progress bar on standard error.
        should_stop: called before every pass; ``True`` stops the work with a ``CancelledError``.

    Raises:
        PromptError: a prompt is too long, or has a negation, size or count that is not meant literally.
        ConfigError: a number is out of range.
        CheckpointError: the checkpoint's presence thresholds or protocol cannot be used.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        description: Description,
        tokenizer: PromptTokenizer,
        trained: bool = True,
        together: int = TOGETHER,
        slices_together: int = 1,
        features: FeatureCache | None = None,
        stacks: SliceStacks | None = None,
        progress: bool = False,
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("prompts together", together), ("slices together", slices_together)):
            if value < 1:
                raise ConfigError(f"the number of {name} must be at least 1, got {value}")
        data = description.data
        self.settings = settings
        self.protocol = volume_protocol(settings, data)
        self.network_config = description.network
        self.tokenizer = tokenizer
        self.windows = PromptWindows(data, window=settings.grey_scale)
        self.readings = self.windows.read(settings.prompts, literal=settings.literal)
        self.tokens = tokenizer([reading.shown for reading in self.readings])
        self.trained = trained
        self.caveats = tuple(self._known_caveats(data))
        self.together = together
        self.slices_together = slices_together
        self.features = features
        self.stacks = SliceStacks() if stacks is None else stacks
        self.progress = progress
        self.should_stop = should_stop
        self._logged: set[Caveat] = set()

    @property
    def prompts(self) -> tuple[str, ...]:
        """As given."""
        return tuple(self.settings.prompts)

    def _known_caveats(self, data: Mapping[str, Any]) -> Iterator[Caveat]:
        """What is known of all results before any scan is read."""
        yield from self.protocol.caveats()
        trained, chosen = str(data.get("protocol") or DEFAULT), protocol_name(self.settings, data)
        if chosen != trained:
            text = f"the network was made for the protocol {trained}; slices as {chosen} shows them are new to it"
            yield Caveat("another protocol", text)
        if self.settings.presence and self.protocol.rule is None and self.network_config.presence and self.trained:
            text = "the checkpoint has a presence head but no thresholds for it, so every mask is kept"
            yield Caveat("no thresholds", text)

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
            CheckpointError: as :meth:`segment`.
        """
        with self.segment(volume, network) as result:
            labels = result.label_map()
        present = set(np.unique(labels).tolist())
        if missing := [prompt for value, prompt in enumerate(self.prompts, 1) if value not in present]:
            _log.info("not found: %s", "; ".join(missing))
        return labels

    @torch.inference_mode()
    def segment(self, volume: Volume, network: BoltzFormer) -> VolumeResult:
        """Segment a volume; close the result after use, or use it as a context manager.

        Raises:
            CheckpointError: the network was never trained.
            ConfigError: the modality is not known, the point lies outside of the scan, or the device's memory does not
                hold a single slice.
            CancelledError: ``should_stop`` said so.
            StorageError: the temporary folder is full.
        """
        if not self.trained:
            raise CheckpointError(UNTRAINED)
        settings = self.settings
        for point in (settings.point, settings.closer_point):
            if point is not None:
                voxel_at(volume, point)
        stated = settings.modality if volume.modality == "unknown" and settings.modality else volume.modality
        modality = self.windows.modality(stated)
        slicings = self.protocol.slicings(volume)
        caveats = collect_caveats(
            volume,
            stated=stated,
            modality=modality,
            planes=[slicing.plane for slicing in slicings],
            windows=self.windows,
            readings=self.readings,
            known=self.caveats,
        )
        log_caveats(caveats, volume, self._logged)
        groups = self.windows.group(self.readings, modality)
        shapes = [slicing.shape(volume) for slicing in slicings]
        on_cpu = network.mean.device.type == "cpu"
        encode = one_by_one(network.encode_image) if on_cpu and self.slices_together > 1 else network.encode_image
        encoder = Encoder(encode) if self.features is None else self.features.encoder(network, encode)
        batch = BatchSize(self.slices_together if on_cpu else settings.batch_size)
        if self.features is not None:
            batch.release = self.features.clear
        total = len(groups) * sum(shape[0] for shape in shapes)
        with contextlib.ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(total=total, desc="slices", unit="slice", disable=not self.progress, leave=False)
            )
            unfinished = stack.enter_context(contextlib.ExitStack())
            store = ProbabilityStore(len(self.prompts), shapes)
            unfinished.callback(store.close)
            told: list[Caveat] = []
            self.protocol.run(
                VolumeRun(
                    volume=volume,
                    slicings=slicings,
                    windows=groups,
                    tokens=self.tokens,
                    context=self.tokenizer.context,
                    together=self.together,
                    network=network,
                    config=self.network_config,
                    settings=settings,
                    store=store,
                    encoder=encoder,
                    batch=batch,
                    stacks=self.stacks,
                    advance=bar.update,
                    should_stop=self.should_stop,
                    tell=told.append,
                )
            )
            unfinished.pop_all()
        log_caveats(told, volume, self._logged)
        return VolumeResult(
            prompts=self.prompts,
            grid=volume if volume.modality == modality else dataclasses.replace(volume, modality=modality),
            caveats=in_order([*caveats, *told]),
            inputs=[reading.shown for reading in self.readings],
            understood=[reading.understood() for reading in self.readings],
            slicings=slicings,
            store=store,
            threshold=settings.threshold,
            rule=self.protocol.rule,
            rule_planes=self.protocol.rule_planes(),
            repeats=settings.repeats,
            point=settings.point,
            only_at_point=settings.keep_lesions == "at_point",
        )


def _first(value: Any) -> Any:
    """A value of a MetaTensor's ``meta``, which a loader may have put into a list of one."""
    return value[0] if isinstance(value, list | tuple) else value
