"""What decides the files of a segmented scan, and which files these are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from boltzformer_monai import __version__
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.volume_result import ARBITRATIONS

__all__ = ["ENDINGS", "Recipe", "beside", "mask_names", "result_path", "uncertainty_names", "written_paths"]

ENDINGS = (".nii.gz", ".nii", ".nrrd", ".dcm")
_UNCERTAINTY = "-uncertainty"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what the files of a scan hold; equal recipes on equal scans make equal files.

    Attributes:
        prompts: exact texts, in the order of their label values.
        model: sha256 of the checkpoint file.
        seed: of the attention sampling.
        threshold: probability from which a voxel belongs to an object.
        planes: that the volume was sliced along.
        in_plane: ``"fit"`` or ``"tiles"``.
        presence: ``{"high", "low"}`` of the presence rule, None where it was off or the network has no head.
        repeats: decodings per slice; more than one also writes the uncertainty.
        arbitration: which prompt gets a voxel that several claim: the most ``"probability"``, or the ``"first"``.
        masks: one file for each prompt instead of one label map.
        ending: of the segmentation files, one of :data:`ENDINGS`.
        preview: a contact sheet is wanted as well.
        window: that was given for all prompts, None for the training's.
        modality: that was given, None for the scan's own.
        literal: the network was shown the prompts as they are, not in the training's spelling.
        precision: of the network's arithmetic, ``"fp32"`` or ``"bf16"`` once the network is there.
        device: kind of device that it ran on; devices round differently.

    Raises:
        ConfigError: an unknown arbitration or ending, or masks as DICOM SEG (which holds all of them anyway).
    """

    prompts: tuple[str, ...]
    model: str
    seed: int
    threshold: float
    planes: tuple[str, ...]
    in_plane: str = "fit"
    presence: Mapping[str, float] | None = None
    repeats: int = 1
    arbitration: str = "probability"
    masks: bool = False
    ending: str = ".nii.gz"
    preview: bool = False
    window: tuple[str, ...] | None = None
    modality: str | None = None
    literal: bool = False
    precision: str = "auto"
    device: str = ""

    def __post_init__(self) -> None:
        if self.arbitration not in ARBITRATIONS:
            msg = f"unknown arbitration {self.arbitration!r}; use {' or '.join(ARBITRATIONS)}"
            raise ConfigError(msg)
        if self.ending not in ENDINGS or (self.masks and self.ending == ".dcm"):
            msg = f"masks cannot be written as {self.ending!r}; use {', '.join(ENDINGS[: 3 if self.masks else 4])}"
            raise ConfigError(msg)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with the version of this package."""
        return json.loads(json.dumps({**asdict(self), "package": __version__}))  # type: ignore[no-any-return]

    @property
    def image_ending(self) -> str:
        """Of the files that are no DICOM SEG even if the segmentation is one."""
        return ".nii.gz" if self.ending == ".dcm" else self.ending


def mask_names(recipe: Recipe) -> list[str]:
    """What follows the output's name in the files of the segmentation: one, or one for each prompt."""
    if not recipe.masks:
        return [recipe.ending]
    return [f"/{_prompt_name(index, prompt)}{recipe.ending}" for index, prompt in enumerate(recipe.prompts)]


def uncertainty_names(recipe: Recipe) -> list[str]:
    """What follows the output's name in the files of the uncertainty; none without repeats."""
    if recipe.repeats < 2:
        return []
    if not recipe.masks:
        return [f"{_UNCERTAINTY}{recipe.image_ending}"]
    ends = [name.removesuffix(recipe.ending) for name in mask_names(recipe)]
    return [f"{end}{_UNCERTAINTY}{recipe.ending}" for end in ends]


def written_paths(stem: Path, recipe: Recipe, preview: Path | None = None) -> list[Path]:
    """Every file that is written for a scan, the summary last; ``stem`` is the output's name without its ending."""
    paths = [beside(stem, name) for name in (*mask_names(recipe), *uncertainty_names(recipe))]
    if recipe.preview:
        paths.append(preview or beside(stem, ".png"))
    return [*paths, beside(stem, ".json")]


def result_path(stem: Path, recipe: Recipe) -> Path:
    """The segmentation itself: a file, or the folder of masks."""
    return stem if recipe.masks else beside(stem, recipe.ending)


def beside(stem: Path, ending: str) -> Path:
    """The file of this ending."""
    return Path(f"{stem}{ending}")


def _prompt_name(index: int, prompt: str) -> str:
    words = re.sub(r"\W+", "_", prompt.lower()).strip("_")[:40].rstrip("_")
    return f"{index + 1:02d}_{words}" if words else f"{index + 1:02d}"
