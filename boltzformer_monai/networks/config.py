"""Every setting of a network."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.field_types import check_types
from boltzformer_monai.networks.interfaces import STRIDE
from boltzformer_monai.networks.level_logits import LevelLogits
from boltzformer_monai.networks.pixel_decoder import Norm

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Every setting of a network, as plain values that a checkpoint can store."""

    backbone: str
    """``"tiny"``, a registered name or that of a timm model."""
    backbone_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The backbone's own arguments: timm's for a timm model."""
    image_size: int
    """H = W the network is trained and run at, a multiple of 32."""
    in_channels: int = 3
    """Of the image."""
    neighbours: int = 0
    """Slices on each side as extra channels (2.5-D); ``in_channels`` is then ``2 * neighbours + 1``."""
    neighbour_mm: float = 0.0
    """Millimetres from channel to channel; 0 = adjacent slices, however far apart they are."""
    mean: tuple[float, ...] = _IMAGENET_MEAN
    """Of each channel, for values from 0 to 1; stored with the weights."""
    std: tuple[float, ...] = _IMAGENET_STD
    """Of each channel."""
    neck_channels: int | None = None
    """Channels of SAM 2's neck; ``None`` = no neck."""
    normalise_features: bool = False
    """LayerNorm on every backbone output (Focal-L)."""
    pretrained: bool = False
    """Load timm's pre-trained backbone weights when the network is built."""
    dim: int = 512
    """d: channels of features, queries and text."""
    heads: int = 8
    """Attention heads."""
    hidden: int = 2048
    """Channels inside the feed-forward blocks."""
    queries: int = 10
    """m: queries per prompt."""
    layers: int = 9
    """Of the decoder."""
    pixel_layers: int = 6
    """Transformer layers of the pixel decoder."""
    norm: Norm = "group"
    """Of the pixel decoder."""
    pre_norm: bool = False
    """Norm before, not after, in the transformer layers of the pixel decoder."""
    text_width: int = 512
    """Channels of the text encoder."""
    text_layers: int = 12
    """Of the text encoder."""
    text_heads: int = 8
    """Of the text encoder."""
    text_norm_eps: float = 1e-12
    """Of its LayerNorms: UniCL's; CLIP has 1e-5."""
    text_activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """UniCL's and OpenAI's CLIP; most of open_clip's towers have ``"gelu"``."""
    text_model: str | None = None
    """Local folder of another transformers text model."""
    decoder: str = "boltzmann"
    """A registered name. The settings below belong to the Boltzmann decoder; others may use them too."""
    decoder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The decoder's own arguments."""
    policy: str = "boltzmann"
    """A registered attention policy: ``"boltzmann"``, ``"threshold"``, ``"full"`` or a custom one."""
    policy_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The policy's own arguments; those of ``"boltzmann"`` and ``"threshold"`` have settings here, too."""
    base_temperature: float = 1.0
    """τ0: layer ℓ samples at τ0/(1+ℓ)."""
    sample_ratio: float = 0.1
    """Draws per level, as a share of its patches."""
    exact: bool = False
    """Exact multinomial draws instead of the Bernoulli form."""
    per_head: bool = False
    """One attention set per head (published code) instead of one per query (paper)."""
    threshold: float = 0.5
    """Of the policy ``"threshold"``: probability from which a patch is attended to."""
    text_prior: bool = True
    """Condition the queries on the prompt before the first layer (Table 7)."""
    pigma_channels: int = 10
    """Channels between the two convolutions of the aggregation."""
    pigma_correction: bool = True
    """Pixel-grounded correction of the aggregated mask (Table 8)."""
    mask_bias: float | None = None
    """First value of a learned number that is added to all mask logits; ``None`` = none."""
    level_logits: LevelLogits = "bilinear"
    """How the sampling takes mask logits to the grid of a level; ``"max"`` keeps objects smaller than a patch."""
    presence: bool = False
    """Add a head that predicts whether the object is in the slice (not in the paper)."""
    fast: bool = True
    """Use the fast forms of decoder and aggregation (``networks/fast``): same function, same weights."""

    def __post_init__(self) -> None:
        """Raises :class:`~boltzformer_monai.errors.ConfigError` for wrong types and impossible sizes."""
        check_types(self)
        least = dict.fromkeys(("in_channels", "dim", "heads", "hidden", "queries", "layers", "pigma_channels"), 1)
        least |= {"text_width": 1, "text_layers": 1, "text_heads": 1, "pixel_layers": 0, "neighbours": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be a whole number of at least {low}, got {getattr(self, name)}")
        if not 0 < self.text_norm_eps < 1:
            raise ConfigError(f"text_norm_eps must be between 0 and 1, got {self.text_norm_eps}")
        if self.neck_channels is not None and self.neck_channels < 1:
            msg = f"neck_channels must be a whole number of at least 1, or None for no neck; got {self.neck_channels}"
            raise ConfigError(msg)
        if self.image_size % STRIDE or self.image_size < STRIDE:
            raise ConfigError(f"image_size must be a positive multiple of {STRIDE}, got {self.image_size}")
        if not 0 <= self.neighbour_mm < math.inf or (self.neighbour_mm and not self.neighbours):
            msg = f"neighbour_mm must be 0 or more, and needs neighbours; got {self.neighbour_mm} and {self.neighbours}"
            raise ConfigError(msg)
        if self.neighbours and self.in_channels != 2 * self.neighbours + 1:
            msg = f"{self.neighbours} neighbours make {2 * self.neighbours + 1} in_channels, not {self.in_channels}"
            raise ConfigError(msg)
        if not len(self.mean) == len(self.std) == self.in_channels:
            msg = (
                f"mean and std need one value for each of the {self.in_channels} in_channels, "
                f"got {list(self.mean)} and {list(self.std)}"
            )
            raise ConfigError(msg)
        if not all(0 < std < math.inf for std in self.std) or not all(map(math.isfinite, self.mean)):
            msg = f"std must be positive and mean finite, got std {list(self.std)} and mean {list(self.mean)}"
            raise ConfigError(msg)
        for name in ("backbone_settings", "decoder_settings", "policy_settings"):
            value = getattr(self, name)
            if not isinstance(value, dict) or not _is_plain(value):
                raise ConfigError(f"{name} must map names to plain values, which a checkpoint can carry; got {value!r}")


def _is_plain(value: object) -> bool:
    """Whether a value consists of numbers, strings, None, lists and mappings with string keys."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    return value is None or isinstance(value, bool | int | float | str)
