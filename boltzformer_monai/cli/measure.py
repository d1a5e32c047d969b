"""``boltzformer measure``: list and measure the lesions of a label map, DICOM SEG or RTSTRUCT."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from boltzformer_monai.cli.command_line import IN_DOUBT, real_number
from boltzformer_monai.cli.report import HELP, SR, check_report
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import set_memory_gb

__all__ = ["LARGEST_LIMIT", "add_limits", "add_parser", "check_outputs", "label_names", "run"]

if TYPE_CHECKING:
    from boltzformer_monai.findings.measure import MeasuredTarget
    from boltzformer_monai.io.volume import Volume

LARGEST_LIMIT = 1e6
"""Of the volume in ml and the diameter in mm from which a component is a lesion."""
_NONE = np.zeros((0, 0, 0), np.int32)
_log = logging.getLogger(__name__)

_DESCRIPTION = """List the connected components of every target, the largest first: volume, long and short axis,
diameter, place, intensities. Without --json the list goes to standard output as JSON.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("measure", help="list and measure the lesions of a mask", description=_DESCRIPTION)
    add = parser.add_argument
    add("labels", type=Path, metavar="LABELS", help="label map, DICOM SEG or RTSTRUCT on the grid of the scan")
    add("--image", type=Path, required=True, metavar="SCAN", help="NIfTI, NRRD or MetaImage file, or DICOM folder")
    add("--json", type=Path, metavar="FILE", help="write the list here")
    add("--csv", type=Path, metavar="FILE", help="write it as a table")
    add("--report", type=Path, metavar="FILE", help=HELP)
    add(
        "--names", nargs="+", default=[], metavar="VALUE=NAME",
        help='names of label values, e.g. 1="liver lesion"; default: the file\'s, or those in the JSON that segment '
        "wrote beside it",
    )  # fmt: skip
    add_limits(parser)
    add("--modality", metavar="CT|MR", help="of a scan that does not state it; without it intensities may be no HU")
    add("--series", metavar="UID", help="SeriesInstanceUID, for folders with several")
    add("--memory-gb", metavar="GB", help="memory limit for reading a scan (half of the machine's)")
    parser.set_defaults(run=run)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the sizes from which a component is a lesion."""
    for unit, metavar, what in (("ml", "ML", "volume"), ("mm", "MM", "largest diameter")):
        parser.add_argument(
            f"--lesion-min-{unit}", type=real_number(0, LARGEST_LIMIT), default=0.0, metavar=metavar,
            help=f"{what} from which a component counts (all)",
        )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure, and write what was asked for; 4 where a caveat puts the result in doubt."""
    if arguments.memory_gb is not None:
        set_memory_gb(arguments.memory_gb)
    inputs = [arguments.labels, arguments.image]
    check_outputs({".json": arguments.json, ".csv": arguments.csv}, inputs=inputs)
    if arguments.report is not None:
        check_report(arguments.report, arguments.image, series=arguments.series, inputs=inputs)
    from boltzformer_monai.findings.measure import measure_targets
    from boltzformer_monai.findings.record import lesions_record, read_drawn
    from boltzformer_monai.findings.structured_report import shortened
    from boltzformer_monai.findings.tables import write_lesions_csv
    from boltzformer_monai.storage import write_json

    scan, drawn = read_drawn(
        arguments.labels,
        arguments.image,
        names=label_names(arguments.labels, arguments.names),
        modality=arguments.modality,
        series=arguments.series,
    )
    limits = {"minimum_ml": arguments.lesion_min_ml, "minimum_mm": arguments.lesion_min_mm}
    # Without the numbers of their voxels, of which one target's are in memory at a time
    measured = [replace(each, box=(slice(0, 0),) * 3, inside=_NONE) for each in measure_targets(drawn, scan, **limits)]
    targets = [target.as_dict() for target in measured]
    folder = Path.cwd() if arguments.json is None else arguments.json.absolute().parent
    files = {"labels": arguments.labels, "image": arguments.image}
    record = lesions_record(
        targets,
        scan,
        files={name: os.path.relpath(path.absolute(), folder) for name, path in files.items()},
        series=arguments.series,
        **limits,
    )
    if arguments.csv is not None:
        rows = (
            {"scan": "", "value": target["value"], "name": target["name"], **lesion}
            for target in targets
            for lesion in target["lesions"]
        )
        write_lesions_csv(arguments.csv, rows)
    if arguments.report is not None:
        _write_report(arguments, scan, measured)
    if arguments.json is not None:
        write_json(arguments.json, record)
        counts: dict[str, int] = {}  # several segments may have one name
        for target in targets:
            counts[target["name"]] = counts.get(target["name"], 0) + len(target["lesions"])
        line: dict[str, Any] = {"output": str(arguments.json), "lesions": counts, "in_doubt": record["in_doubt"]}
        if arguments.report is not None and arguments.report.name.lower().endswith(SR):
            note = shortened(sum(counts.values()))
            line |= {} if note is None else {"report_note": note}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    for caveat in scan.caveats:
        _log.warning("%s", caveat.text)
    return IN_DOUBT if record["in_doubt"] else 0


def _write_report(arguments: argparse.Namespace, scan: Volume, measured: Sequence[MeasuredTarget]) -> None:
    from boltzformer_monai import __version__
    from boltzformer_monai.data.planes import plane_of_axis
    from boltzformer_monai.findings.lesions import acquisition_axis
    from boltzformer_monai.findings.record import size_remarks
    from boltzformer_monai.findings.report_page import PageTarget, write_report_page
    from boltzformer_monai.findings.structured_report import ReportedTarget, write_structured_report
    from boltzformer_monai.inferers.prompt_codes import segment_code
    from boltzformer_monai.io.segmentation import find_dicom_seg

    limits = size_remarks(arguments.lesion_min_ml, arguments.lesion_min_mm)
    remarks = [*limits, *(caveat.text for caveat in scan.caveats)]
    if not arguments.report.name.lower().endswith(SR):
        facts = {
            "masks": arguments.labels.name,
            "scan": arguments.image.name,
            "modality": scan.modality,
            "spacing": " × ".join(f"{mm:.3g}" for mm in scan.spacing) + " mm",
            "slices": plane_of_axis(scan, acquisition_axis(scan)),
            "lesions": "voxels that touch by face, edge or corner",
            "package": f"boltzformer-monai {__version__}",
        }
        pages = [PageTarget(each.name, each.volume_ml, each.lesions) for each in measured]
        write_report_page(arguments.report, targets=pages, facts=facts, remarks=remarks)
        return
    seg = find_dicom_seg(arguments.labels)
    targets = [
        ReportedTarget(
            each.name,
            each.lesions,
            segment_code(each.name),
            each.value if seg is not None and isinstance(each.value, int) else None,
        )
        for each in measured
    ]
    write_structured_report(
        arguments.report, scan=arguments.image, series=arguments.series, grid=scan, targets=targets, seg=seg,
        algorithm="boltzformer measure", version=__version__, remarks=["Research use only", *remarks],
    )  # fmt: skip


def label_names(labels: Path, pairs: Sequence[str]) -> dict[str, str]:
    """Names of label values: the user's, else the prompts in the manifest that ``segment`` wrote beside a label map.

    Raises:
        ConfigError: one of the user's is not ``VALUE=NAME``.
    """
    names = {}
    for pair in pairs:
        value, equals, name = pair.partition("=")
        if not (value.strip() and equals and name.strip()):
            raise ConfigError(f'--names takes VALUE=NAME, e.g. 1="liver lesion", not {pair[:60]!r}')
        number = value.strip()
        if number.strip("0") == "":
            raise ConfigError(f"--names: the value 0 is the background of a label map, not {name.strip()[:60]!r}")
        if number in names:
            raise ConfigError(f"--names gives the value {number} two names; leave one out")
        names[number] = name.strip()
    return names or _names_beside(labels)


def _names_beside(labels: Path) -> dict[str, str]:
    from boltzformer_monai.inferers.result_manifest import read_manifest
    from boltzformer_monai.inferers.run_settings import DICOM_ENDINGS, ENDINGS, beside

    images = [each for each in ENDINGS if each not in DICOM_ENDINGS]
    ending = next((each for each in images if labels.name.lower().endswith(each)), None)
    if ending is None:
        return {}  # DICOM objects have names of their own
    try:
        manifest = read_manifest(beside(Path(str(labels)[: -len(ending)]), ".json"))
    except ConfigError:
        return {}
    if not any(file["name"] == ending and _is_size(labels, file["bytes"]) for file in manifest.get("files", [])):
        return {}
    try:
        return {str(int(each["label"])): str(each["prompt"]) for each in manifest["prompts"]}
    except (KeyError, TypeError, ValueError):
        return {}  # damaged: the label map is still what it is


def _is_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def check_outputs(outputs: Mapping[str, Path | None], *, inputs: Sequence[Path]) -> None:
    """Refuse files (by their ending) that cannot be written, or would replace an input.

    Raises:
        ConfigError: one has another ending, or is a folder or an input.
    """
    for ending, path in outputs.items():
        if path is None:
            continue
        if path.suffix.lower() != ending:
            raise ConfigError(f"cannot write {path}: it must end in {ending}")
        if path.is_dir():
            raise ConfigError(f"cannot write {path}: it is a folder")
        if any(path.resolve() == each.resolve() for each in inputs):
            raise ConfigError(f"cannot write {path}: it is an input, which would be lost; give another name")
