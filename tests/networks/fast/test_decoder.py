"""The plain and the fast form of decoder and network: one function, one set of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.networks import create_boltzformer
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.cross_attention import projects
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.pigma import MOST_COMBINED, FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import SemanticConvolution, SemanticMap
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, Randomness, RecordingPolicy
from boltzformer_monai.networks.weights import Description, load_checkpoint, save_checkpoint
from tests.networks.cases import SMALL, images, prompts, randomise, small_network

D, HEADS = 16, 2
SIZES = [(2, 3), (4, 6), (8, 12)]
Forms = tuple[nn.Conv2d, BoltzFormerDecoder, PiGMA]


class Replayed:
    """The sets that another policy drew, whatever the logits."""

    def __init__(self, recorded: RecordingPolicy) -> None:
        self.sets, self.per_head = recorded.sets, recorded.per_head

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        return self.sets[layer].view(logits.shape)


def make(fast: bool, queries: int, **settings: Any) -> Forms:
    """Convolution that makes S, decoder and aggregation, with the same weights in either form."""
    torch.manual_seed(0)
    policy = BoltzmannSampling(1.0, 0.3, per_head=bool(settings.pop("per_head", False)))
    conv = (SemanticConvolution if fast else nn.Conv2d)(D, D, 3, padding=1)
    decoder = (FastBoltzFormerDecoder if fast else BoltzFormerDecoder)(
        dim=D, policy=policy, queries=queries, heads=HEADS, hidden=20, layers=4, **settings
    )
    pigma = (FastPiGMA if fast else PiGMA)(queries=queries, channels=3)
    randomise(decoder)
    randomise(pigma)
    return conv, decoder, pigma


def run(forms: Forms, dtype: torch.dtype, *, batch: int, count: int, full: tuple[int, int]) -> dict[str, Tensor]:
    """Masks, queries, aggregated mask and the gradients of all inputs and weights."""
    conv, decoder, pigma = (module.to(dtype) for module in forms)
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    features = [draw(batch, D, *size) for size in SIZES]
    fine, text, image = draw(batch, D, *full), draw(batch, count, 4, D), draw(batch, 3, 20, 28)
    valid = torch.arange(4).expand(batch, count, 4) < 3
    masks, queries = decoder.decode(features, conv(fine), text, valid, generator=CounterNoise())
    aggregated = pigma(masks, image)
    outputs = {
        "masks": masks if isinstance(masks, Tensor) else masks.logits(),
        "queries": queries,
        "aggregated": aggregated,
    }
    leaves = {f"feature {i}": feature for i, feature in enumerate(features)} | {"y": fine, "text": text, "image": image}
    for name, module in (("conv", conv), ("decoder", decoder), ("pigma", pigma)):
        leaves |= {f"{name}.{key}": parameter for key, parameter in module.named_parameters()}
    total = sum((output * draw(*output.shape).detach()).sum() for output in outputs.values())
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return outputs | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize(
    ("queries", "count", "full"),
    [
        (3, 2, (16, 24)),  # projections absorbed, S not built
        (1, 1, (16, 24)),
        (MOST_COMBINED + 3, 1, (16, 24)),  # patches projected; fewer masks than queries
        (5, 4, (16, 24)),  # patches projected for several prompts
        (3, 2, (17, 23)),  # no even ratio: S is built
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask_bias": -1.5, "text_prior": False},
        {"per_head": True},
        {"checkpointing": True},
        {"level_logits": "max", "mask_bias": -1.5},
    ],
)
def test_both_forms_give_the_same_numbers(queries: int, count: int, full: tuple[int, int], settings: dict[str, Any]):
    assert projects(queries * count, dim=D, heads=HEADS) == (queries * count >= D)
    settings = dict(settings)
    checkpointing = bool(settings.pop("checkpointing", False))
    plain, fast = (make(form, queries, **settings) for form in (False, True))
    for one, other in zip(plain, fast, strict=True):
        other.load_state_dict(one.state_dict())
    recorded = RecordingPolicy(plain[1].policy)
    plain[1].policy = recorded
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-4)):
        recorded.sets.clear()
        expected = run(plain, dtype, batch=2, count=count, full=full)
        fast[1].policy, fast[1].checkpointing = Replayed(recorded), checkpointing
        assert 0 < recorded.sets[2].float().mean() < 1  # of the finest level
        found = run(fast, dtype, batch=2, count=count, full=full)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name],
                value,
                rtol=tolerance,
                atol=tolerance * float(value.detach().abs().max() + 1),
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("level_logits", ["bilinear", "max"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_forms_draw_the_same_sets(checkpointing: bool, level_logits: str):
    sets: list[Sequence[Tensor]] = []
    for form in (False, True):
        conv, decoder, pigma = make(form, 3, level_logits=level_logits)
        decoder.policy, decoder.checkpointing = RecordingPolicy(decoder.policy), checkpointing
        run((conv, decoder, pigma), torch.float64, batch=2, count=2, full=(16, 24))
        sets.append(decoder.policy.sets)
    assert len(sets[0]) == len(sets[1]) == 4  # once a layer, recomputed or not
    for plain, fast in zip(*sets, strict=True):
        assert torch.equal(plain, fast)


@pytest.mark.parametrize("queries", [3, 40])
def test_a_network_is_the_same_in_both_forms(queries: int):
    plain, fast = (
        small_network(queries=queries, policy="full", presence=True, fast=setting) for setting in (False, True)
    )
    assert type(plain.decoder.query_decoder) is BoltzFormerDecoder
    assert type(fast.decoder.query_decoder) is FastBoltzFormerDecoder
    assert {name: x.shape for name, x in plain.state_dict().items()} == {
        name: x.shape for name, x in fast.state_dict().items()
    }
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, fast.state_dict()[name]), name  # drawn from the same random numbers
    image, tokens = images(2), prompts(3, 5, 2, batch=2)
    with torch.no_grad():
        expected, found = (network(image, tokens, with_presence=True) for network in (plain, fast))
        assert isinstance(plain.encode_image(image).semantic_map, Tensor)
        assert isinstance(fast.encode_image(image).semantic_map, SemanticMap)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.presence, expected.presence, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("settings", [{}, {"mask_bias": -2.0, "queries": 20}])
def test_layers_and_their_gradients_are_the_same_in_both_forms(stride: int, settings: dict[str, Any]):
    gradients = []
    for form in (False, True):
        network = small_network(policy="full", fast=form, **settings).train()
        network.decoder.layer_logits, network.decoder.layer_stride = True, stride
        layers = network(images(2), prompts(3, 5, batch=2), with_presence=True).layers
        assert layers.shape == (2, 2, 3 * network.decoder.query_decoder.query_feat.num_embeddings, *2 * [16 // stride])
        layers.sigmoid().square().sum().backward()
        of_weights = {name: x.grad for name, x in network.named_parameters() if x.grad is not None}
        gradients.append({"layers": layers.detach(), **of_weights})
        assert network.eval()(images(2), prompts(3, 5, batch=2), with_presence=True).layers is None
    plain, fast = gradients
    assert plain.keys() == fast.keys()
    assert any(name.startswith("backbone") for name in plain)
    assert not any("decoder.layers.3" in name for name in plain)  # the last layer is behind them
    for name, value in plain.items():
        scale = float(value.abs().max() + 1)
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-4 * scale, msg=lambda t, n=name: f"{n}: {t}")


def test_a_checkpoint_does_not_depend_on_the_form(tmp_path: Path, network_settings: Callable[..., Description]):
    files, states = [], []
    for setting in (False, True):
        network, description = small_network(fast=setting), network_settings(fast=setting)
        files.append(tmp_path / f"{setting}.pt")
        states.append(description.state_dict())
        save_checkpoint({"model": network.state_dict(), "description": states[-1]}, files[-1])
        description.load_state_dict(states[0])
        assert description.network.fast is setting  # a training that goes on keeps the form it was started in
    assert states[0] == states[1]
    assert "fast" not in states[0]["network"]
    loaded = [load_checkpoint(file)[0] for file in files]
    image = images()
    assert torch.equal(loaded[0](image), loaded[1](image))


@pytest.fixture
def network_settings() -> Callable[..., Description]:
    from boltzformer_monai.networks import network_config

    return lambda **overrides: Description(network_config("tiny", **SMALL, **overrides), {"targets": []})


def test_the_setting_is_one_of_the_network():
    assert create_boltzformer("tiny", **SMALL).pixel_decoder.semantic_map.__class__ is SemanticConvolution
    assert create_boltzformer("tiny", **SMALL, fast=False).pixel_decoder.semantic_map.__class__ is nn.Conv2d
