"""``boltzformer segment``: segment a scan, or a folder of scans, by text prompts, on the scan's grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.command_line import add_plugin, real_number, whole_number
from boltzformer_monai.cli.report import HELP
from boltzformer_monai.limits import LARGEST_SEED, set_memory_gb
from boltzformer_monai.registry import use_plugins

__all__ = ["add_parser", "run"]

_PLANES = ("axial", "coronal", "sagittal")
_EPILOG = """\
The label map has 1 for the first prompt, 2 for the second, … (for the prompts in an .npz their keys); OUT.json lists
which were found. IMAGE may be a folder of scans; OUT is then a folder, complete results in it are skipped, a failing
scan does not stop the others, and --workers or --scheduler share the scans out. Exit codes: 0 success, 2 wrong call,
3 some scans of a folder failed, 4 a caveat puts a result in doubt (named in OUT.json, preview and DICOM objects)."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "segment",
        help="segment scans by text prompts",
        description="Segment a scan, or all scans of a folder, by text prompts.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add(
        "image", type=Path, metavar="IMAGE",
        help="NIfTI, NRRD or MetaImage file, DICOM folder, folder of scans, or .npz case of the CVPR challenge",
    )  # fmt: skip
    add(
        "--prompts", nargs="+", default=[], metavar="TEXT",
        help='e.g. "left kidney" "lung nodule"; default: those in an .npz',
    )  # fmt: skip
    add("--prompts-file", type=Path, metavar="FILE", help="one prompt a line, # for comments, UTF-8")
    add(
        "--checkpoint", type=Path, required=True, metavar="MODEL",
        help="model.pt of a training, a model folder, or the id of a fetched model",
    )  # fmt: skip
    add(
        "--output", type=Path, required=True, metavar="OUT",
        help=".nii.gz, .nii, .nrrd, .npz; of a DICOM scan .dcm (DICOM SEG) or .rtstruct.dcm (RTSTRUCT); a folder for "
        "--masks and for many scans",
    )  # fmt: skip
    add("--masks", action="store_true", help="OUT is a folder with one mask for each prompt")
    add("--format", choices=("nii.gz", "nii", "nrrd", "dcm", "rtstruct.dcm"), help="of the files in a folder (nii.gz)")
    add(
        "--literal",
        action="store_true",
        help="use the prompts unchanged, whatever language, typing errors, negations or sizes they hold",
    )
    add(
        "--arbitration", choices=("probability", "first"), default="probability",
        help="which prompt gets an overlapping voxel: the most probable (default), or the first",
    )  # fmt: skip
    add("--uncertainty", type=whole_number(2, 100), metavar="K", help="decode K times; writes OUT-uncertainty as well")
    add(
        "--tta", type=whole_number(1, 5), default=1, metavar="N",
        help="average each slice in N poses, slightly turned, scaled and shifted (1 to 5; takes N times as long)",
    )  # fmt: skip
    add("--presence", choices=("auto", "off"), default="auto", help="off: keep masks on every slice")
    add("--preview", type=Path, metavar="PNG", help="contact sheet; a folder for many scans")
    add(
        "--lesion-min-ml", type=real_number(0, 1e6), default=0.0, metavar="ML",
        help="list components of a mask as lesions from this volume on (all); masks keep all",
    )  # fmt: skip
    add(
        "--lesion-min-mm", type=real_number(0, 1e6), default=0.0, metavar="MM",
        help="list them from this largest diameter on (all)",
    )  # fmt: skip
    add(
        "--point", nargs=3, type=real_number(-1e6, 1e6), metavar="MM",
        help="place in the patient, mm towards Right, Anterior and Superior: the lesion there, for the two below",
    )  # fmt: skip
    add("--keep-lesions", choices=("all", "at_point"), default="all", help="at_point drops all others")
    add("--look-closer", action="store_true", help="decode the region around the point again at full resolution")
    add("--lesions-csv", type=Path, metavar="FILE", help="table of the lesions of all scans and prompts")
    add("--report", type=Path, metavar="FILE", help=f"{HELP}; of one scan")
    add("--modality", metavar="CT|MR", help="if neither file nor checkpoint states it (PET, US, … of an .npz)")
    add("--window", nargs="+", metavar="W", help="NAME or LEVEL WIDTH in HU; default: the training's")
    add(
        "--planes", "--plane", nargs="+", choices=(*_PLANES, "all"), metavar="PLANE",
        help=f"{', '.join(_PLANES)}; several are averaged; default: all, those of the training",
    )  # fmt: skip
    add(
        "--in-plane", choices=("fit", "tiles"), default="fit",
        help="scale large slices to the network's input (fit), or cover them with overlapping tiles (tiles)",
    )  # fmt: skip
    add(
        "--protocol", metavar="NAME",
        help="preparing slices and merging masks: boltzformer, biomedparse or a registered one; default: the model's",
    )  # fmt: skip
    add(
        "--protocol-settings", nargs="+", default=[], metavar="NAME=VALUE",
        help="of the protocol, e.g. suppress=false orientation=display",
    )  # fmt: skip
    add("--series", metavar="UID", help="SeriesInstanceUID, for folders with several")
    add(
        "--threshold",
        type=real_number(0, 1),
        default=0.5,
        metavar="P",
        help="probability from which a voxel counts (0.5)",
    )
    add("--batch-size", type=whole_number(1), default=4, metavar="N", help="slices per pass (4)")
    add("--seed", type=whole_number(0, LARGEST_SEED), default=0, metavar="N", help="of the attention sampling (0)")
    add(
        "--workers", type=whole_number(1, 1024), default=1, metavar="N",
        help="processes for a folder of scans, each with a model and one scan at a time (1)",
    )  # fmt: skip
    add("--scheduler", metavar="ADDRESS", help="Dask scheduler whose workers segment the scans of a folder")
    add(
        "--threads", type=whole_number(1, 4096), metavar="N",
        help="CPU threads of each process (a share of the processors); bytes are the same for the same number",
    )  # fmt: skip
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, … (auto: a CUDA GPU if there is one)")
    add(
        "--memory-gb",
        metavar="GB",
        help="memory limit for reading one scan (half of the machine's, shared by all processes)",
    )
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the network's arithmetic (auto)")
    add_plugin(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check the arguments, then segment; see :mod:`boltzformer_monai.cli.segment_run`."""
    if arguments.memory_gb is not None:
        set_memory_gb(arguments.memory_gb)
    from boltzformer_monai.cli.segment_plan import plan_work

    plan = plan_work(arguments)
    use_plugins(arguments.plugins)
    from boltzformer_monai.cli.segment_run import segment_scans  # late: it imports PyTorch

    return segment_scans(arguments, plan)
