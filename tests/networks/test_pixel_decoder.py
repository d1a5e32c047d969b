"""The pixel decoder against a plain one made of PyTorch's own layers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.position import sine_position_encoding
from tests.networks.cases import randomise

CHANNELS = (3, 5, 7, 9)


def features(batch: int = 2) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(batch, c, 2 * s, 3 * s) for c, s in zip(CHANNELS, (8, 4, 2, 1), strict=True)]


def plain(decoder: PixelDecoder, inputs: list[Tensor], heads: int) -> tuple[list[Tensor], Tensor]:
    """DETR's encoder at stride 32 and the top-down sums, with the decoder's weights in PyTorch's layers."""
    x = decoder.input_proj(inputs[-1])
    dim, height, width = x.shape[1:]
    tokens = x.flatten(2).permute(2, 0, 1)
    position = sine_position_encoding(height, width, dim).flatten(1).T[:, None]
    for layer in decoder.encoder:
        attention = nn.MultiheadAttention(dim, heads)
        attention.load_state_dict(layer.self_attn.state_dict())
        located = tokens + position
        tokens = layer.norm1(tokens + attention(located, located, tokens)[0])
        tokens = layer.norm2(tokens + layer.linear2(F.relu(layer.linear1(tokens))))
    y = tokens.permute(1, 2, 0).view(x.shape)
    y = F.relu(decoder.smooth[0].norm(decoder.smooth[0].conv(y)))
    levels = [y]
    for i, feature in enumerate(reversed(inputs[:-1])):
        lateral = decoder.lateral[i].norm(decoder.lateral[i].conv(feature))
        y = lateral + F.interpolate(y, scale_factor=2, mode="nearest")
        y = F.relu(decoder.smooth[i + 1].norm(decoder.smooth[i + 1].conv(y)))
        levels.append(y)
    return levels[:-1], decoder.semantic_map(y)


@pytest.mark.parametrize(("norm", "heads"), [("group", 4), ("batch", 2)])
def test_equals_plain_layers(norm: str, heads: int):
    torch.manual_seed(0)
    decoder = PixelDecoder(in_channels=CHANNELS, dim=32, heads=heads, hidden=24, layers=2, norm=norm)
    randomise(decoder).eval()
    levels, semantic_map = decoder(features())
    expected_levels, expected_map = plain(decoder, features(), heads)
    assert [tuple(level.shape) for level in levels] == [(2, 32, 2, 3), (2, 32, 4, 6), (2, 32, 8, 12)]
    assert semantic_map.shape == (2, 32, 16, 24)
    for level, expected in zip(levels, expected_levels, strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(semantic_map, expected_map, rtol=1e-4, atol=1e-5)


def test_pre_norm_is_another_function_of_the_same_weights():
    torch.manual_seed(0)
    post = PixelDecoder(in_channels=CHANNELS, dim=32, heads=4, hidden=24, layers=1)
    pre = PixelDecoder(in_channels=CHANNELS, dim=32, heads=4, hidden=24, layers=1, pre_norm=True)
    pre.load_state_dict(post.state_dict())
    assert (pre(features())[1] - post(features())[1]).abs().max() > 1e-2


def test_gradient_reaches_every_weight():
    decoder = PixelDecoder(in_channels=CHANNELS, dim=32, heads=4, hidden=24, layers=1)
    levels, semantic_map = decoder(features())
    (semantic_map.square().mean() + sum(level.square().mean() for level in levels)).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_position_encoding_is_detr_s():
    height, width, dim = 3, 5, 12
    encoding = sine_position_encoding(height, width, dim)
    assert encoding.shape == (dim, height, width)
    for channel in range(dim):
        for row in range(height):
            for column in range(width):
                index = channel % (dim // 2)
                place, length = (row, height) if channel < dim // 2 else (column, width)
                angle = 2 * math.pi * (place + 1) / (length + 1e-6) / 10000 ** (2 * (index // 2) / (dim // 2))
                value = math.sin(angle) if index % 2 == 0 else math.cos(angle)
                assert float(encoding[channel, row, column]) == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"in_channels": (3,)}, "at least two strides"),
        ({"dim": 30, "heads": 2}, "multiple of 4"),
        ({"norm": "layer"}, "'group' or 'batch'"),
        ({"heads": 5}, "not divisible"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        PixelDecoder(**{"in_channels": CHANNELS, "dim": 32, "heads": 4, **settings})
