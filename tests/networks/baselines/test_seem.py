"""SEEM's decoder: its layers, the query that it chooses, and the plain form beside the fast one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import BoltzFormer, Decoded
from boltzformer_monai.networks.attention import MultiHeadAttention
from boltzformer_monai.networks.baselines.seem import QueryChoice
from boltzformer_monai.networks.baselines.text import prompt_vectors
from boltzformer_monai.networks.position import sine_position_encoding
from tests.networks.cases import images, prompts, small_network


def network(*, queries: int = 7, **overrides: Any) -> BoltzFormer:
    return small_network(3, decoder="seem", decoder_settings={"queries": queries}, **{"presence": True, **overrides})


def both(model: BoltzFormer, tokens: Tensor, batch: int = 1) -> Decoded:
    return model(images(batch), tokens, with_presence=True)  # type: ignore[no-any-return]


def attention(ours: MultiHeadAttention) -> nn.MultiheadAttention:
    """PyTorch's own with the same weights."""
    torchs = nn.MultiheadAttention(ours.in_proj_weight.shape[1], ours.heads, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    return torchs.eval()


@torch.no_grad()
def expected_logits(model: BoltzFormer, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """One image and one prompt without padding, written out: mask logits of all queries, and the choice."""
    features, (text, _) = model.encode_image(image), model.encode_text(tokens)
    decoder: Any = model.decoder.query_decoder
    semantic, text = features.semantic_map, text[0]
    queries, located = decoder.query_feat.weight[None], torch.cat((decoder.query_embed.weight[None], text), 1)
    count, first_text = queries.shape[1], text

    def masks() -> Tensor:
        x = decoder.mask_head.norm(queries)
        for layer in decoder.mask_head.layers[:-1]:
            x = F.relu(layer(x))
        return torch.einsum("bmd,bdhw->bmhw", decoder.mask_head.layers[-1](x), semantic) + decoder.mask_bias

    def feed_forward(block: Any, x: Tensor) -> Tensor:
        return block.norm(x + block.linear2(F.relu(block.linear1(x))))

    for index, layer in enumerate(decoder.layers):
        level = features.levels[index % 3]
        size = level.shape[-2:]
        attend = F.interpolate(masks(), size=tuple(size), mode="bilinear").flatten(2) >= 0  # sigmoid ≥ 0.5
        attend |= ~attend.any(-1, keepdim=True)
        value = level.flatten(2).transpose(1, 2) + decoder.level_embed.weight[index % 3]
        key = value + sine_position_encoding(*size, value.shape[-1]).flatten(1).T
        block = layer.cross
        forbidden = (~attend).repeat_interleave(block.multihead_attn.heads, 0)
        query = queries + decoder.query_embed.weight
        mixed, _ = attention(block.multihead_attn)(query, key, value, attn_mask=forbidden)
        both_kinds = torch.cat((block.norm(queries + mixed), text), 1)
        at = both_kinds + located
        mixed, _ = attention(layer.inter.self_attn)(at, at, both_kinds)
        both_kinds = feed_forward(layer.ffn, layer.inter.norm(both_kinds + mixed))
        queries, text = both_kinds[:, :count], both_kinds[:, count:]
    choice = model.decoder.aggregation
    vectors = choice.vector(choice.norm(queries[0]))
    similarity = F.normalize(vectors, dim=-1) @ F.normalize(first_text[0, -1], dim=0)
    return masks()[0], similarity


@pytest.mark.parametrize("fast", [True, False])
def test_it_is_what_is_written_out_here(fast: bool) -> None:
    image, tokens = images(1), prompts(5)
    plain = network(fast=False)
    logits, similarity = expected_logits(plain, image, tokens)
    model = network(fast=fast)
    chosen = F.interpolate(logits[similarity.argmax()][None, None], scale_factor=2.0, mode="bilinear")
    with torch.no_grad():
        found = model(image, tokens)
        torch.testing.assert_close(found, chosen, rtol=0, atol=2e-5)
        assert (logits - logits[similarity.argmax()]).abs().amax((1, 2)).sort().values[1] > 1e-2  # others differ
        model.train()
        for module in model.modules():  # batch statistics are not what is tested here
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        weights = torch.softmax(similarity / 0.07 * _scale(model), 0)
        soft = F.interpolate(torch.einsum("m,mhw->hw", weights, logits)[None, None], scale_factor=2.0, mode="bilinear")
        torch.testing.assert_close(model(image, tokens), soft, rtol=0, atol=2e-5)


def _scale(model: BoltzFormer) -> Tensor:
    """What the tests' random weights did to the learned scale."""
    return model.decoder.aggregation.scale.exp() * 0.07  # type: ignore[no-any-return, union-attr]


def test_plain_and_fast_form_have_equal_masks_and_gradients() -> None:
    found = []
    for fast in (True, False):
        model = network(fast=fast).train()
        decoded = both(model, prompts(4, 9, batch=2), 2)
        (decoded.logits.square().mean() + decoded.presence.sum()).backward()
        found.append((decoded, {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(found[0][0].logits, found[1][0].logits, rtol=0, atol=1e-4)
    for name, gradient in found[0][1].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_prompt_alone_is_a_prompt_among_others() -> None:
    model = network(queries=101)
    lengths = (4, 9, 2)
    tokens = prompts(*lengths, batch=2)
    together = both(model, tokens, 2)
    for index, length in enumerate(lengths):
        alone = both(model, tokens[:, index : index + 1, :length], 2)
        for of_all, of_one in zip(together[:2], alone[:2], strict=True):
            torch.testing.assert_close(of_all[:, index], of_one[:, 0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_choice_is_soft_in_training_and_one_query_in_evaluation() -> None:
    choice = QueryChoice(4)
    choice.norm.weight.fill_(1.0)
    choice.vector.weight.copy_(torch.eye(4))
    choice.vector.bias.zero_()
    queries = torch.tensor([[[[1.0, -1, 1, -1], [-1, 1, -1, 1], [1, 1, -1, -1]]]])  # norms leave them as they are
    prompt = torch.tensor([[[2.0, 2.0, -2.0, -2.0]]])
    assert choice.eval()(queries, prompt).tolist() == [[[0.0, 0.0, 1.0]]]
    soft = choice.train()(queries, prompt)
    expected = torch.softmax(torch.tensor([0.0, 0.0, 1.0]) / 0.07, 0)
    torch.testing.assert_close(soft[0, 0], expected, rtol=0, atol=1e-6)
    choice.scale.fill_(50.0)  # bounded by 100, as CLIP's
    torch.testing.assert_close(choice(queries, prompt)[0, 0], torch.tensor([0.0, 0.0, 1.0]), rtol=0, atol=1e-6)


def test_its_attention_sets_are_those_of_the_threshold() -> None:
    model = network(threshold=0.9)
    image, text = model.encode_image(images(1)), model.encode_text(prompts(4, 3))
    sets = model.attention_sets(image, text)
    assert [tuple(each.shape) for each in sets] == [(1, 2, 7, n, n) for n in (2, 4, 8, 2)]
    assert torch.equal(sets[0][:, 0], sets[0][:, 1])  # the bare queries know no prompt yet
    assert model.decoder.query_decoder.policy.threshold == 0.9  # type: ignore[union-attr]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_masks_chosen_before_every_layer_can_be_supervised(stride: int) -> None:
    found = []
    for fast in (True, False):
        model = network(fast=fast, layers=3).train()
        model.decoder.layer_logits, model.decoder.layer_stride = True, stride
        before: list[Tensor] = []
        for layer in model.decoder.query_decoder.layers:  # type: ignore[union-attr]
            layer.register_forward_pre_hook(lambda module, inputs, before=before: before.append(inputs[0]))
        decoded = both(model, prompts(4, 9, batch=2), 2)
        assert decoded.layers.shape == (2, 2, 3, 16 // stride, 16 // stride)
        decoder: Any = model.decoder
        image, text = model.encode_image(images(2)), model.encode_text(prompts(4, 9, batch=2))
        semantic = image.semantic_map.build().fine if fast else image.semantic_map
        for index, queries in enumerate(before):
            masks = torch.einsum("bpmd,bdhw->bpmhw", decoder.query_decoder.mask_head(queries), semantic)
            weights = decoder.aggregation(queries, prompt_vectors(text))
            mean = (masks * weights[..., None, None]).sum(2) + decoder.query_decoder.mask_bias
            torch.testing.assert_close(decoded.layers[:, :, index], F.avg_pool2d(mean, stride), rtol=0, atol=1e-4)
        decoded.layers.square().mean().backward()
        found.append((decoded.layers, decoder.query_decoder.query_feat.weight.grad))
        assert both(model.eval(), prompts(4)).layers is None
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_half_precision_and_no_presence() -> None:
    decoded = both(network(presence=False).set_precision("bf16"), prompts(3, 7))
    assert decoded.logits.dtype == torch.float32
    assert decoded.presence is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"queries": 0}, "queries of the decoder 'seem' must be at least 1, got 0"),
        ({"policy": "full"}, "the decoder 'seem' attends by threshold, got the policy 'full'; leave it out"),
        ({"sample_ratio": 0.5}, "the decoder 'seem' has no sample_ratio, got 0.5; leave it out"),
        ({"text_prior": False}, "the decoder 'seem' has no text_prior"),
        ({"pigma_channels": 4}, "the decoder 'seem' has no pigma_channels"),
        ({"threshold": 1.5}, "threshold must be in"),
    ],
)
def test_what_is_not_possible_is_refused(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        network(**overrides)


def test_it_has_as_many_queries_as_published() -> None:
    assert small_network(0, decoder="seem").decoder.query_decoder.query_feat.weight.shape[0] == 101  # type: ignore[union-attr]
