"""The training benchmark for GPUs runs small on a CPU, and what does not run there is a row that says so."""

from __future__ import annotations

import copy
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import training_gpu
from benchmarks.training_gpu import Bench, Contestant, OutOfTime, Phantoms, Variant, within
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from tests.engines.cases import write_dataset
from tests.warm_python import run_copy

SMALL = ["--device", "cpu", "--preset", "tiny", "--size", "64", "--batch", "2", "--rounds", "1", "--steps", "3"]
PARTS = ("backbone", "pixel_decoder", "text_encoder", "decoder", "loss", "optimizer")


def measured(file: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The rows of a small run, by name."""
    assert training_gpu.main([*SMALL, *arguments, "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["results"]
    assert len(rows) == len({row["name"] for row in rows})
    return {row["name"]: row for row in rows}


def bench() -> Bench:
    """Of the tiny network."""
    device = torch.device("cpu")
    return Bench(device, preset="tiny", size=64, batch=2, rounds=1, deadline=time.monotonic() + 60, learning_rate=1e-3)


def test_it_measures_variants_parts_and_a_training(tmp_path: Path):
    rows = measured(tmp_path / "gpu.json")
    for variant in ("plain", "fast", "plain_channels_last", "fast_channels_last"):
        step, *phases = (
            rows[f"ms_{what}_{variant}_b2"]["value"] for what in ("step", "forward", "backward", "optimizer")
        )
        assert step == pytest.approx(sum(phases), rel=1e-6)
        assert rows[f"images_per_second_{variant}_b2"]["value"] == pytest.approx(2000 / step)
        assert rows[f"gib_peak_{variant}_b2"]["note"] == "only a GPU can tell"
    plain, fast = (rows[f"ms_step_{variant}_b2"]["value"] for variant in ("plain", "fast"))
    assert rows["times_faster_than_plain_fast_b2"]["value"] == pytest.approx(plain / fast)
    for variant in ("plain", "fast"):
        assert sum(rows[f"percent_{part}_{variant}_b2"]["value"] for part in PARTS) == pytest.approx(100)
    assert rows["steps_training_phantoms"]["value"] == 3
    assert rows["images_per_second_training_phantoms"]["value"] > 0
    assert not any("compiled" in name for name in rows)


@pytest.mark.slow
def test_what_does_not_run_is_a_row_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    step = Contestant.step

    def too_large(self: Contestant, batch: training_gpu.Batch) -> dict[str, float]:
        if not isinstance(self.network.decoder.query_decoder, FastBoltzFormerDecoder):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(self, batch)

    def compiled(network: torch.nn.Module, **settings: object) -> torch.nn.Module:
        raise RuntimeError("no compiler\nand a long trace")

    monkeypatch.setattr(Contestant, "step", too_large)
    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr(training_gpu, "has_monai", lambda: False)
    rows = measured(tmp_path / "gpu.json", "--compile", "--data", "slices", "--minutes", "2")
    assert rows["ms_step_plain_b2"] == {
        "name": "ms_step_plain_b2",
        "value": None,
        "unit": "ms",
        "note": "out of memory",
    }
    assert rows["ms_step_fast_b2"]["value"] > 0
    assert rows["ms_step_fast_repeated_b2"]["value"] > 0
    assert rows["ms_step_fast_compiled_b2"]["note"] == "no compiler"
    assert "MONAI" in rows["training_slices"]["note"]
    assert rows["loss_end_training_phantoms"]["value"] > 0


@pytest.mark.slow
def test_when_the_time_is_over_what_there_is_is_written(tmp_path: Path):
    rows = measured(tmp_path / "gpu.json", "--compile", "--minutes", "0")
    assert rows["ms_step_fast_compiled_b2"]["note"] == "no time left"
    assert rows["steps_training_phantoms"]["value"] == 1


def test_a_compilation_is_stopped():
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(OutOfTime), within(0.05):
        time.sleep(30)
    assert signal.getsignal(signal.SIGALRM) == before


@pytest.mark.parametrize("fast", [True, False])
def test_parts_one_by_one_are_the_step(fast: bool):
    batch = Phantoms(torch.device("cpu"), size=64, batch=2)()
    trained = []
    made = bench().contestant(Variant(fast=fast)).network
    for way in (Contestant.step, Contestant.parts):
        network = copy.deepcopy(made)
        contestant = Contestant(network, torch.optim.SGD(network.parameters(), lr=0.1), network)
        torch.manual_seed(1)
        way(contestant, batch)
        trained.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
    before = torch.cat([parameter.detach().flatten() for parameter in made.parameters()])
    assert (trained[0] - before).abs().max() > 1e-3
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=1e-5)


def test_variants_of_a_layout_share_their_weights():
    one = bench()
    plain, fast = (one.contestant(Variant(fast=fast)) for fast in (False, True))
    assert all(a is b for a, b in zip(plain.network.parameters(), fast.network.parameters(), strict=True))
    assert plain.optimizer is fast.optimizer
    other = one.contestant(Variant(channels_last=True)).network
    assert not {id(parameter) for parameter in other.parameters()} & {id(each) for each in fast.network.parameters()}


def test_phantoms_have_the_prompted_ellipse():
    image, tokens, target = Phantoms(torch.device("cpu"), size=64, batch=16)()
    assert image.shape == (16, 1, 64, 64)
    assert tokens.shape == (16, 1, 3)
    assert target.shape == (16, 1, 32, 32)
    assert 0 <= image.min() <= image.max() <= 1
    bright = image[:, :, ::2, ::2][target > 0]
    assert target.flatten(1).sum(1).min() > 0
    assert bright.unique().numel() > 1


def test_it_trains_on_slices_with_the_bundle(tmp_path: Path):
    slices = write_dataset(tmp_path / "slices")
    observer = training_gpu.Observer(deadline=time.monotonic() + 60, most_steps=3)
    rows = training_gpu.bundle_training(
        slices, observer, preset="tiny", size=64, batch=1, device=torch.device("cpu"), learning_rate=1e-3, workers=0
    )
    values = {row["name"]: row["value"] for row in rows}
    assert values["steps_training_slices"] == 3
    assert values["images_per_second_training_slices"] == pytest.approx(2 / values["seconds_training_slices"])
    assert 0 <= values["percent_waiting_for_data_training_slices"] <= 100


def test_a_missing_dataset_is_named_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert training_gpu.main([*SMALL, "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_it_says_in_one_line_that_it_needs_a_gpu_and_does_without_monai():
    absent = "monai", "nibabel", "SimpleITK"
    program = (
        "import sys\n"
        f"for name in [*{absent}, *sys.modules]:\n"
        f"    if name.partition('.')[0] in {absent}:\n"
        "        sys.modules[name] = None\n"
        "from benchmarks import training_gpu\n"
        f"assert training_gpu.main({SMALL}) == 0\n"
        "assert not training_gpu.has_monai()\n"
        "sys.exit(training_gpu.main([]))"
    )
    run = run_copy(["-c", program], folder=Path(__file__).parents[2], environment=os.environ)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "no CUDA device" in run.stderr
