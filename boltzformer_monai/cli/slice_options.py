"""Options of ``boltzformer slice`` → cases and settings."""

from __future__ import annotations

import argparse
import logging
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from boltzformer_monai.cli.command_line import real_number, whole_number
from boltzformer_monai.data.planes import checked_planes
from boltzformer_monai.data.slices.format import SPLITS
from boltzformer_monai.data.slices.volume import SliceSettings, check_volume_id
from boltzformer_monai.data.split import pseudonym
from boltzformer_monai.data.windows import parse_window
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.io.grids import GRID_TOLERANCE, check_grid_tolerance
from boltzformer_monai.limits import LARGEST_SEED, read_text, set_memory_gb
from boltzformer_monai.modality import stated_modality
from boltzformer_monai.slicing.cases import Case
from boltzformer_monai.slicing.recipes import load_recipe, recipe_names
from boltzformer_monai.slicing.single import single_case
from boltzformer_monai.slicing.slice_report import Account, check_mapping, take_account
from boltzformer_monai.slicing.slicing import JobSettings

__all__ = ["add_options", "check_options", "job_settings", "listed_cases", "read_key", "volume_id_of"]

logger = logging.getLogger(__name__)

_ONLY_SINGLE = ("image", "label", "labels_json", "series", "patient", "volume_id", "allow_missing")
_ONLY_RECIPE = ("input", "channel", "option")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the slice dataset; extended if it exists")
    add = parser.add_argument_group("one volume").add_argument
    add("--image", type=Path, metavar="PATH", help="NIfTI, NRRD or MetaImage file, or a DICOM folder")
    add("--label", type=Path, metavar="PATH", help="label map, layers, DICOM SEG or RTSTRUCT; none: no targets")
    add("--labels-json", type=Path, metavar="PATH", help='{"modality", "site", "labels": {value: name}}')
    add("--series", metavar="UID", help="SeriesInstanceUID, when a DICOM folder holds several")
    add("--patient", metavar="ID", help="identity behind the pseudonym (default: PatientID or file name)")
    add("--volume-id", metavar="ID", help="name of the volume in the data set (default: a hash)")
    add("--allow-missing", action="store_true", help="named label values need not occur: target is absent")
    add = parser.add_argument_group("many volumes").add_argument
    add("--recipe", choices=recipe_names(), help="which data set, or 'folder' for scans of your own")
    add("--input", type=Path, metavar="DIR", help="its folder")
    add("--channel", type=whole_number(0), metavar="N", help="which channel of scans with several, from 0")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="setting of the recipe")
    add("--workers", type=whole_number(1, 1024), default=1, metavar="N", help="processes, one volume each (default: 1)")
    add(
        "--memory-gb", metavar="GB", help="memory that a process may take to read a scan (default: half, shared by all)"
    )
    add("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers do the work")
    add("--strict", action="store_true", help="stop at the first scan that is refused")
    add = parser.add_argument_group("slices").add_argument
    add("--modality", metavar="CT|MR", help="if neither labels-json, header nor recipe states it")
    add("--site", help="body site of prompts and window, e.g. abdomen (default: as above)")
    add(
        "--plane", action="append", metavar="PLANE",
        help="axial (default), coronal or sagittal; several, with commas between them: each scan along all of them",
    )  # fmt: skip
    add("--window", nargs="+", metavar=("NAME", "WIDTH"), help="name, or LEVEL WIDTH in HU (default: by site)")
    add("--every", type=whole_number(1), default=1, metavar="N", help="take every N-th slice (default: 1)")
    add(
        "--neighbours", type=whole_number(0, 1000), default=0, metavar="N",
        help="keep N slices on either side, for 2.5-D input",
    )  # fmt: skip
    add(
        "--neighbour-mm", type=real_number(0, 1000), default=0.0, metavar="MM",
        help="their distance (default: adjacent slices)",
    )  # fmt: skip
    add("--min-area", type=whole_number(0), default=0, metavar="PIXELS", help="no row for a target smaller than this")
    add(
        "--negatives", type=real_number(0, 1), default=1.0, metavar="RATIO",
        help="share of absent targets' rows (default: 1)",
    )  # fmt: skip
    add("--composites", action="store_true", help="add sums that the vocabulary knows: kidney = left + right")
    add("--resample-tilt", action="store_true", help="bring scans with a gantry tilt to a right-angled grid")
    add(
        "--grid-tolerance",
        type=real_number(0, 0.5),
        default=GRID_TOLERANCE,
        metavar="SHARE",
        help=f"how far, as a share of a voxel, a label may lie from its scan's grid (default: {GRID_TOLERANCE})",
    )
    add = parser.add_argument_group("the data set").add_argument
    add("--name", help="its name (default: the folder's)")
    add("--split", choices=SPLITS, help="pin the patients to a split (default: drawn by patient)")
    add("--val-fraction", type=real_number(0, 1), metavar="F", help="share of patients for validation (default: 0.2)")
    add("--seed", type=whole_number(0, LARGEST_SEED), metavar="N", help="draws split and negatives (default: 0)")
    add("--key-file", type=Path, metavar="FILE", help="its text is the secret key of the pseudonyms")
    add("--key", default="", help="the key itself; other users of the machine can see it")
    add("--keep-names", action="store_true", help="name volumes by their files, not by a hash")
    add("--mapping", type=Path, metavar="FILE", help="write a private table: pseudonyms and paths")
    add("--remove", nargs="+", metavar="ID", help="remove these volumes or patients (pseudonyms) from it")
    add("--redo", action="store_true", help="slice again what is there already")


def job_settings(options: argparse.Namespace, *, seed: int) -> JobSettings:
    """Build the settings.

    Raises:
        ConfigError: a setting is unknown or out of range.
    """
    planes = checked_planes(",".join(options.plane or ["axial"]))
    slices = SliceSettings(
        plane=planes[0],
        window=None if options.window is None else parse_window(options.window),
        every=options.every,
        neighbours=options.neighbours,
        neighbour_mm=options.neighbour_mm,
        min_area=options.min_area,
        negatives=options.negatives,
        seed=seed,
    )
    return JobSettings(
        root=options.output,
        slices=slices,
        planes=planes,
        recipe=options.recipe or "",
        key=options.key,
        tilt="resample" if options.resample_tilt else "refuse",
        composites=options.composites,
        allow_missing=bool(options.recipe or options.allow_missing),
        grid_tolerance=check_grid_tolerance(options.grid_tolerance),
    )


def listed_cases(options: argparse.Namespace) -> Account:
    """List the cases, and other files in their folder.

    Raises:
        BoltzFormerError: the data set, the labels.json or the DICOM folder cannot be read.
    """
    if not options.recipe:
        case = single_case(options)
        described = [] if options.labels_json is None else [options.labels_json]
        return take_account(options.image, [case], described=described) if options.image.is_dir() else Account([case])
    extra = {}
    for text in options.option:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--option {text!r} is not of the form NAME=VALUE")
        extra[name] = value
    recipe = load_recipe(options.recipe)
    cases = recipe(options.input, modality=options.modality, site=options.site, channel=options.channel, **extra)
    return take_account(options.input, cases)


def volume_id_of(case: Case, options: argparse.Namespace) -> str:
    """Id of a case in the dataset: the published one, ``--volume-id``, or a hash."""
    if case.public or options.volume_id:
        return case.volume_id
    hashed = pseudonym(case.volume_id, key=options.key)
    return f"{_readable(case)}-{hashed[:6]}" if options.keep_names else f"scan-{hashed}"


def _readable(case: Case) -> str:
    """The end of a scan's path in ASCII; the hash behind it keeps it unique."""
    path = Path(case.volume_id)
    name = re.sub(r"(?i)(\.(nii|nrrd|nhdr|mha|mhd|hdr|img))?(\.gz)?$", "", path.name)
    plain = unicodedata.normalize("NFKD", "-".join((path.parent.name, name))).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip(".-_")[-80:].strip(".-_") or "scan"


def check_options(options: argparse.Namespace) -> None:
    """Check the options against each other, and bring them into the form that slicing takes.

    Raises:
        ConfigError: one is missing, out of range, or does not go with another.
    """
    if options.modality is not None:
        options.modality = stated_modality(options.modality, stored_grey=options.recipe == "images")
    if options.remove:
        _refuse(options, ("recipe", "image", "input"), "slices scans and does not go with --remove")
    elif options.recipe:
        _refuse(options, _ONLY_SINGLE, "describes one volume and does not go with --recipe")
        if options.input is None:
            raise ConfigError("--recipe needs --input, the folder of the data set")
    else:
        _refuse(options, _ONLY_RECIPE, "goes only with --recipe")
        if options.image is None:
            raise ConfigError("give --image for one volume, or --recipe and --input for many (see --help)")
        if options.labels_json is not None and options.label is None:
            logger.warning("--labels-json without --label: its modality and site are used, its names are not")
    if options.volume_id is not None:
        check_volume_id(options.volume_id)
    if options.memory_gb is not None:
        set_memory_gb(options.memory_gb)
    if options.key_file is not None:
        options.key = read_key(options)
    pseudonym("x", key=options.key)  # refuses a key that is too long
    # Absolute, because a worker of a cluster has another current folder.
    for name in ("output", "image", "label", "input"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).absolute())
    root = options.output.resolve()
    for source in (options.image, options.label, options.input):
        place = root if source is None else source.resolve()
        if source is not None and (place == root or place in root.parents or root in place.parents):
            raise ConfigError(f"{options.output}: the output must lie apart from the scans in {source}; choose another")
    if options.mapping is not None:
        check_mapping(options.mapping)
    if options.keep_names:
        logger.warning("--keep-names puts the names of files into the data set: they must identify nobody")
    if options.mapping is not None and root in (options.mapping.resolve(), *options.mapping.resolve().parents):
        raise ConfigError(
            f"{options.mapping}: identifies patients and must not lie in the data set; write it elsewhere"
        )


def read_key(options: argparse.Namespace) -> str:
    if options.key:
        raise ConfigError("give --key-file or --key, not both")
    try:
        key: str = read_text(options.key_file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{options.key_file}: cannot be read as the key of the pseudonyms ({why(error)})") from None
    if not key:
        raise ConfigError(f"{options.key_file}: is empty; it must hold the secret key of the pseudonyms")
    return key


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    for name in names:
        if getattr(options, name) not in (None, False, []):
            raise ConfigError(f"--{name.replace('_', '-')} {why}")
