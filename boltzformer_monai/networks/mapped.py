"""Copy weights without holding them twice: the pages of a mapped file are given back as soon as they were read."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

_PORTION = 64 << 20  # bytes
_MAPPINGS = "/proc/self/smaps"
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ [0-9a-f]+ \S+ [0-9]+ *(/.*)?")


def portions(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Weights in their order, some 64 MiB at a time; what a portion took of a mapped file is given back after it."""
    portion: dict[str, Tensor] = {}
    size = 0
    for name, weight in weights.items():
        portion[name] = weight
        size += weight.numel() * weight.element_size()
        if size >= _PORTION:
            yield portion
            _give_back(portion.values())
            portion, size = {}, 0
    yield portion
    _give_back(portion.values())


@torch.no_grad()
def copy_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Copy weights into the tensors of the same names, of a network's state dict."""
    for portion in portions(weights):
        for name, weight in portion.items():
            own[name].copy_(weight)


def _give_back(weights: Iterable[Tensor]) -> None:
    """Drop the pages of the files that tensors are mapped from; read again, they come from the file. Linux only.

    A mapping that was written to is left alone: its changes are in memory only.
    """
    addresses = {weight.data_ptr() for weight in weights if weight.device.type == "cpu" and weight.numel()}
    if not addresses or not sys.platform.startswith("linux") or not os.path.exists(_MAPPINGS):
        return
    system = ctypes.CDLL(None)
    for start, end in _unchanged_files():
        if any(start <= address < end for address in addresses):
            # Its result is no concern: refused, the pages stay until the file is closed.
            system.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


def _unchanged_files() -> list[tuple[int, int]]:
    """First address and end of each file's mapping without pages of this process's own."""
    found: list[tuple[int, int]] = []
    with open(_MAPPINGS, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if match := _MAPPING.match(line):
                is_file = match[3] is not None
                start, end = int(match[1], 16), int(match[2], 16)
            elif line.startswith("Anonymous:") and is_file and line.split()[1] == "0":
                found.append((start, end))
    return found
