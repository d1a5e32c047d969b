"""Settings of an expert's planning and training; where they are not given, nnU-Net's, or smaller ones on a CPU."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import torch

from boltzformer_monai.data.planes import PLANE_AXES
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.field_types import check_types
from boltzformer_monai.precision import Precision

__all__ = ["ExpertSettings", "expert_settings"]

_log = logging.getLogger(__name__)

# nnU-Net's on a GPU: 1,000 epochs of 250 steps; a step of the order of what its plans put into 8 GB.
_ON_GPU: Mapping[str, int] = {"steps": 250_000, "epoch_steps": 250, "budget": 2 * 128**3, "filters": 32}
_ON_CPU: Mapping[str, int] = {"steps": 2_000, "epoch_steps": 100, "budget": 2**18, "filters": 16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertSettings:
    """What a user may choose of an expert.

    Attributes:
        dimensions: 3 trains on volumes, 2 on slices.
        plane: of the slices, and the first axis of volumes; "" takes axial, or what the dataset has instead.
        targets: to segment, each by a channel of its own; empty takes all.
        steps: of the optimizer.
        epoch_steps: steps from validation to validation.
        budget: voxels of a step (patch × batch), from which the plan finds both.
        filters: channels at full resolution; they double with every pooling up to ten (2-D: sixteen) times as many.
        validation_patches: how many are predicted after every epoch to choose ``model.pt``.
        foreground: share of the patches that are centred on a voxel of a target.
        learning_rate: at the first step; it falls as (1 − step/steps)^0.9.
        momentum: of SGD with Nesterov's momentum.
        weight_decay: of all parameters.
        clip: largest norm of the gradient; 0: none.
        deep_supervision: whether coarser outputs enter the loss too.
        augmentation: whether training patches are augmented.
        mirror: whether patches are mirrored in training and averaged over mirrored inputs in inference. The axis from
            right to left is left out where a target is named by its side.
        precision: ``"auto"`` is bfloat16 on a GPU that has it, and float32 on a CPU.
        workers: processes that make patches.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    dimensions: int = 3
    plane: str = ""
    targets: tuple[str, ...] = ()
    steps: int = _ON_GPU["steps"]
    epoch_steps: int = _ON_GPU["epoch_steps"]
    budget: int = _ON_GPU["budget"]
    filters: int = _ON_GPU["filters"]
    validation_patches: int = 50
    foreground: float = 0.33
    learning_rate: float = 1e-2
    momentum: float = 0.99
    weight_decay: float = 3e-5
    clip: float = 12.0
    deep_supervision: bool = True
    augmentation: bool = True
    mirror: bool = True
    precision: Precision = "auto"
    workers: int = 0

    def __post_init__(self) -> None:
        check_types(self)
        if self.dimensions not in (2, 3):
            raise ConfigError(f"dimensions must be 2 (slices) or 3 (volumes), got {self.dimensions!r}")
        if self.plane:
            reject_unknown([self.plane], PLANE_AXES, what="plane")
        counts = ("steps", "epoch_steps", "budget", "filters", "validation_patches")
        limits = {**dict.fromkeys(counts, (1, 2**31 - 1)), **dict.fromkeys(("foreground", "momentum"), (0, 1))}
        limits["workers"] = (0, 1024)
        limits |= dict.fromkeys(("learning_rate", "weight_decay", "clip"), (0, 2**31 - 1))
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be from {low} to {high}, got {getattr(self, name)!r}")

    @property
    def steps_per_epoch(self) -> int:
        """From validation to validation."""
        return min(self.epoch_steps, self.steps)

    @property
    def epochs(self) -> int:
        """Of the training: whole ones, of about ``steps`` steps in all."""
        return round(self.steps / self.steps_per_epoch)

    @property
    def ema(self) -> float:
        """None of the weights: what is saved is the network itself."""
        return 0.0

    @property
    def layer_supervision(self) -> float:
        """None: there is no decoder with layers; coarser outputs have ``deep_supervision``."""
        return 0.0

    @property
    def layer_supervision_stride(self) -> int:
        """Without meaning here."""
        return 1


def expert_settings(device: torch.device | str, overrides: Mapping[str, Any]) -> ExpertSettings:
    """Settings for a device, with what a user chose.

    Args:
        device: of the training.
        overrides: name → value; a list is taken for a tuple.

    Raises:
        ConfigError: one is unknown (the nearest known one is suggested), of the wrong type or out of range.
    """
    known = [field.name for field in dataclasses.fields(ExpertSettings)]
    reject_unknown(overrides, known, what="expert setting")
    chosen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()
    }
    defaults = _ON_CPU if torch.device(device).type == "cpu" else _ON_GPU
    if defaults is _ON_CPU and "steps" not in chosen:
        _log.info("no GPU: a small network for %d steps; nnU-Net trains %d", _ON_CPU["steps"], _ON_GPU["steps"])
    return ExpertSettings(**{**defaults, **chosen})
