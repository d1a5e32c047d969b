"""``boltzformer search``: train at many settings, in several processes, and name the best."""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.util
import logging
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli.bundle_command import FIXED_KEYS, add_options, bundle_overrides
from boltzformer_monai.cli.command_line import run_parsed, whole_number
from boltzformer_monai.cli.run_settings import require_same_settings, run_settings, working_alone
from boltzformer_monai.cli.train import AUTO, add_training_options, training_keys
from boltzformer_monai.csv_cells import to_cell
from boltzformer_monai.data.split import MOST_FOLDS, check_folds
from boltzformer_monai.errors import ConfigError, DivergenceError
from boltzformer_monai.limits import read_json
from boltzformer_monai.parallel import end_with_parent
from boltzformer_monai.storage import replacing, write_json

if TYPE_CHECKING:
    from boltzformer_monai.engines.search import Point, Search
    from boltzformer_monai.engines.search_space import Space

_log = logging.getLogger(__name__)

_DESCRIPTION = """Train at many settings and compare by the key metric.

    boltzformer search --data SLICES --output SEARCH --preset hiera_s --grid paper
    boltzformer search --data SLICES --output SEARCH --preset tiny --space space.json --points 30 --workers 2
    boltzformer train --data SLICES --output RUN --config SEARCH/best.json

--grid trains every combination of choices, --space draws points by Optuna; docs/how-to/training.md has the form of
the files. The same command started again, also meanwhile and on other machines with the same folder, works on the
same search.
"""
_PAPER = "paper"
_POINTS = 20
# Set for every point, or alike for all of them.
_RESERVED = (*FIXED_KEYS, "dataset_dir", "demo_dir", "output_dir", "device", "plugins", "folds", "fold", "resume")
# What the validation loss is computed with, or on.
_CHANGE_THE_LOSS = (
    "preset", "defaults", "settings", "loss", "validate", "image_size", "mask_size", "prompts_per_image",
    "settings_overrides#balance", "settings_overrides#empty_weight", "settings_overrides#negatives",
    "settings_overrides#mask_size",
)  # fmt: skip
_VAL_LOSS = "val_loss"


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("search", help="train at many settings and name the best", description=_DESCRIPTION)
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--grid",
        metavar="NAME|FILE",
        help="all combinations: paper (4 learning rates × 3 weight decays) or a JSON file",
    )
    what.add_argument("--space", type=Path, metavar="FILE", help="ranges and choices to draw from, a JSON file")
    add("--points", type=whole_number(1), metavar="N", help=f"how many to draw with --space ({_POINTS})")
    add("--workers", type=whole_number(1, 256), default=1, metavar="N", help="processes on this machine (1)")
    add_training_options(parser)
    add("--folds", type=whole_number(2, MOST_FOLDS), metavar="N", help="as of train, for all points alike")
    add("--fold", type=whole_number(0, MOST_FOLDS - 1), metavar="K", help="as of train, for all points alike")
    add_options(parser)
    parser.set_defaults(run=run, worker=0, kept="finished points are kept; the same command goes on")


def run(options: argparse.Namespace) -> int:
    """Do all points, write the table and the best settings, and print where these are."""
    check_folds(options.folds, options.fold)
    if options.points is not None and options.space is None:
        raise ConfigError("--points is for --space; a grid has all its points")
    missing = [name for name in ("optuna", "pydantic") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"a search needs {' and '.join(missing)}; pip install 'boltzformer-monai[search]'")
    keys = {**training_keys(options), "folds": options.folds, "fold": options.fold}
    overrides = bundle_overrides(options, keys)
    space = _space(options)
    points = None if options.space is None else options.points or _POINTS
    overrides, metric = _check(space, points, overrides, options)
    keys["preset"] = overrides.get("preset")
    settings = run_settings(options, {**keys, "grid" if options.space is None else "space": space.content})
    with working_alone(options.output, timeout=-1):
        require_same_settings(options.output / "search.json", settings)

    from boltzformer_monai.engines.key_metric import find_key_metric
    from boltzformer_monai.engines.search import Search

    known = find_key_metric(metric)
    minimise = known is None or known.better == "lower"
    search = Search(options.output, space, points=points, minimise=minimise, seed=options.seed or 0)
    name = _VAL_LOSS if known is None else f"val_{metric}"
    with _other_workers(options):
        search.work(_training(options, overrides, name=name, minimise=minimise))
    if options.worker:
        return 0
    best = _write_results(search, name=name, overlay=_overlay(overrides), output=options.output)
    sys.stdout.write(f"{best}\n")
    return 0


def _space(options: argparse.Namespace) -> Space:
    from boltzformer_monai.engines.search_space import PAPER, Space

    if options.grid == _PAPER:
        return Space(PAPER)
    return Space.read(Path(options.grid) if options.space is None else options.space)


def _check(
    space: Space, points: int | None, overrides: Mapping[str, Any], options: argparse.Namespace
) -> tuple[dict[str, Any], str]:
    """Check the space's keys and the ends of its ranges before anything is trained.

    Returns:
        The overrides with the preset, and the key metric.
    """
    from boltzformer_monai.engines.bundle import check_training

    if points is None:
        space.grid()
    for key in space.dimensions:
        if key in _RESERVED or key == "key_metric":
            raise ConfigError(f"{key} is the same for all points of a search; take it out of the space")
        if key in overrides:
            raise ConfigError(f"{key} is in the space, and given as an option too; leave one out")
    known, metric, root = dict(overrides), "", bundle_root(options.bundle_root)
    for corner in space.corners():
        settings, metric = check_training({**known, **corner}, root=root, overlays=options.config)
        if "preset" not in space.dimensions:  # "auto" is what it means on this machine, here and on all others
            known["preset"] = settings.preset
    changing = [
        key for key in space.dimensions if any(key == part or key.startswith(f"{part}#") for part in _CHANGE_THE_LOSS)
    ]
    if metric == _VAL_LOSS and changing:
        msg = f"{changing[0]} changes what the validation loss measures, so points would not compare"
        raise ConfigError(f"{msg}; choose another metric, e.g. --set key_metric=dice")
    return known, metric


def _training(
    options: argparse.Namespace, overrides: Mapping[str, Any], *, name: str, minimise: bool
) -> Callable[[Mapping[str, Any], Path], float]:
    """The objective: the best key metric of a training."""
    from boltzformer_monai.engines.bundle import run_workflow

    root = bundle_root(options.bundle_root)
    given = {**overrides, **_device(options), "resume": AUTO}

    def train(settings: Mapping[str, Any], folder: Path) -> float:
        of_point = {**given, **settings, "output_dir": str(folder.absolute())}
        run_workflow("train", of_point, root=root, overlays=options.config)
        rows = read_json(folder / "history.json")
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if not values:
            raise DivergenceError(f"{name} had no value in any validation")
        return float(min(values) if minimise else max(values))

    return train


def _device(options: argparse.Namespace) -> dict[str, str]:
    """Workers share the GPUs of this machine, or its cores."""
    import torch

    if options.workers == 1 or options.device is not None:
        return {}
    if count := torch.cuda.device_count():
        return {"device": f"cuda:{options.worker % count}"}
    torch.set_num_threads(max(1, torch.get_num_threads() // options.workers))
    return {}


@contextmanager
def _other_workers(options: argparse.Namespace) -> Iterator[None]:
    """Run the other processes meanwhile; they end with this one."""
    context = multiprocessing.get_context("spawn")
    children = []
    for number in range(1, options.workers if options.worker == 0 else 1):
        other = copy.copy(options)
        other.worker = number
        child = context.Process(target=_work, args=(other,), name=f"worker {number}")
        child.start()
        children.append(child)
        _log.info("worker %d writes its messages into %s", number, _log_of(other))
    try:
        yield
    except BaseException:
        for child in children:
            child.terminate()
        raise
    finally:
        for child in children:
            child.join()
            if child.exitcode:
                _log.warning("%s ended with code %d", child.name, child.exitcode)


def _log_of(options: argparse.Namespace) -> Path:
    return Path(options.output) / f"worker_{options.worker}.log"


def _work(options: argparse.Namespace) -> None:
    """Another worker's process."""
    end_with_parent()
    with _log_of(options).open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    sys.exit(run_parsed(lambda: options))


def _overlay(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a later training shall have in common with the points."""
    return {key: value for key, value in overrides.items() if key not in _RESERVED}


def _write_results(search: Search, *, name: str, overlay: Mapping[str, Any], output: Path) -> Path:
    """Write ``points.csv`` and ``best.json``, and log the table.

    Raises:
        ConfigError: no point succeeded.
    """
    from boltzformer_monai.evaluation.tables import markdown_line

    points = search.points()
    columns = ["point", *search.space.dimensions, name, "state", "minutes", "reason"]
    rows = [_row(point, columns[1:-4]) for point in points]
    with replacing(output / "points.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerows([columns, *([to_cell(cell) for cell in row] for row in rows)])
    lines = [columns, ["---"] * len(columns), *rows]
    _log.info("%d points; the table is %s\n%s", len(rows), output / "points.csv", "\n".join(map(markdown_line, lines)))
    best = points[0] if points and points[0].state == "done" else None
    if best is None:
        raise ConfigError(f"no point of the search came to an end; {output / 'points.csv'} says why")
    write_json(output / "best.json", {**overlay, **best.settings}, indent=4)
    _log.info(
        "the best is point %d, trained in %s; as a configuration: train --config %s",
        best.number,
        search.place(best.number),
        output / "best.json",
    )
    return output / "best.json"


def _row(point: Point, keys: Sequence[str]) -> list[str]:
    value = "" if point.value is None else f"{point.value:.6g}"
    minutes = "" if point.minutes is None else f"{point.minutes:.1f}"
    settings = (str(point.settings[key]) for key in keys)
    return [str(point.number), *settings, value, point.state, minutes, point.reason]
