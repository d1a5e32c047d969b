"""Ways of running the decoder: compiled, checkpointed, in half precision, on any device without waiting for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import SemanticConvolution
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, FullAttention, ThresholdMask
from boltzformer_monai.precision import autocast
from tests.networks.cases import randomise
from tests.sizes import THOROUGH, cases

D = 16


class Tail(nn.Module):
    """Semantic map, decoder and PiGMA, from tensors to a tensor."""

    def __init__(self, *, fast: bool, queries: int = 3, exact: bool = False, layers: int = 4) -> None:
        super().__init__()
        policy = BoltzmannSampling(1.0, 0.25, exact=exact)
        self.conv = (SemanticConvolution if fast else nn.Conv2d)(D, D, 3, padding=1)
        decoder = FastBoltzFormerDecoder if fast else BoltzFormerDecoder
        self.decoder = decoder(dim=D, policy=policy, queries=queries, heads=2, hidden=20, layers=layers)
        self.pigma = (FastPiGMA if fast else PiGMA)(queries=queries, channels=2)

    def forward(self, levels: tuple[Tensor, ...], fine: Tensor, text: Tensor, image: Tensor, seed: int = 0) -> Tensor:
        valid = torch.ones(text.shape[:3], dtype=torch.bool, device=text.device)
        masks, _ = self.decoder.decode(levels, self.conv(fine), text, valid, generator=CounterNoise(seed))
        return self.pigma(masks, image)


@pytest.fixture(params=["plain", "fast"])
def fast(request: pytest.FixtureRequest) -> bool:
    """Every test holds for both forms."""
    return request.param == "fast"


def make_tail(fast: bool, **settings: Any) -> Tail:
    torch.manual_seed(0)
    return randomise(Tail(fast=fast, **settings))


def make_inputs(
    device: str = "cpu", *, batch: int = 2, prompts: int = 2
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    levels = tuple(draw(batch, D, 2 * s, 3 * s) for s in (1, 2, 4))
    return levels, draw(batch, D, 16, 24), draw(batch, prompts, 4, D), draw(batch, 3, 64, 96)


@pytest.mark.slow
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(  # the fast form: folded and absorbed, built and projected; the plain one is the same for both
    ("fast", "queries"), cases([("plain", 3), ("fast", 3), ("fast", 40)], thorough=[("plain", 40)]), indirect=["fast"]
)
def test_compiles_into_one_graph(fast: bool, training: bool, queries: int):
    torch.compiler.reset()  # or earlier compilations of the same code count as recompilations
    tail, inputs = make_tail(fast, queries=queries, layers=3), make_inputs()  # each level once
    backend = "aot_eager" if training or THOROUGH else "eager"
    compiled = torch.compile(tail, fullgraph=True, backend=backend)
    if not training:
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), tail(*inputs), rtol=1e-4, atol=1e-4)
        return
    weights = torch.randn(2, 2, 32, 48, generator=torch.Generator().manual_seed(2))
    wanted = torch.autograd.grad((tail(*inputs) * weights).sum(), list(tail.parameters()))
    found = torch.autograd.grad((compiled(*inputs) * weights).sum(), list(tail.parameters()))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("queries", [3, 40])
def test_nothing_waits_for_a_value_on_the_device(fast: bool, exact: bool, queries: int):
    """Tensors on "meta" have shapes and no values: reading one, or a shape that depends on one, is an error there."""
    tail = make_tail(fast, exact=exact, queries=queries).to("meta")
    assert tail(*make_inputs("meta")).shape == (2, 2, 32, 48)
    tail.decoder.policy = ThresholdMask()
    assert tail(*make_inputs("meta")).shape == (2, 2, 32, 48)


def saved_bytes(run: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    result.sum().backward()
    return sum(kept.values())


def test_checkpointing_changes_the_memory_and_nothing_else(fast: bool):
    tail, inputs = make_tail(fast), make_inputs()
    parameters = list(tail.parameters())
    outputs, gradients, kept = [], [], []
    for checkpointing in (False, True):
        tail.decoder.checkpointing = checkpointing
        tail.zero_grad()
        kept.append(saved_bytes(lambda: outputs.append(tail(*inputs)) or outputs[-1], parameters))
        gradients.append([parameter.grad.clone() for parameter in parameters])
    assert torch.equal(outputs[0], outputs[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    # The plain form keeps keys and values of all levels, made once for all layers, either way.
    assert kept[1] < (0.6 if fast else 0.75) * kept[0]


def test_every_parameter_takes_part_so_that_ddp_need_not_search(fast: bool):
    tail = make_tail(fast)
    tail(*make_inputs()).sum().backward()
    assert [name for name, parameter in tail.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("queries", [3, 40])
def test_bfloat16_stays_close(fast: bool, queries: int):
    tail, inputs = make_tail(fast, queries=queries), make_inputs()
    with torch.no_grad():
        exact = tail(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = tail(*inputs)
    assert torch.isfinite(rough).all()
    # A set may lose or gain a patch by rounding, so only most of the mask must agree.
    agree = ((rough > rough.float().median()) == (exact > exact.median())).float().mean()
    assert agree > 0.9


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("queries", [3, 40])
def test_training_in_bfloat16_reaches_every_parameter(fast: bool, queries: int, checkpointing: bool):
    tail, inputs = make_tail(fast, queries=queries), make_inputs()
    tail.decoder.policy = FullAttention()  # rounding must not change the sets here
    tail.decoder.checkpointing = checkpointing
    tail(*inputs).sum().backward()
    exact = {name: parameter.grad for name, parameter in tail.named_parameters()}
    tail.zero_grad(set_to_none=True)
    with autocast("bf16", torch.device("cpu")):
        result = tail(*inputs)
    result.float().sum().backward()
    for name, parameter in tail.named_parameters():
        assert parameter.grad is not None, name
        likeness = torch.cosine_similarity(parameter.grad.flatten(), exact[name].flatten(), dim=0)
        assert likeness > 0.9 or exact[name].abs().max() < 1e-3, name


def test_channels_last_features_give_the_same_masks(fast: bool):
    tail, (levels, fine, text, image) = make_tail(fast), make_inputs()
    with torch.no_grad():
        plain = tail(levels, fine, text, image)
        last = torch.channels_last
        turned = tail(
            tuple(level.contiguous(memory_format=last) for level in levels),
            fine.contiguous(memory_format=last), text, image.contiguous(memory_format=last),
        )  # fmt: skip
    torch.testing.assert_close(turned, plain, rtol=1e-4, atol=1e-4)
