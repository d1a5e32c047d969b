"""The one property of every spoiled file: a sound result or one line, in bounded time and memory."""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TypeVar

import numpy as np

from boltzformer_monai.errors import REASONS, BoltzFormerError
from boltzformer_monai.io import Volume, read_volume
from boltzformer_monai.io.segmentation import Segmentation

T = TypeVar("T")
SECONDS = 10
_EXTRA_BYTES = 1 << 30  # what reading a file of some kilobytes may add to the address space


class HangError(BaseException):
    """Reading took too long. Not an Exception, so that no handler in the reader can take it for a broken file."""


def judge(place: Path) -> Volume | None:
    """Read a scan; return the volume, None where it is refused, and fail for anything else."""
    volume = attempt(lambda: read_volume(place), place)
    if volume is None:
        return None
    assert volume.array.dtype == np.float32
    assert volume.array.ndim == 3
    assert volume.array.size > 0
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.affine).all()
    assert min(volume.spacing) > 0
    assert abs(np.linalg.det(volume.affine[:3, :3] / volume.spacing)) > 1e-4
    return volume


def judge_annotation(draw: Callable[[], Segmentation], image: Volume, place: Path) -> Segmentation | None:
    """Draw an annotation on its image; return it, None where it is refused, and fail for anything else."""
    drawn = attempt(draw, place)
    if drawn is None:
        return None
    assert drawn.volume.shape == image.shape
    assert np.array_equal(drawn.volume.affine, image.affine)
    assert drawn.volume.array.dtype in (np.uint8, np.uint16, np.uint32)
    texts = [*(drawn.segments or {}).values(), *(drawn.names or {})]
    assert all(0 < int(value) < 2**32 for text in texts for value in text.split("+"))
    if drawn.segments is not None:  # every voxel belongs to a segment
        known = {int(value) for text in drawn.segments.values() for value in text.split("+")}
        assert set(np.unique(drawn.volume.array).tolist()) <= known | {0}
    return drawn


def attempt(read: Callable[[], T], place: Path) -> T | None:
    """Return what is read from a file, None where it is refused as it should be; let anything else through."""
    try:
        with _limits(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except BoltzFormerError as error:
        _check_refusal(error, place)
        return None


def _check_refusal(error: BoltzFormerError, place: Path) -> None:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    assert error.reason in REASONS, error.reason
    assert place.name in message, message


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Bound time and address space; where Python never gets its turn, the process ends with a traceback."""

    def hang(_signal: int, _frame: FrameType | None) -> None:
        raise HangError

    faulthandler.dump_traceback_later(3 * SECONDS, exit=True)
    before = signal.signal(signal.SIGALRM, hang)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with _bounded_memory():
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    statm = Path("/proc/self/statm")
    if not statm.exists():  # not Linux
        yield
        return
    import resource

    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _EXTRA_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
