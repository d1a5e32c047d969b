"""``boltzformer compare``: what became of the lesions between two scans of a patient."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzformer_monai.cli.command_line import IN_DOUBT, real_number
from boltzformer_monai.cli.measure import LARGEST_LIMIT, add_limits, check_outputs, label_names
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import set_memory_gb

if TYPE_CHECKING:
    from boltzformer_monai.caveats import Caveat
    from boltzformer_monai.findings.compare import Comparison
    from boltzformer_monai.findings.follow_up import TimePoint

__all__ = ["add_parser", "run"]

_log = logging.getLogger(__name__)
_FORMAT = "boltzformer-comparison"

_DESCRIPTION = """Match the lesions of an earlier and a later scan of a patient one to one: new, gone, grown, shrunk,
stable. Scans with different frames of reference are registered first (rigid, mutual information).
"""
_EPILOG = """\
EARLIER and LATER are JSON files of boltzformer measure, which name their scans; or label maps, DICOM SEG, RTSTRUCT or
OUT.json of segment, with the scans after --images. Exit codes: 0 success, 2 wrong call, other patients or scans that do
not agree, 4 a caveat puts the result in doubt."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare", help="compare the lesions of two scans of a patient", description=_DESCRIPTION, epilog=_EPILOG
    )
    add = parser.add_argument
    add("earlier", type=Path, metavar="EARLIER", help="list of lesions or annotation of the earlier scan")
    add("later", type=Path, metavar="LATER", help="of the later one")
    add("--images", nargs=2, type=Path, metavar="SCAN", help="the earlier and the later scan")
    add("--json", type=Path, metavar="FILE", help="write the result here; without it, to standard output")
    add("--report", type=Path, metavar="FILE", help="write a page, .html")
    add("--days", type=real_number(1e-3, 1e5), metavar="N", help="between the scans (by the dates in DICOM headers)")
    add(
        "--change", type=real_number(1e-3, 100), default=0.25, metavar="SHARE",
        help="of the earlier volume, from which a lesion is grown (0.25); shrunk is the reverse",
    )  # fmt: skip
    add(
        "--same-patient",
        action="store_true",
        help="both scans are of one patient although their headers differ, or state nothing and the scans differ",
    )
    add("--names", nargs="+", default=[], metavar="VALUE=NAME", help="names of label values, for label maps")
    add_limits(parser)
    add("--modality", metavar="CT|MR", help="of scans that do not state it")
    add("--memory-gb", metavar="GB", help="memory limit for reading a scan (half of the machine's)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare, and write what was asked for; 4 where a caveat puts the result in doubt."""
    if arguments.memory_gb is not None:
        set_memory_gb(arguments.memory_gb)
    inputs = [arguments.earlier, arguments.later, *(arguments.images or ())]
    check_outputs({".json": arguments.json, ".html": arguments.report}, inputs=inputs)
    from boltzformer_monai import __version__
    from boltzformer_monai.findings.follow_up import compare_time_points
    from boltzformer_monai.storage import write_json

    images = arguments.images or (None, None)
    points = [
        _time_point(path, image, arguments)
        for path, image in zip((arguments.earlier, arguments.later), images, strict=True)
    ]
    result, caveats = compare_time_points(
        *_of_one_size(points), days=arguments.days, change=arguments.change, same_patient=arguments.same_patient
    )
    in_doubt = any(caveat.doubtful for caveat in caveats)
    content: dict[str, Any] = {
        "format": _FORMAT,
        "version": 1,
        "package": __version__,
        **result.as_dict(),
        "change": arguments.change,
        "caveats": [caveat.as_dict() for caveat in caveats],
        "in_doubt": in_doubt,
    }
    if arguments.report is not None:
        _write_page(arguments.report, result, caveats, arguments.change)
    if arguments.json is not None:
        write_json(arguments.json, content)
        line = {"output": str(arguments.json), **content["counts"], "in_doubt": in_doubt}
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for caveat in caveats:
        _log.warning("%s", caveat.text)
    return IN_DOUBT if in_doubt else 0


def _time_point(path: Path, image: Path | None, arguments: argparse.Namespace) -> TimePoint:
    """The annotation and scan that an argument names.

    Raises:
        ConfigError: a JSON file is no list of lesions and no result of ``segment``, or the scan is not known.
    """
    from boltzformer_monai.findings.follow_up import TimePoint
    from boltzformer_monai.findings.record import read_record

    limits = {"minimum_ml": arguments.lesion_min_ml, "minimum_mm": arguments.lesion_min_mm}
    labels, series, modality = path, None, arguments.modality
    names = None
    looked_for: list[str] = []
    if path.suffix.lower() == ".json":
        result = _labels_of_result(path)
        record = read_record(path) if result is None else result[1]
        try:
            if result is not None:
                labels = result[0]
                looked_for = [str(each["prompt"]) for each in record["prompts"]]
            else:
                labels = path.parent / record["files"]["labels"]
                image = image or path.parent / record["files"]["image"]
                series = record["series"]
                names = {
                    str(each["value"]): str(each["name"])
                    for each in record["targets"]
                    if each["name"] and each["name"] != str(each["value"])
                }
            modality = modality or (record["modality"] if record["modality"] in ("CT", "MR") else None)
            limits = {
                name: limits[name] or _limit(record[f"lesion_min_{name.removeprefix('minimum_')}"]) for name in limits
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            again = "measure" if result is None else "segment"
            raise ConfigError(f"{path}: is damaged ({error}); {again} again") from None
    if image is None:
        raise ConfigError(f"{path}: does not say on which scan it was made; give both scans with --images")
    if names is None or arguments.names:
        names = label_names(labels, arguments.names)
    return TimePoint(labels, image, names, modality, series, **limits, looked_for=looked_for)


def _limit(stated: Any) -> float:
    limit = float(stated)
    if not 0 <= limit <= LARGEST_LIMIT:
        raise ValueError(f"a size of {limit:g} from which lesions are listed")
    return limit


def _of_one_size(points: Sequence[TimePoint]) -> list[TimePoint]:
    """The same with the larger one of different limits: else what one list left out is new or gone in the other."""
    limits = {name: max(getattr(each, name) for each in points) for name in ("minimum_ml", "minimum_mm")}
    if any(getattr(each, name) != limit for each in points for name, limit in limits.items()):
        text = " and ".join(f"{limit:g} {name.removeprefix('minimum_')}" for name, limit in limits.items() if limit)
        _log.warning("the two lists leave out lesions of different sizes; both are compared from %s on", text)
    return [replace(each, **limits) for each in points]


def _labels_of_result(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The label map or SEG of a manifest of ``segment``, and the manifest; ``None`` for another JSON."""
    from boltzformer_monai.inferers.result_manifest import read_manifest
    from boltzformer_monai.inferers.run_settings import ENDINGS, beside

    try:
        manifest = read_manifest(path)
    except ConfigError:
        return None
    if not manifest:
        raise ConfigError(f"{path}: no such file, or a result of another version; give its label map")
    files = [str(each["name"]) for each in manifest["files"] if str(each["name"]) in ENDINGS]
    if not files:
        raise ConfigError(f"{path}: its result is no single label map or DICOM SEG; give the mask to compare")
    return beside(path.with_suffix(""), files[0]), manifest


def _write_page(path: Path, result: Comparison, caveats: tuple[Caveat, ...], change: float) -> None:
    from boltzformer_monai.evaluation.html import write_html

    registration = result.registration
    facts = {"registration": registration.method}
    if registration.similarity is not None and registration.overlap is not None:
        facts["agreement after registration"] = f"{registration.similarity:.2f}, overlap {registration.overlap:.2f}"
        if registration.detail is not None:
            facts["agreement in detail"] = f"{registration.detail:.2f}"
        facts["moved by"] = f"{registration.shift_mm:.1f} mm, turned by {registration.rotation_degrees:.1f}°"
    facts["days between the scans"] = "not known" if result.days is None else f"{result.days:g}"
    facts["grown, shrunk"] = f"from +{100 * change:.3g} % and −{100 * change / (1 + change):.3g} % of the volume on"
    write_html(
        path,
        "comparison.html",
        package="boltzformer_monai.findings",
        title="Lesions: earlier and later",
        counts=result.as_dict()["counts"],
        pairs=result.pairs,
        new=result.new,
        gone=result.gone,
        not_compared=result.not_compared,
        caveats=[caveat.text for caveat in caveats],
        facts=facts,
    )
