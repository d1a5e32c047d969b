"""``boltzformer segment``: a scan, or a folder of scans, and prompts → what was found, on the scan's grid."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.command_line import add_plugin
from boltzformer_monai.limits import set_memory_gb
from boltzformer_monai.registry import use_plugins

__all__ = ["add_parser", "run"]

_PLANES = ("axial", "coronal", "sagittal")
_EPILOG = """\
The label map holds 1 for the first prompt, 2 for the second, … (for the prompts in an .npz their keys); OUT.json says
what was found of each, and what was not. IMAGE may be a folder of many scans; OUT is then a folder, what is complete in
it is skipped, and a scan that fails does not stop the others. Exit codes: 0 all well, 2 a mistake, 3 some scans of a
folder failed, 4 all done, but a caveat puts a result in doubt: OUT.json, the preview and a DICOM SEG say which."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "segment",
        help="segment scans by text prompts",
        description="Segment a scan, or all scans of a folder, by text prompts.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "image", type=Path, metavar="IMAGE",
        help="NIfTI, NRRD or MetaImage file, DICOM folder, folder of scans, or .npz case of the CVPR challenge",
    )  # fmt: skip
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=[],
        metavar="TEXT",
        help='e.g. "left kidney" "lung nodule"; default: those in an .npz',
    )
    parser.add_argument("--prompts-file", type=Path, metavar="FILE", help="one prompt a line, # for comments, UTF-8")
    parser.add_argument(
        "--checkpoint", type=Path, required=True, metavar="MODEL",
        help="model.pt of a training, a model folder, or the id of a fetched model",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="OUT",
        help=".nii.gz, .nii, .nrrd, .dcm for DICOM SEG of a DICOM scan, .npz; a folder for --masks and for many scans",
    )  # fmt: skip
    parser.add_argument("--masks", action="store_true", help="OUT is a folder with one mask for each prompt")
    parser.add_argument("--format", choices=("nii.gz", "nii", "nrrd", "dcm"), help="of the files in a folder (nii.gz)")
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
    parser.add_argument(
        "--protocol", metavar="NAME",
        help="how slices are shown and answers merged: boltzformer, biomedparse or your own; default: the checkpoint's",
    )  # fmt: skip
    parser.add_argument(
        "--protocol-settings", nargs="+", default=[], metavar="NAME=VALUE",
        help="of the protocol, e.g. suppress=false orientation=display",
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
    add_plugin(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check what can be checked at once, then segment; see :mod:`boltzformer_monai.cli.segment_run`."""
    if arguments.memory_gb is not None:
        set_memory_gb(arguments.memory_gb)
    from boltzformer_monai.cli.segment_plan import plan_work

    plan = plan_work(arguments)
    use_plugins(arguments.plugins)
    from boltzformer_monai.cli.segment_run import segment_scans  # only now: it imports PyTorch

    return segment_scans(arguments, plan)
