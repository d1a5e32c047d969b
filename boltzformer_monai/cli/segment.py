"""``boltzformer segment``: a scan, or a folder of scans, and prompts → what was found, on the scan's grid."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boltzformer_monai.errors import ConfigError, PromptError, VolumeError, why
from boltzformer_monai.limits import read_text, set_memory_gb

_PLANES = ("axial", "coronal", "sagittal")
_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".dcm")
# A folder of such a name is a mistyped ending more often than a folder.
_A_FILE = re.compile(r"(?i)\.(nii(\.\w*)?|n?rrd|nhdr|mh[ad]|hdr|img|dcm\w*|dicom|json|png|jpe?g|tiff?|gz|zip|txt|pt)$")
_EPILOG = """\
The label map holds 1 for the first prompt, 2 for the second, …; OUT.json says what was found of each, and what was
not. IMAGE may be a folder of many scans; OUT is then a folder, what is complete in it is skipped, and a scan that
fails does not stop the others. Exit codes: 0 all well, 2 a mistake, 3 some scans of a folder failed, 4 all done, but a
caveat puts a result in doubt: OUT.json, the preview and a DICOM SEG say which."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "segment",
        help="segment scans by text prompts",
        description="Segment a scan, or all scans of a folder, by text prompts.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "image", type=Path, metavar="IMAGE", help="NIfTI, NRRD or MetaImage file, DICOM folder, or folder of scans"
    )
    parser.add_argument("--prompts", nargs="+", default=[], metavar="TEXT", help='e.g. "left kidney" "lung nodule"')
    parser.add_argument("--prompts-file", type=Path, metavar="FILE", help="one prompt a line, # for comments, UTF-8")
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="model.pt of a training")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="OUT",
        help=".nii.gz, .nii, .nrrd, or .dcm for DICOM SEG of a DICOM scan; a folder for --masks and for many scans",
    )  # fmt: skip
    parser.add_argument("--masks", action="store_true", help="OUT is a folder with one mask for each prompt")
    parser.add_argument("--format", choices=[name[1:] for name in _ENDINGS], help="of the files in a folder (nii.gz)")
    parser.add_argument(
        "--literal",
        action="store_true",
        help="show the network the prompts as they are, also with negations, sizes and counts, which it does not know",
    )
    parser.add_argument(
        "--arbitration", choices=("probability", "first"), default="probability",
        help="who gets a voxel that several prompts claim: the most probable (default), or the first",
    )  # fmt: skip
    parser.add_argument("--uncertainty", type=int, metavar="K", help="decode K times; writes OUT-uncertainty as well")
    parser.add_argument("--presence", choices=("auto", "off"), default="auto", help="off: show masks on every slice")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="contact sheet; a folder for many scans")
    parser.add_argument("--modality", metavar="CT|MR", help="where neither the file nor the checkpoint says it")
    parser.add_argument("--window", nargs="+", metavar="W", help="NAME or LEVEL WIDTH in HU; default: the training's")
    parser.add_argument(
        "--planes", "--plane", nargs="+", choices=_PLANES, metavar="PLANE",
        help=f"{', '.join(_PLANES)}; several are averaged; default: the training's",
    )  # fmt: skip
    parser.add_argument(
        "--in-plane", choices=("fit", "tiles"), default="fit",
        help="large slices are shrunk to the network's square (fit), or covered by overlapping squares (tiles)",
    )  # fmt: skip
    parser.add_argument("--series", metavar="UID", help="SeriesInstanceUID, where a folder holds several")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability from which a voxel counts (0.5)")
    parser.add_argument("--batch-size", type=int, default=4, help="slices per pass (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the attention sampling (0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (auto: a GPU if there is one)")
    parser.add_argument(
        "--memory-gb", metavar="GB", help="memory that reading one scan may take (half of the machine's)"
    )
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check what can be checked at once, then segment; see :mod:`boltzformer_monai.cli.segment_run`."""
    if arguments.memory_gb is not None:
        set_memory_gb(arguments.memory_gb)
    arguments.prompts = _checked([*arguments.prompts, *prompts_in(arguments.prompts_file)])
    _check_numbers(arguments)
    _check_inputs(arguments)
    _check_output(arguments)
    from boltzformer_monai.cli.segment_plan import plan_work

    plan = plan_work(arguments)
    from boltzformer_monai.cli.segment_run import segment_scans  # only now: it imports PyTorch

    return segment_scans(arguments, plan)


def prompts_in(path: Path | None) -> list[str]:
    """Read the prompts of a file; none without a file.

    Raises:
        PromptError: it cannot be read, is no text in UTF-8, or holds no prompt.
    """
    if path is None:
        return []
    try:
        text = read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError:
        msg = f"{path}: is no text in UTF-8; save it with this encoding"
        raise PromptError(msg) from None
    except OSError as error:
        msg = f"{path}: cannot be read ({why(error)}); give a text file with one prompt a line"
        raise PromptError(msg) from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        msg = f"{path}: holds no prompt; write one a line"
        raise PromptError(msg)
    return prompts


def _checked(prompts: Sequence[str]) -> list[str]:
    from boltzformer_monai.data.prompts import checked_prompts

    if not prompts:
        msg = 'no prompt given; say what to look for, e.g. --prompts "left kidney", or give --prompts-file FILE'
        raise PromptError(msg)
    return checked_prompts(prompts)


def _check_numbers(arguments: argparse.Namespace) -> None:
    from boltzformer_monai.data.windows import parse_window

    problem = ""
    if not 0 < arguments.threshold < 1:
        problem = f"--threshold must lie between 0 and 1, not {arguments.threshold}"
    elif arguments.batch_size < 1:
        problem = f"--batch-size must be at least 1, not {arguments.batch_size}"
    elif arguments.seed < 0:
        problem = f"--seed must be at least 0, not {arguments.seed}"
    elif arguments.uncertainty is not None and not 2 <= arguments.uncertainty <= 100:
        problem = f"--uncertainty takes the number of decodings, from 2 to 100, not {arguments.uncertainty}"
    elif arguments.planes and len(set(arguments.planes)) < len(arguments.planes):
        problem = f"--planes names a plane twice: {' '.join(arguments.planes)}"
    if problem:
        raise ConfigError(problem)
    if arguments.window is not None:
        parse_window(arguments.window[0] if len(arguments.window) == 1 else arguments.window)


def _check_inputs(arguments: argparse.Namespace) -> None:
    if not arguments.image.exists():
        msg = f"{arguments.image}: no such file or folder; give a NIfTI or NRRD file, a DICOM folder or one of scans"
        raise VolumeError(msg, reason="missing")
    if not arguments.checkpoint.is_file():
        msg = f"no checkpoint at {arguments.checkpoint}; give the model.pt of a training"
        raise ConfigError(msg)
    if arguments.series is not None and not arguments.image.is_dir():
        msg = f"--series chooses in a DICOM folder, and {arguments.image} is a file; leave it out"
        raise ConfigError(msg)


def _check_output(arguments: argparse.Namespace) -> None:
    """Refuse an output that cannot be written or would overwrite an input; tell files from folders."""
    output: Path = arguments.output
    ending = next((each for each in _ENDINGS if output.name.lower().endswith(each) and output.name[: -len(each)]), None)
    arguments.ending = ending or f".{arguments.format or 'nii.gz'}"
    many = ending is None and arguments.image.is_dir() and arguments.series is None
    inputs = [arguments.image, arguments.checkpoint, *([arguments.prompts_file] if arguments.prompts_file else [])]
    _refuse_inputs(output, inputs)
    if arguments.preview is not None:
        _refuse_inputs(arguments.preview, [*inputs, output])
        if not many and arguments.preview.suffix.lower() != ".png":
            msg = f"cannot write {arguments.preview}: the preview must end in .png"
            raise ConfigError(msg)
        if many and _inside(arguments.preview, arguments.image):
            msg = f"cannot write {arguments.preview}: it lies in the folder of the scans; choose another place"
            raise ConfigError(msg)
        if many and _mistyped(arguments.preview) and arguments.preview.suffix.lower() != ".png":
            msg = f"cannot write {arguments.preview}: for many scans it is a folder, which this is no name of"
            raise ConfigError(msg)
    problem = ""
    if ending is None and not arguments.masks and not many:
        problem = f"the output must end in {', '.join(_ENDINGS)}; or give --masks for a folder with one mask a prompt"
    elif ending is None and _mistyped(output):
        problem = f"this is no name of a folder; files end in {', '.join(_ENDINGS)}"
    elif ending is not None and arguments.masks:
        problem = "--masks writes a folder; leave the ending out"
    elif ending is not None and arguments.format:
        problem = "--format is for folders; the ending says it here"
    elif arguments.masks and arguments.ending == ".dcm":
        problem = "a DICOM SEG holds a mask for each prompt anyway; leave --masks out"
    elif ending is not None and output.is_dir():
        problem = "it is a folder"
    elif ending is None and output.is_file():
        problem = "it is a file, and a folder is needed"
    elif ending is None and arguments.image.is_dir() and _inside(output, arguments.image):
        problem = "it lies in the folder of the scans; choose another place"
    if problem:
        msg = f"cannot write {output}: {problem}"
        raise ConfigError(msg)
    if arguments.ending == ".dcm":
        _check_can_be_seg(arguments.image)


def _check_can_be_seg(image: Path) -> None:
    from boltzformer_monai.io.formats import is_image_file

    if image.is_file() and is_image_file(image):
        msg = f"{image}: is no DICOM, which a DICOM SEG must refer to; write .nii.gz or .nrrd instead"
        raise ConfigError(msg)


def _refuse_inputs(output: Path, inputs: Sequence[Path]) -> None:
    if any(output.resolve() == path.resolve() for path in inputs):
        msg = f"cannot write {output}: it is an input, which would be lost; give another name"
        raise ConfigError(msg)


def _mistyped(folder: Path) -> bool:
    return _A_FILE.search(folder.name) is not None and not folder.is_dir()


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


__all__ = ["add_parser", "prompts_in", "run"]
