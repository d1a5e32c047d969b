"""MONAI's DynUNet as planned, its loss, and the files of trained experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceLoss
from monai.networks.nets import DynUNet
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.data.slices.folds import Fold
from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.experts.plan import Plan
from boltzformer_monai.experts.settings import ExpertSettings
from boltzformer_monai.networks.weights import load_strictly, read_weights
from boltzformer_monai.precision import autocast, resolve_precision

__all__ = ["ExpertDescription", "ExpertLoss", "ExpertNetwork", "load_expert"]

FORMAT, VERSION = "boltzformer-expert", 1


class ExpertNetwork(nn.Module):
    """A U-Net with one channel of logits per target.

    Args:
        plan: of the expert.
        precision: to compute in.
    """

    def __init__(self, plan: Plan, *, precision: str = "fp32") -> None:
        super().__init__()
        self.precision = precision
        self.outputs = plan.outputs
        self.unet = DynUNet(
            spatial_dims=plan.dimensions,
            in_channels=1,
            out_channels=len(plan.targets),
            kernel_size=plan.kernels,
            strides=plan.strides,
            upsample_kernel_size=plan.strides[1:],
            filters=plan.filters,
            norm_name=("INSTANCE", {"affine": True}),
            act_name=("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
            deep_supervision=plan.outputs > 1,
            deep_supr_num=max(1, plan.outputs - 1),
            trans_bias=True,
        )

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """``(B, 1, *patch)`` → logits ``(B, C, *patch)``; in training a list of them, the finest level first.

        DynUNet itself enlarges all levels and stacks them; the loss needs them as they are.
        """
        with autocast(self.precision, image.device):
            finest: Tensor = self.unet.output_block(self.unet.skip_layers(image))
            if not self.training or self.outputs == 1:
                return finest.float()
            return [finest.float(), *(level.float() for level in self.unet.heads)]


class ExpertLoss(nn.Module):
    """Dice + BCE of every level's output, weighted 1, ½, ¼, … and divided by the sum of weights.

    Dice is that of the whole batch, channel by channel. Coarser masks are the nearest voxels of the finest.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)

    def forward(self, logits: Tensor | Sequence[Tensor], masks: Tensor) -> Tensor:
        """Logits and masks ``(B, C, *patch)`` → a number."""
        levels = [logits] if isinstance(logits, Tensor) else list(logits)
        total, weights = masks.new_zeros(()), 0.0
        for number, level in enumerate(levels):
            truth = F.interpolate(masks, size=level.shape[2:], mode="nearest-exact") if number else masks
            total = total + (self.dice(level, truth) + F.binary_cross_entropy_with_logits(level, truth)) / 2**number
            weights += 1 / 2**number
        return total / weights


class ExpertDescription:
    """What is saved with an expert's weights.

    Args:
        plan: of the expert.
        settings: of its training.
        data: of the dataset: ``training_data``, and the ``fold`` in it.
    """

    def __init__(self, plan: Plan, settings: ExpertSettings, data: Mapping[str, Any]) -> None:
        self.plan = plan
        self.settings = settings
        self.data: dict[str, Any] = dict(data)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        settings = {**dataclasses.asdict(self.settings), "targets": list(self.settings.targets)}
        return {
            "format": FORMAT, "version": VERSION, "network": self.plan.as_dict(), "settings": settings,
            "data": self.data,
        }  # fmt: skip


def load_expert(path: str | Path, *, device: torch.device) -> tuple[ExpertNetwork, Plan, Mapping[str, Any]]:
    """Read an expert's checkpoint; runs no code from it.

    Returns:
        The network for inference, its plan, and ``data`` of its description.

    Raises:
        CheckpointError: there is none, or it is damaged or none of an expert.
    """
    content = read_weights(path)
    description, weights = content.get("description"), content.get("model")
    if not isinstance(description, Mapping) or description.get("format") != FORMAT or not isinstance(weights, Mapping):
        raise CheckpointError(f"{path} is no expert's checkpoint; give the model.pt of boltzformer expert train")
    if description.get("version") != VERSION:
        raise CheckpointError(f"{path}: is an expert of version {description.get('version')!r}; train it again")
    network, data = description.get("network"), description.get("data")
    if not isinstance(network, Mapping) or not isinstance(data, Mapping):
        raise CheckpointError(f"{path}: its description is damaged; train it again")
    Fold.of(data)
    plan = Plan.of(network, source=path)
    expert = ExpertNetwork(plan, precision=expert_precision("auto", device))
    load_strictly(expert, weights, source=str(path))
    return expert.to(device).eval(), plan, data


def expert_precision(precision: str, device: torch.device) -> str:
    """``"auto"`` → bfloat16 on GPUs that support it, float32 elsewhere; others as they are.

    Raises:
        ConfigError: the precision is unknown.
    """
    return resolve_precision("fp32" if precision == "auto" and device.type == "cpu" else precision, device)
