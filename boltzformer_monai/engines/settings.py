"""Training settings by preset: the paper's (A.4, A.5) for its three sizes, others for ``tiny``."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch

from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.field_types import check_types
from boltzformer_monai.networks.presets import PRESETS
from boltzformer_monai.networks.published.source import PARTS
from boltzformer_monai.precision import Precision

_log = logging.getLogger(__name__)

LAYER_STRIDES = (1, 2, 4, 8)
"""What the sides of S are divided by in the supervision of layers: an image's are multiples of 32, those of S of 8."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Training settings of a preset; the defaults are the paper's."""

    preset: str
    """Its name."""
    image_size: int
    """H = W of the network, in pixels, a multiple of 32."""
    mask_size: int
    """Edge of the masks in the loss; in the paper the network's mask size (half the image)."""
    epochs: int = 40
    """At most."""
    patience: int = 5
    """Validations without a better key metric before training stops early (not given in the paper)."""
    val_interval: int = 1
    """Epochs between validations; the last epoch is always validated."""
    batch_size: int = 12
    """Images of a step, per process."""
    prompts_per_image: int = 1
    """Prompts for each image of a step."""
    negatives: float | None = 0.0
    """Share of prompts for absent targets; ``None`` samples present and absent targets alike."""
    target_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Target → how often it is drawn relative to the others, which have 1."""
    learning_rate: float = 2e-5
    """Of AdamW, at its highest."""
    weight_decay: float = 1e-2
    """Of AdamW."""
    decay_norms: bool = True
    """Apply weight decay to one-dimensional parameters too."""
    backbone_lr_factor: float = 1.0
    """The backbone's learning rate is this times ``learning_rate``."""
    text_lr_factor: float = 1.0
    """The text encoder's."""
    freeze: list[str] = dataclasses.field(default_factory=list)
    """Parts that are not trained: initial weights stay as they are."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Of the learning rate."""
    warm_up: float = 0.0
    """Share of warm-up steps, for the cosine schedule."""
    clip: float = 0.0
    """Largest gradient norm; 0 = no clipping."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is what is validated and saved; 0 = off."""
    balance: float = 0.0
    """Balanced BCE: the largest weight of an object's pixels; 0 = off."""
    empty_weight: float = 1.0
    """Weight in the masks' loss of prompts whose target is absent."""
    presence_weight: float = 0.5
    """Weight of the presence head's loss; ``NetworkConfig.presence`` adds the head."""
    layer_supervision: float = 0.0
    """Weight of the mean loss of the masks that every query has between the decoder's layers; 0 (paper) = none."""
    layer_supervision_stride: int = 1
    """Each side of these masks, a quarter of the image's, is divided by it: less memory for large images."""
    augmentation: Literal["paper", "light", "strong", "none"] = "paper"
    """Of training slices; ``"paper"`` is that of appendix A.5."""
    precision: Precision = "auto"
    """``"auto"``: bfloat16 where the hardware is faster with it."""
    cache: bool = False
    """Keep the decoded slices in memory."""
    workers: int = 4
    """Loader processes."""

    def __post_init__(self) -> None:
        """Raises :class:`~boltzformer_monai.errors.ConfigError` for wrong types, and numbers out of range."""
        check_types(self)
        least = dict.fromkeys(("epochs", "patience", "val_interval", "batch_size", "prompts_per_image", "mask_size"), 1)
        least |= dict.fromkeys(("learning_rate", "weight_decay", "clip", "balance"), 0)
        least |= dict.fromkeys(("empty_weight", "presence_weight", "workers", "warm_up", "negatives"), 0)
        least |= dict.fromkeys(("backbone_lr_factor", "text_lr_factor", "layer_supervision"), 0)
        for name, low in least.items():
            value, high = getattr(self, name), 1 if name in ("warm_up", "negatives") else 2**31 - 1
            if value is not None and not low <= value <= high:
                limit = f"between {low} and {high}" if high == 1 or value > high else f"at least {low}"
                raise ConfigError(f"{name} must be {limit}, got {value!r}")
        if (stride := self.layer_supervision_stride) not in LAYER_STRIDES:
            allowed = ", ".join(map(str, LAYER_STRIDES))
            raise ConfigError(f"layer_supervision_stride must be one of {allowed}, got {stride!r}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must be 0 (off) or more and below 1, e.g. 0.999, got {self.ema!r}")
        reject_unknown(self.freeze, PARTS, what="part to freeze")
        if set(self.freeze) == set(PARTS):
            raise ConfigError("freeze names every part, and nothing is left to train; leave one out")


SETTINGS: dict[str, TrainingSettings] = {
    "hiera_s": TrainingSettings(preset="hiera_s", image_size=1024, mask_size=512),
    "hiera_bp": TrainingSettings(preset="hiera_bp", image_size=1024, mask_size=512),
    "focal_l": TrainingSettings(preset="focal_l", image_size=1024, mask_size=512, batch_size=8),
    "biomedparse_v2": TrainingSettings(  # its authors' fine-tuning; they name no batch size
        preset="biomedparse_v2",
        image_size=512,
        mask_size=512,
        epochs=10,
        batch_size=8,
        prompts_per_image=4,
        negatives=0.3,
        learning_rate=1e-5,
        clip=5.0,
        empty_weight=0.0,  # only present targets have a mask loss
        presence_weight=1.0,
    ),
    "tiny": TrainingSettings(
        preset="tiny",
        image_size=192,
        mask_size=96,
        epochs=6,
        patience=6,
        val_interval=2,
        batch_size=8,
        prompts_per_image=4,
        negatives=0.3,
        target_weights={"liver lesion": 3.0, "lung nodule": 3.0},
        learning_rate=1e-3,
        decay_norms=False,
        schedule="cosine",
        warm_up=0.05,
        clip=1.0,
        balance=50.0,
        empty_weight=0.2,  # absent targets are the presence head's task
        layer_supervision=0.5,  # without it the sampling finds objects in the last layers only
        layer_supervision_stride=2,
        augmentation="light",
        cache=True,
        workers=0,
    ),
}


def training_settings(
    preset: str, device: torch.device | str, *, overrides: Mapping[str, Any] | None = None
) -> TrainingSettings:
    """Settings of a preset; ``"auto"`` is ``hiera_s`` where there is a GPU and ``tiny`` where there is none.

    Raises:
        ConfigError: unknown preset or setting (the nearest known one is suggested).
    """
    if preset == "auto":
        on_gpu = torch.device(device).type != "cpu"
        preset = "hiera_s" if on_gpu else "tiny"
        if not on_gpu:
            size = SETTINGS[preset].image_size
            _log.info("no GPU: training the preset 'tiny' at %d pixels; --preset hiera_s trains the paper's", size)
    reject_unknown([preset], [*PRESETS, "auto"], what="preset")
    if not isinstance(overrides or {}, Mapping):
        raise ConfigError(f"settings_overrides must be a mapping like {{'clip': 1.0}}, got {overrides!r}")
    # Preset and image size are separate keys, because the network needs them too.
    known = [f.name for f in dataclasses.fields(TrainingSettings) if f.name not in ("preset", "image_size")]
    reject_unknown(overrides or {}, known, what="training setting")
    return dataclasses.replace(SETTINGS[preset], **(overrides or {}))
