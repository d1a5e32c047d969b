"""The composed network: default prompt, determinism, sizes, precision, and that everything takes part in training."""

from __future__ import annotations

import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import BoltzFormer, CounterNoise
from tests.networks.cases import images, prompts, small_network


@pytest.fixture(scope="module")
def network() -> BoltzFormer:
    return small_network()


@pytest.mark.parametrize("size", [64, 96, 128])
def test_masks_have_half_the_size_of_the_image(network: BoltzFormer, size: int):
    logits = network(images(2, size), prompts(4, 3, batch=2))
    assert logits.shape == (2, 2, size // 2, size // 2)
    assert logits.dtype == torch.float32


def test_images_need_not_be_square(network: BoltzFormer):
    assert network(torch.rand(1, 1, 64, 96)).shape == (1, 1, 32, 48)


def test_an_image_alone_is_asked_for_the_default_prompt(network: BoltzFormer):
    image = images(2)
    default = network(image)
    assert default.shape == (2, 1, 32, 32)
    assert torch.equal(default, network(image, network.default_tokens.expand(2, 1, -1)))
    assert not torch.equal(default, network(image, prompts(3, batch=2)))


def test_evaluation_is_deterministic(network: BoltzFormer):
    image, tokens = images(2), prompts(4, 3, batch=2)
    first = network(image, tokens)
    torch.manual_seed(99)
    assert torch.equal(network(image, tokens), first)
    assert torch.equal(network(image, tokens, generator=CounterNoise(network.seed)), first)
    assert not torch.equal(network(image, tokens, generator=CounterNoise(network.seed + 1)), first)


def test_a_slice_and_a_prompt_give_their_mask_whatever_is_beside_them(network: BoltzFormer):
    image, tokens = images(3), prompts(4, 6, 3, batch=3)
    together = network(image, tokens)
    for i in range(3):
        for p, length in enumerate((4, 6, 3)):
            alone = network(image[i : i + 1], tokens[i : i + 1, p : p + 1, :length])
            torch.testing.assert_close(alone[0, 0], together[i, p], rtol=0, atol=1e-4)


def test_training_is_stochastic_and_follows_the_generator():
    network = small_network(norm="group", backbone="test_resnet").train()
    for module in network.modules():  # batch statistics are not what is tested here
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.eval()
    image, tokens = images(1), prompts(4)
    first, again, other = (network(image, tokens, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    first = network(image, tokens)
    assert not torch.equal(network(image, tokens), first)
    torch.manual_seed(5)
    assert torch.equal(network(image, tokens), first)


def test_the_presence_head_says_its_word_beside_the_masks():
    network = small_network(presence=True)
    image, tokens = images(2), prompts(4, 3, batch=2)
    decoded = network(image, tokens, with_presence=True)
    assert decoded.presence is not None
    assert decoded.presence.shape == (2, 2)
    assert torch.equal(decoded.logits, network(image, tokens))
    decoded.presence.sum().backward()
    assert all(parameter.grad is not None for parameter in network.presence.parameters())
    assert network.decoder.query_decoder.mask_bias.grad is None  # it judges the masks, and does not bend them
    without = small_network()
    assert without(image, tokens, with_presence=True).presence is None
    assert set(network.state_dict()) - set(without.state_dict()) == {
        f"decoder.presence.{name}" for name in network.presence.state_dict()
    }


def test_an_image_is_encoded_once_for_many_prompts(network: BoltzFormer):
    image, tokens = images(2), prompts(4, 3, batch=2)
    encoded = network.encode_image(image)
    assert [tuple(level.shape) for level in encoded.levels] == [(2, 16, s, s) for s in (2, 4, 8)]
    assert encoded.semantic_map.shape == (2, 16, 16, 16)
    decoded = network.decode(encoded, network.encode_text(tokens))
    assert decoded.presence is None
    assert torch.equal(decoded.logits, network(image, tokens))


def test_one_channel_is_shown_to_all_channels_of_the_backbone():
    network = small_network(backbone="test_resnet", in_channels=3, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
    grey = images(1)
    assert torch.equal(network(grey), network(grey.expand(-1, 3, -1, -1)))
    encoded = network.encode_image(grey).image
    for channel, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 3.0))):
        torch.testing.assert_close(encoded[0, channel], (grey[0, 0] - mean) / std)


def test_bfloat16_gives_float32_logits_near_those_of_float32(network: BoltzFormer):
    image, tokens = images(1), prompts(4)
    exact = network(image, tokens)
    half = small_network(policy="full").set_precision("bf16")
    full = small_network(policy="full")
    assert half.precision == "bf16"
    logits = half(image, tokens)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, full(image, tokens))
    torch.testing.assert_close(logits, full(image, tokens), rtol=0.1, atol=0.3)
    assert network.set_precision("fp32").precision == "fp32"
    assert torch.equal(network(image, tokens), exact)
    with pytest.raises(ConfigError, match="precision must be one of auto, fp32, bf16"):
        network.set_precision("fp16")


@pytest.mark.parametrize("pigma_correction", [True, False])
def test_gradient_reaches_every_weight(pigma_correction: bool):
    network = small_network(pigma_correction=pigma_correction).train()
    network(images(2), prompts(4, 3, batch=2)).square().mean().backward()
    for name, parameter in network.named_parameters():
        if "token_embedding" in name:
            continue  # only the words that were said
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("policy", ["boltzmann", "threshold", "full"])
@pytest.mark.parametrize("settings", [{}, {"exact": True}, {"per_head": True}])
def test_every_policy_runs_in_the_whole_network(policy: str, settings: dict[str, bool]):
    logits = small_network(policy=policy, **settings)(images(1), prompts(4, 3))
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 1, 60, 64), r"multiples of 32, got \(60, 64\)"),
        ((1, 2, 64, 64), r"image must be \(B, 1 or 1, H, W\), got \(1, 2, 64, 64\)"),
        ((1, 64, 64), "image must be"),
    ],
)
def test_images_that_do_not_fit(network: BoltzFormer, shape: tuple[int, ...], words: str):
    with pytest.raises(ConfigError, match=words):
        network(torch.rand(shape))


def test_tokens_that_do_not_fit(network: BoltzFormer):
    with pytest.raises(ConfigError, match=r"tokens must be \(B, P, N_T\)"):
        network(images(1), prompts(3)[0])


def test_the_batch_of_tokens_must_be_that_of_the_images(network: BoltzFormer):
    with pytest.raises(ConfigError, match="2 images and tokens for 3"):
        network(images(2), prompts(3, batch=3))


def test_normalisation_moves_with_the_network_and_is_saved(network: BoltzFormer):
    state = network.state_dict()
    assert {"mean", "std"} <= set(state)
    assert "default_tokens" not in state
