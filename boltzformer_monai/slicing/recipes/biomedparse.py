"""Data in BiomedParse's layout: 2-D images, one mask for each target.

``DATASET/{train,test}/NAME_MODALITY_SITE.png`` and ``DATASET/{train,test}_mask/NAME_MODALITY_SITE_TARGET.png``; every
pixel of a mask that is not 0 belongs to the target. Each image becomes a volume of one axial slice.

What this layout does not say, and how it is taken:

- Geometry: every pixel counts as 1 mm; the display as the usual one.
- Grey values: they stay as they are, no window is applied.
- Patient: NAME without its last number, which is taken for that of the slice (``amos_0018_63`` is of ``amos_0018``).
  Where that is wrong, ``patient_pattern`` is a regular expression whose first group is the patient in NAME. Our own
  exports (``boltzformer export-dataset``) say it themselves.
- Split: images of ``test`` are pinned to it, the patients of ``train`` are divided into training and validation. A
  patient in both is for testing only.
- Names: volumes of our own exports keep their names. Other names may be those of patients and are hashed;
  ``--mapping`` lists which is which, ``--keep-names`` leaves them as they are.

Images of other modalities than CT and MR are left out, with a warning.
"""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from boltzformer_monai.data.windows import StoredGrey
from boltzformer_monai.errors import ConfigError, DatasetError
from boltzformer_monai.limits import read_json_description
from boltzformer_monai.modality import parse_modality
from boltzformer_monai.slicing.biomedparse_names import (
    MARKER_FILE,
    MARKER_FORMAT,
    PictureName,
    parse_picture_name,
    parse_words,
)
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.picture_masks import PictureMasks, pictures_in
from boltzformer_monai.slicing.recipes import Option
from boltzformer_monai.slicing.recipes.patients import compile_pattern, patient_in

logger = logging.getLogger(__name__)

OPTIONS = (Option("patient_pattern", "", "regular expression whose first group is the patient in NAME"),)

_SPLITS: tuple[tuple[str, str | None], ...] = (("train", None), ("test", "test"))
_MAX_ID = 100


def cases(
    folder: Path, *, modality: str | None, site: str | None, channel: int | None, patient_pattern: str
) -> list[Case]:
    """List the CT and MR images of a folder with ``train`` or ``test``; ``modality`` takes only those of one.

    Raises:
        DatasetError: there are no CT or MR images, or the mark of our own export is damaged.
        ConfigError: a setting does not fit.
    """
    if channel is not None:
        raise ConfigError("these images have no channels to choose from; leave --channel out")
    wanted = None if modality is None else parse_modality(modality)
    exported, pattern = _read_marker(folder), compile_pattern("patient_pattern", patient_pattern, group=True)
    listed, skipped = [], 0
    images = {part: pictures_in(folder / part, (".png",)) for part, _ in _SPLITS}
    repeated = set.intersection(*({path.stem for path in paths} for paths in images.values()))
    for part, split in _SPLITS:
        masks = _masks(folder / f"{part}_mask")
        orphans = set(masks) - {path.stem for path in images[part]}
        if orphans:
            line = "%s: %d images are missing that have masks (%s, …)"
            logger.warning(line, folder / part, len(orphans), min(orphans))
        for path in images[part]:
            name = parse_picture_name(path.stem)
            if name is None:
                skipped += 1
            elif wanted in (None, name.modality):
                own, volume = masks.get(path.stem, []), _volume_of(name)
                listed.append(
                    Case(
                        _volume_id(path.stem, part, repeated=path.stem in repeated),
                        exported.get(volume, volume) if pattern is None else patient_in(pattern, name.name),
                        path,
                        PictureMasks(tuple(own)) if own else None,
                        site or name.site,
                        modality=name.modality,
                        split=split,
                        public=volume in exported,  # whose names are those of a slice data set
                        window=StoredGrey(),
                    )
                )
    if skipped:
        logger.warning("%s: %d images are left out: their names state neither CT nor MR", folder, skipped)
    if not listed:
        msg = f"{folder}: holds no {wanted or 'CT or MR'} images; looked for train/ and test/NAME_MODALITY_SITE.png"
        raise DatasetError(msg)
    _warn_about_patients(folder, listed)
    return listed


def _volume_of(name: PictureName) -> str:
    return re.sub(r"[_-]?\d+$", "", name.name) or name.name


def _read_marker(folder: Path) -> dict[str, str]:
    """Return NAME without number → patient of an export of ours; empty for other data."""
    path = folder / MARKER_FILE
    if not path.is_file():
        return {}
    content = read_json_description(path)
    patients = content.get("patients") if isinstance(content, dict) and content.get("format") == MARKER_FORMAT else None
    if not isinstance(patients, dict) or not all(isinstance(patient, str) and patient for patient in patients.values()):
        raise DatasetError(f"{path}: does not say which patient is whose; export the data set again")
    return patients


def _masks(folder: Path) -> dict[str, list[tuple[str, Path]]]:
    """Return stem of an image → its masks."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in pictures_in(folder, (".png",)):
        stem, _, target = path.stem.rpartition("_")
        found.setdefault(stem, []).append((parse_words(target), path))
    return found


def _volume_id(stem: str, part: str, *, repeated: bool) -> str:
    """Return an id that only this image has: its name, with a digest where the name will not do."""
    if not repeated and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", stem) and len(stem) <= _MAX_ID:
        return stem
    digest = hashlib.blake2b(f"{part}/{stem}".encode(), digest_size=4).hexdigest()
    clean = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).lstrip("-_")
    return f"{clean[: _MAX_ID - 9]}.{digest}" if clean else digest


def _warn_about_patients(folder: Path, listed: list[Case]) -> None:
    testing = {case.patient for case in listed if case.split == "test"}
    training = {case.patient for case in listed if case.split is None}
    if testing & training:
        count = len(testing & training)
        logger.warning("%s: %d patients occur in train and in test; all their images are for testing", folder, count)
    if len(training) == 1 and sum(case.split is None for case in listed) > 1:
        logger.warning("%s: all training images count as one patient; see patient_pattern", folder)
