"""The dense baseline is the same function as ours, and the decoder's benchmarks measure and name what they should."""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import decoder, decoder_gpu, decoder_parts, dense
from benchmarks.decoder_contest import (
    SMOKE,
    Inputs,
    SameDecisions,
    Sizes,
    Tail,
    costs,
    differences,
    medians,
    saved_for_backward,
)
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.sampling import BoltzmannSampling, FullAttention, ThresholdMask
from tests.networks.cases import images, prompts, small_network
from tests.warm_python import run_copy

SIZES = Sizes(image=64, tokens=5, **SMOKE)
POLICIES = {
    "boltzmann": BoltzmannSampling(sample_ratio=0.5),
    "per head": BoltzmannSampling(sample_ratio=0.5, per_head=True),
    "threshold": ThresholdMask(),
    "full": FullAttention(),
}
WANTED = (
    "max_abs_error",
    "max_rel_grad_error",
    "decoder_forward_m10_b2",
    "decoder_step_m10_b2",
    "decoder_forward_m10_b1",
    "tail_forward_m10_b1",
    "tail_step_m10_b1",
    "tail_forward_m101_b1",
    "saved_for_backward_m10",
    "prompts15_vs_full",
    "prompts15_vs_serial",
)


@pytest.mark.parametrize("part", ["decoder", "tail"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("queries", [3, 40])
def test_the_baseline_equals_ours_with_the_same_sets(policy: str, part: str, queries: int):
    ours = Tail(SIZES, queries=queries)
    ours.decoder.policy = POLICIES[policy]
    inputs = Inputs(SIZES, queries=queries, batch=2)
    inputs.valid[0, 0, 3:] = False  # padding of the text
    output, gradient, _, _ = differences(ours, inputs, part)
    assert output < 1e-4
    assert gradient < 1e-4
    assert ours.decoder.policy is POLICIES[policy]


def test_the_baseline_equals_ours_without_prior_and_with_a_mask_bias():
    ours = Tail(SIZES, queries=3)
    ours.decoder.text_prior = False
    ours.decoder.mask_bias = torch.nn.Parameter(torch.tensor(-1.5))
    output, gradient, _, _ = differences(ours, Inputs(SIZES, queries=3, batch=1), "tail")
    assert output < 1e-4
    assert gradient < 1e-4


def test_a_difference_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dense, "sine_position", lambda height, width, dim: torch.zeros(height * width, dim))
    output, gradient, _, _ = differences(Tail(SIZES, queries=3), Inputs(SIZES, queries=3, batch=1), "decoder")
    assert output > 1e-3
    assert gradient > 1e-3


def test_a_relu_at_zero_is_a_decision_that_can_be_replayed():
    x = torch.tensor([-1.0, 1e-7, 2.0], requires_grad=True)
    with SameDecisions() as first:
        torch.nn.functional.relu(x).sum().backward()
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, 1.0]))
    other = torch.tensor([-1.0, -1e-7, 2.0], requires_grad=True)
    with SameDecisions(first.seen) as replayed:
        torch.nn.functional.relu(other).sum().backward()
    assert torch.equal(other.grad, x.grad)
    assert replayed.differing == 1
    tail, inputs = Tail(SIZES, queries=3), Inputs(SIZES, queries=3, batch=1)
    with torch.no_grad(), SameDecisions() as seen:
        inputs.run(tail, "decoder")
    with torch.no_grad(), SameDecisions() as dense_seen:
        inputs.run(tail.dense(), "decoder")
    # One of the text prior, two of the mask head and one for each of the four layers, two of the last mask head.
    assert [x.numel() for x in seen.seen] == [x.numel() for x in dense_seen.seen]
    assert len(seen.seen) == 1 + 4 * 3 + 2


@pytest.mark.parametrize("correction", [True, False])
def test_the_dense_network_gives_the_masks_of_ours_prompt_by_prompt(correction: bool):
    network = small_network(policy="full", pigma_correction=correction)
    image, tokens = images(2), prompts(3, 5, 2, batch=2)
    with torch.no_grad():
        expected = network(image, tokens)
        found = dense.dense_network(network)(image, tokens)
    assert found.shape == expected.shape == (2, 3, 32, 32)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_both_draw_the_same_sets_from_the_same_numbers():
    shown: list[Tensor] = []

    class Watching(BoltzmannSampling):
        def __call__(self, *arguments: object, **settings: object) -> Tensor:
            shown.append(super().__call__(*arguments, **settings))
            return shown[-1]

    ours = Tail(SIZES, queries=3)
    ours.decoder.policy = Watching(sample_ratio=0.5)
    inputs = Inputs(SIZES, queries=3, batch=2)
    with torch.no_grad():
        for contestant in (ours, ours.dense()):
            inputs.run(contestant, "decoder")
    layers = SMOKE["layers"]
    assert len(shown) == 2 * layers  # none drawn that nobody uses
    assert torch.equal(shown[0], shown[layers])
    assert 0 < shown[0].float().mean() < 1


def test_the_baseline_refuses_several_prompts():
    inputs = Inputs(SIZES, queries=3, batch=1)
    baseline = Tail(SIZES, queries=3).dense().decoder
    with pytest.raises(ConfigError, match="one prompt at a time, got 2"):
        baseline(
            inputs.features, inputs.semantic_map, inputs.text.expand(-1, 2, -1, -1), inputs.valid.expand(-1, 2, -1)
        )


def test_saved_for_backward_counts_each_storage_once_and_leaves_out_what_was_given():
    weight = torch.ones(100, requires_grad=True)

    def run() -> Tensor:
        y = (weight * 2).exp()  # keeps its result
        return (y.view(10, 10) * y.view(10, 10).T * weight.view(10, 10)).sum()  # keeps it twice more, a product, weight

    assert saved_for_backward(run, [weight]) == 2 * 400
    assert saved_for_backward(run, []) == 3 * 400


def test_rounds_take_turns_and_the_first_does_not_count():
    order: list[str] = []
    seconds = iter([100.0, 100.0, 1.0, 10.0, 20.0, 2.0, 3.0, 30.0])
    found = medians(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=3,
        clock=lambda way: (way(), next(seconds))[1],
    )
    assert order == ["b", "a", "a", "b", "b", "a", "a", "b"]
    assert found == {"a": 2.0, "b": 20.0}


def test_fresh_memory_is_counted():
    def fresh() -> None:
        with mmap.mmap(-1, 64 << 20) as memory:
            memory.write(bytes(64 << 20))

    found = costs({"fresh": fresh, "nothing": lambda: None}, rounds=1)
    assert found["fresh"].minor_faults > found["nothing"].minor_faults + 10  # fewer than 16384 where pages are huge


def test_the_benchmark_writes_every_name(tmp_path: Path):
    file = tmp_path / "decoder.json"
    arguments = ["--size", "64", "--smoke", "--preset", "tiny", "--rounds", "1", "--threads", "1"]
    more = ["--only", *WANTED, "flops_tail_step_m10_b1", "--json", str(file)]
    assert decoder.main([*arguments, *more]) == 0
    record = json.loads(file.read_text())
    values = {row["name"]: row["value"] for row in record["results"]}
    assert set(WANTED) <= values.keys()
    assert all(value > 0 for name, value in values.items() if not name.startswith(("relus_differing", "minor_faults")))
    assert values["max_abs_error"] < 1e-4
    assert values["max_rel_grad_error"] < 1e-4
    assert values["flops_tail_step_m10_b1"] > 1
    case = "tail_step_m10_b1"
    assert values[case] == pytest.approx(values[f"seconds_{case}_dense"] / values[f"seconds_{case}_ours"])
    assert "decoder_step_m101_b2" not in values
    assert {f"minor_faults_{case}_{way}" for way in ("dense", "ours", "blockwise")} <= values.keys()
    assert {"model", "flags", "caches", "huge_pages"} <= record["environment"]["cpu"].keys()
    assert record["settings"]["image"] == 64
    assert record["settings"]["golden"] is False


def test_an_unknown_result_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        decoder.main(["--only", "decoder_forward"])
    assert "unknown result 'decoder_forward'; known: max_abs_error" in capsys.readouterr().err


def test_a_folder_without_recordings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        decoder.main(["--golden", str(tmp_path / "none")])
    assert "no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no recordings"):
        decoder.golden_error(tmp_path)


@pytest.mark.slow
def test_the_gpu_benchmark_runs_small_on_the_cpu(tmp_path: Path):
    file = tmp_path / "gpu.json"
    assert decoder_gpu.main(["--device", "cpu", "--size", "64", "--smoke", "--json", str(file)]) == 0
    values = {row["name"]: row["value"] for row in json.loads(file.read_text())["results"]}
    for name in ("decoder_forward_m3_b2", "tail_step_m3_b2", "training_step_b2"):
        assert values[name] > 0
    assert values["host_syncs_decoder_m3_ours"] is None  # only a GPU can tell


@pytest.mark.parametrize("part", ["decoder", "tail"])
@pytest.mark.parametrize("kind", ["forward", "step"])
def test_what_the_gpu_benchmark_times_as_compiled_is_compiled(part: str, kind: str, monkeypatch: pytest.MonkeyPatch):
    ran: list[type] = []

    class Compiled(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arguments: object, **settings: object) -> object:
            ran.append(type(self.module))
            return self.module(*arguments, **settings)

    monkeypatch.setattr(torch, "compile", lambda module, **settings: Compiled(module))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    ours, inputs = Tail(SIZES, queries=3), Inputs(SIZES, queries=3, batch=1)
    plain = ours.decoder
    bench = decoder_gpu.Bench(torch.device("cpu"), SIZES, rounds=1, batch=1, ways=["compiled"])
    row = bench._variant("compiled", "compiled", ours, inputs, part, kind)
    assert row["value"] > 0
    assert ran == [type(plain) if part == "decoder" else Tail] * 2  # one round to warm up
    assert ours.decoder is plain


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_the_gpu_benchmark_says_in_one_line_that_it_needs_one_and_does_without_monai():
    program = (
        "import sys\n"
        "for name in ['monai', *sys.modules]:\n"
        "    if name.partition('.')[0] == 'monai':\n"
        "        sys.modules[name] = None\n"
        "from benchmarks import decoder_gpu\n"
        "sys.exit(decoder_gpu.main([]))"
    )
    run = run_copy(["-c", program], folder=Path(__file__).parents[2], environment=os.environ)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert "no CUDA device" in run.stderr


def test_the_parts_are_timed(tmp_path: Path):
    file = tmp_path / "parts.json"
    assert decoder_parts.main(["--size", "32", "--channels", "8", "--rounds", "1", "--json", str(file)]) == 0
    names = [row["name"] for row in json.loads(file.read_text())["results"]]
    assert len(names) == len(set(names)) == 2 + 2 * 5 + 3 + 2 * 6
    assert "ratio 2, 101 queries: four planes" in names
