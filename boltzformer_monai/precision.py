"""Devices by name, and the precision on each: bfloat16 where the hardware has it, float32 elsewhere."""

from __future__ import annotations

import contextlib
import os
from typing import Literal, get_args

import torch

from boltzformer_monai.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def resolve_precision(precision: str, device: torch.device | str) -> Literal["fp32", "bf16"]:
    """``"auto"`` → ``"bf16"`` on GPUs that support it and on CPUs with bfloat16 instructions, else ``"fp32"``.

    Raises:
        ConfigError: the precision is none of auto, fp32 and bf16.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision must be one of {', '.join(get_args(Precision))}, got {precision!r}")
    if precision != "auto":
        return "bf16" if precision == "bf16" else "fp32"
    kind = torch.device(device).type
    if kind == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)  # older GPUs emulate it, slowly
    else:
        has_bf16 = kind == "cpu" and _cpu_has_bf16()
    return "bf16" if has_bf16 else "fp32"


def _cpu_has_bf16() -> bool:
    # Private in PyTorch, and not in every version: without it nothing is assumed of the CPU.
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """The autocast context of a resolved precision.

    Without cache: casts that the sampling makes without gradient would be used again where the gradient is wanted
    (PyTorch before 2.10).
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def device_by_name(name: str) -> torch.device:
    """``"auto"``, ``"cpu"``, ``"cuda:1"``, …

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return default_device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {name!r} here ({str(error).splitlines()[0]})") from None
    return device


def distributed_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
