"""From a request to a result: used by MONAI Label's infer route, by the page's and by scoring."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout  # the built-in one from Python 3.11 on
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cachetools import LRUCache

from boltzformer_monai.data.prompt_check import PromptReader
from boltzformer_monai.data.prompts import normalise_prompt, normalise_target
from boltzformer_monai.errors import BoltzFormerError, CancelledError
from boltzformer_monai.inferers.feature_cache import FeatureCache
from boltzformer_monai.inferers.result_caveats import in_doubt
from boltzformer_monai.inferers.result_manifest import source_digest
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.slice_stacks import SliceStacks
from boltzformer_monai.inferers.volume_result import VolumeResult
from boltzformer_monai.inferers.windows import PromptWindows
from boltzformer_monai.io.read import read_volume
from boltzformer_monai.io.scan_list import Scan
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.completions import complete_prompt
from boltzformer_monai.label.datastore.label_numbers import LabelNumbers
from boltzformer_monai.label.disconnect import client_disconnected
from boltzformer_monai.label.infer_request import SegmentRequest
from boltzformer_monai.label.request_record import current_request
from boltzformer_monai.label.scan_hash import ScanHashes
from boltzformer_monai.label.server_settings import ServerSettings
from boltzformer_monai.models.place import CONFIG
from boltzformer_monai.precision import device_by_name

_log = logging.getLogger(__name__)

_SOON_S = 1.0
_SHARE_OF_SCANS, _SHARE_OF_SLICES = 4, 16  # of the memory, one part in so many; the rest is for features


class TimeLimitError(CancelledError):
    """A segmentation took longer than it may."""


@dataclass(frozen=True)
class Model:
    """A checkpoint in memory."""

    segmenter: VolumeSegmenter
    stamp: tuple[str, int, int]
    """Path, time and size of its file."""

    @property
    def sha256(self) -> str:
        """Of the model."""
        return self.segmenter.sha256


@dataclass(frozen=True)
class Segmented:
    """A result, open as long as the ``with`` block that it came from."""

    result: VolumeResult
    settings: RunSettings
    """Of the request, with the modality that was assumed."""
    model: ModelRecord
    scan: Scan
    seconds: float
    cached: bool
    """No slice had to be encoded."""
    untrained: list[str]
    """Prompts that name no target of the training."""
    assumed_modality: str | None
    """The only one of the training, where neither scan, request nor settings state it."""

    def described(self, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The part of a response that is the same on every route."""
        return {
            "findings": list(findings),
            "not_found": [each["prompt"] for each in findings if not each["found"]],
            "untrained": self.untrained,
            "assumed_modality": self.assumed_modality,
            "protocol": self.model.protocol,
            "licence": self.model.licence,
            "in_doubt": in_doubt(self.result.caveats),
            "caveats": [each.as_dict() for each in self.result.caveats],
            "seconds": self.seconds,
            "cached": self.cached,
        }


def read_scan(path: Path, modality: str | None) -> Volume:
    """Read a scan, with this modality if it does not state its own.

    Raises:
        VolumeError: it cannot be read.
    """
    # A tilted stack is segmented slice by slice as acquired; the mask must lie on its own grid.
    volume = read_volume(path, tilt="keep")
    if volume.modality == "unknown" and modality is not None:
        volume = read_volume(path, modality=modality, tilt="keep")
    return volume


class ScanCache:
    """Most recently used scans; a changed file is read again. Reads one scan at a time.

    Args:
        limit: bytes of all voxels.
    """

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()
        self._volumes: LRUCache[tuple[Path, str | None], tuple[str, Volume]] = LRUCache(
            limit, getsizeof=lambda entry: entry[1].array.nbytes
        )

    @property
    def bytes(self) -> int:
        """Bytes of all voxels."""
        return int(self._volumes.currsize)

    def clear(self) -> None:
        """Drop all scans."""
        with self._lock:
            self._volumes.clear()

    def read(self, scan: Scan, modality: str | None) -> Volume:
        """Read a scan as :func:`read_scan`, or take it from memory."""
        key = scan.place, modality
        with self._lock:
            digest = source_digest(scan) if scan.place.exists() else ""
            known, volume = self._volumes.get(key, ("", None))
            if volume is None or known != digest:
                volume = read_scan(scan.place, modality)
                with contextlib.suppress(ValueError):  # larger than the cache
                    self._volumes[key] = digest, volume
            return volume


class SegmentService:
    """Network, caches, and the one thread that works with them.

    Requests are served one after the other, so that parallel and serial ones have equal results. The next request
    loads a new checkpoint of the server's own training.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.label_numbers = LabelNumbers(settings.workspace / "labels.json")
        memory = settings.cache_mb * 2**20
        scans, slices = memory // _SHARE_OF_SCANS, memory // _SHARE_OF_SLICES
        self.features = FeatureCache(_on_device(memory - scans - slices, settings.device))
        self._stacks = SliceStacks(slices)
        self._scans = ScanCache(scans)
        self._hashes = ScanHashes()
        # One thread, and never another: OpenMP keeps helpers for each one that has ever computed, and once these are
        # more than there are cores they sleep between any two operations, which makes a request take twice as long.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="segment")
        self._segmentations: set[Future[Segmented]] = set()
        self._model: Model | None = None
        self._prompts: tuple[Model, PromptReader] | None = None
        # Default prompts that cannot be used are an error at the start, not at every request.
        PromptWindows(self.model().segmenter.description.data).read(self.settings.prompts or ())
        self.label_numbers.declare(self.default_prompts())

    def model(self) -> Model:
        """The newest checkpoint, loaded when first needed; while a segmentation holds up its loading, the last one.

        Raises:
            CheckpointError: it cannot be loaded.
            ConfigError: there is no such device.
        """
        known = self._model
        if known is not None and known.stamp == _stamp(self.settings.current_checkpoint):
            return known  # without waiting for a segmentation under way
        loading = self._worker.submit(self._current)
        try:
            # A request for names only does not wait for segmentations.
            return loading.result(_SOON_S if known is not None and self._segmentations else None)
        except FutureTimeout:
            return known or loading.result()

    def loaded_sha256(self) -> str | None:
        """Hash of the model that the last request was answered with, None where none is in memory."""
        return None if (model := self._model) is None else model.sha256

    def cache_bytes(self) -> dict[str, int]:
        """Memory of the scans and features that are kept between requests."""
        return {"features": self.features.bytes, "scans": self._scans.bytes}

    def reload(self) -> None:
        """Forget network and caches; the next request loads anew."""
        self._worker.submit(self._forget).result()

    def targets(self) -> list[str]:
        """Names that the checkpoint was trained on, in order; learned ones as their authors wrote them."""
        data = self.model().segmenter.description.data
        written = {normalise_target(name): name for name in self.learned().get("names", [])}
        names = dict.fromkeys(str(entry["target"]) for entry in data.get("targets", []))
        return [_as_written(written.get(name, name)) for name in names]

    def default_prompts(self) -> list[str]:
        """The configured ones, else the checkpoint's targets; then what was learned from saved labels."""
        learned = [_as_written(name) for name in self.learned().get("names", [])]
        prompts: dict[str, str] = {}
        for prompt in [*(self.settings.prompts or self.targets()), *learned]:
            prompts.setdefault(normalise_prompt(prompt), prompt)
        return list(prompts.values())

    def complete(self, text: str, limit: int) -> dict[str, Any]:
        """Targets of the checkpoint whose name begins like a text, and how the text itself would be read.

        Returns:
            As :func:`~boltzformer_monai.label.completions.complete_prompt`.
        """
        model = self.model()
        if self._prompts is None or self._prompts[0] is not model:
            self._prompts = model, PromptReader(model.segmenter.description.data.get("targets", []))
        return complete_prompt(self._prompts[1], text, limit)

    def learned(self) -> dict[str, Any]:
        """``{"names", "labels"}``: what the checkpoint in use has learned from labels saved on this server."""
        found = self.model().segmenter.description.data.get("learned", {})
        return dict(found) if isinstance(found, Mapping) else {}

    def declared(self) -> dict[str, int]:
        """Names and their numbers, as /info shows them: default prompts first, then those of requests."""
        self.label_numbers.declare(self.default_prompts())
        return self.label_numbers.names()

    @contextlib.contextmanager
    def segmented(self, image: Path, request: SegmentRequest) -> Iterator[Segmented]:
        """Segment a scan: a file or DICOM folder, checked by the caller.

        Raises:
            BoltzFormerError: the scan or the checkpoint cannot be used, or the client disconnected.
        """
        self.note(image, request)
        context = contextvars.copy_context()
        segmentation = self._worker.submit(context.run, self._segment, image, request, client_disconnected())
        self._segmentations.add(segmentation)
        segmentation.add_done_callback(self._segmentations.discard)
        segmented = segmentation.result()
        if (record := current_request()) is not None:
            record.model = segmented.model.sha256
        with segmented.result:
            yield segmented

    def note(self, image: Path | None = None, request: SegmentRequest | None = None) -> None:
        """Note for the audit log which scan the request under way is about, and its prompts."""
        if (record := current_request()) is None or not record.audited:
            return
        if request is not None:
            record.prompts = request.prompts
        if image is not None:
            record.scan = next(iter(self.hashes([image])), None)

    def hashes(self, images: Iterable[Path]) -> list[str]:
        """Hashes of scans for the audit log, empty where none is kept of the request under way."""
        found: list[str] = []
        if (record := current_request()) is not None and record.audited:
            for image in images:
                with contextlib.suppress(OSError):  # whoever reads the scan reports it
                    found.append(self._hashes.of(image))
        return found

    def volume(self, image: Path) -> Volume:
        """Read a scan, or take it from memory; does not wait for a segmentation.

        Raises:
            VolumeError: it cannot be read.
        """
        return self._scans.read(Scan(image.name, image), self.settings.modality)

    def _segment(self, image: Path, request: SegmentRequest, unwanted: Callable[[], bool]) -> Segmented:
        if unwanted():
            raise CancelledError("not started: the client disconnected while its request waited")
        started = time.monotonic()
        limit = self.settings.segment_s or math.inf

        def should_stop() -> bool:
            if time.monotonic() - started > limit:
                msg = f"stopped: the segmentation took longer than {limit:g} seconds, the server's segment_s"
                raise TimeLimitError(msg)
            return unwanted()

        model = self._current()
        scan = Scan(image.name, image)
        settings = request.run_settings(batch_size=self.settings.batch_size, modality=self.settings.modality)
        inferer = model.segmenter.inferer(
            settings,
            together=self.settings.together,
            slices_together=self.settings.slices_together or _slices_together(model.segmenter),
            features=self.features,
            stacks=self._stacks,
            should_stop=should_stop,
        )
        volume = self._scans.read(scan, settings.modality)  # after the checks of the prompts
        before = self.features.misses
        result = inferer.segment(volume, model.segmenter.network)
        cached = self.features.misses == before
        assumed = result.grid.modality if volume.modality == "unknown" and settings.modality is None else None
        untrained = [reading.prompt for reading in inferer.readings if inferer.windows.is_unknown(reading)]
        return Segmented(
            result=result,
            settings=settings if assumed is None else replace(settings, modality=assumed),
            model=model.segmenter.record(settings),
            scan=scan,
            seconds=round(time.monotonic() - started, 3),
            cached=cached,
            untrained=untrained,
            assumed_modality=assumed,
        )

    def _forget(self) -> None:
        self._model = None
        self.features.clear()
        self._stacks.clear()
        self._scans.clear()

    def _current(self) -> Model:
        path = self.settings.current_checkpoint
        stamp = _stamp(path)
        if self._model is not None and self._model.stamp == stamp:
            return self._model
        try:
            loaded = self._load(path, stamp)
        except BoltzFormerError:
            if path == self.settings.checkpoint:
                raise
            # The server's own training must never be able to stop it.
            _log.exception("the trained checkpoint cannot be used; using the one given")
            loaded = self._load(self.settings.checkpoint, stamp)
        else:
            if path != self.settings.checkpoint:
                _log.warning(
                    "using %s, which was trained here, and not the checkpoint given; to use that one, remove the file",
                    path,
                )
        self.features.clear()
        self._model = loaded
        return loaded

    def _load(self, path: Path, stamp: tuple[str, int, int]) -> Model:
        device = device_by_name(self.settings.device)
        segmenter = VolumeSegmenter.from_checkpoint(path, device=device, precision=self.settings.precision)
        segmenter.require_trained()
        return Model(segmenter, stamp)


def _on_device(limit: int, name: str) -> int:
    """Bytes for features, which lie on the device: half of a GPU's memory at most."""
    device = device_by_name(name)
    if device.type != "cuda":
        return limit
    return min(limit, torch.cuda.get_device_properties(device).total_memory // 2)


def _slices_together(segmenter: VolumeSegmenter) -> int:
    """As many slices as have the pixels of eight of 512²: small slices would spend their time on calls."""
    size = segmenter.description.network.image_size
    return max(8, min(64, 8 * 512**2 // size**2))


def _as_written(name: str) -> str:
    """A segment's name as a prompt: as written, or the words of the training if they differ."""
    target = normalise_target(name)
    return name if normalise_prompt(name) == target else target


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        stat = (path / CONFIG if path.is_dir() else path).stat()
    except OSError:
        return str(path), 0, 0
    return str(path), stat.st_mtime_ns, stat.st_size
