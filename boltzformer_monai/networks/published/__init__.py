"""Weights that others published → this package's networks, or parts of them (docs/how-to/weights.md).

One file a source; :data:`SOURCES` knows them by name, and others may register theirs. Everything is strict: a weight is
taken, or dropped for a stated reason, or the file is refused.
"""

from boltzformer_monai.networks.published import (  # noqa: F401  (they register themselves)
    biomedparse_v2,
    boltzformer,
    checkpoint,
    clip,
    focalnet,
    sam2,
    seem,
    timm_backbone,
)
from boltzformer_monai.networks.published.importing import Imported, import_weights, load_published
from boltzformer_monai.networks.published.initial import describe_parts, init_from
from boltzformer_monai.networks.published.report import ImportReport, PartReport
from boltzformer_monai.networks.published.source import (
    PARTS,
    SOURCES,
    Converted,
    PublishedFile,
    Source,
    register_source,
)

__all__ = [
    "PARTS",
    "SOURCES",
    "Converted",
    "ImportReport",
    "Imported",
    "PartReport",
    "PublishedFile",
    "Source",
    "describe_parts",
    "import_weights",
    "init_from",
    "load_published",
    "register_source",
]
