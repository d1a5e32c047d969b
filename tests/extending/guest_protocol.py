"""A volume protocol: slices lie in the plane that the scan was acquired in, whichever the training's was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from boltzformer_monai.data.planes import Slicing, plane_of_axis, radiological
from boltzformer_monai.inferers.protocols import BoltzFormerProtocol, register_protocol
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.io.volume import Volume


@register_protocol("acquired")
class AcquiredPlane(BoltzFormerProtocol):
    def __init__(self, settings: RunSettings, data: Mapping[str, Any], *, ratio: float = 1.5) -> None:
        super().__init__(settings, data)
        self.ratio = ratio
        self.settings = {"ratio": ratio}  # for the manifest
        self.plane = None  # the scan decides

    def slicings(self, volume: Volume) -> Sequence[Slicing]:
        spacing = volume.spacing
        widest = max(range(3), key=lambda axis: spacing[axis])
        if spacing[widest] < self.ratio * min(spacing):
            return super().slicings(volume)
        return [radiological(volume, plane_of_axis(volume, widest))]
