"""SAM 2's original checkpoints: the image encoder, trunk and neck."""

from __future__ import annotations

from collections.abc import Collection

from boltzformer_monai.networks.published.rename import below, convert_hiera, placed, without
from boltzformer_monai.networks.published.source import Converted, PublishedFile, register_source

_DROPPED = {
    r"^(memory_|maskmem_|no_mem_|no_obj_|obj_ptr_|mask_downsample)": "SAM 2's memory of other frames",
    r"^sam_": "SAM 2's prompts and masks",
}


@register_source("sam2")
class Sam2Source:
    """``{"model": …}`` with ``image_encoder.trunk.*`` and ``image_encoder.neck.*``."""

    title = "SAM 2 (facebookresearch/sam2)"

    def recognises(self, names: Collection[str]) -> bool:
        """By the trunk of its image encoder."""
        return any(name.startswith("image_encoder.trunk.") for name in names)

    def convert(self, file: PublishedFile) -> Converted:
        """Rename trunk and neck."""
        weights, dropped = without(file.weights, _DROPPED)
        encoder = below(weights, "image_encoder.")
        strangers = {name: weight for name, weight in weights.items() if not name.startswith("image_encoder.")}
        surplus = {r"^convs\.": "the network has no neck"}
        backbone = convert_hiera(placed([*encoder.items(), *strangers.items()]))
        return Converted({"backbone": backbone}, dropped=dropped, surplus=surplus)

    def config(self, file: PublishedFile) -> None:
        """An image encoder is no whole network."""
