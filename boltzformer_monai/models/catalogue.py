"""Public weights that are known here: what they are, whose, under which licence, and how they are used.

Only what public documents say, read in 2026; no file is shipped, and nothing is fetched before somebody asks.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from boltzformer_monai.errors import ConfigError, did_you_mean
from boltzformer_monai.models.licence import Licence

__all__ = ["CATALOGUE", "Entry", "catalogue_text", "entry_named", "whole_model_of"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Weights that somebody published.

    Attributes:
        name: here.
        what: one line.
        use: ``"segment"``: becomes a model folder; or the part that training starts from, e.g. ``"backbone"``.
        source: name of the importer in :mod:`boltzformer_monai.networks.published`.
        repo: id on the Hugging Face hub.
        file: of the weights, in it.
        others: further files that belong to it.
        licence: of the weights.
        gated: whether the hub wants an account that accepted the conditions.
        size: bytes; None where it is not known.
        sha256: of the file; None where it is not known, and then the hash that the hub states is checked.
    """

    name: str
    what: str
    use: str
    source: str
    repo: str
    file: str
    others: tuple[str, ...] = ()
    licence: Licence
    gated: bool = False
    size: int | None = None
    sha256: str | None = None

    @property
    def url(self) -> str:
        """Its page on the hub."""
        return f"https://huggingface.co/{self.repo}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "url": self.url}


_BIOMEDPARSE = Licence(
    name="CC-BY-NC-SA-4.0",
    restricted=True,
    url="https://huggingface.co/microsoft/BiomedParse",
    terms="research and development only, not for clinical use, no commercial use, share alike",
)
_SAM2 = Licence(name="Apache-2.0", restricted=False, url="https://github.com/facebookresearch/sam2/blob/main/LICENSE")
_CLIP = Licence(
    name="MIT",
    restricted=False,
    url="https://github.com/openai/CLIP/blob/main/LICENSE",
    terms="that of OpenAI's repository; the hub's card names none",
)

_ENTRIES = (
    Entry(
        name="biomedparse_v2",
        what="BiomedParse v2 (BoltzFormer with FocalNet-L, 512 pixels): prompts in CT, MR, ultrasound, PET volumes",
        use="segment",
        source="biomedparse_v2",
        repo="microsoft/BiomedParse",
        file="biomedparse_v2.ckpt",
        licence=_BIOMEDPARSE,
        gated=True,
        size=4_460_000_000,
    ),
    Entry(
        name="biomedparse_v1",
        what="BiomedParse v1 (SEEM with FocalNet-L, 1024 pixels): its encoders are initial weights for focal_l",
        use="backbone, text_encoder",
        source="seem",
        repo="microsoft/BiomedParse",
        file="biomedparse_v1.pt",
        licence=_BIOMEDPARSE,
        gated=True,
    ),
    Entry(
        name="sam2_hiera_small",
        what="SAM 2 with Hiera-S, 1024 pixels: trunk and neck of the preset hiera_s",
        use="backbone",
        source="sam2",
        repo="facebook/sam2-hiera-small",
        file="sam2_hiera_small.pt",
        licence=_SAM2,
        size=184_309_650,
        sha256="95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
    ),
    Entry(
        name="sam2_hiera_base_plus",
        what="SAM 2 with Hiera-B+, 1024 pixels: trunk and neck of the preset hiera_bp",
        use="backbone",
        source="sam2",
        repo="facebook/sam2-hiera-base-plus",
        file="sam2_hiera_base_plus.pt",
        licence=_SAM2,
        sha256="d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
    ),
    Entry(
        name="timm_sam2_hiera_small",
        what="timm's copy of SAM 2's Hiera-S: the trunk of the preset hiera_s, without its neck",
        use="backbone",
        source="timm",
        repo="timm/sam2_hiera_small.fb_r896",
        file="model.safetensors",
        licence=_SAM2,
    ),
    Entry(
        name="clip_vit_b32",
        what="CLIP ViT-B/32: a text tower of the sizes of the paper's presets",
        use="text_encoder",
        source="clip",
        repo="openai/clip-vit-base-patch32",
        file="pytorch_model.bin",
        others=("config.json",),
        licence=_CLIP,
        size=605_247_071,
        sha256="a63082132ba4f97a80bea76823f544493bffa8082296d62d71581a4feff1576f",
    ),
)  # fmt: skip

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
"""Name → what is known."""


def entry_named(name: str) -> Entry:
    """The entry of a name.

    Raises:
        ConfigError: there is none; the nearest name is suggested.
    """
    if name not in CATALOGUE:
        hint = did_you_mean(name, CATALOGUE, show=str)
        msg = f"unknown weights {name!r}; {hint} (boltzformer weights list; or the id of a hub model, OWNER/NAME)"
        raise ConfigError(msg)
    return CATALOGUE[name]


def whole_model_of(source: str) -> Entry | None:
    """The whole model of an importer's source: weights of its form are it, or were made from it."""
    return next((entry for entry in CATALOGUE.values() if entry.source == source and entry.use == "segment"), None)


def catalogue_text() -> str:
    """The catalogue for people."""
    lines = []
    for entry in _ENTRIES:
        size = "size not known" if entry.size is None else f"{entry.size / 1e9:.2f} GB"
        use = "segment" if entry.use == "segment" else f"initial weights ({entry.use})"
        lines += [
            f"{entry.name}",
            f"    {entry.what}",
            f"    for: {use}; {size}; from {entry.repo}, {entry.file}"
            + ("; gated: needs a login" if entry.gated else ""),
            f"    licence: {entry.licence}" + (" [restricted: --accept-licence]" if entry.licence.restricted else ""),
        ]
    return "\n".join(lines) + "\n"
