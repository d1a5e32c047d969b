"""What a decoder of many prompts must keep: a prompt's mask depends on its image and its text, and on nothing else."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.level_logits import to_level
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, FullAttention, ThresholdMask
from tests.networks.cases import randomise

D = 16
POLICIES = {
    "boltzmann": lambda: BoltzmannSampling(1.0, 0.2),
    "exact": lambda: BoltzmannSampling(1.0, 0.2, exact=True),
    "per head": lambda: BoltzmannSampling(1.0, 0.2, per_head=True),
    "exact per head": lambda: BoltzmannSampling(1.0, 0.2, exact=True, per_head=True),
    "threshold": lambda: ThresholdMask(0.5),
    "full": FullAttention,
}


FORMS = {"plain": BoltzFormerDecoder, "fast": FastBoltzFormerDecoder}
Form = type[BoltzFormerDecoder]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    """Every test holds for both forms of the decoder."""
    return FORMS[request.param]


def make_decoder(form: Form, policy: str = "boltzmann", **settings: Any) -> BoltzFormerDecoder:
    torch.manual_seed(0)
    decoder = form(
        dim=D, policy=POLICIES[policy](), **{"queries": 3, "heads": 2, "hidden": 20, "layers": 4, **settings}
    )
    randomise(decoder)
    return decoder.eval()


def make_inputs(
    batch: int = 2, prompts: int = 3, tokens: int = 4, seed: int = 1
) -> tuple[list[Tensor], Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(batch, D, 2 * s, 3 * s, generator=generator) for s in (1, 2, 4)]
    semantic_map = torch.randn(batch, D, 16, 24, generator=generator)
    return features, semantic_map, torch.randn(batch, prompts, tokens, D, generator=generator)


def decode(decoder: BoltzFormerDecoder, features: list[Tensor], semantic_map: Tensor, text: Tensor) -> Tensor:
    valid = torch.ones(text.shape[:3], dtype=torch.bool)
    return decoder(features, semantic_map, text, valid, generator=CounterNoise())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_alone_gives_the_mask_it_gives_among_others(form: Form, policy: str):
    decoder = make_decoder(form, policy)
    features, semantic_map, text = make_inputs()
    together = decode(decoder, features, semantic_map, text)
    assert together.shape == (2, 3, 3, 16, 24)
    for prompt in range(3):
        alone = decode(decoder, features, semantic_map, text[:, prompt : prompt + 1])
        torch.testing.assert_close(alone[:, 0], together[:, prompt], rtol=0, atol=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_equals_its_images_one_by_one(form: Form, policy: str):
    decoder = make_decoder(form, policy)
    features, semantic_map, text = make_inputs()
    together = decode(decoder, features, semantic_map, text)
    for i in range(2):
        alone = decode(decoder, [f[i : i + 1] for f in features], semantic_map[i : i + 1], text[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize("text_prior", [True, False])
def test_padding_of_the_text_changes_nothing(form: Form, text_prior: bool):
    decoder = make_decoder(form, text_prior=text_prior)
    features, semantic_map, text = make_inputs()
    expected = decode(decoder, features, semantic_map, text)
    padded = torch.cat((text, 50 * torch.randn(2, 3, 5, D)), dim=2)
    valid = torch.arange(9).expand(2, 3, 9) < 4
    result = decoder(features, semantic_map, padded, valid, generator=CounterNoise())
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
    seen = decoder(features, semantic_map, padded, torch.ones_like(valid), generator=CounterNoise())
    assert (seen - expected).abs().max() > 1e-2  # the validity is what keeps it away


def test_text_and_image_matter(form: Form):
    decoder = make_decoder(form)
    features, semantic_map, text = make_inputs()
    base = decode(decoder, features, semantic_map, text)
    assert (decode(decoder, features, semantic_map, text.roll(1, 1)) - base).abs().max() > 1e-2
    for level in range(3):
        changed = [f + (i == level) for i, f in enumerate(features)]
        assert (decode(decoder, changed, semantic_map, text) - base).abs().max() > 1e-3


def test_gradient_reaches_every_weight_and_every_input(form: Form):
    decoder = make_decoder(form, mask_bias=-2.0)
    features, semantic_map, text = make_inputs()
    leaves = [*features, semantic_map, text]
    for leaf in leaves:
        leaf.requires_grad_()
    decode(decoder, features, semantic_map, text).square().mean().backward()
    for name, tensor in [*decoder.named_parameters(), *((f"input {i}", x) for i, x in enumerate(leaves))]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().max() > 0, name


def test_an_empty_set_attends_to_everything(form: Form):
    features, semantic_map, text = make_inputs()

    class Nothing:
        per_head = False

        def __call__(self, logits: Tensor, layer: int, generator: object = None) -> Tensor:
            return torch.zeros_like(logits, dtype=torch.bool)

    decoder = make_decoder(form, "full")
    full = decode(decoder, features, semantic_map, text)
    decoder.policy = Nothing()
    assert torch.equal(decode(decoder, features, semantic_map, text), full)


def test_levels_are_visited_in_turn_coarse_to_fine(form: Form):
    shown = []

    class Watching(FullAttention):
        def __call__(self, logits: Tensor, layer: int, generator: object = None) -> Tensor:
            shown.append((layer, tuple(logits.shape)))
            return super().__call__(logits, layer)

    decoder = make_decoder(form, layers=7)
    decoder.policy = Watching()
    decode(decoder, *make_inputs())
    assert shown == [(i, (2, 3, 3, 6 * 4 ** (i % 3))) for i in range(7)]


@pytest.mark.parametrize("kind", ["bilinear", "max"])
def test_the_policy_is_shown_the_mask_logits_at_the_level(form: Form, kind: Literal["bilinear", "max"]):
    shown: list[Tensor] = []

    class Watching(FullAttention):
        def __call__(self, logits: Tensor, layer: int, generator: object = None) -> Tensor:
            shown.append(logits)
            return super().__call__(logits, layer)

    decoder = make_decoder(form, layers=1, text_prior=False, mask_bias=0.7, level_logits=kind)
    decoder.policy = Watching()
    features, semantic_map, text = make_inputs()
    decode(decoder, features, semantic_map, text)
    mu = decoder.mask_head(decoder.query_feat.weight)
    full = torch.einsum("md,bdhw->bmhw", mu, semantic_map) + decoder.mask_bias
    at_level = to_level(full, (2, 3), kind).flatten(2)
    torch.testing.assert_close(shown[0], at_level[:, None].expand(-1, 3, -1, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 4])
def test_masks_between_the_layers_are_those_of_the_queries_there(form: Form, stride: int):
    decoder = make_decoder(form, mask_bias=0.7)
    features, semantic_map, text = make_inputs()
    trace: list[Tensor] = []
    valid = torch.ones(text.shape[:3], dtype=torch.bool)
    decoder.decode(features, semantic_map, text, valid, generator=CounterNoise(), trace=trace)
    assert len(trace) == 4
    found = decoder.layer_masks(trace, semantic_map, stride=stride)
    assert found.shape == (2, 3, 9, 16 // stride, 24 // stride)
    for number, layer in enumerate((1, 2, 3)):
        shorter = make_decoder(form, mask_bias=0.7, layers=layer)
        shorter.load_state_dict(decoder.state_dict(), strict=False)
        expected = F.avg_pool2d(decode(shorter, features, semantic_map, text).flatten(1, 2), stride)
        here = found[:, :, 3 * number : 3 * number + 3].flatten(1, 2)
        torch.testing.assert_close(here, expected, rtol=1e-4, atol=1e-5)


def test_impossible_settings_are_refused(form: Form):
    with pytest.raises(ConfigError, match="queries must be at least 1, got 0"):
        make_decoder(form, queries=0)
    with pytest.raises(ConfigError, match="level_logits must be one of bilinear, max, got 'mean'"):
        make_decoder(form, level_logits="mean")
    decoder = make_decoder(form, levels=2)
    with pytest.raises(ConfigError, match="built for 2 feature levels and got 3"):
        decode(decoder, *make_inputs())
