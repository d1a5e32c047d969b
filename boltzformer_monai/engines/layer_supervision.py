"""Ask a decoder for the masks between its layers, which a training may supervise (deep supervision)."""

from __future__ import annotations

from typing import Any

from torch import nn

from boltzformer_monai.engines.resume import LoopSettings
from boltzformer_monai.errors import ConfigError

__all__ = ["supervise_layers"]


def supervise_layers(network: nn.Module, settings: LoopSettings) -> None:
    """Set ``layer_logits`` and ``layer_stride`` of the network's decoder, see the protocol ``Decoder``.

    Raises:
        ConfigError: the layers are to be supervised, and the decoder does not know how.
    """
    decoder: Any = getattr(network, "decoder", None)
    wanted = settings.layer_supervision > 0
    if wanted:
        stride = settings.layer_supervision_stride
        for name in ("layer_logits", *(["layer_stride"] if stride > 1 else [])):
            if not hasattr(decoder, name):
                msg = (
                    f"the decoder {type(decoder).__name__} has no {name}, so its layers cannot be supervised: "
                    f"set layer_supervision{'_stride' if name == 'layer_stride' else ''} to its default"
                )
                raise ConfigError(msg)
        if hasattr(decoder, "layer_stride"):
            decoder.layer_stride = stride
    if hasattr(decoder, "layer_logits"):
        decoder.layer_logits = wanted
