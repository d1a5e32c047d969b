"""The decoders of SAM and SAM 2 are transformers' own, and a prompt's mask does not depend on the prompts beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.sam.configuration_sam import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamMaskDecoder

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import BoltzFormer, Decoded, TextFeatures
from boltzformer_monai.networks.baselines.text import prompt_vectors, token_counts
from boltzformer_monai.networks.position import sine_position_encoding
from tests.networks.cases import images, prompts, small_network

SIZES = {"width": 16, "heads": 2, "layers": 2, "hidden": 24, "prompt_tokens": 4}


def network(decoder: str, *, settings: dict[str, Any] | None = None, **overrides: Any) -> BoltzFormer:
    given = {"decoder": decoder, "decoder_settings": {**SIZES, **(settings or {})}, "presence": True, **overrides}
    return small_network(3, **given)


def both(model: BoltzFormer, tokens: Tensor, batch: int = 1) -> Decoded:
    return model(images(batch), tokens, with_presence=True)  # type: ignore[no-any-return]


def padded(model: BoltzFormer, tokens: Tensor, length: int) -> Tensor:
    """The library's prompt tokens, made of the weights alone."""
    text = model.decoder.text
    found = text.no_token.expand(*tokens.shape[:2], length, -1).clone()
    encoded, valid = model.encode_text(tokens)
    for batch, prompt in valid.any(2).nonzero().tolist():
        count = int(valid[batch, prompt].sum())
        own = encoded[batch, prompt, :count]
        found[batch, prompt, :count] = own @ text.projection.weight.T + text.projection.bias
    return found


@torch.no_grad()
def test_sam_is_the_library_s_module_called_directly() -> None:
    model = network("sam")
    config = SamMaskDecoderConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, mlp_dim=24, iou_head_hidden_dim=16,
        num_multimask_outputs=0,
    )  # fmt: skip
    config._attn_implementation = "eager"
    library = SamMaskDecoder(config).eval()
    library.load_state_dict(model.decoder.mask_decoder.state_dict())
    tokens = prompts(3, 2, batch=2)
    stride_16 = model.encode_image(images(2)).levels[1]
    convolution = model.decoder.embedding
    masks, quality = library(
        image_embeddings=F.conv2d(stride_16, convolution.weight, convolution.bias),
        image_positional_embeddings=sine_position_encoding(4, 4, 16)[None].repeat(2, 1, 1, 1),
        sparse_prompt_embeddings=padded(model, tokens, 4),
        dense_prompt_embeddings=torch.zeros(2, 16, 4, 4),
        multimask_output=False,
    )[:2]
    expected = F.interpolate(masks[:, :, 0], scale_factor=2.0, mode="bilinear") + model.decoder.mask_bias
    found = both(model, tokens, 2)
    assert found.logits.shape == (2, 2, 32, 32)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.presence, quality[..., 0], rtol=0, atol=1e-5)
    assert found.logits.std() > 0.01


@torch.no_grad()
def test_sam_2_is_the_library_s_module_called_directly() -> None:
    configuration = pytest.importorskip("transformers.models.sam2.configuration_sam2")
    modeling = pytest.importorskip("transformers.models.sam2.modeling_sam2")
    model = network("sam2")
    config = configuration.Sam2MaskDecoderConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=2, mlp_dim=24, iou_head_hidden_dim=16,
        num_multimask_outputs=0, dynamic_multimask_via_stability=False,
    )  # fmt: skip
    config._attn_implementation = "eager"
    library = modeling.Sam2MaskDecoder(config).eval()
    weights = model.decoder.mask_decoder.state_dict()
    library.load_state_dict(weights)  # d is as wide as the decoder here, so that even the convolutions fit
    image, tokens = model.encode_image(images(2)), prompts(3, 2, batch=2)
    convolution = model.decoder.embedding
    masks, _, _, score = library(
        image_embeddings=F.conv2d(image.levels[1], convolution.weight, convolution.bias),
        image_positional_embeddings=sine_position_encoding(4, 4, 16)[None].repeat(2, 1, 1, 1),
        sparse_prompt_embeddings=padded(model, tokens, 4),
        dense_prompt_embeddings=torch.zeros(2, 16, 4, 4),
        multimask_output=False,
        high_resolution_features=[library.conv_s0(image.semantic_map), library.conv_s1(image.levels[2])],
    )
    expected = F.interpolate(masks[:, :, 0], scale_factor=2.0, mode="bilinear") + model.decoder.mask_bias
    found = both(model, tokens, 2)
    torch.testing.assert_close(found.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.presence, score[..., 0], rtol=0, atol=1e-5)
    assert found.logits.std() > 0.01


@pytest.mark.parametrize("decoder", ["sam", "sam2"])
@torch.no_grad()
def test_a_prompt_alone_is_a_prompt_among_others(decoder: str) -> None:
    model = network(decoder)
    lengths = (3, 9, 4, 5, 8, 1)  # padded to 4, 12, 4, 8, 8 and 4 tokens
    tokens = prompts(*lengths, batch=2)
    together = both(model, tokens, 2)
    for index, length in enumerate(lengths):
        alone = both(model, tokens[:, index : index + 1, :length], 2)
        for of_all, of_one in zip(together[:2], alone[:2], strict=True):
            torch.testing.assert_close(of_all[:, index], of_one[:, 0], rtol=0, atol=1e-5)
    assert (together.logits[:, 0] - together.logits[:, 2]).abs().max() > 1e-3
    more_padding = F.pad(tokens, (0, 30), value=-1)
    torch.testing.assert_close(both(model, more_padding, 2).logits, together.logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("decoder", ["sam", "sam2"])
@torch.no_grad()
def test_each_image_has_prompts_of_its_own_length(decoder: str) -> None:
    model = network(decoder)
    tokens = torch.full((2, 2, 9), -1)
    tokens[0, 0, :7], tokens[0, 1, :2], tokens[1, 0, :9] = 3, 4, 5  # the second image has one prompt
    together = both(model, tokens, 2)
    assert together.logits.isfinite().all()
    for image in range(2):
        alone = model(images(2)[image : image + 1], tokens[image : image + 1], with_presence=True)
        torch.testing.assert_close(together.logits[image], alone.logits[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(together.presence[image], alone.presence[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", [3, 9])
@pytest.mark.parametrize("presence", [True, False])
@pytest.mark.parametrize("decoder", ["sam", "sam2"])
def test_all_that_is_trained_has_a_gradient(decoder: str, presence: bool, length: int) -> None:
    model = network(decoder, presence=presence).train()
    assert not any(each.training for each in model.decoder.mask_decoder.modules())
    decoded = model(images(2), prompts(length, 2, batch=2), with_presence=True)
    assert (decoded.presence is not None) == presence == (model.presence is not None)
    (decoded.logits.square().sum() + (decoded.presence.sum() if presence else 0)).backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    without = {name for name in without if not name.endswith("k_proj.bias")}  # softmax does not see it
    of_image = {name for name in without if not name.startswith("decoder.")}
    assert without == of_image
    assert bool(of_image) == model.decoder.leaves_features
    frozen = {name for name, p in model.decoder.mask_decoder.named_parameters() if not p.requires_grad}
    heads = {"iou_prediction_head"} if decoder == "sam2" or not presence else set()
    heads |= {"pred_obj_score_head"} if decoder == "sam2" and not presence else set()
    assert {name.partition(".")[0] for name in frozen} == heads


@pytest.mark.parametrize("decoder", ["sam", "sam2"])
def test_half_precision(decoder: str) -> None:
    decoded = both(network(decoder).set_precision("bf16"), prompts(3, 7))
    assert [part.dtype for part in decoded[:2]] == [torch.float32] * 2
    assert decoded.logits.isfinite().all()


@pytest.mark.parametrize("decoder", ["sam", "sam2"])
def test_it_is_shown_no_attention_sets(decoder: str) -> None:
    model = network(decoder)
    assert model.attention_sets(model.encode_image(images(1)), model.encode_text(prompts(3))) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            {"settings": {"width": 20}},
            "width of the decoder 'sam2' must be a multiple of 8 and of twice its 2 heads, got",
        ),
        ({"settings": {"width": 24, "heads": 8}}, "multiple of 8 and of twice its 8 heads, got 24"),
        ({"settings": {"heads": 0}}, "heads of the decoder 'sam2' must be at least 1, got 0"),
        ({"settings": {"prompt_tokens": 0}}, "prompt_tokens of the decoder 'sam2' must be at least 1"),
        ({"settings": {"prompt_tokens": 10**9}}, "prompt_tokens of the decoder 'sam2' must be at most 512"),
        ({"settings": {"layers": 2.0}}, "layers of the decoder 'sam2' must be a whole number"),
        ({"settings": {"widht": 16}}, "unknown setting 'widht' of the decoder 'sam2'; did you mean 'width'"),
        ({"policy": "full"}, "the decoder 'sam2' has no policy, got 'full'; leave it out"),
        ({"sample_ratio": 0.2}, "the decoder 'sam2' has no sample_ratio, got 0.2"),
        ({"level_logits": "max"}, "the decoder 'sam2' has no level_logits, got 'max'"),
        ({"policy_settings": {"exact": True}}, "the decoder 'sam2' has no policy_settings"),
        ({"pigma_correction": False}, "the decoder 'sam2' has no pigma_correction"),
        ({"pigma_channels": 4}, "the decoder 'sam2' has no pigma_channels"),
    ],
)
def test_what_is_not_possible_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        network("sam2", **overrides)
    assert "\n" not in str(caught.value)


def test_an_old_transformers_has_no_sam_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers.models.sam2.modeling_sam2", None)
    with pytest.raises(ConfigError, match="needs transformers 4.56 or newer: pip install"):
        network("sam2")


def test_the_same_seed_starts_the_shared_parts_alike() -> None:
    started = []
    for decoder in ("boltzmann", "seem", "sam", "sam2"):
        torch.manual_seed(5)
        weights = small_network(5, decoder=decoder).state_dict()
        started.append({name: each for name, each in weights.items() if not name.startswith("decoder.")})
    for others in started[1:]:
        assert others.keys() == started[0].keys()
        assert all(torch.equal(others[name], each) for name, each in started[0].items() if each.dim() > 1)


def test_the_vector_of_a_prompt_is_its_last_token() -> None:
    valid = torch.tensor([[[True, True, False], [True, True, True], [False, False, False]]])
    tokens = torch.arange(18.0).view(1, 3, 3, 2) * valid[..., None]
    assert token_counts(valid).tolist() == [[2, 3, 0]]
    assert prompt_vectors(TextFeatures(tokens, valid)).tolist() == [[[2, 3], [10, 11], [0, 0]]]


def test_it_has_the_sizes_that_its_settings_say() -> None:
    decoder: nn.Module = small_network(0, decoder="sam", dim=64, heads=4).decoder  # type: ignore[assignment]
    assert decoder.embedding.weight.shape == (128, 64, 1, 1)  # type: ignore[union-attr]
    assert 4e5 < sum(p.numel() for p in decoder.parameters()) < 7e5
