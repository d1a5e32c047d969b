"""Devices by name, and the precision on each: bfloat16 where the hardware is faster with it, float32 elsewhere."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import time
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError, StorageError
from boltzformer_monai.storage import atomic_path

_log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]
_Resolved = Literal["fp32", "bf16"]

_BUDGET_S = 0.8
_ROUNDS = 2  # at least, of each precision
_CLEARLY_FASTER = 0.9  # of float32's time; what is nearer is float32, so that a measurement's noise decides nothing


def resolve_precision(precision: str, device: torch.device | str) -> _Resolved:
    """``"auto"`` → ``"bf16"`` on GPUs that support it and on CPUs that are faster with it, else ``"fp32"``.

    On Apple's GPU (``"mps"``) ``"auto"`` is ``"fp32"``.

    A CPU with bfloat16 instructions is measured, for a second; the result is kept in the user's cache folder for this
    CPU, version of PyTorch and number of threads.

    Raises:
        ConfigError: the precision is none of auto, fp32 and bf16, or the device does not have it.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    kind = torch.device(device).type
    if precision == "bf16" and kind == "mps" and not torch.backends.mps.is_macos_or_newer(14, 0):
        raise ConfigError("bf16 on Apple's GPU needs macOS 14; take --precision fp32")
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    if kind == "cuda":  # older GPUs emulate it, slowly
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return _faster_on_cpu(torch.get_num_threads()) if kind == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    # Private in PyTorch, and not in every version: without it nothing is assumed of the CPU.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


@functools.cache
def _faster_on_cpu(threads: int) -> _Resolved:
    """Instructions are no promise: with AVX512-bf16 and no AMX a small network trains slower in bfloat16."""
    cache = cache_folder() / "precision.json"
    key = f"{_cpu_name()}, torch {torch.__version__}, {threads} threads"
    known = _read(cache)
    seconds = known.get(key)
    if seconds is None:
        seconds = measure_step()
        with contextlib.suppress(OSError, StorageError):  # it is measured again next time
            cache.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(cache, durable=False) as temporary:
                temporary.write_text(json.dumps({**known, key: seconds}, indent=1), encoding="utf-8")
    faster: _Resolved = "bf16" if seconds["bf16"] < _CLEARLY_FASTER * seconds["fp32"] else "fp32"
    times = " and ".join(f"{1000 * seconds[each]:.1f} ms in {each}" for each in ("fp32", "bf16"))
    _log.info("precision auto: %s on this CPU; a small training step takes %s (%s)", faster, times, key)
    return faster


def measure_step() -> dict[str, float]:
    """Seconds of a training step in ``"fp32"`` and ``"bf16"`` on the CPU, of layers like the network's.

    The fastest of several, taken in turn, so that another process on the machine meets both. No generator is touched.
    """
    made = torch.Generator().manual_seed(0)
    seconds: dict[str, list[float]] = {"fp32": [], "bf16": []}
    with torch.inference_mode(mode=False), torch.enable_grad():
        convolutions = [
            torch.randn(o, i, 3, 3, generator=made) / (3 * i**0.5) for o, i in ((24, 1), (48, 24), (64, 48))
        ]
        linear = [torch.randn(64, 64, generator=made) / 8 for _ in range(6)]
        image = torch.rand(2, 1, 192, 192, generator=made)
        weights = [each.contiguous(memory_format=torch.channels_last) for each in convolutions] + linear
        leaves = [each.requires_grad_() for each in weights]
        start = time.perf_counter()
        while len(seconds["bf16"]) <= _ROUNDS or time.perf_counter() - start < _BUDGET_S:
            for precision, times in seconds.items():
                begin = time.perf_counter()
                with autocast(precision, image.device):
                    masks = _stand_in(image, leaves)
                torch.autograd.grad(masks.float().square().mean(), leaves)
                times.append(time.perf_counter() - begin)
    return {precision: min(times[1:]) for precision, times in seconds.items()}  # the first one warms up


def _stand_in(image: Tensor, weights: list[Tensor]) -> Tensor:
    """Convolutions with norms, cross-attention with its softmax in float32, a feed-forward layer, and masks."""
    *convolutions, to_query, to_key, to_value, to_output, up, down = weights
    maps = image.contiguous(memory_format=torch.channels_last)
    for convolution in convolutions:
        maps = F.relu(F.batch_norm(F.conv2d(maps, convolution, stride=2, padding=1), None, None, training=True))
    pixels = maps.flatten(2).transpose(1, 2)
    queries = pixels[:, :40]
    for _ in range(3):
        scores = F.linear(queries, to_query) @ F.linear(pixels, to_key).transpose(1, 2) / 8
        attended = scores.float().softmax(-1).to(scores) @ F.linear(pixels, to_value)
        queries = F.layer_norm(queries + F.linear(attended, to_output), (64,))
        queries = F.layer_norm(queries + F.linear(F.relu(F.linear(queries, up)), down), (64,))
    return queries.to(maps) @ maps.flatten(2)


def cache_folder() -> Path:
    """Where the package keeps what it can find out again: ``boltzformer`` in the user's cache folder."""
    base = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "boltzformer"
    except RuntimeError:  # a user without a home
        return Path(".cache") / "boltzformer"


def _read(cache: Path) -> dict[str, dict[str, float]]:
    """What was measured earlier; entries that are none are left out."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        entries = content.items()
    except (OSError, ValueError, AttributeError):
        return {}
    return {
        key: value
        for key, value in entries
        if isinstance(value, dict)
        and all(isinstance(value.get(each), float) and value[each] > 0 for each in ("fp32", "bf16"))
    }


def _cpu_name() -> str:
    """Of the model, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                # Hypervisors give different CPUs one name; the instructions tell them apart.
                return f"{line.partition(':')[2].strip()} ({torch.backends.cpu.get_cpu_capability()})"
    return platform.processor() or platform.machine()


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a resolved precision.

    Without cache: casts that the sampling makes without gradient would be used again where the gradient is wanted
    (PyTorch before 2.10).
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def default_device() -> torch.device:
    """The first CUDA GPU, or the CPU; Apple's GPU only by its name, ``"mps"``."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_by_name(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda:1"``, ``"mps"``, …

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
        if device.type == "mps" and not torch.backends.mps.is_available():
            raise RuntimeError("Apple's GPU needs a Mac with Apple silicon and PyTorch with Metal")
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {name!r} here ({str(error).splitlines()[0]})") from None
    return device


def distributed_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
