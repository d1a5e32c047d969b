"""The decoder against the dense baseline of ``benchmarks/dense.py``: same weights, same inputs, in turns.

    python benchmarks/decoder.py --rounds 7 --golden ../shared/golden --json benchmarks/results/decoder.json

Ratios are dense / ours of medians, so larger is better; ``…_vs_blockwise`` compares with the stronger dense form.
``decoder_…`` rows are given visual features and S; ``tail_…`` rows start from the map y that S is convolved from and
end behind PiGMA. A step is forward and backward of a sum with fixed random weights, down to the inputs. For timing, all
draw their sets with the same policy and the same numbers; for ``max_abs_error`` and ``max_rel_grad_error`` both are
given the sets that ours drew, and for the gradients the same open ReLUs; what comes out without that is recorded too.
Saved for backward is counted in unique storages, weights and inputs left out on both sides, of the blockwise form,
which keeps less. For ``prompts15_vs_full`` one full pass of the dense network is timed and counted 15 times.

Ratios differ between machines. The record names the CPU, its instructions, caches and huge pages, and every timing has
``minor_faults_…``, the pages of fresh memory of one run: where a page is dear, whoever needs fewer is faster. To see
their share on a machine, compare with ``THP_MEM_ALLOC_ENABLE=1`` in the environment, by which PyTorch asks for huge
pages. ``ONEDNN_VERBOSE=1`` prints the kernels of the convolutions, ``ONEDNN_MAX_CPU_ISA=AVX2`` leaves out newer ones.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decoder_contest import (  # noqa: E402
    SMOKE,
    Inputs,
    Sizes,
    Step,
    Tail,
    costs,
    differences,
    largest,
    medians,
    saved_for_backward,
    settings,
)
from benchmarks.dense import DenseTail, dense_network  # noqa: E402
from benchmarks.record import cpu, report, result  # noqa: E402
from boltzformer_monai.networks import create_boltzformer  # noqa: E402
from boltzformer_monai.networks.sampling import BoltzmannSampling  # noqa: E402

PROMPTS = 15
Row = dict[str, Any]


class Case(NamedTuple):
    """One pair of timings."""

    part: str
    step: bool
    queries: int
    batch: int
    percent: int = 10

    @property
    def name(self) -> str:
        """As in the record."""
        kind = "step" if self.step else "forward"
        sampling = "" if self.percent == 10 else f"_{self.percent}percent"
        return f"{self.part}_{kind}_m{self.queries}_b{self.batch}{sampling}"


CASES = [
    *(Case("decoder", step, m, batch) for m in (10, 101) for batch in (2, 1) for step in (False, True)),
    *(Case("tail", step, m, 1) for m in (10, 101) for step in (False, True)),
    *(Case("decoder", step, m, 1, percent=5) for m in (10, 101) for step in (False, True)),
]
SAVED = [Case(part, True, m, 1) for part in ("decoder", "tail") for m in (10, 101)]
EXACT = (Case("decoder", True, 10, 2), Case("tail", True, 10, 1), Case("tail", True, 101, 1))


class Contest:
    """All measurements at one size.

    Args:
        sizes: of the inputs and the decoder.
        preset: the network of the 15 prompts.
        rounds: timed rounds of every comparison.
        golden: folder of recordings of the published code, if any.
    """

    def __init__(self, sizes: Sizes, *, preset: str, rounds: int, golden: Path | None = None) -> None:
        self.sizes = sizes
        self.preset = preset
        self.rounds = rounds
        self.golden = golden
        # One of each at a time is enough: weights and inputs of the paper's sizes are large.
        self._weights = lru_cache(1)(lambda queries: Tail(sizes, queries=queries))
        self._inputs = lru_cache(1)(lambda queries, batch: Inputs(sizes, queries=queries, batch=batch))

    def jobs(self) -> dict[tuple[str, ...], Callable[[], Iterable[Row]]]:
        """What can be measured, by the names that ``--only`` takes."""
        return {
            ("max_abs_error", "max_rel_grad_error"): self.exactness,
            **{(case.name,): partial(self.timing, case) for case in CASES},
            **{(self._saved_name(case),): partial(self.saved, case) for case in SAVED},
            **{(f"flops_{case.name}",): partial(self.flops, case) for case in CASES if case.percent == 10},
            ("prompts15_vs_full", "prompts15_vs_serial"): self.prompts,
        }

    def exactness(self) -> Iterator[Row]:
        """With the same sets."""
        absolute, relative = [], []
        for case in EXACT:
            ours, _, inputs = self._contestants(case)
            found = differences(ours, inputs, case.part)
            label = f"{case.part}_m{case.queries}_b{case.batch}"
            yield result(f"max_abs_error_{label}", found.output, "logit")
            yield result(f"max_rel_grad_error_{label}", found.gradient, "of the largest entry")
            yield result(f"max_rel_grad_error_own_relus_{label}", found.gradient_own_relus, "of the largest entry")
            yield result(f"relus_differing_{label}", found.relus, "units")
            absolute.append(found.output)
            relative.append(found.gradient)
        if self.golden is not None:
            absolute.append(golden_error(self.golden))
            yield result("max_abs_error_golden", absolute[-1], "logit")
        yield result("max_abs_error", largest(absolute), "logit")
        yield result("max_rel_grad_error", largest(relative), "of the largest entry")

    def timing(self, case: Case) -> Iterator[Row]:
        """One ratio and its seconds."""
        ours, dense, inputs = self._contestants(case)
        contestants: dict[str, Tail | DenseTail] = {"dense": dense, "ours": ours}
        if case.percent == 10:
            contestants["blockwise"] = ours.dense(blockwise=True)
        ways = {name: self._way(contestant, inputs, case) for name, contestant in contestants.items()}
        found = costs(ways, rounds=self.rounds)
        seconds = {name: cost.seconds for name, cost in found.items()}
        self._release(ours, inputs, case)
        yield result(case.name, seconds["dense"] / seconds["ours"], "times")
        if "blockwise" in seconds:
            yield result(f"{case.name}_vs_blockwise", seconds["blockwise"] / seconds["ours"], "times")
        for name, value in seconds.items():
            yield result(f"seconds_{case.name}_{name}", value, "s")
        for name, cost in found.items():
            yield result(f"minor_faults_{case.name}_{name}", cost.minor_faults, "pages")

    def saved(self, case: Case) -> Iterator[Row]:
        """Memory kept for the backward pass."""
        ours, _, inputs = self._contestants(case)
        inputs.track(case.part, True)
        given = [inputs.image, *inputs.leaves(case.part).values()]
        mib = {
            name: saved_for_backward(partial(inputs.run, way, case.part), [*given, *way.parameters()]) / 2**20
            for name, way in (("dense", ours.dense(blockwise=True)), ("ours", ours))
        }
        self._release(ours, inputs, case)
        yield result(self._saved_name(case), mib["dense"] / mib["ours"], "times")
        for name, value in mib.items():
            yield result(f"mib_{self._saved_name(case)}_{name}", value, "MiB")

    def flops(self, case: Case) -> Iterator[Row]:
        """Floating-point operations of products and convolutions, by torch's counter."""
        ours, dense, inputs = self._contestants(case)
        billions = {}
        ours.requires_grad_(case.step)  # the counter's module tracker trips over views of weights made without grad
        for name, way in (("dense", dense), ("ours", ours)):
            # The counter does not know the blockwise kernel of the CPU; the plain one has the same products.
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                self._way(way, inputs, case)()
            billions[name] = counter.get_total_flops() / 1e9
        ours.requires_grad_(True)
        self._release(ours, inputs, case)
        yield result(f"flops_{case.name}", billions["dense"] / billions["ours"], "times")
        for name, value in billions.items():
            yield result(f"gflop_{case.name}_{name}", value, "GFLOP")

    @torch.no_grad()
    def prompts(self) -> Iterator[Row]:
        """15 prompts on one image, encoding included; and decoding alone, together or one after the other."""
        torch.manual_seed(0)
        network = create_boltzformer(self.preset, image_size=self.sizes.image).eval()
        dense = dense_network(network)
        image = torch.rand(1, network.mean.shape[1], self.sizes.image, self.sizes.image)
        tokens = torch.randint(1, 40000, (1, PROMPTS, self.sizes.tokens))
        encoded = network.encode_image(image)
        texts = [network.encode_text(one) for one in tokens.split(1, dim=1)]
        text = network.encode_text(tokens)
        seconds = medians(
            {
                "dense_one_pass": lambda: dense(image, tokens[:, :1]),
                "ours": lambda: network(image, tokens),
                "decode_serial": lambda: [network.decode(encoded, one) for one in texts],
                "decode_together": lambda: network.decode(encoded, text),
            },
            rounds=self.rounds,
        )
        yield result("prompts15_vs_full", PROMPTS * seconds["dense_one_pass"] / seconds["ours"], "times")
        yield result("prompts15_vs_serial", seconds["decode_serial"] / seconds["decode_together"], "times")
        for name, value in seconds.items():
            yield result(f"seconds_prompts15_{name}", value, "s")

    def _contestants(self, case: Case) -> tuple[Tail, DenseTail, Inputs]:
        ours = self._weights(case.queries)
        ours.decoder.policy = BoltzmannSampling(sample_ratio=case.percent / 100)
        return ours, ours.dense(), self._inputs(case.queries, case.batch)

    def _way(self, contestant: Tail | DenseTail, inputs: Inputs, case: Case) -> Step:
        inputs.track(case.part, case.step)
        if case.step:
            return partial(inputs.step, contestant, case.part)
        return torch.no_grad()(partial(inputs.run, contestant, case.part))

    def _release(self, ours: Tail, inputs: Inputs, case: Case) -> None:
        ours.zero_grad(set_to_none=True)
        inputs.track(case.part, False)

    @staticmethod
    def _saved_name(case: Case) -> str:
        return f"saved_for_backward_{'' if case.part == 'decoder' else 'tail_'}m{case.queries}"


def golden_error(folder: Path) -> float:
    """Largest absolute error of our modules on every recording of the published code in ``folder``."""
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise SystemExit(f"error: no recordings (*.npz) in {folder}")
    check = importlib.import_module("tests.golden.check")
    return largest([error for file in files for _, error in check.check_file(file)[1]])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=1024, help="height = width of the image, a multiple of 32")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of every comparison")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="hiera_s", help="network of the 15 prompts")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="recordings of the published code")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these results only")
    parser.add_argument("--smoke", action="store_true", help="narrow decoder: to try the script, not to measure")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    sizes = Sizes(image=arguments.size, **(SMOKE if arguments.smoke else {}))
    golden = arguments.golden
    if golden is not None and not golden.is_dir():
        parser.error(f"no folder {golden}; --golden wants the folder of the recordings")
    print("cpu:", ", ".join(f"{name} {value}" for name, value in cpu().items()))
    contest = Contest(sizes, preset=arguments.preset, rounds=arguments.rounds, golden=golden)
    jobs = contest.jobs()
    known = [name for names in jobs for name in names]
    if unknown := sorted(set(arguments.only or ()) - set(known)):
        parser.error(f"unknown result {unknown[0]!r}; known: {', '.join(known)}")
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        rows = [
            row
            for names, job in jobs.items()
            if not arguments.only or set(names) & set(arguments.only)
            for row in job()
        ]
        more = {"rounds": arguments.rounds, "preset": arguments.preset, "golden": golden is not None}
        report(rows, arguments.json, settings=settings(sizes, **more))
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
