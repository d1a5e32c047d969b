"""``boltzformer cross-validate``: train and evaluate all folds of a dataset, and pool their validation patients."""

from __future__ import annotations

import argparse
import copy
import logging
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.bundle_files import bundle_root
from boltzformer_monai.cli.bundle_command import add_options, bundle_overrides, run_bundle
from boltzformer_monai.cli.command_line import whole_number
from boltzformer_monai.cli.run_settings import require_same_settings, run_settings, working_alone
from boltzformer_monai.cli.train import AUTO, add_training_options, training_keys
from boltzformer_monai.data.split import MOST_FOLDS
from boltzformer_monai.errors import DatasetError
from boltzformer_monai.storage import file_sha256

_log = logging.getLogger(__name__)

_DESCRIPTION = """Train a model for every fold of a slice dataset, evaluate each on its validation patients, and pool.

    boltzformer cross-validate --data SLICES --output RUN --folds 5 --preset tiny --epochs 30

Writes RUN/fold_0, fold_1, … as `boltzformer train --folds 5 --fold K` does, and metrics.json, scores.csv and
report.html over the patients of all folds. The same command again goes on where it was.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "cross-validate", help="train and evaluate all folds of a dataset", description=_DESCRIPTION
    )
    parser.add_argument(
        "--folds", type=whole_number(2, MOST_FOLDS), default=5, metavar="N", help="by patient, over train and val (5)"
    )
    add_training_options(parser)
    add_options(parser)
    parser.set_defaults(run=run, kept="finished folds are kept; the same command goes on")


def run(options: argparse.Namespace) -> int:
    """Train what is not trained, evaluate what is not evaluated, pool, and print where the metrics are."""
    folders = [options.output / f"fold_{fold}" for fold in range(options.folds)]
    keys = {**training_keys(options), "folds": options.folds}
    overrides = bundle_overrides(options, {**keys, "fold": 0})
    from boltzformer_monai.engines.bundle import check_training

    root = bundle_root(options.bundle_root)
    checked, _ = check_training(overrides, root=root, overlays=options.config)
    keys["preset"] = checked.preset  # "auto" is what it means on this machine, for all folds
    settings = run_settings(options, keys)
    keys["resume"] = AUTO
    with working_alone(options.output):
        require_same_settings(options.output / "cross-validation.json", settings)
        from boltzformer_monai.data.slices.reader import SliceReader

        reader = SliceReader(options.data)
        for fold, folder in enumerate(folders):
            if not _is_trained(folder, reader, options.folds, fold):
                _log.info("fold %d of 0 to %d: training", fold, options.folds - 1)
                run_bundle("train", _at(options, folder), {**keys, "fold": fold})
            if not _is_trained(folder, reader, options.folds, fold):
                raise DatasetError(f"{folder} has no model after its training; see its log")
            if not _is_evaluated(folder):
                _evaluate(options, folder)
        _pool(options, folders)
    sys.stdout.write(f"{options.output / 'metrics.json'}\n")
    return 0


def _at(options: argparse.Namespace, output: Path, **changes: Any) -> argparse.Namespace:
    """The same options with another output folder."""
    other = copy.copy(options)
    vars(other).update(output=output, **changes)
    return other


def _is_trained(folder: Path, reader: Any, folds: int, fold: int) -> bool:
    """Whether a training has ended in this folder.

    Raises:
        DatasetError: it was that of another fold or dataset.
    """
    from boltzformer_monai.data.slices.folds import Fold, choose_fold
    from boltzformer_monai.engines.publish import MODEL_FOLDER
    from boltzformer_monai.models.config import read_config

    model = folder / MODEL_FOLDER
    if not model.is_dir() or not (folder / "model.pt").is_file():
        return False
    config = read_config(model)
    if config.checkpoint_sha256 != file_sha256(folder / "model.pt"):
        return False
    found = Fold.of(config.data)
    if found is None or found.as_dict() != choose_fold(reader, folds=folds, fold=fold).fold:
        of = "without folds" if found is None else f"on {found}"
        msg = f"{folder}: its model was trained {of}, not on fold {fold} of {folds} of the dataset as it is now"
        raise DatasetError(f"{msg}; choose another --output")
    return True


def _is_evaluated(folder: Path) -> bool:
    """Whether its evaluation is of its model."""
    from boltzformer_monai.models.card import read_metrics

    try:
        metrics = read_metrics(folder / "evaluation" / "metrics.json")
    except DatasetError:
        return False
    model = metrics.get("model")
    return isinstance(model, dict) and model.get("sha256") == file_sha256(folder / "model.pt")


def _evaluate(options: argparse.Namespace, folder: Path) -> None:
    from monai.bundle import ConfigParser

    # Settings and configurations are of the training, all but the planes: others' slices trained nothing.
    given = {**ConfigParser.load_config_files(options.config), **dict(options.settings)}
    alone = _at(options, folder / "evaluation", settings=[], config=[])
    checkpoint = str((folder / "model.pt").absolute())
    run_bundle("evaluate", alone, {"checkpoint": checkpoint, "split": "val", "planes": given.get("planes")})


def _pool(options: argparse.Namespace, folders: list[Path]) -> None:
    from boltzformer_monai.evaluation.pooling import pool_evaluations
    from boltzformer_monai.evaluation.report import write_report
    from boltzformer_monai.evaluation.tables import markdown_table, write_metrics_json, write_scores_csv
    from boltzformer_monai.registry import use_plugins

    use_plugins(options.plugins)  # metrics
    metrics, scores = pool_evaluations([folder / "evaluation" for folder in folders])
    write_scores_csv(scores, options.output / "scores.csv")
    write_report(options.output / "report.html", title=f"Cross-validation, {len(folders)} folds", metrics=metrics)
    write_metrics_json(metrics, options.output / "metrics.json")
    _log.info("all folds are trained and evaluated; results are in %s\n%s", options.output, markdown_table(metrics))
