"""Train the demo's data and see where the sampling looks: Dice, focus by layer and the Dice with another slice's V.

    python benchmarks/focus.py --data runs/demo/data/slices --output runs/focus --seed 0 --seed 1 --json FILE
    python benchmarks/focus.py --data … --output … --arm both --network base_temperature=2 --json FILE

One training and evaluation (`boltzformer train`, `evaluate --focus` on the split `test`) per arm and seed; one that is
done is read again. An arm that evaluates another's training, or goes on from it, needs that one first. With the demo's
2,160 training slices 3 epochs of batches of 8 are 810 steps, the preset's 6 are 1,620. Where there are several arms and
seeds, the differences of Dice between every two arms are tested by seed.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.bundle_files import bundle_root  # noqa: E402
from boltzformer_monai.engines.bundle import run_workflow  # noqa: E402
from boltzformer_monai.evaluation.focus import focus_table, verdict  # noqa: E402
from boltzformer_monai.evaluation.tables import markdown  # noqa: E402
from boltzformer_monai.storage import write_json  # noqa: E402
from boltzformer_monai.studies.statistics import paired_difference  # noqa: E402


@dataclass(frozen=True)
class Arm:
    """How an arm trains and is evaluated.

    Attributes:
        network: settings that replace the preset's.
        training: as well.
        keys: of the training's configuration.
        evaluation: keys of the evaluation's configuration.
        trained: another arm, whose training this one evaluates.
        start: another arm, with whose weights of the same seed this one's training starts.
    """

    network: Mapping[str, Any]
    training: Mapping[str, Any]
    keys: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    trained: str | None = None
    start: str | None = None


_BILINEAR, _MAX = {"level_logits": "bilinear"}, {"level_logits": "max"}
_NONE, _LAYERS = {"layer_supervision": 0.0}, {"layer_supervision": 0.5, "layer_supervision_stride": 1}
_COARSE = {**_LAYERS, "layer_supervision_stride": 2}
ARMS = {
    "paper": Arm(_BILINEAR, _NONE),
    "layers": Arm(_BILINEAR, _LAYERS),
    "max": Arm(_MAX, _NONE),
    "both": Arm(_MAX, _LAYERS),
    "both_stride_2": Arm(_MAX, _COARSE),
    # One more change each:
    "mask_bias_0": Arm({**_MAX, "mask_bias": 0.0}, _COARSE),
    "at_least_one": Arm({**_MAX, "policy_settings": {"at_least_one": True}}, _COARSE),
    "tau_2": Arm({**_MAX, "base_temperature": 2.0}, _COARSE),
    "fresh_draws": Arm(_MAX, _COARSE, evaluation={"fresh_draws": True}, trained="both_stride_2"),
    # As many epochs again, with the schedule from its start:
    "paper_longer": Arm(_BILINEAR, _NONE, start="paper"),
    "both_longer": Arm(_MAX, _COARSE, start="both_stride_2"),
    "384_pixels": Arm(_MAX, _COARSE, {"image_size": 384}),
}
TARGETS = ("liver", "left kidney", "liver lesion", "lung nodule")


def setting(text: str) -> tuple[str, Any]:
    """``KEY=VALUE``, a Python literal or text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def run(arm: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Metrics of an arm with one seed."""
    how = ARMS[arm]
    settings = {
        "dataset_dir": str(arguments.data.absolute()),
        "seed": seed,
        "preset": "tiny",
        "image_size": arguments.image_size,
        "network_overrides": {**how.network, **dict(arguments.network)},
        "settings_overrides": {**how.training, **dict(arguments.training)},
        **({} if arguments.epochs is None else {"epochs": arguments.epochs}),
        **how.keys,
    }
    output = arguments.output.absolute()
    folder = output / f"{arm}_{seed}"
    needed = how.start or how.trained
    other = output / f"{needed}_{seed}" / "model.pt"
    if needed is not None and not other.is_file():
        raise SystemExit(f"{arm}, seed {seed}: there is no {other}; train it first, by --arm {needed} --seed {seed}")
    if how.start is not None:
        settings["init_from"] = {"model": str(other)}
    done = folder / "done.json"
    if done.is_file():
        known = json.loads(done.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            return dict(known["metrics"])
    model = other if how.trained else folder / "model.pt"
    minutes = {"processor": 0.0}  # trainings may run beside each other, and be paused
    if how.trained is None:
        processor = time.process_time()
        run_workflow("train", {**settings, "output_dir": str(folder), "overlays": 0}, root=bundle_root())
        minutes = {"processor": (time.process_time() - processor) / 60}
    evaluation = {"dataset_dir": settings["dataset_dir"], "output_dir": str(folder), "split": arguments.split}
    evaluation |= {"checkpoint": str(model), "focus": True, **how.evaluation}
    run_workflow("evaluate", evaluation, root=bundle_root())
    metrics = {**json.loads((folder / "metrics.json").read_text(encoding="utf-8")), "minutes": minutes}
    write_json(done, {"settings": settings, "metrics": metrics})
    return metrics


def rows_of(name: str, metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The record's rows of one training."""
    slices, focus = metrics["slices"], metrics["focus"]
    groups = {target: focus["by_target"][target] for target in TARGETS if target in focus["by_target"]}
    found = [
        result(f"{name}: mean Dice", slices["overall"]["dice"]["mean"], "Dice"),
        result(f"{name}: mean 3-D Dice", metrics["volumes"]["overall"]["dice"]["mean"], "Dice"),
        result(f"{name}: missed", slices["overall"]["missed"]["mean"], "share"),
        result(f"{name}: absent, answered", slices["overall"]["false_positive_rate"]["mean"], "share"),
        result(f"{name}: training, processor", metrics["minutes"]["processor"], "min"),
    ]
    for target, entry in {**groups, "below 1 %": focus["small"]}.items():
        found += [
            result(f"{name}: {target}, slices", entry["dice"]["cases"], "n"),
            result(f"{name}: {target}, Dice", entry["dice"]["mean"], "Dice"),
            result(f"{name}: {target}, another V", entry["swapped_dice"]["mean"], "Dice"),
            *(
                result(f"{name}: {target}, focus {number}", layer["focus"]["mean"], "times chance")
                for number, layer in enumerate(entry["layers"], start=1)
            ),
        ]
    return found


def differences(found: Mapping[str, Mapping[int, Mapping[str, Any]]], arm: str, against: str) -> list[dict[str, Any]]:
    """The record's rows of the differences of Dice between two arms, seed by seed."""
    rows = []
    for part in (*TARGETS, "below 1 %", "all"):
        pairs = [tuple(dice_of(found[each][seed], part) for each in (arm, against)) for seed in found[arm]]
        paired = paired_difference([one - other for one, other in pairs if one is not None and other is not None])
        name = f"{arm} − {against}: {part}, Dice"
        rows += [
            result(f"{name}, {value}", getattr(paired, value), unit)
            for value, unit in {"mean": "Dice", "low": "Dice", "high": "Dice", "p": "", "n": "seeds"}.items()
            if getattr(paired, value) is not None
        ]
    return rows


def dice_of(metrics: Mapping[str, Any], part: str) -> float | None:
    """Mean Dice of a target, of small objects, or over the targets (``"all"``)."""
    if part == "all":
        return metrics["slices"]["overall"]["dice"]["mean"]  # type: ignore[no-any-return]
    focus = metrics["focus"]
    entry = focus["small"] if part == "below 1 %" else focus["by_target"].get(part)
    return None if entry is None else entry["dice"]["mean"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="slice dataset, e.g. of make demo")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--arm", action="append", choices=ARMS, help="repeat for several (paper and both_stride_2)")
    parser.add_argument("--seed", type=int, action="append", help="repeat for several (0)")
    parser.add_argument("--epochs", type=int, metavar="N", help="of the training (the preset's)")
    parser.add_argument("--image-size", type=int, default=192, metavar="PIXELS")
    parser.add_argument("--split", default="test")
    parser.add_argument("--network", type=setting, action="append", default=[], metavar="KEY=VALUE", help="of all arms")
    parser.add_argument(
        "--training", type=setting, action="append", default=[], metavar="KEY=VALUE", help="of all arms"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows = []
    arms = arguments.arm or ["paper", "both_stride_2"]
    found: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    for seed in arguments.seed or [0]:
        for arm in arms:
            focus = (metrics := run(arm, seed, arguments))["focus"]
            print(f"\n{arm}, seed {seed}: {verdict(focus)}\n{markdown(*focus_table(focus))}")
            rows += rows_of(f"{arm} {seed}", metrics)
            found[arm][seed] = metrics
    for against, arm in combinations(arms, 2):
        rows += differences(found, arm, against)
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
