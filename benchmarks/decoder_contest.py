"""Contestants of the decoder benchmarks, ours and the dense baseline, with shared weights and inputs."""

from __future__ import annotations

import copy
import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from benchmarks.dense import DenseTail
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import SemanticConvolution
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, Randomness, RecordingPolicy

Step = Callable[[], object]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a benchmark; by default the paper's."""

    image: int = 1024
    dim: int = 512
    heads: int = 8
    hidden: int = 2048
    layers: int = 9
    tokens: int = 8

    @property
    def levels(self) -> tuple[int, ...]:
        """Height = width of the visual features, coarse to fine."""
        return self.image // 32, self.image // 16, self.image // 8

    @property
    def map(self) -> int:
        """Height = width of the semantic map."""
        return self.image // 4


SMOKE = {"dim": 32, "heads": 2, "hidden": 48, "layers": 4}
"""Small widths, to try out a script."""


class Tail(nn.Module):
    """Ours: the convolution to S, decoder and PiGMA, with random weights, including biases and norms."""

    def __init__(self, sizes: Sizes, *, queries: int, ratio: float = 0.1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = SemanticConvolution(sizes.dim, sizes.dim, 3, padding=1)
        self.decoder = FastBoltzFormerDecoder(
            dim=sizes.dim,
            policy=BoltzmannSampling(sample_ratio=ratio),
            queries=queries,
            heads=sizes.heads,
            hidden=sizes.hidden,
            layers=sizes.layers,
        )
        self.aggregation = FastPiGMA(queries=queries)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))

    def forward(
        self,
        fine: Tensor,
        features: Sequence[Tensor],
        text: Tensor,
        text_valid: Tensor,
        image: Tensor,
        *,
        generator: Randomness = None,
    ) -> Tensor:
        """As :meth:`benchmarks.dense.DenseTail.forward`, for any number of prompts."""
        masks, _ = self.decoder.decode(features, self.conv(fine), text, text_valid, generator=generator)
        return self.aggregation(masks, image)

    def dense(self, *, blockwise: bool = False) -> DenseTail:
        """The dense baseline with these weights; ``blockwise`` is its faster form."""
        tail = DenseTail(self.conv, self.decoder, self.aggregation)
        tail.decoder.blockwise = blockwise
        return tail


class Inputs:
    """Inputs of a tail or a decoder, and output gradients for the backward pass."""

    def __init__(
        self, sizes: Sizes, *, queries: int, batch: int, seed: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        generator = torch.Generator(device).manual_seed(seed)
        normal = partial(torch.randn, generator=generator, device=device)

        side = sizes.map
        self.features = [normal(batch, sizes.dim, size, size) for size in sizes.levels]
        self.fine = normal(batch, sizes.dim, side, side)
        self.semantic_map = normal(batch, sizes.dim, side, side)
        self.text = normal(batch, 1, sizes.tokens, sizes.dim)
        self.valid = torch.ones(batch, 1, sizes.tokens, dtype=torch.bool, device=device)
        self.image = normal(batch, 3, sizes.image, sizes.image)
        # Mean 1, as a bias's gradient sums these over all pixels: a sum of random signs would cancel, and float32
        # would keep only four digits, in any order of summation.
        self.of_masks = 1 + normal(batch, 1, queries, side, side)
        self.of_logits = 1 + normal(batch, 1, 2 * side, 2 * side)

    def leaves(self, part: str) -> dict[str, Tensor]:
        """The inputs that need gradients."""
        features = {f"feature {i}": feature for i, feature in enumerate(self.features)}
        first = {"y": self.fine} if part == "tail" else {"S": self.semantic_map}
        return {**first, **features, "text": self.text}

    def track(self, part: str, wanted: bool) -> None:
        """Turn gradients of the inputs on or off."""
        for leaf in self.leaves(part).values():
            leaf.requires_grad_(wanted)
            leaf.grad = None

    def run(self, contestant: Tail | DenseTail, part: str, generator: Randomness = None) -> Tensor:
        """Forward pass of the whole tail, or of its decoder alone on a computed S."""
        noise = CounterNoise() if generator is None else generator
        if part == "tail":
            return contestant(self.fine, self.features, self.text, self.valid, self.image, generator=noise)
        return contestant.decoder(self.features, self.semantic_map, self.text, self.valid, generator=noise)

    def step(self, contestant: Tail | DenseTail, part: str) -> Tensor:
        """Forward and backward pass; leaves gradients in weights and inputs."""
        for leaf in (*contestant.parameters(), *self.leaves(part).values()):
            leaf.grad = None
        output = self.run(contestant, part)
        output.backward((self.of_logits if part == "tail" else self.of_masks).to(output.dtype))
        return output.detach()


class InjectedSets:
    """A policy that returns given sets and ignores the logits."""

    def __init__(self, sets: Sequence[Tensor], *, per_head: bool) -> None:
        self.sets = sets
        self.per_head = per_head

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """The layer's set."""
        return self.sets[layer].view(logits.shape).to(logits.device)


class SameDecisions(TorchFunctionMode):
    """Record which entries of each ReLU are positive, or replay a record.

    A pre-activation near zero may be positive for one contestant only, and then that query's gradients differ. Among
    millions of entries this is likely. Like a sampled set it is a discrete decision, not an error.
    """

    def __init__(self, decisions: list[Tensor] | None = None) -> None:
        super().__init__()
        self.given = decisions
        self.seen: list[Tensor] = []
        self.differing = 0

    def __torch_function__(  # noqa: D105
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in (torch.relu, torch.nn.functional.relu):
            return func(*args, **(kwargs or {}))
        positive = args[0] > 0
        self.seen.append(positive.detach())
        if self.given is None:
            return func(*args, **(kwargs or {}))
        same = self.given[len(self.seen) - 1].view_as(positive)
        self.differing += int((same != positive).sum())
        return args[0] * same


class Differences(NamedTuple):
    """Differences of two contestants with the same sets; gradients relative to their largest entry."""

    output: float
    """Largest absolute difference of the logits."""
    gradient: float
    """Largest relative difference of any gradient, with the same active ReLUs."""
    gradient_own_relus: float
    """The same, each contestant with its own active ReLUs."""
    relus: int
    """Number of ReLUs that are active for one contestant only."""


def differences(ours: Tail, inputs: Inputs, part: str) -> Differences:
    """Compare ours with the dense baseline, on the sets that ours samples."""
    recorder = RecordingPolicy(ours.decoder.policy)
    ours = copy.deepcopy(ours)
    ours.decoder.policy = recorder
    with torch.no_grad():
        inputs.run(ours, part)
    ours.decoder.policy = InjectedSets(recorder.sets, per_head=recorder.per_head)
    with SameDecisions() as decisions:
        wanted, expected = _results(ours.dense(), ours, inputs, part)
    output, own = _results(ours, ours, inputs, part)
    with SameDecisions(decisions.seen) as replayed:
        _, found = _results(ours, ours, inputs, part)
    if not expected.keys() == found.keys() == own.keys() or len(replayed.seen) != len(decisions.seen):
        raise RuntimeError(f"the contestants differ in what has a gradient: {sorted(expected.keys() ^ found.keys())}")
    return Differences(
        _largest(wanted - output), _relative(expected, found), _relative(expected, own), replayed.differing
    )


def _relative(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    return largest([_largest(e - found[name]) / max(_largest(e), 1e-30) for name, e in expected.items()])


def _results(
    contestant: Tail | DenseTail, weights: Tail, inputs: Inputs, part: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one step."""
    inputs.track(part, True)
    output = inputs.step(contestant, part)
    leaves = {**inputs.leaves(part), **dict(weights.named_parameters())}
    gradients = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    inputs.track(part, False)
    return output, gradients


def largest(values: Sequence[float]) -> float:
    """The maximum; NaN if any value is NaN, unlike the built-in ``max``."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def saved_for_backward(run: Callable[[], Tensor], excluded: Iterable[Tensor]) -> int:
    """Bytes of storage that autograd saves for the backward pass of ``run``, without the excluded tensors."""
    others = {tensor.untyped_storage().data_ptr() for tensor in excluded}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # kept alive, so that no address is reused
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    total = sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in others)
    del output
    return total


class Cost(NamedTuple):
    """Medians over the runs of one contestant."""

    seconds: float
    minor_faults: float
    """Fresh pages that the system provided and cleared; machines differ most in their cost."""


def costs(ways: Mapping[str, Step], *, rounds: int, clock: Callable[[Step], float] | None = None) -> dict[str, Cost]:
    """Cost of each way: one warm-up round, then rounds in turns, every other one in reverse order."""
    measure = wall_seconds if clock is None else clock
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        turn = list(ways.items())
        for name, way in turn if number % 2 else reversed(turn):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            elapsed = measure(way)
            if number:
                found[name].append(Cost(elapsed, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))
    return {name: Cost(*map(statistics.median, zip(*runs, strict=True))) for name, runs in found.items()}


def medians(ways: Mapping[str, Step], *, rounds: int, clock: Callable[[Step], float] | None = None) -> dict[str, float]:
    """Median seconds of each way; see :func:`costs`."""
    return {name: cost.seconds for name, cost in costs(ways, rounds=rounds, clock=clock).items()}


def wall_seconds(way: Step) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def settings(sizes: Sizes, **more: Any) -> dict[str, Any]:
    """Settings of the benchmark, for its record."""
    return {**dataclasses.asdict(sizes), "levels": sizes.levels, "map": sizes.map, **more}
