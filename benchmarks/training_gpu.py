"""Training on one CUDA device, in minutes: time and memory of a step, the share of each part, then a real training.

    python benchmarks/training_gpu.py --data SLICES --json benchmarks/results/training_gpu.json

A step is forward pass with loss, backward pass and AdamW, one prompt an image, in bfloat16. Variants are the plain and
the fast decoder, weights contiguous and in channels last, eager and under ``torch.compile``. They take turns in one
process; times are medians of CUDA events after a warm-up, ``gib_peak_…`` is weights, optimizer and one step.
``fast_repeated`` is ``fast`` again, among the compiled variants, and tells how the device drifted.
``percent_…`` are the parts of an eager step, forward and backward pass together, each part run and timed by itself.

The rest of the time trains: the bundle's trainer on a slice dataset, which needs MONAI, or a plain loop on phantoms
made on the device. All else needs torch, timm and transformers only. A variant that does not run is a row without a
value that says why. What there is is written after every stage. Without CUDA the exit code is 2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.cuda import free_memory, peak_mib  # noqa: E402
from benchmarks.decoder_gpu import Row, dice_and_bce, row  # noqa: E402
from benchmarks.record import write  # noqa: E402
from boltzformer_monai.errors import BoltzFormerError  # noqa: E402
from boltzformer_monai.networks import BoltzFormer, ImageFeatures, TextFeatures, create_boltzformer  # noqa: E402
from boltzformer_monai.networks.fast.semantic_map import SemanticMap  # noqa: E402
from boltzformer_monai.networks.layout import set_layout, training_is_safe  # noqa: E402
from boltzformer_monai.precision import autocast  # noqa: E402

_STEPS_SHARE = 0.65  # of the time, at most; the rest is the training's
_LEAST_COMPILE_S = 20.0
_LEAST_ROUNDS = 3  # also where the time is over

Batch = tuple[Tensor, Tensor, Tensor]


class OutOfTime(BaseException):
    """The time of a compilation is over; no ``Exception``, which the compiler would catch."""


@dataclass(frozen=True)
class Variant:
    """One way to run a step."""

    fast: bool = True
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        parts = ("fast" if self.fast else "plain", "channels_last" * self.channels_last, "compiled" * self.compiled)
        return "_".join(filter(None, parts))


EAGER = tuple(Variant(fast, layout) for layout in (False, True) for fast in (False, True))
COMPILED = tuple(Variant(fast, layout, compiled=True) for fast in (True, False) for layout in (False, True))
"""What matters most first: compilations may take more time than there is."""


class Stopwatch:
    """Seconds between marks: by CUDA events, which do not hold up the host, or by the CPU's clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []
        self.mark("start")

    def mark(self, name: str) -> None:
        """End the stretch ``name``, which began at the mark before."""
        if self.cuda:
            event: Any = torch.cuda.Event(enable_timing=True)
            event.record()
        else:
            event = time.perf_counter()
        self._marks.append((name, event))

    def seconds(self) -> dict[str, float]:
        """Seconds by name, stretches of one name added."""
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, begin), (name, end) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = begin.elapsed_time(end) / 1000 if self.cuda else end - begin
            found[name] = found.get(name, 0.0) + elapsed
        return found


class Phantoms:
    """Batches of slices made on the device: noise with a large and a small bright and a dark ellipse, one prompted.

    Args:
        device: where they are made.
        size: height = width of the images; masks have half of it.
        batch: images at once.
        seed: of the draws.
    """

    _KINDS = ((0.25, 0.3), (0.06, 0.4), (0.15, -0.3))
    """Radius as a share of the image, and contrast."""

    def __init__(self, device: torch.device, *, size: int, batch: int, seed: int = 0) -> None:
        self.batch = batch
        self.size = size
        self.generator = torch.Generator(device).manual_seed(seed)
        axis = (torch.arange(size, device=device) + 0.5) / size
        self.y, self.x = axis[:, None], axis[None, :]
        # Begin and end of CLIP's vocabulary, and three words of it, which stand for the kinds.
        self.tokens = torch.tensor([[49406, word, 49407] for word in (13213, 2103, 7651)], device=device)

    def __call__(self) -> Batch:
        """Images ``(B, 1, H, W)`` in 0–1, tokens ``(B, 1, 3)`` and masks ``(B, 1, H/2, W/2)`` of 0 and 1."""
        draw = partial(torch.rand, generator=self.generator, device=self.x.device)
        image = 0.4 + 0.1 * (draw(self.batch, self.size, self.size) - 0.5)
        ellipses = []
        for radius, contrast in self._KINDS:
            y, x = (0.2 + 0.6 * draw(self.batch, 1, 1) for _ in range(2))
            height, width = (radius * (0.7 + 0.6 * draw(self.batch, 1, 1)) for _ in range(2))
            inside = ((self.y - y) / height).square() + ((self.x - x) / width).square() < 1
            image = image + contrast * inside
            ellipses.append(inside)
        chosen = torch.randint(len(ellipses), (self.batch,), generator=self.generator, device=self.x.device)
        masks = torch.stack(ellipses, dim=1)[torch.arange(self.batch, device=self.x.device), chosen]
        return image.clamp(0, 1)[:, None], self.tokens[chosen][:, None], masks[:, None, ::2, ::2].float()


@dataclass
class Contestant:
    """A network with its optimizer, ready for steps."""

    network: BoltzFormer
    optimizer: torch.optim.Optimizer
    forward: nn.Module
    """The network itself, or compiled."""

    def step(self, batch: Batch) -> dict[str, float]:
        """One step; seconds of its phases."""
        image, tokens, target = batch
        watch = Stopwatch(image.device)
        loss = dice_and_bce(self.forward(image, tokens), target)
        watch.mark("forward")
        loss.backward()
        watch.mark("backward")
        self.optimizer.step()
        watch.mark("optimizer")
        self.release()
        return watch.seconds()

    def parts(self, batch: Batch) -> dict[str, float]:
        """One eager step, seconds of each part: gradients stop where a part begins and are handed on by hand."""
        image, tokens, target = batch
        network = self.network
        normalised = (image - network.mean) / network.std
        watch = Stopwatch(image.device)
        with autocast(network.precision, image.device):
            features = network.backbone(normalised)
            watch.mark("backbone")
            given = [_leaf(each) for each in features]
            levels, semantic = network.pixel_decoder(given)
            watch.mark("pixel_decoder")
        text = network.encode_text(tokens)
        watch.mark("text_encoder")
        fine = semantic.fine if isinstance(semantic, SemanticMap) else semantic
        visual, map_leaf, text_leaf = [_leaf(each) for each in levels], _leaf(fine), _leaf(text.tokens)
        lazy = isinstance(semantic, SemanticMap)
        semantic_leaf = SemanticMap(map_leaf, semantic.weight, semantic.bias) if lazy else map_leaf
        image_features = ImageFeatures(tuple(visual), semantic_leaf, normalised)
        logits = network.decode(image_features, TextFeatures(text_leaf, text.valid)).logits
        watch.mark("decoder")
        logits_leaf = _leaf(logits)
        dice_and_bce(logits_leaf, target).backward()
        watch.mark("loss")
        _hand_on([logits], [logits_leaf])
        watch.mark("decoder")
        _hand_on([text.tokens], [text_leaf])
        watch.mark("text_encoder")
        _hand_on([*levels, fine], [*visual, map_leaf])
        watch.mark("pixel_decoder")
        _hand_on(features, given)
        watch.mark("backbone")
        self.optimizer.step()
        watch.mark("optimizer")
        self.release()
        return watch.seconds()

    def release(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def resident_bytes(self) -> int:
        """Of weights, buffers and the optimizer's state."""
        state = (each for of_one in self.optimizer.state.values() for each in of_one.values())
        held = (*self.network.parameters(), *self.network.buffers(), *state)
        return sum(each.nbytes for each in held if isinstance(each, Tensor))


def _leaf(output: Tensor) -> Tensor:
    return output.detach().requires_grad_()


def _hand_on(outputs: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Run a part backward, from the gradients of what the next one was given."""
    used = [(output, leaf.grad) for output, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
    torch.autograd.backward([output for output, _ in used], [gradient for _, gradient in used])


class Bench:
    """The steps of all variants on one device.

    Args:
        device: CUDA, or the CPU to try the script.
        preset: of the network.
        size: height = width of the images.
        batch: images at once.
        rounds: timed rounds, fewer where the time is over.
        deadline: when to stop, by ``time.monotonic``.
        learning_rate: of AdamW.
    """

    def __init__(
        self, device: torch.device, *, preset: str, size: int, batch: int, rounds: int, deadline: float,
        learning_rate: float,
    ) -> None:  # fmt: skip
        self.device = device
        self.preset = preset
        self.size = size
        self.batch = batch
        self.rounds = rounds
        self.deadline = deadline
        self.learning_rate = learning_rate
        self.phantoms = Phantoms(device, size=size, batch=batch)
        self._eager: dict[Variant, Contestant] = {}
        self._plain: float | None = None

    def contestant(self, variant: Variant) -> Contestant:
        """A variant's, with the weights and the optimizer of all variants of its layout."""
        eager = replace(variant, compiled=False)
        if eager not in self._eager:
            self._eager[eager] = self._made(eager)
        found = self._eager[eager]
        if not variant.compiled:
            return found
        return replace(found, forward=cast(nn.Module, torch.compile(found.network, dynamic=False)))

    def _made(self, variant: Variant) -> Contestant:
        torch.manual_seed(0)
        network = create_boltzformer(self.preset, image_size=self.size, fast=variant.fast).to(self.device).train()
        network.set_precision(precision_on(self.device))
        shared = self._eager.get(replace(variant, fast=not variant.fast))
        if shared is not None:  # memory then holds one set of weights for each layout
            network.load_state_dict(shared.network.state_dict(keep_vars=True), assign=True)
            return Contestant(network, shared.optimizer, network)
        if variant.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(network.parameters(), lr=self.learning_rate, weight_decay=1e-2, fused=True)
        return Contestant(network, optimizer, network)

    def steps(self, variants: Sequence[Variant]) -> Iterator[Row]:
        """Seconds of warm-up, peak memory, then the phases of a step in turns."""
        ready: dict[str, Contestant] = {}
        if any(variant.compiled for variant in variants) and Variant() in self._eager:
            ready["fast_repeated"] = self._eager[Variant()]
        for variant in variants:
            began = time.monotonic()
            try:
                reason = self._warm_up(variant, ready)
            except OutOfTime:
                reason = "its compilation took more than the time left"
            if reason:
                self._free()
                yield self._row("ms_step", str(variant), None, "ms", note=reason)
                continue
            yield self._row("seconds_warm_up", str(variant), time.monotonic() - began, "s")
        times: dict[str, list[dict[str, float]]] = {name: [] for name in ready}
        for number in range(self.rounds):
            if number >= _LEAST_ROUNDS and time.monotonic() > self.deadline:
                break
            turn = list(ready.items())
            for name, contestant in turn if number % 2 else reversed(turn):
                reason = attempt(lambda: times[name].append(contestant.step(self.phantoms())))  # noqa: B023
                if reason:
                    self._free()
                    del ready[name]
                    yield self._row("ms_step", name, None, "ms", note=reason)
        for name, contestant in ready.items():
            yield from self._results(name, contestant, times[name])

    def _warm_up(self, variant: Variant, ready: dict[str, Contestant]) -> str:
        """Two steps; why they failed, or nothing."""
        left = self.deadline - time.monotonic()
        if left < (_LEAST_COMPILE_S if variant.compiled else 0):
            return "no time left"
        if (reason := attempt(lambda: self.contestant(variant))) != "":
            return reason
        contestant = self.contestant(variant)
        if variant.channels_last and not training_is_safe(contestant.network):
            return "channels last is not safe to train on this device"
        with within(left) if variant.compiled else contextlib.nullcontext():
            for _ in range(2):
                if (reason := attempt(lambda: contestant.step(self.phantoms()))) != "":
                    return reason
        ready[str(variant)] = contestant
        return ""

    def _results(self, name: str, contestant: Contestant, times: Sequence[Mapping[str, float]]) -> Iterator[Row]:
        if not times:
            return
        seconds = statistics.median(sum(each.values()) for each in times)
        yield self._row("ms_step", name, 1000 * seconds, "ms")
        for phase in times[0]:
            yield self._row(f"ms_{phase}", name, 1000 * statistics.median(each[phase] for each in times), "ms")
        yield self._row("images_per_second", name, self.batch / seconds, "images/s")
        if name == str(Variant(fast=False)):
            self._plain = seconds
        elif self._plain is not None:
            yield self._row("times_faster_than_plain", name, self._plain / seconds, "times")
        yield self._row("rounds", name, len(times), "rounds")
        if self.device.type == "cuda":
            resident = contestant.resident_bytes() / 2**30
            batch = self.phantoms()
            peak: list[float] = []
            reason = attempt(lambda: peak.append(peak_mib(lambda: contestant.step(batch)) / 2**10))
            value = None if reason else resident + peak[0]
            yield self._row("gib_peak", name, value, "GiB", note=reason)
        else:
            yield self._row("gib_peak", name, None, "GiB", note="only a GPU can tell")

    def parts(self) -> Iterator[Row]:
        """Milliseconds and share of each part, for both decoders."""
        for variant in (Variant(), Variant(fast=False)):
            if variant not in self._eager:
                continue
            times: list[dict[str, float]] = []
            contestant = self._eager[variant]
            for number in range(1 + self.rounds):
                if number > 1 and time.monotonic() > self.deadline:
                    break
                reason = attempt(lambda: times.append(contestant.parts(self.phantoms())))  # noqa: B023
                if reason:
                    self._free()
                    yield self._row("percent_parts", str(variant), None, "%", note=reason)
                    break
            if len(times) < 2:
                continue
            medians = {part: statistics.median(each[part] for each in times[1:]) for part in times[0]}
            for part, seconds in medians.items():
                yield self._row(f"ms_part_{part}", str(variant), 1000 * seconds, "ms")
                yield self._row(f"percent_{part}", str(variant), 100 * seconds / sum(medians.values()), "%")

    def training(self, deadline: float, *, most_steps: int) -> Iterator[Row]:
        """Train the fast decoder from random weights on phantoms."""
        losses: list[Tensor] = []
        began: list[float] = []

        def train() -> None:
            contestant = self._made(Variant())
            set_layout(contestant.network, trains=True)
            while not losses or (time.monotonic() < deadline and len(losses) < most_steps):
                image, tokens, target = self.phantoms()
                loss = dice_and_bce(contestant.network(image, tokens), target)
                loss.backward()
                contestant.optimizer.step()
                contestant.release()
                losses.append(loss.detach())
                if not began:
                    loss.item()  # the first step warms up, and the clock starts behind it
                    began.append(time.monotonic())

        reason = attempt(train)
        if reason:
            yield row("training_phantoms", None, "steps", note=reason)
        if losses:
            values = torch.stack(losses).tolist()
            seconds = time.monotonic() - began[0]
            yield from training_rows("phantoms", values, images=self.batch * (len(values) - 1), seconds=seconds)

    def close(self) -> None:
        """Give the memory of all variants back."""
        self._eager.clear()
        free_memory()

    def _row(self, what: str, name: str, value: float | None, unit: str, *, note: str = "") -> Row:
        return row(f"{what}_{name}_b{self.batch}", value, unit, note=note)

    def _free(self) -> None:
        for contestant in self._eager.values():
            contestant.release()
        free_memory()


class Observer:
    """Losses, images and waiting times of the bundle's trainer, which it ends.

    Args:
        deadline: when to end, by ``time.monotonic``.
        most_steps: after which to end.
    """

    def __init__(self, *, deadline: float, most_steps: int) -> None:
        self.deadline = deadline
        self.most_steps = most_steps
        self.losses: list[Tensor] = []
        self.images = 0
        self.waited = 0.0
        self.began = 0.0
        self._since = 0.0

    def attach(self, trainer: Any) -> None:
        """Attach to the trainer."""
        from ignite.engine import Events

        trainer.add_event_handler(Events.GET_BATCH_STARTED, self._wait)
        trainer.add_event_handler(Events.GET_BATCH_COMPLETED, self._got)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stepped)

    def _wait(self) -> None:
        self._since = time.monotonic()

    def _got(self) -> None:
        self.waited += time.monotonic() - self._since

    def _stepped(self, trainer: Any) -> None:
        self.losses.append(trainer.state.output["loss"].detach())
        self.images += sum(len(batch["image"]) for batch in trainer.state.batch)
        if len(self.losses) == 1:  # it warms up
            self.losses[0].item()
            self.images, self.waited, self.began = 0, 0.0, time.monotonic()
        if time.monotonic() > self.deadline or len(self.losses) >= self.most_steps:
            trainer.terminate()


def bundle_training(
    slices: Path, observer: Observer, *, preset: str, size: int, batch: int, device: torch.device,
    learning_rate: float, workers: int | None,
) -> Iterator[Row]:  # fmt: skip
    """Train on a slice dataset with the bundle's trainer, from random weights and without validation."""
    from boltzformer_monai.bundle_files import bundle_root
    from boltzformer_monai.engines import make_training

    never = 10**6
    with tempfile.TemporaryDirectory() as folder:
        overrides = {
            "bundle_root": str(bundle_root()), "dataset_dir": str(slices), "output_dir": folder, "device": device,
            "preset": preset, "image_size": size, "batch_size": batch, "precision": precision_on(device),
            "learning_rate": learning_rate, "settings_overrides": {"schedule": "constant"},
            "epochs": never, "val_interval": never, **({} if workers is None else {"workers": workers}),
        }  # fmt: skip
        trainer, _, _ = make_training(overrides, root=bundle_root())
        observer.attach(trainer)
        reason = attempt(trainer.run)
    if reason:
        yield row("training_slices", None, "steps", note=reason)
    if observer.losses:
        losses = torch.stack(observer.losses).tolist()
        seconds = time.monotonic() - observer.began
        yield from training_rows("slices", losses, images=observer.images, seconds=seconds)
        yield row("percent_waiting_for_data_training_slices", 100 * observer.waited / seconds, "%")


def training_rows(data: str, losses: Sequence[float], *, images: int, seconds: float) -> Iterator[Row]:
    """Throughput without the first step, and the mean losses of the first and the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    yield row(f"steps_training_{data}", len(losses), "steps")
    yield row(f"seconds_training_{data}", seconds, "s")
    speed = images / seconds if images and seconds > 0 else None
    yield row(f"images_per_second_training_{data}", speed, "images/s", note="" if speed else "one step only")
    yield row(f"loss_start_training_{data}", statistics.fmean(losses[:tenth]), "loss")
    yield row(f"loss_end_training_{data}", statistics.fmean(losses[-tenth:]), "loss")


def precision_on(device: torch.device) -> str:
    """What is measured, and on CPUs, which are only to try the script, what they are faster with."""
    return "bf16" if device.type == "cuda" else "fp32"


def has_monai() -> bool:
    """Whether MONAI can be imported."""
    try:
        importlib.import_module("monai")
    except ImportError:
        return False
    return True


def attempt(way: Callable[[], object]) -> str:
    """Run it; why it failed, in a line, or nothing. The failed frames are gone then, and with them their memory."""
    try:
        way()
    except torch.OutOfMemoryError:
        return "out of memory"
    except BoltzFormerError:
        raise
    except Exception as error:  # noqa: BLE001 whatever compilers and CUDA raise, the other variants are measured
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return ""


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise :class:`OutOfTime` when the time is over."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="SLICES", help="slice dataset to train on; default: phantoms")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only to try the script")
    parser.add_argument("--preset", default="hiera_s")
    parser.add_argument("--size", type=int, default=1024, help="height = width of the image, a multiple of 32")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10**6, metavar="N", help="of the training, at most")
    parser.add_argument("--workers", type=int, metavar="N", help="of the loader of slices; default: the preset's")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on CUDA")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    started = time.monotonic()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here, which this measures; --device cpu tries the script", file=sys.stderr)
        return 2
    on_slices = arguments.data is not None and has_monai()
    if on_slices:
        from boltzformer_monai.data.slices.tables import read_description

        try:
            read_description(arguments.data)
        except BoltzFormerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    budget = 60 * arguments.minutes
    deadline = started + budget
    common: dict[str, Any] = {
        name: getattr(arguments, name) for name in ("preset", "size", "batch", "learning_rate")
    }  # fmt: skip
    bench = Bench(device, rounds=arguments.rounds, deadline=started + _STEPS_SHARE * budget, **common)
    settings = {**common, "rounds": arguments.rounds, "minutes": arguments.minutes, "dtype": precision_on(device)}
    if device.type == "cuda":
        settings["gpu_memory_gib"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    compiles = device.type == "cuda" if arguments.compile is None else arguments.compile

    def stages() -> Iterator[Iterable[Row]]:
        yield bench.steps(EAGER)
        yield bench.parts()
        if compiles:
            yield bench.steps(COMPILED)
        bench.close()
        if on_slices:
            observer = Observer(deadline=deadline, most_steps=arguments.steps)
            yield bundle_training(arguments.data, observer, device=device, workers=arguments.workers, **common)
            return
        if arguments.data is not None:
            note = "skipped: MONAI is not installed here, phantoms instead"
            yield [row("training_slices", None, "steps", note=note)]
        yield bench.training(deadline, most_steps=arguments.steps)

    rows: list[Row] = []
    for stage in stages():
        try:
            for measured in stage:
                rows.append(measured)
        except BoltzFormerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        finally:
            if arguments.json is not None:  # after every stage: a machine may be lent for minutes only
                write(rows, arguments.json, settings=settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
