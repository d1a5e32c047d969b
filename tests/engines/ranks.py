"""A training of a few steps, alone or as one of several processes.

``python -m tests.engines.ranks DATASET OUTPUT [OVERRIDES]``, in the environment that torchrun sets. OVERRIDES are JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boltzformer_monai import engines
from boltzformer_monai.engines.bundle import one_line_errors
from boltzformer_monai.networks.presets import network_config
from boltzformer_monai.networks.weights import Description
from tests.networks.cases import SMALL, small_network

BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "boltzformer"
# A bias of attention's keys has no gradient but rounding, which AdamW's own epsilon of 1e-8 makes a whole step of.
_OPTIMIZER = "$torch.optim.AdamW(@network.parameters(), lr=@learning_rate, weight_decay=@weight_decay, eps=1e-6)"
_ALIKE: dict[str, Any] = {"presence": True, "norm": "group", "policy": "full"}


def train(dataset: Path, output: Path, **overrides: Any) -> None:
    """An epoch of five steps of four images.

    Without BatchNorm's statistics of a batch, and without sampling: rounding may turn a draw over.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        engines.start_distributed()
    network = small_network(**_ALIKE)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
    is_main = os.environ.get("RANK", "0") == "0"
    settings = {
        "bundle_root": str(BUNDLE),
        "optimizer": _OPTIMIZER,
        "dataset_dir": str(dataset),
        "output_dir": str(output),
        "device": torch.device("cpu"),
        "preset": "tiny",
        "image_size": 64,
        "batch_size": 1,
        "global_batch": 4,
        "epochs": 1,
        "precision": "fp32",
        "network_def": network,
        "network_config": network_config("tiny", **{**SMALL, **_ALIKE}),
        "is_main": is_main,
        **overrides,
    }
    if world > 1:
        settings |= {
            "network": "$torch.nn.parallel.DistributedDataParallel(@network_def)",
            "validate#evaluator#network": "@network_def",
            "validate#sampler": {
                "_target_": "DistributedSampler",
                "dataset": "@validate#dataset",
                "even_divisible": False,
                "shuffle": False,
            },
        }
    trainer, evaluator, scheduler = engines.make_training(settings, root=BUNDLE)
    engines.run_training(
        trainer,
        evaluator,
        scheduler=scheduler,
        description=Description(settings["network_config"], {}),
        output_dir=output,
        settings=engines.training_settings("tiny", "cpu"),
        patience=9,
        is_main=is_main,
    )
    engines.leave_distributed(trainer.network)


def processes(dataset: Path, output: Path, *, count: int = 2, **overrides: Any) -> list[subprocess.Popen[str]]:
    """Start the training in several processes, as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.engines.ranks", str(dataset), str(output), json.dumps(overrides)]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


if __name__ == "__main__":
    one_line_errors()
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[3]))
