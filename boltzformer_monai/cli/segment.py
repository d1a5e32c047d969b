"""``boltzformer segment``: a scan and prompts → a label map on the scan's grid."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "segment",
        help="segment a scan by text prompts",
        description="Segment a scan by text prompts. The label map holds 1 for the first prompt, 2 for the second, …",
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="NIfTI, NRRD or MetaImage file, or a DICOM folder")
    parser.add_argument("--prompts", nargs="+", required=True, metavar="TEXT", help='e.g. "left kidney" "lung nodule"')
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="PATH", help="model.pt of a training")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="label map: .nii.gz, .nii or .nrrd")
    parser.add_argument("--modality", choices=("CT", "MR"), help="where neither the file nor the checkpoint says it")
    parser.add_argument("--window", nargs="+", metavar="W", help="NAME or LEVEL WIDTH in HU; default: the training's")
    parser.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="default: the training's")
    parser.add_argument("--series", metavar="UID", help="SeriesInstanceUID, where a folder holds several")
    parser.add_argument("--threshold", type=float, default=0.5, help="probability from which a voxel counts (0.5)")
    parser.add_argument("--batch-size", type=int, default=4, help="slices per pass (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the attention sampling (0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, … (auto: a GPU if there is one)")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Segment; prints voxels found per prompt and the output's path as JSON on standard output."""
    from boltzformer_monai.engines.bundle import device_by_name
    from boltzformer_monai.inferers.segmenter import VolumeSegmenter, check_output, existing_scan

    # Everything that can be wrong is said before the work begins.
    check_output(arguments.output, arguments.image, arguments.checkpoint)
    existing_scan(arguments.image)
    segmenter = VolumeSegmenter.from_checkpoint(
        arguments.checkpoint, device=device_by_name(arguments.device), precision=arguments.precision
    )
    window = arguments.window
    inferer = segmenter.inferer(
        arguments.prompts,
        window=window[0] if window is not None and len(window) == 1 else window,
        plane=arguments.plane,
        modality=arguments.modality,
        batch_size=arguments.batch_size,
        threshold=arguments.threshold,
        seed=arguments.seed,
        progress=sys.stderr.isatty(),
    )
    voxels = segmenter.segment(
        arguments.image, arguments.output, inferer, series=arguments.series, modality=arguments.modality
    )
    sys.stdout.write(json.dumps({"output": str(arguments.output), "voxels": voxels}, ensure_ascii=False) + "\n")
    return 0
