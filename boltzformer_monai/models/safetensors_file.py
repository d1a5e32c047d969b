"""Write weights as safetensors, one after the other.

The safetensors package makes a copy of all weights in memory before it writes the first, and hides what a disk says.
The format: the header's length (8 bytes, little endian), the header (JSON, padded by spaces to 8 bytes), the numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.mapped import portions

__all__ = ["write_safetensors"]

_ALIGNED = 8
_TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_safetensors(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors, little endian; what two names share is written twice.

    Raises:
        CheckpointError: a weight is no tensor, or of a type that the format lacks.
        OSError: the disk does not take it.
    """
    if others := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        msg = f"{path.name}: {others[0]!r} is no tensor, and safetensors holds nothing else; let its module give one"
        raise CheckpointError(msg)
    # The widest types first: every tensor then begins where its type wants it.
    names = sorted(weights, key=lambda name: (-weights[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        weight = weights[name]
        if weight.dtype not in _TYPES:
            msg = f"{path.name}: weight {name!r} is of the type {weight.dtype}, which safetensors lacks"
            raise CheckpointError(msg)
        start, end = end, end + weight.numel() * weight.element_size()
        header[name] = {"dtype": _TYPES[weight.dtype], "shape": list(weight.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for portion in portions({name: weights[name] for name in names}):
            for weight in portion.values():
                flat = weight.detach().cpu().contiguous().reshape(-1)
                if flat.numel():
                    file.write(flat.view(torch.uint8).numpy().data)
