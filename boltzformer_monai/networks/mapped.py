"""Load and write weights without holding them twice: pages of a mapped file are given back once they were read."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

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


def load_weights(network: nn.Module, weights: Mapping[str, Any], *, strict: bool = True) -> None:
    """Load weights as PyTorch does, with the hooks and extra state of modules.

    What modules took of a mapped file is given back, some 64 MiB at a time.

    Raises:
        RuntimeError: they do not fit; some of them may be loaded.
    """
    of_module: dict[str, list[Tensor]] = {}
    for name, weight in weights.items():
        if isinstance(weight, Tensor):
            of_module.setdefault(name.rpartition(".")[0], []).append(weight)
    taken: list[Tensor] = []

    def loaded(its: Sequence[Tensor], module: nn.Module, keys: object) -> None:
        taken.extend(its)
        if sum(weight.numel() * weight.element_size() for weight in taken) >= _PORTION:
            _give_back(taken)
            taken.clear()

    handles = [
        module.register_load_state_dict_post_hook(partial(loaded, of_module[name]))
        for name, module in network.named_modules()
        if name in of_module
    ]
    try:
        network.load_state_dict(weights, strict=strict)
    finally:
        for handle in handles:
            handle.remove()
        _give_back(taken)


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
