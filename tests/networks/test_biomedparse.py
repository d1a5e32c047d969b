"""BiomedParse's decoder: masks and outlines are means of queries, and the classifier reads every layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import BoltzFormer, CounterNoise
from boltzformer_monai.networks.biomedparse import ExistenceClassifier
from boltzformer_monai.networks.fast.semantic_map import Masks
from tests.networks.cases import images, prompts, small_network


def network(*, edge_queries: int = 1, attend_padding: bool = False, **overrides: Any) -> BoltzFormer:
    settings = {"edge_queries": edge_queries, "attend_padding": attend_padding}
    given = {"queries": 5, "presence": True, "per_head": True, **overrides}
    return small_network(3, decoder="biomedparse", decoder_settings=settings, mask_bias=None, **given)


@pytest.mark.parametrize("edge_queries", [0, 2])
def test_masks_and_outlines_are_means_of_their_queries_at_stride_4(edge_queries: int):
    both = {}
    for fast in (True, False):
        model = network(edge_queries=edge_queries, fast=fast)
        seen: list[Tensor] = []

        def keep(
            module: nn.Module, args: tuple[Masks | Tensor, ...], output: Tensor, seen: list[Tensor] = seen
        ) -> None:
            seen.append(args[0].logits() if isinstance(args[0], Masks) else args[0])

        model.decoder.aggregation.register_forward_hook(keep)
        decoded = model(images(2), prompts(4, 3, batch=2), with_presence=True)
        of_masks, of_edges = seen[0][:, :, : 5 - edge_queries], seen[0][:, :, 5 - edge_queries :]
        assert decoded.logits.shape == (2, 2, 16, 16)
        torch.testing.assert_close(decoded.logits, of_masks.mean(2), rtol=0, atol=1e-5)
        if edge_queries:
            torch.testing.assert_close(decoded.edges, of_edges.mean(2), rtol=0, atol=1e-5)
        else:
            assert decoded.edges is None
        both[fast] = decoded
    for ours, plain in zip(both[True], both[False], strict=True):
        if ours is not None:
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-4)


def attention(ours: Any) -> nn.MultiheadAttention:
    """PyTorch's own attention with the same weights."""
    torchs = nn.MultiheadAttention(ours.in_proj_weight.shape[1], ours.heads, batch_first=True)
    torchs.load_state_dict(ours.state_dict())
    return torchs.eval()


@torch.no_grad()
def test_the_classifier_against_pytorchs_attention():
    model = network()
    tokens, position, valid = [], [], []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        tokens.append(output)
        position.append(args[1])
        valid.append(args[2])

    for layer in model.decoder.query_decoder.layers:
        layer.inter.register_forward_hook(keep)
    found = model(images(2), prompts(4, 6, 3, batch=2), with_presence=True).presence
    classifier = model.decoder.presence
    query = classifier.query.weight[None].expand(6, -1, -1)
    for layer, seen in zip(classifier.layers, tokens, strict=True):
        mixed, _ = attention(layer.cross.multihead_attn)(query, seen + position[0], seen, key_padding_mask=~valid[0])
        query = layer.cross.norm(query + mixed)
        query = layer.ffn.norm(query + layer.ffn.linear2(F.relu(layer.ffn.linear1(query))))
    expected = F.linear(query, classifier.head.weight, classifier.head.bias).view(2, 3)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert found.std() > 0.01


def test_the_existence_loss_trains_the_classifier_alone():
    model = network().train()
    model(images(2), prompts(4, batch=2), with_presence=True).presence.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert with_gradient
    assert all(name.startswith("decoder.presence.") for name in with_gradient)


def test_checkpointing_changes_nothing():
    model, image, tokens = network().train(), images(1), prompts(4)
    for module in model.modules():  # batch statistics are not what is tested here
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    gradients = []
    for checkpointing in (False, True):
        model.zero_grad()
        model.decoder.query_decoder.checkpointing = checkpointing
        decoded = model(image, tokens, generator=CounterNoise(1), with_presence=True)
        (decoded.logits.sum() + decoded.edges.sum() + decoded.presence.sum()).backward()
        gradients.append(model.decoder.query_decoder.query_feat.weight.grad.clone())
    torch.testing.assert_close(*gradients)


def test_padding_changes_nothing_unless_it_is_attended():
    image = images(1)
    for attend_padding in (False, True):
        model = network(attend_padding=attend_padding)
        together = model(image, prompts(4, 9), with_presence=True)
        alone = model(image, prompts(4, 9)[:, :1, :4], with_presence=True)
        for of_all, of_one in zip(together[:3], alone[:3], strict=True):
            difference = float((of_all[:, 0] - of_one[:, 0]).abs().max())
            assert (difference > 1e-3) if attend_padding else (difference < 1e-4)
        longest = model(image, prompts(4, 9)[:, 1:], with_presence=True)
        torch.testing.assert_close(together.logits[:, 1], longest.logits[:, 0], rtol=0, atol=1e-4)


def test_a_call_leaves_nothing_behind():
    model, image = network(), images(1)
    first = model(image, prompts(4), with_presence=True)
    model(images(2, seed=5), prompts(7, 3, batch=2))
    again = model(image, prompts(4), with_presence=True)
    assert all(torch.equal(one, other) for one, other in zip(first[:3], again[:3], strict=True))
    assert model.decoder.query_decoder.tokens is None


def test_its_attention_sets():
    model = network()
    image, text = model.encode_image(images(1)), model.encode_text(prompts(4, 3))
    sets = model.attention_sets(image, text)
    assert [tuple(each.shape) for each in sets] == [(1, 2, 2, 5, n, n) for n in (2, 4, 8, 2)]


def test_presence_can_be_left_out():
    model = network(presence=False)
    assert model.presence is None
    assert model(images(1), prompts(4), with_presence=True).presence is None


def test_masks_between_the_layers_are_those_of_the_mask_queries():
    model = network().train()
    assert model(images(1), prompts(4), with_presence=True).layers is None
    model.decoder.layer_logits = True
    decoded = model(images(1), prompts(4, 3), with_presence=True)
    shape = decoded.logits.shape
    of_mask = 5 - model.decoder.aggregation.weights[1].count_nonzero()
    assert decoded.layers.shape == (1, 2, 3 * of_mask, *shape[-2:])
    assert model.eval()(images(1), prompts(4), with_presence=True).layers is None


def test_half_precision():
    decoded = network().set_precision("bf16")(images(1), prompts(4), with_presence=True)
    assert [part.dtype for part in decoded[:3]] == [torch.float32] * 3


@pytest.mark.parametrize("edge_queries", [-1, 5, 6])
def test_edge_queries_leave_some_for_the_mask(edge_queries: int):
    with pytest.raises(ConfigError, match="edge_queries must leave some of the 5 queries to the mask"):
        network(edge_queries=edge_queries)


def test_as_many_layers_as_the_decoder():
    classifier = ExistenceClassifier(dim=8, heads=2, hidden=8, layers=2)
    with pytest.raises(ValueError, match="zip"):
        classifier([torch.ones(1, 1, 3, 8)], torch.ones(1, 1, 3, 8), torch.ones(1, 1, 3, dtype=torch.bool))
