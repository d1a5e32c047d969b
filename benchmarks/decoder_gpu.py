"""The decoder and a whole training step on a CUDA device in bfloat16: ours against the dense baseline.

    python benchmarks/decoder_gpu.py --json benchmarks/results/decoder_gpu.json

Times are medians of CUDA events, the ways of a comparison in turns. ``decoder_…`` and ``tail_…`` rows are those of
``benchmarks/decoder.py``: given features and S, or from the map that S is convolved from to behind PiGMA. Ways of ours:
plain, ``torch.compile`` (``compiled``), compiled with its own CUDA graphs (``reduced``) and captured in one CUDA graph
(``graph``); a way that does not work is a row without a value, and its reason is printed. ``host_syncs_…`` counts the
synchronisations of the host that PyTorch noticed in one forward pass, ``kernels_…`` the kernels that it launched.
Needs torch, timm and transformers, not MONAI. Without CUDA the exit code is 2.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cuda import (  # noqa: E402
    captured,
    event_seconds,
    free_memory,
    host_syncs,
    launches,
    peak_mib,
)
from benchmarks.decoder_contest import SMOKE, Inputs, Sizes, Step, Tail, medians, settings, wall_seconds  # noqa: E402
from benchmarks.dense import DenseTail, dense_network  # noqa: E402
from benchmarks.record import result, write  # noqa: E402
from boltzformer_monai.networks import create_boltzformer  # noqa: E402

Row = dict[str, Any]
COMPILED = {"compiled": "default", "reduced": "reduce-overhead"}
BATCHES = (12, 8, 6, 4, 3, 2, 1)


class Bench:
    """All measurements on one device.

    Args:
        device: CUDA, or the CPU to try the script.
        sizes: of the inputs and the decoder.
        rounds: timed rounds of every comparison.
        batch: images at once.
        ways: ways of ours besides the plain one.
    """

    def __init__(self, device: torch.device, sizes: Sizes, *, rounds: int, batch: int, ways: Sequence[str]) -> None:
        self.device = device
        self.sizes = sizes
        self.rounds = rounds
        self.batch = batch
        self.ways = ways
        self.cuda = device.type == "cuda"
        self.clock = event_seconds if self.cuda else wall_seconds

    def decoder(self, queries: int, part: str) -> Iterator[Row]:
        """Forward and step of ours, in all its ways, and of the dense baseline."""
        ours = Tail(self.sizes, queries=queries).to(self.device)
        inputs = Inputs(self.sizes, queries=queries, batch=self.batch, device=self.device)
        contestants: dict[str, Tail | DenseTail] = {"dense": ours.dense().to(self.device), "ours": ours}
        for kind in ("forward", "step"):
            name = f"{part}_{kind}_m{queries}_b{self.batch}"
            plain = {who: self._way(inputs, one, part, kind) for who, one in contestants.items()}
            yield from self._compared(name, plain, ours)
            for way in self.ways:
                yield self._variant(f"ms_{name}_ours_{way}", way, ours, inputs, part, kind)
            if kind == "forward":
                yield from self._counts(f"{part}_m{queries}", plain)
            ours.zero_grad(set_to_none=True)
            free_memory()

    def training_step(self, preset: str) -> Iterator[Row]:
        """Forward, loss, backward and AdamW of a whole network, one prompt an image."""
        torch.manual_seed(0)
        network = create_boltzformer(preset, image_size=self.sizes.image).to(self.device).train()
        network.set_precision("bf16")
        dense = dense_network(network)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-5, weight_decay=1e-2)
        fits = {}
        for who, model in (("dense", dense), ("ours", network)):
            fits[who] = self._largest_batch(model, optimizer)
            yield row(f"training_batch_{who}", fits[who], "images")
        common = min(fits.values())
        if not common:
            print("training step: not even one image fits", file=sys.stderr)
            return
        if common < self.batch:
            print(f"training step: out of memory at batch {self.batch}, compared at {common}", file=sys.stderr)
        models: dict[str, nn.Module] = {"dense": dense, "ours": network}
        steps: dict[str, Step] = {who: self._training(model, optimizer, common) for who, model in models.items()}
        yield from self._compared(f"training_step_b{common}", steps, network)

    def _compared(self, name: str, ways: dict[str, Step], weights: nn.Module) -> Iterator[Row]:
        """Ratio dense / ours, milliseconds and peak memory beyond what was there."""
        seconds = medians(ways, rounds=self.rounds, clock=self.clock)
        yield row(name, seconds["dense"] / seconds["ours"], "times")
        for who, value in seconds.items():
            yield row(f"ms_{name}_{who}", 1000 * value, "ms")
        for who, way in ways.items():
            weights.zero_grad(set_to_none=True)
            yield row(f"mib_peak_{name}_{who}", peak_mib(way) if self.cuda else None, "MiB")

    def _variant(self, name: str, way: str, ours: Tail, inputs: Inputs, part: str, kind: str) -> Row:
        """Milliseconds of ours compiled or captured."""
        plain, contestant = ours.decoder, ours
        try:
            if way == "graph":
                run = captured(self._way(inputs, ours, part, kind))
            else:
                torch._dynamo.reset()
                # The whole of what is timed: a tail asks its decoder for masks that are not computed yet.
                timed = ours if part == "tail" else plain
                compiled = cast(nn.Module, torch.compile(timed, mode=COMPILED[way], fullgraph=True, dynamic=False))
                if part == "tail":
                    contestant = cast(Tail, compiled)
                else:
                    ours.add_module("decoder", compiled)
                step = self._way(inputs, contestant, part, kind)

                def run() -> object:
                    torch.compiler.cudagraph_mark_step_begin()
                    return step()

            return row(name, 1000 * medians({way: run}, rounds=self.rounds, clock=self.clock)[way], "ms")
        except RuntimeError as error:  # the base class of CUDA's, Dynamo's and Inductor's errors
            print(f"{name}: {str(error).strip().splitlines()[0][:200]}", file=sys.stderr)
            return row(name, None, "ms")
        finally:
            ours.add_module("decoder", plain)
            free_memory()

    def _way(self, inputs: Inputs, contestant: Tail | DenseTail, part: str, kind: str) -> Step:
        inputs.track(part, kind == "step")
        action = partial(inputs.step if kind == "step" else inputs.run, contestant, part)

        def run() -> object:
            # Without the cache of casted weights, which neither graph capture nor a fair comparison wants.
            with torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False):
                if kind == "step":
                    return action()
                with torch.no_grad():
                    return action()

        return run

    def _counts(self, name: str, ways: dict[str, Step]) -> Iterator[Row]:
        """Host synchronisations and kernels of one forward pass."""
        for who, way in ways.items():
            yield row(f"host_syncs_{name}_{who}", host_syncs(way) if self.cuda else None, "per pass")
            kernels, table = launches(way) if self.cuda else (None, "")
            yield row(f"kernels_{name}_{who}", kernels, "per pass")
            if table:
                print(f"{name} {who}\n{table}")

    def _training(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: int) -> Step:
        generator = torch.Generator().manual_seed(0)
        size = self.sizes.image
        image = torch.rand(batch, 1, size, size, generator=generator).to(self.device)
        tokens = torch.randint(1, 40000, (batch, 1, self.sizes.tokens), generator=generator).to(self.device)
        target = (torch.rand(batch, 1, size // 2, size // 2, generator=generator) < 0.05).float().to(self.device)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            dice_and_bce(model(image, tokens), target).backward()
            optimizer.step()

        return step

    def _largest_batch(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """The largest batch, up to the wanted one, whose step fits into memory; 0 if none does."""
        for batch in (self.batch, *(smaller for smaller in BATCHES if smaller < self.batch)):
            try:
                self._training(model, optimizer, batch)()
            except torch.OutOfMemoryError:
                optimizer.zero_grad(set_to_none=True)
                free_memory()
                continue
            return batch
        return 0


def dice_and_bce(logits: Tensor, target: Tensor) -> Tensor:
    """The loss of the paper: Dice with squared denominators plus binary cross-entropy, of equal weight."""
    probability = torch.sigmoid(logits).flatten(2)
    truth = target.flatten(2)
    overlap = 2 * (probability * truth).sum(-1)
    dice = 1 - (overlap + 1) / (probability.square().sum(-1) + truth.square().sum(-1) + 1)
    return dice.mean() + F.binary_cross_entropy_with_logits(logits, target)


def row(name: str, value: float | None, unit: str, *, note: str = "") -> Row:
    """One result, printed at once: a later measurement may run out of time. The note says why there is no value."""
    shown = "–" if value is None else f"{value:.4f}"
    print(f"{name:<48}{shown:>14}  {unit}{note and f'  ({note})'}", flush=True)
    return {**result(name, value, unit), **({"note": note} if note else {})}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu only to try the script")
    parser.add_argument("--size", type=int, default=1024, help="height = width of the image, a multiple of 32")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--queries", type=int, nargs="+", default=[10, 101])
    parser.add_argument("--parts", nargs="+", choices=("decoder", "tail", "training"),
                        default=["decoder", "tail", "training"])  # fmt: skip
    parser.add_argument("--ways", nargs="*", choices=(*COMPILED, "graph"), default=[*COMPILED, "graph"])
    parser.add_argument("--preset", default="hiera_s", help="network of the training step")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--smoke", action="store_true", help="narrow and plain: to try the script, not to measure")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here, which this measures; --device cpu --smoke tries the script", file=sys.stderr)
        return 2
    if arguments.smoke:
        arguments.preset, arguments.batch, arguments.rounds, arguments.queries = "tiny", 2, 1, [3]
        arguments.ways = [way for way in arguments.ways if device.type == "cuda"]
    sizes = Sizes(image=arguments.size, **(SMOKE if arguments.smoke else {}))
    bench = Bench(device, sizes, rounds=arguments.rounds, batch=arguments.batch, ways=arguments.ways)
    rows: list[Row] = []
    more = {"batch": arguments.batch, "rounds": arguments.rounds, "preset": arguments.preset, "dtype": "bf16"}
    if device.type == "cuda":
        more["gpu_memory_gib"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    for part in arguments.parts:
        for queries in arguments.queries if part != "training" else (None,):
            measured = bench.training_step(arguments.preset) if queries is None else bench.decoder(queries, part)
            try:
                for measured_row in measured:
                    rows.append(measured_row)
            except torch.OutOfMemoryError:
                print(f"{part}: out of memory; try a smaller --batch", file=sys.stderr)
            if arguments.json is not None:  # after every part: a machine may be lent for minutes only
                write(rows, arguments.json, settings=settings(sizes, **more))
    return 0


if __name__ == "__main__":
    sys.exit(main())
