"""Volume protocols: how slices become the network's input, and its predictions those of the volume."""

from __future__ import annotations

from boltzformer_monai.inferers.protocols.biomedparse import BiomedParseProtocol
from boltzformer_monai.inferers.protocols.boltzformer import BoltzFormerProtocol
from boltzformer_monai.inferers.protocols.protocol import (
    DEFAULT,
    PROTOCOLS,
    VolumeProtocol,
    VolumeRun,
    protocol_name,
    register_protocol,
    volume_protocol,
)

__all__ = [
    "DEFAULT",
    "PROTOCOLS",
    "BiomedParseProtocol",
    "BoltzFormerProtocol",
    "VolumeProtocol",
    "VolumeRun",
    "protocol_name",
    "register_protocol",
    "volume_protocol",
]
