"""A training of seconds that is killed or stopped on the way.

``python -m tests.engines.small_training DATASET OUTPUT [OVERRIDES [MOMENT]]``; the last two are JSON. A moment is
``{"signal": …, "after": seconds}`` since the training started, or ``{"signal": …, "in": "validation", "count": n}``.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from tests.networks.cases import SMALL

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"
EPOCHS = 3


def settings(dataset: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """Of the bundle: three epochs of a few steps, each validated, a state after every step."""
    return {
        "dataset_dir": str(dataset),
        "output_dir": str(output),
        "device": "cpu",
        "preset": "tiny",
        "image_size": 64,
        "epochs": EPOCHS,
        "val_interval": 1,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "save_steps": 1,
        "network_overrides": {key: value for key, value in SMALL.items() if key != "image_size"},
        **overrides,
    }


def send(moment: dict[str, Any]) -> None:
    """Send a signal to this process at a moment of its training."""
    from monai.engines import SupervisedEvaluator, SupervisedTrainer

    from boltzformer_monai.engines.sampler import EpochSampler

    number = signal.Signals[moment["signal"]]
    if "after" in moment:
        run = SupervisedTrainer.run

        def timed(trainer: SupervisedTrainer) -> None:
            timer = threading.Timer(moment["after"], os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
            run(trainer)

        SupervisedTrainer.run = timed  # type: ignore[method-assign]
        return
    owner: Any = {"validation": SupervisedEvaluator, "step": EpochSampler}[moment["in"]]
    name = {"validation": "_iteration", "step": "seed_step"}[moment["in"]]
    original = getattr(owner, name)
    seen = []

    def counted(self: Any, *arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == moment["count"]:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    setattr(owner, name, counted)


def main(dataset: str, output: str, overrides: str = "{}", moment: str = "null") -> None:
    """Train as the bundle does."""
    import torch

    from boltzformer_monai.engines.bundle import one_line_errors, run_workflow

    torch.set_num_threads(1)
    one_line_errors()
    if when := json.loads(moment):
        send(when)
    given = settings(Path(dataset), Path(output), **json.loads(overrides))
    overlays = []
    if "WORLD_SIZE" in os.environ:  # one of several processes
        overlays.append(BUNDLE / "configs" / "multi_gpu_train.json")
        del given["device"]
    run_workflow("train", given, root=BUNDLE, overlays=overlays)


if __name__ == "__main__":
    main(*sys.argv[1:])
