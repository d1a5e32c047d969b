#!/usr/bin/env python
"""Slice volumes into a data set for training and evaluation, or a scan without a label.

One volume, or a whole public data set::

    python preprocessing/slice_volumes.py --image CT --label L.nii.gz --labels-json labels.json --output DIR
    python preprocessing/slice_volumes.py --recipe msd --input Task04_Hippocampus --output DIR

Several single volumes may go into the same DIR, one after the other; a volume that is already there is replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

if __package__ in (None, ""):  # started as a file: the repository, from which the recipes come, is not on the path
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from boltzformer_monai.data.label_map import LabelMap, check_values, read_label_names
from boltzformer_monai.data.slice_writer import AddedVolume, SliceWriter
from boltzformer_monai.data.windows import MRPercentiles, Window, parse_window
from boltzformer_monai.errors import BoltzFormerError, ConfigError
from boltzformer_monai.io.volume import Volume, read_label_map, read_volume, reorient_label
from preprocessing.recipes import RECIPES, load_recipe

logger = logging.getLogger("slice_volumes")

_ONLY_SINGLE = ("image", "label", "labels_json", "series", "patient", "volume_id", "allow_missing")
_ONLY_RECIPE = ("input", "channel")
# Names that many patients' files share; then the folder tells them apart.
_GENERIC_STEMS = {"image", "img", "scan", "volume", "data", "ct", "mr", "mri", "t1", "t2"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see --help)")


@dataclass
class _Tally:
    """What the summary line tells."""

    volumes: int = 0
    slices: int = 0
    rows: int = 0
    targets: frozenset[str] = frozenset()

    def add(self, added: AddedVolume) -> None:
        self.volumes += 1
        self.slices += added.slices
        self.rows += added.rows
        self.targets |= set(added.targets)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 2 for an error that the user can mend, 130 for Ctrl-C."""
    tally = _Tally()
    try:
        options = _parse(argv)
        with _warnings_shown():
            _slice(options, tally)
    except BoltzFormerError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: the {tally.volumes} volumes finished so far are kept", file=sys.stderr)
        return 130
    print(
        f"{tally.volumes} volume{'s' * (tally.volumes != 1)}, {tally.slices} slices, {len(tally.targets)} targets, "
        f"{tally.rows} rows -> {options.output}"
    )
    return 0


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Show warnings of the library as lines on stderr, above the progress bar."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    handler.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        root.removeHandler(handler)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the slice data set; added to if it exists")
    one = parser.add_argument_group("one volume")
    one.add_argument("--image", type=Path, metavar="PATH", help="NIfTI, NRRD or MetaImage file, or a DICOM folder")
    one.add_argument("--label", type=Path, metavar="PATH", help="label map on the image's grid; without: no targets")
    one.add_argument("--labels-json", type=Path, metavar="PATH", help='{"modality", "site", "labels": {value: name}}')
    one.add_argument("--series", metavar="UID", help="SeriesInstanceUID, when a DICOM folder holds several")
    one.add_argument("--patient", metavar="ID", help="identity behind the pseudonym (default: PatientID or file name)")
    one.add_argument("--volume-id", metavar="ID", help="name of the volume in the data set (default: the file name)")
    one.add_argument("--allow-missing", action="store_true", help="named label values need not occur: target is absent")
    whole = parser.add_argument_group("a public data set")
    whole.add_argument("--recipe", choices=sorted(RECIPES), help="which data set")
    whole.add_argument("--input", type=Path, metavar="DIR", help="its folder")
    whole.add_argument("--channel", type=int, metavar="N", help="which modality of a multi-modality scan, from 0")
    add("--modality", metavar="CT|MR", help="default: as the labels-json, the DICOM header or the recipe says")
    add("--site", help="body site of prompts and window, e.g. abdomen (default: as above)")
    add("--plane", choices=("axial", "coronal", "sagittal"), default="axial", help="default: axial")
    add("--window", nargs="+", metavar=("NAME", "WIDTH"), help="a name, or LEVEL WIDTH in HU (default: by the site)")
    add("--split", choices=("train", "val", "test"), help="pin the patients to a split (default: drawn by patient)")
    add("--val-fraction", type=float, metavar="F", help="share of patients for validation (default: 0.2)")
    add("--seed", type=int, metavar="N", help="draws split and negatives (default: 0)")
    add(
        "--negatives",
        type=float,
        default=1.0,
        metavar="RATIO",
        help="share of absent targets' rows to keep (default: 1)",
    )
    add("--key", default="", help="secret key of the pseudonyms; the same key gives the same pseudonyms")
    add("--name", help="name of the data set (default: the folder's)")
    options = parser.parse_args(argv)
    if options.recipe:
        _refuse(options, _ONLY_SINGLE, "describes one volume and does not go with --recipe")
        if options.input is None:
            raise ConfigError("--recipe needs --input, the folder of the data set")
    else:
        _refuse(options, _ONLY_RECIPE, "goes only with --recipe")
        if options.image is None:
            raise ConfigError("give --image for one volume, or --recipe and --input for a public data set (see --help)")
        if options.label is not None and options.labels_json is None:
            raise ConfigError("--label needs --labels-json, which names the label values")
    return options


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(options, name) not in (None, False):
            raise ConfigError(f"--{name.replace('_', '-')} {why}")


def _slice(options: argparse.Namespace, tally: _Tally) -> None:
    window = None if options.window is None else parse_window(options.window)
    writer = SliceWriter(
        options.output, name=options.name, key=options.key, val_fraction=options.val_fraction, seed=options.seed
    )
    with writer:
        (_slice_recipe if options.recipe else _slice_one)(options, writer, window, tally)


def _slice_recipe(
    options: argparse.Namespace, writer: SliceWriter, window: Window | MRPercentiles | None, tally: _Tally
) -> None:
    listed = load_recipe(options.recipe)(
        options.input, modality=options.modality, site=options.site, channel=options.channel
    )
    for case in tqdm(listed, desc="slicing", unit="volume", dynamic_ncols=True):
        image, label = case.read()
        added = writer.add_volume(
            image,
            label,
            case.labels,
            volume_id=case.volume_id,
            patient=case.patient,
            site=case.site,
            plane=options.plane,
            window=window,
            split=options.split,
            negatives=options.negatives,
        )
        tally.add(added)


def _slice_one(
    options: argparse.Namespace, writer: SliceWriter, window: Window | MRPercentiles | None, tally: _Tally
) -> None:
    names = LabelMap({}) if options.labels_json is None else read_label_names(options.labels_json)
    stated = None if names.modality == "unknown" else names.modality
    image = read_volume(options.image, modality=options.modality or stated, series=options.series)
    if image.modality == "unknown":
        raise ConfigError(f"{options.image}: does not say its modality; add --modality CT or --modality MR")
    label = None if options.label is None else reorient_label(read_label_map(options.label), image)
    if label is not None:
        where = f"{options.labels_json} and {options.label}"
        for line in check_values(label.array, names.labels, where=where, allow_missing=options.allow_missing):
            logger.warning(line)
    volume_id, patient = _identity(options, image)
    with tqdm(desc="slicing", unit="slice", dynamic_ncols=True) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        added = writer.add_volume(
            image,
            label,
            names.labels if label is not None else None,
            volume_id=volume_id,
            patient=patient,
            site=options.site or names.site,
            plane=options.plane,
            window=window,
            split=options.split,
            negatives=options.negatives,
            progress=show,
        )
    if added.replaced:
        logger.warning("volume %s was in the data set already and is replaced", added.volume_id)
    tally.add(added)


def _identity(options: argparse.Namespace, image: Volume) -> tuple[str, str]:
    """Return volume id and patient identity; of a DICOM folder nothing readable goes into the id."""
    volume_id, patient = options.volume_id, options.patient
    if options.image.is_dir():
        content = hashlib.blake2b(image.array.tobytes(), key=options.key.encode()[:64], digest_size=6).hexdigest()
        if patient is None:
            from boltzformer_monai.io.dicom import read_patient_id

            patient = read_patient_id(options.image, series=options.series)
            if not patient:
                logger.warning("%s has no PatientID: counted as a patient of its own; see --patient", options.image)
            elif not options.key:
                logger.warning("pseudonyms of PatientIDs can be guessed by trial unless made with a secret --key")
        return volume_id or f"dicom-{content}", patient or content
    path = options.image.resolve()
    stem = re.sub(r"(?i)\.(nii|nii\.gz|nrrd|nhdr|mha|mhd)$", "", path.name)
    if stem.lower() in _GENERIC_STEMS:
        stem = path.parent.name
    return volume_id or re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".-_") or "volume", patient or stem


if __name__ == "__main__":
    sys.exit(main())
