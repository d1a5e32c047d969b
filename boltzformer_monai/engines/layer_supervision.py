"""Ask a decoder for the masks between its layers, which a training may supervise (deep supervision)."""

from __future__ import annotations

from typing import Any

from torch import nn

from boltzformer_monai.engines.resume import LoopSettings
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings
from boltzformer_monai.errors import ConfigError

__all__ = ["supervise_layers"]


def supervise_layers(network: nn.Module, settings: LoopSettings) -> bool:
    """Set ``layer_logits`` and ``layer_stride`` of the network's decoder, see the protocol ``Decoder``.

    Returns:
        Whether its layers are supervised. A decoder that does not know how is trained without, where that weight is
        the preset's own.

    Raises:
        ConfigError: the layers are to be supervised, and the decoder does not know how.
    """
    decoder: Any = getattr(network, "decoder", None)
    wanted, stride = settings.layer_supervision > 0, settings.layer_supervision_stride
    needed = ["layer_logits", *(["layer_stride"] if stride > 1 else [])]
    missing = [name for name in needed if not hasattr(decoder, name)] if wanted else []
    if missing and not _of_preset(settings):
        msg = (
            f"the decoder {type(decoder).__name__} has no {missing[0]}, so its layers cannot be supervised: "
            f"set layer_supervision{'_stride' if missing[0] == 'layer_stride' else ''} to its default"
        )
        raise ConfigError(msg)
    supervised = wanted and not missing
    if supervised and hasattr(decoder, "layer_stride"):
        decoder.layer_stride = stride
    if hasattr(decoder, "layer_logits"):
        decoder.layer_logits = supervised
    return supervised


def _of_preset(settings: LoopSettings) -> bool:
    """Whether nobody asked for it: weight and stride are those of the preset."""
    if not isinstance(settings, TrainingSettings):
        return False
    preset = SETTINGS[settings.preset]
    names = ("layer_supervision", "layer_supervision_stride")
    return all(getattr(settings, name) == getattr(preset, name) for name in names)
