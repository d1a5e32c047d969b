"""The needle test: a decoder without encoders, on features that can be segmented through cross-attention alone.

Every image has a few objects of one stride-8 patch. The visual features V show each one's class and a random code, the
semantic map S shows the code alone, and the prompt names the class. So a query has to find the one patch of its class,
read the code there, and make it the vector that S is multiplied with; without attention to V, nothing tells which of
the objects is meant. :attr:`NeedleResult.dice_swapped`, with another image's V, says whether that is so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from boltzformer_monai.engines.layer_supervision import supervise_layers
from boltzformer_monai.engines.loss import BoltzFormerLoss
from boltzformer_monai.engines.optimizer import make_optimizer, make_scheduler
from boltzformer_monai.engines.settings import TrainingSettings, training_settings
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.field_types import check_types
from boltzformer_monai.networks import CounterNoise, ImageFeatures, NetworkConfig, TextFeatures, network_config
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.networks.registries import DECODERS

__all__ = ["LayerSets", "NeedleBatch", "NeedleResult", "NeedleSettings", "make_batch", "run_needle"]

_DECODER = {
    "dim": 32,
    "heads": 4,
    "hidden": 64,
    "queries": 4,
    "mask_bias": -3.0,
    "level_logits": "bilinear",
    "pigma_correction": False,  # it sees the image, which is empty here
    "presence": False,
}
_TRAINING = {
    "learning_rate": 2e-3,
    "weight_decay": 1e-2,
    "balance": 10.0,
    "layer_supervision": 0.0,
    "layer_supervision_stride": 1,
}
_TRAINABLE = ("learning_rate", "weight_decay", "decay_norms", "schedule", "warm_up", "clip", "balance",
              "layer_supervision", "layer_supervision_stride")  # fmt: skip
_STRIDES = (32, 16, 8)  # of V, coarse to fine
_OBJECT = 8  # edge of an object in pixels: a patch of the finest level
_MOST_SEEDS = 2**31


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """A needle test.

    Attributes:
        image_size: H = W; V has (H/32)², (H/16)² and (H/8)² patches: 36, 144, 576 at 192; 1024, 4096, 16384 at 1024.
        network: network settings that replace those of the test's decoder: ``decoder``, ``policy``, ``queries``, ….
        training: training settings that replace those of the preset ``tiny``: of optimizer, schedule and loss.
        steps: of the optimizer.
        batch_size: images of a step; every image has a prompt for each of its objects.
        objects: in an image, each of another class.
        classes: that the prompts name.
        code: numbers of a code; classes and code together need at most ``dim`` channels.
        signal: length of the vectors of class and code, where the background has the standard deviation ``noise``.
        noise: in every channel of V and S.
        test_images: that no step has seen, the same for every seed.

    Raises:
        ConfigError: a setting is of another type, unknown or out of range.
    """

    image_size: int = 192
    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    steps: int = 1200
    batch_size: int = 16
    objects: int = 3
    classes: int = 4
    code: int = 16
    signal: float = 12.0
    noise: float = 0.3
    test_images: int = 128

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "objects", "classes", "code", "test_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size must be at least 2: V is swapped between images; got {self.batch_size}")
        if self.test_images % self.batch_size:
            msg = f"test_images must be a multiple of batch_size {self.batch_size}, got {self.test_images}"
            raise ConfigError(msg)
        for name in ("signal", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be 0 or more and finite, got {getattr(self, name)}")
        if "image_size" in self.network:
            raise ConfigError("network names image_size; set that of the needle test instead")
        reject_unknown(self.training, _TRAINABLE, what="training setting of a needle test")
        config, _ = self.config, self.trained
        if self.objects > min(self.classes, self.cells**2):
            most = min(self.classes, self.cells**2)
            msg = f"{self.objects} objects need as many classes and coarse patches; at most {most} here"
            raise ConfigError(msg)
        if self.classes + self.code > config.dim:
            msg = f"{self.classes} classes and a code of {self.code} need {self.classes + self.code} channels"
            raise ConfigError(f"{msg}, the network has dim {config.dim}")

    @property
    def config(self) -> NetworkConfig:
        """Of the decoder."""
        return network_config("tiny", image_size=self.image_size, **{**_DECODER, **self.network})

    @property
    def trained(self) -> TrainingSettings:
        """Of optimizer, schedule and loss."""
        return training_settings("tiny", "cpu", overrides={**_TRAINING, **self.training})

    @property
    def cells(self) -> int:
        """Patches along an edge of the coarsest level."""
        return self.image_size // _STRIDES[0]

    @property
    def patches(self) -> tuple[int, ...]:
        """Of each level of V."""
        return tuple((self.image_size // stride) ** 2 for stride in _STRIDES)


class NeedleBatch(NamedTuple):
    """Images of a needle test with their prompts."""

    image: ImageFeatures
    text: TextFeatures
    mask: Tensor
    """``(B, P, H/2, W/2)``, 0 or 1: the object that each prompt names."""
    cell: Tensor
    """Its row and column among the patches of stride 8, ``(B, P, 2)`` int64."""
    kind: Tensor
    """Its class, ``(B, P)`` int64."""
    code: Tensor
    """Its code, ``(B, P, code)`` float32 of length 1."""

    def swapped(self) -> NeedleBatch:
        """With the V of another image, and S, prompts and masks as they are."""
        levels = tuple(torch.roll(level, 1, dims=0) for level in self.image.levels)
        return self._replace(image=dataclasses.replace(self.image, levels=levels))


@dataclasses.dataclass(frozen=True)
class LayerSets:
    """What the queries of a layer attend to, over all test images and prompts.

    Attributes:
        layer: from 0.
        patches: of its level.
        set_size: mean share of the patches in a set.
        coverage: share of the sets that hold the object's patch.
    """

    layer: int
    patches: int
    set_size: float
    coverage: float

    @property
    def focus(self) -> float:
        """Share of the attended patches that show the object, over the share expected by chance; 1 = chance.

        Of all sets together: a large set counts for more than a small one, unlike in
        :class:`~boltzformer_monai.evaluation.focus.LayerFocus`, which is the mean over sets.
        """
        return self.coverage / self.set_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeedleResult:
    """What a needle test found.

    Attributes:
        seed: of weights, data and draws.
        dice: mean over test images and prompts.
        missed: share of the objects that the mask does not touch.
        dice_swapped: mean Dice with the V of another image; where it is not far below, V was not needed.
        layers: attention sets by layer; empty for a decoder that shows none.
        rows: one for each test image and prompt: seed, data, patient, image, target, area_share, diameter_mm, dice,
            missed, confidence.
        losses: of every step.
        parameters: of the decoder.
        seconds: wall-clock time of the training.
        processor_seconds: of this process, all its threads together.
        initial_sha256: of the initial weights that this decoder has by name and shape in common with the test's own;
            equal for all policies.
        data_sha256: of all training and test images, in their order; equal for all arms of a seed.
    """

    seed: int
    dice: float
    missed: float
    dice_swapped: float
    layers: tuple[LayerSets, ...]
    rows: tuple[Mapping[str, Any], ...]
    losses: tuple[float, ...]
    parameters: int
    seconds: float
    processor_seconds: float
    initial_sha256: str
    data_sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        layers = [{**dataclasses.asdict(each), "focus": each.focus} for each in self.layers]
        return {**dataclasses.asdict(self), "layers": layers}


def run_needle(settings: NeedleSettings, *, seed: int, device: torch.device | str = "cpu") -> NeedleResult:
    """Train a decoder on needles and test it on others.

    Weights, data and draws are functions of the seed, whatever the decoder: arms of one seed start from the same
    weights where these have the same name and shape, see the same images in the same order, and use their own numbers
    for the sampling. On another device the background's noise is another.

    Args:
        settings: of the test.
        seed: 0 or more, below 2³¹.
        device: to compute on.

    Raises:
        ConfigError: the seed is out of range, or the decoder cannot be built.
    """
    if not 0 <= seed < _MOST_SEEDS:
        raise ConfigError(f"the seed must be from 0 to {_MOST_SEEDS - 1}, got {seed}")
    place = torch.device(device)
    decoder, initial = _initial_decoder(settings, seed)
    supervise_layers(nn.ModuleDict({"decoder": decoder}), settings.trained)
    decoder.to(place).train()
    digest = hashlib.sha256()
    started, processor = time.perf_counter(), time.process_time()
    losses = tuple(_train(decoder, settings, seed, place, digest))
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    scores = _test(decoder.eval(), settings, place, digest)
    rows = [{"seed": seed, **row} for row in scores["rows"]]
    return NeedleResult(
        seed=seed,
        dice=sum(row["dice"] for row in rows) / len(rows),
        missed=sum(row["missed"] for row in rows) / len(rows),
        dice_swapped=scores["swapped"],
        layers=scores["layers"],
        rows=tuple(rows),
        losses=losses,
        parameters=sum(each.numel() for each in decoder.parameters()),
        seconds=seconds,
        processor_seconds=processor,
        initial_sha256=initial,
        data_sha256=digest.hexdigest(),
    )


def make_batch(settings: NeedleSettings, *, key: str, count: int, device: torch.device | str = "cpu") -> NeedleBatch:
    """Draw images with their objects, a prompt for each object.

    Args:
        settings: of the test.
        key: decides everything drawn, with the settings.
        count: B.
        device: of the tensors; objects and codes do not depend on it.
    """
    place, dim, edge = torch.device(device), settings.config.dim, settings.image_size // _OBJECT
    draws = torch.Generator().manual_seed(_number(key))
    objects = (count, settings.objects)
    corner = torch.rand(count, settings.cells**2, generator=draws).argsort(1)[:, : settings.objects]
    inside = torch.randint(_STRIDES[0] // _OBJECT, (*objects, 2), generator=draws)
    cell = torch.stack((corner // settings.cells, corner % settings.cells), -1) * (_STRIDES[0] // _OBJECT) + inside
    kind = torch.rand(count, settings.classes, generator=draws).argsort(1)[:, : settings.objects]
    code = nn.functional.normalize(torch.randn(*objects, settings.code, generator=draws), dim=-1)

    of_class, of_code, of_text = _vectors(settings)
    shown = settings.signal * (code @ of_code)  # (B, P, d)
    background = torch.Generator(place).manual_seed(_number(f"{key} background"))

    def on_grid(vectors: Tensor, stride: int, repeat: int = 1) -> Tensor:
        """Noise with the vectors of all objects at their patches, ``(B, d, h, w)``."""
        size = settings.image_size // stride
        grid = torch.zeros(count, dim, size, size)
        row, column = (cell * _OBJECT // stride).unbind(-1)
        image = torch.arange(count)[:, None].expand(objects)
        grid.permute(0, 2, 3, 1).index_put_((image, row, column), vectors, accumulate=True)
        grid = grid.to(place).repeat_interleave(repeat, 2).repeat_interleave(repeat, 3)
        return grid + settings.noise * torch.randn(grid.shape, generator=background, device=place)

    found = settings.signal * of_class[kind] + shown
    levels = tuple(on_grid(found, stride) for stride in _STRIDES)
    semantic_map = on_grid(shown, _OBJECT, repeat=2)
    mask = torch.zeros(*objects, edge, edge)
    mask.flatten(0, 1)[torch.arange(mask[:, :, 0, 0].numel()), cell[..., 0].flatten(), cell[..., 1].flatten()] = 1
    mask = mask.repeat_interleave(_OBJECT // 2, 2).repeat_interleave(_OBJECT // 2, 3)
    # One empty image for all: no decoder here may see more than V and S.
    image = torch.zeros((), device=place).expand(count, settings.config.in_channels, *(2 * [settings.image_size]))
    text = TextFeatures(of_text[kind][:, :, None].to(place), torch.ones(*objects, 1, dtype=torch.bool, device=place))
    return NeedleBatch(ImageFeatures(levels, semantic_map, image), text, mask.to(place), cell, kind, code)


def _vectors(settings: NeedleSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of classes and codes in V and S, at right angles, and of classes in the text; ``(…, d)`` each."""
    dim, draws = settings.config.dim, torch.Generator().manual_seed(_number("vectors"))
    features, text = (torch.linalg.qr(torch.randn(dim, dim, generator=draws)).Q for _ in range(2))
    of_class, of_code, _ = features.split((settings.classes, settings.code, dim - settings.classes - settings.code))
    return of_class, of_code, math.sqrt(dim) * text[: settings.classes]


def _initial_decoder(settings: NeedleSettings, seed: int) -> tuple[nn.Module, str]:
    """A decoder with the weights of a seed, and a hash of those it shares with the decoder of the default settings."""
    config = settings.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        usual = _made(network_config("tiny", image_size=settings.image_size, **_DECODER)).state_dict()
        torch.manual_seed(seed)
        decoder = _made(config)
    weights, digest = decoder.state_dict(), hashlib.sha256()
    # Scalars are settings, such as the start of the mask bias.
    for name, each in usual.items():
        if each.dim() and name in weights and weights[name].shape == each.shape:
            weights[name].copy_(each)
            digest.update(name.encode() + each.numpy().tobytes())
    return decoder, digest.hexdigest()


def _made(config: NetworkConfig) -> nn.Module:
    return DECODERS.make(config.decoder, config, settings=config.decoder_settings)


def _train(
    decoder: nn.Module, settings: NeedleSettings, seed: int, device: torch.device, digest: Any
) -> Iterator[float]:
    trained = settings.trained
    loss_of = BoltzFormerLoss(balance=trained.balance, layer_supervision=trained.layer_supervision)
    optimizer = make_optimizer(
        decoder,
        learning_rate=trained.learning_rate,
        weight_decay=trained.weight_decay,
        decay_norms=trained.decay_norms,
    )
    scheduler = make_scheduler(optimizer, settings=trained, steps=settings.steps)
    for step in range(settings.steps):
        batch = make_batch(settings, key=f"train {seed} {step}", count=settings.batch_size, device=device)
        _update(digest, batch)
        first = (seed * settings.steps + step) * settings.batch_size
        noise = CounterNoise((torch.arange(settings.batch_size) + first) % _MOST_SEEDS)
        decoded: Decoded = decoder(batch.image, batch.text, generator=noise)
        loss = loss_of(decoded, batch.mask)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if trained.clip:
            nn.utils.clip_grad_norm_(decoder.parameters(), trained.clip)
        optimizer.step()
        scheduler.step()
        yield float(loss.detach())


@torch.no_grad()
def _test(decoder: nn.Module, settings: NeedleSettings, device: torch.device, digest: Any) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    swapped: list[float] = []
    sets: list[list[tuple[float, float]]] = []
    data = "needle " + "/".join(map(str, settings.patches))
    for first in range(0, settings.test_images, settings.batch_size):
        batch = make_batch(settings, key=f"test {first}", count=settings.batch_size, device=device)
        _update(digest, batch)
        logits = decoder(batch.image, batch.text, generator=CounterNoise(0)).logits.float()
        other = decoder(batch.swapped().image, batch.text, generator=CounterNoise(0)).logits
        dice, hit = _dice(logits, batch.mask)
        swapped += _dice(other, batch.mask)[0].flatten().tolist()
        confidence = torch.sigmoid(logits).flatten(2).amax(2)
        for image in range(settings.batch_size):
            rows += [
                {
                    "data": data,
                    "patient": "",
                    "image": f"test {first + image}",
                    "target": f"class {int(batch.kind[image, prompt])}",
                    "area_share": (_OBJECT / settings.image_size) ** 2,
                    "diameter_mm": None,
                    "dice": float(dice[image, prompt]),
                    "missed": not bool(hit[image, prompt]),
                    "confidence": float(confidence[image, prompt]),
                }
                for prompt in range(settings.objects)
            ]
        if (sets_of := getattr(decoder, "attention_sets", None)) is not None:
            attended = sets_of(batch.image, batch.text, generator=CounterNoise(0))
            edge = settings.image_size // _OBJECT
            sets.append([_set_size_and_coverage(each, batch.cell * each.shape[-1] // edge) for each in attended])
    means = torch.tensor(sets).mean(0).tolist() if sets else []
    layers = (LayerSets(layer, settings.patches[layer % len(_STRIDES)], *values) for layer, values in enumerate(means))
    return {"rows": rows, "swapped": sum(swapped) / len(swapped), "layers": tuple(layers)}


def _dice(logits: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Dice of the masks of logits ``(B, P, H, W)``, and whether they touch the object; ``(B, P)`` each."""
    found, true = (logits > 0).flatten(2), (mask > 0.5).flatten(2)
    both = (found & true).sum(2)
    return 2 * both / (found.sum(2) + true.sum(2)), both > 0


def _set_size_and_coverage(attended: Tensor, cell: Tensor) -> tuple[float, float]:
    """Mean of sets ``(B, P, [heads,] m, h, w)``, and their share that holds the object's patch ``(B, P, 2)``."""
    sets = attended.float().flatten(2, -3)  # (B, P, sets, h, w)
    row, column = cell.unbind(-1)
    image, prompt = (torch.arange(n) for n in cell.shape[:2])
    at_object = sets[image[:, None], prompt[None], :, row, column]
    return float(sets.mean()), float(at_object.mean())


def _update(digest: Any, batch: NeedleBatch) -> None:
    for each in (batch.cell, batch.kind, batch.code):  # on the CPU, and decide all but the background's noise
        digest.update(each.contiguous().numpy().tobytes())


def _number(key: str) -> int:
    """A seed for PyTorch's generators."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")
