"""The process group of a training, and what is left of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Two steps, as the bundle takes them.
_TRAIN = """
import pathlib
import torch
from boltzformer_monai import engines

engines.start_distributed()
network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
for _ in range(2):
    network(torch.ones(3, 2)).sum().backward()
task = pathlib.Path("/proc/self/task")
print(*{each.joinpath("comm").read_text().strip() for each in task.iterdir()})
engines.leave_distributed(network)
print(*{each.joinpath("comm").read_text().strip() for each in task.iterdir()})
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system lists no threads")
def test_no_thread_of_the_group_is_left() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    alone = {**os.environ, **place, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run([sys.executable, "-c", _TRAIN], env=alone, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    within, after = ended.stdout.splitlines()
    assert "gloo" in within
    assert "gloo" not in after
