"""Read published weights: ``.pt``, ``.pth``, ``.ckpt``, ``.bin``, ``.safetensors``, or the folder of such a file.

The file is mapped into memory, not read: what is never touched, such as the optimizer's state, costs nothing, and the
weights cost no more than the pages of the file. No code of it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from boltzformer_monai.errors import CheckpointError, why
from boltzformer_monai.limits import read_json
from boltzformer_monai.networks.published.source import PublishedFile
from boltzformer_monai.networks.weights import check_bytes, read_weights

# Files of weights that projects put into a folder, and what stands beside them.
_WEIGHTS = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
    "model.pt",
)
_ABOUT = ("open_clip_config.json", "config.json")
_NESTED = ("state_dict", "model")  # Lightning and open_clip; SAM 2, FocalNet and this package
_EVERYWHERE = "module."  # DataParallel puts it before all names


def read_published(path: str | Path) -> PublishedFile:
    """The weights of a file or folder under their published names.

    Raises:
        CheckpointError: no such file, or it cannot be read, or holds no named weights.
    """
    file = _weights_file(Path(path))
    content = read_weights(file, mapped=True)
    key = next((key for key in _NESTED if key in content and not isinstance(content[key], Tensor)), None)
    weights: Any = content if key is None else content[key]
    if not isinstance(weights, Mapping) or not weights:
        raise CheckpointError(f"{file}: its {key!r} is a {type(weights).__name__}, not named weights")
    for name, weight in weights.items():
        if not isinstance(name, str) or not isinstance(weight, Tensor):
            msg = f"{file} is no file of weights: its entry {name!r} is a {type(weight).__name__}, not a tensor"
            raise CheckpointError(msg)
    check_bytes(weights, file)
    if all(name.startswith(_EVERYWHERE) for name in weights):
        weights = {name.removeprefix(_EVERYWHERE): weight for name, weight in weights.items()}
    description = content.get("description") if key is not None else None
    about = description if isinstance(description, Mapping) else _about(file)
    left = () if key is None else tuple(str(name) for name in content if name not in (key, "description"))
    return PublishedFile(path=file, weights=weights, about=about, left=left)


def _weights_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / name for name in _WEIGHTS if (path / name).is_file()]
    if not found:
        raise CheckpointError(f"no weights in the folder {path}: it has none of {', '.join(_WEIGHTS)}")
    return found[0]


def _about(file: Path) -> Mapping[str, Any]:
    """The configuration beside the weights, where their project puts one."""
    if file.name not in _WEIGHTS:  # a file among others: what lies beside it may belong to another one
        return {}
    found = next((file.with_name(name) for name in _ABOUT if file.with_name(name).is_file()), None)
    if found is None:
        return {}
    try:
        content = read_json(found)
    except (OSError, ValueError) as error:
        msg = f"{found} cannot be read ({why(error)}); it says how the weights beside it are computed with"
        raise CheckpointError(msg) from error
    if not isinstance(content, Mapping):
        return {}
    description = content.get("description")  # where this package's model folder has it
    return description if isinstance(description, Mapping) else content
