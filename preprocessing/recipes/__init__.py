"""Recipes: one small module per public data set, which lists its volumes as :class:`Case`.

A recipe module has one function, ``cases(folder, *, modality, site, channel) -> list[Case]``; what the last three
leave None it takes from the data set. To add a recipe, write the module and name it in :data:`RECIPES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from boltzformer_monai.errors import ConfigError, VolumeError
from boltzformer_monai.io.volume import Volume, read_label_map, read_volume

RECIPES: Mapping[str, str] = MappingProxyType({"msd": "preprocessing.recipes.msd"})
"""Name on the command line → module."""


@dataclass(frozen=True)
class Case:
    """One labelled volume of a public data set.

    Attributes:
        volume_id: id in the slice data set, e.g. ``"hippocampus_001"``.
        patient: identity of the patient within the data set.
        image: path of the scan.
        label: path of its label map.
        labels: label value → target name.
        modality: ``"CT"`` or ``"MR"``.
        site: body site.
        channel: which picture of a four-dimensional NIfTI scan, None for an ordinary one.
    """

    volume_id: str
    patient: str
    image: Path
    label: Path
    labels: Mapping[str, str]
    modality: str
    site: str
    channel: int | None = None

    def read(self) -> tuple[Volume, Volume]:
        """Read image and label.

        Raises:
            VolumeError: one of the two cannot be read; the message names its path.
        """
        if self.channel is None:
            image = read_volume(self.image, modality=self.modality)
        else:
            image = _read_channel(self.image, self.channel, self.modality)
        return image, read_label_map(self.label)


def load_recipe(name: str) -> Callable[..., list[Case]]:
    """Return the ``cases`` function of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        msg = f"unknown recipe {name!r}; known are {', '.join(RECIPES)}"
        raise ConfigError(msg)
    cases: Callable[..., list[Case]] = importlib.import_module(RECIPES[name]).cases
    return cases


def _read_channel(path: Path, channel: int, modality: str) -> Volume:
    """Read one picture of a 4-D NIfTI file; only that picture is decoded to float."""
    import nibabel as nib

    try:
        scan = nib.load(path)
        if not isinstance(scan, nib.Nifti1Image) or len(scan.shape) != 4 or not 0 <= channel < scan.shape[3]:
            msg = f"{path}: has the shape {getattr(scan, 'shape', None)}, so there is no channel {channel}"
            raise VolumeError(msg)
        array = np.asarray(scan.dataobj[..., channel], dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        msg = f"{path}: cannot be read as NIfTI ({' '.join(str(error).split())})"
        raise VolumeError(msg) from None
    if not np.isfinite(array).all():
        msg = f"{path}: channel {channel} has voxels that are NaN or infinite"
        raise VolumeError(msg)
    return replace(Volume(array, scan.affine, source=str(path)), modality=modality)
