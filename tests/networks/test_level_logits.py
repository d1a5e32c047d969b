from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import network_config
from boltzformer_monai.networks.level_logits import largest, to_level
from boltzformer_monai.networks.presets import PRESETS, create_boltzformer
from tests.networks.cases import small_network


@pytest.mark.parametrize(
    ("full", "size"), [((16, 24), (4, 6)), ((16, 24), (8, 6)), ((17, 23), (5, 6)), ((8, 8), (8, 8))]
)
def test_the_largest_logit_of_every_cell(full: tuple[int, int], size: tuple[int, int]):
    logits = torch.randn(2, 3, *full, generator=torch.Generator().manual_seed(0))
    found = largest(logits, size)
    assert found.shape == (2, 3, *size)
    for row in range(size[0]):
        for column in range(size[1]):
            rows, columns = (
                slice(i * n // cells, -(-(i + 1) * n // cells))
                for i, n, cells in zip((row, column), full, size, strict=True)
            )
            assert torch.equal(found[..., row, column], logits[..., rows, columns].amax((-2, -1)))
    assert torch.equal(to_level(logits, size, "max"), found)
    expected = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    assert torch.equal(to_level(logits, size, "bilinear"), expected)


def test_an_object_of_one_pixel_reaches_every_level():
    logits = torch.full((1, 1, 48, 48), -6.0)
    logits[..., 7, 7] = 6.0
    for size in ((6, 6), (12, 12), (24, 24)):
        assert to_level(logits, size, "max").max() == 6.0
    assert to_level(logits, (6, 6), "bilinear").max() == -6.0  # reads the central 2×2 pixels of 8×8


def test_the_setting_reaches_the_decoder_and_is_checked():
    assert create_boltzformer("tiny").decoder.query_decoder.level_logits == "max"
    assert PRESETS["hiera_s"].level_logits == "bilinear"  # the paper
    for fast in (False, True):
        for name in ("bilinear", "max"):
            assert small_network(fast=fast, level_logits=name).decoder.query_decoder.level_logits == name
    for decoder in ("biomedparse", "seem"):
        assert small_network(level_logits="max", decoder=decoder).decoder.query_decoder.level_logits == "max"
    with pytest.raises(ConfigError, match="level_logits must be one of bilinear, max, got 'mean'"):
        network_config("tiny", level_logits="mean")
