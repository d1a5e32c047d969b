"""Images with masks, grey or colour: a folder of PNG or JPEG files and one with masks of the same names.

``FOLDER/images/NAME.png`` with ``FOLDER/masks/NAME.png``, or both in ``FOLDER/{train,val,test}/``. Masks of several
targets lie in subfolders that are named by them (``masks/small vessel/NAME.png``); they may overlap. An image and its
masks may have different endings. Each image becomes a volume of one axial slice.

What such a folder does not say, and how it is taken:

- Modality: ``other``; ``modality`` says CT or MR of images that are. Grey values stay as they are, no window is
  applied; colours become their luminance, but are refused in CT and MR.
- Geometry: no size. Every pixel counts as 1 mm in slices and results, and nothing is measured in millimetres.
- Masks: a pixel belongs to the target if the largest of its colours is above ``threshold`` (127), which a JPEG file's
  noise is not. An image without a mask has no targets, one whose mask is black lacks the target.
- Patient: every image is one of its own. Where several show the same, ``patient_pattern`` is a regular expression whose
  first group is the patient in NAME, found anywhere in it: ``(\\d+)_``.
- Split: that of the folders; without ``val`` there, or without any, it is drawn by patient. A patient in several is in
  the one furthest from training.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from boltzformer_monai.data.prompts import normalise_target
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.modality import OTHER, stated_modality
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.picture_masks import PictureMasks, pictures_in
from boltzformer_monai.slicing.recipes import Option
from boltzformer_monai.slicing.recipes.patients import compile_pattern, patient_in

logger = logging.getLogger(__name__)

OPTIONS = (
    Option("target", "", "what the masks show, where these lie in masks/ itself"),
    Option("threshold", "127", "a mask's pixels above it belong to the target, from 0 to 254"),
    Option("patient_pattern", "", "regular expression whose first group is the patient in the image's name"),
)


def cases(
    folder: Path,
    *,
    modality: str | None,
    site: str | None,
    channel: int | None,
    target: str,
    threshold: str,
    patient_pattern: str,
) -> list[Case]:
    """List the images.

    Raises:
        DatasetError: there are none, or nothing says which mask is whose and of what.
        ConfigError: a setting does not fit.
    """
    if channel is not None:
        raise ConfigError("these images have no channels to choose from; leave --channel out")
    kind = OTHER if modality is None else stated_modality(modality, stored_grey=True)
    above, pattern = _threshold(threshold), compile_pattern("patient_pattern", patient_pattern, group=True)
    parts = [part for part in ("", *SPLITS) if (folder / part / "images").is_dir()]
    if not parts or ("" in parts and len(parts) > 1):
        there = "; it has both, and it is unclear which counts" if parts else ""
        raise DatasetError(f"{folder}: needs images/, or images/ in train/, val/ and test/{there}")
    listed: list[Case] = []
    for part in parts:
        masks, images = _masks(folder / part / "masks", target), _by_stem(pictures_in(folder / part / "images"))
        orphans = masks.keys() - images.keys()
        if orphans:
            line = "%s: %d masks are of no image (%s, …)"
            logger.warning(line, folder / part / "masks", len(orphans), min(orphans))
        for name, path in images.items():
            drawn = tuple((target, file) for target, file in masks.get(name, {}).items())
            own = f"{part}/{name}" if part else name
            listed.append(
                Case(
                    own,
                    own if pattern is None else patient_in(pattern, name),
                    path,
                    PictureMasks(drawn, above) if drawn else None,
                    site or "",
                    modality=kind,
                    split=None if part == "" or (part == "train" and "val" not in parts) else part,
                    window=StoredGrey(),
                )
            )
    if not listed:
        raise DatasetError(f"{folder}: holds no PNG or JPEG images in images/")
    without = sum(case.annotation is None for case in listed)
    if without:
        logger.warning("%s: %d of %d images have no mask; their slices have no targets", folder, without, len(listed))
    _warn_of_patients(folder, listed)
    return listed


def _threshold(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 254:
        raise ConfigError(f"threshold must be a whole number from 0 to 254, got {text!r}")
    return int(text)


def _masks(folder: Path, target: str) -> dict[str, dict[str, Path]]:
    """Return stem of an image → target → its mask.

    Raises:
        DatasetError: nothing says what they show, or two are of one image and target.
    """
    named = (
        {each.name: pictures_in(each) for each in sorted(folder.iterdir()) if each.is_dir()} if folder.is_dir() else {}
    )
    named = {name: files for name, files in named.items() if files}
    direct = pictures_in(folder)
    if direct and named:
        raise DatasetError(
            f"{folder}: holds masks and folders of masks; keep the ones in folders named by their target"
        )
    if target and named:
        raise ConfigError(f"{folder}: its folders name the targets; leave --option target out")
    if direct and not target:
        raise ConfigError(f"{folder}: nothing says what these masks show; add --option target=NAME")
    found: dict[str, dict[str, Path]] = {}
    for name, files in (named or {target: direct}).items():
        canonical = normalise_target(name)
        for stem, path in _by_stem(files).items():
            other = found.setdefault(stem, {}).setdefault(canonical, path)
            if other != path:
                raise DatasetError(f"{other} and {path} are masks of one image and target; keep one")
    return found


def _by_stem(paths: Sequence[Path]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(path.stem, path)
        if other != path:
            raise DatasetError(f"{other} and {path.name} have one name; rename one, and its mask")
    return found


def _warn_of_patients(folder: Path, listed: Sequence[Case]) -> None:
    splits = {(case.patient, case.split or "train") for case in listed}
    several = sum(count > 1 for count in Counter(patient for patient, _ in splits).values())
    if several:
        line = "%s: %d patients occur in several splits; all their images are in the one furthest from training"
        logger.warning(line, folder, several)
