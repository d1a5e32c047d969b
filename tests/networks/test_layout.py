"""Trainings in channels last, each in a process of its own, which dies where PyTorch writes beyond its memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from boltzformer_monai.networks.layout import set_layout, training_is_safe
from tests.networks.cases import small_network

_WIDTHS = ([24, 48, 96, 144, 192], [12, 24, 12, 24, 8], [3, 5, 7, 9, 11], [1, 1, 13, 25, 31])
_TRAININGS = """
import os, sys
import torch
from boltzformer_monai.networks.layout import set_layout
from tests.networks.cases import small_network

torch.set_num_threads(1)
tokens = torch.tensor([[[49406, 13213, 49407]]] * 3)


def train(channels, precision, settings):
    values = {"in_channels": channels, "mean": (0.3,) * channels, "std": (0.25,) * channels, **settings}
    network = set_layout(small_network(**values), trains=True).set_precision(precision).train()
    for _ in range(2):
        network(torch.rand(3, channels, 64, 64), tokens).square().mean().backward()


for case in CASES:
    child = os.fork()
    if child == 0:
        try:
            train(*case)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("ok" if status == 0 else f"{case}: {status}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start at once")
def test_odd_widths_and_any_number_of_channels_train():
    cases = [(n, "fp32", {"backbone_settings": {"widths": widths}}) for n in range(1, 8) for widths in _WIDTHS]
    cases += [(n, "bf16", {"backbone_settings": {"widths": _WIDTHS[2]}}) for n in (1, 3)]
    cases += [(3, "fp32", {"backbone": "resnet18"})]  # has shortcuts with a stride
    code = _TRAININGS.replace("CASES", repr(cases))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ok"] * len(cases)


def test_a_strided_shortcut_keeps_the_weights_contiguous():
    shortcut = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, stride=2))
    assert not training_is_safe(shortcut)
    assert set_layout(shortcut, trains=True)[0].weight.is_contiguous()
    last = set_layout(shortcut, trains=False)[0].weight
    assert not last.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert training_is_safe(shortcut.to("meta"))


def test_the_small_backbone_trains_in_channels_last():
    network = set_layout(small_network(in_channels=3, mean=(0.3,) * 3, std=(0.25,) * 3), trains=True)
    assert not network.backbone.stages[0].conv1.weight.is_contiguous()
    assert training_is_safe(network)
    assert not training_is_safe(small_network(backbone="resnet18"))
