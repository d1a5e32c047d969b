"""PiGMA in both forms equals the two convolutions of Fig. 3 written out for one prompt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.networks.fast.pigma import FastPiGMA
from boltzformer_monai.networks.fast.semantic_map import Masks, SemanticMap
from boltzformer_monai.networks.pigma import PiGMA
from tests.networks.cases import randomise


def literal(pigma: PiGMA, masks: Tensor, image: Tensor) -> Tensor:
    """Fig. 3 for one prompt: masks ``(B, m, h, w)`` → ``(B, 2h, 2w)``."""
    height, width = masks.shape[-2:]
    small = F.interpolate(image, size=(height, width), mode="bilinear", align_corners=False)
    large = F.interpolate(image, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)
    lifted = pigma.deconv(torch.cat((small, masks), dim=1))
    correction = pigma.conv(torch.cat((large, lifted), dim=1))
    mean = masks.mean(1, keepdim=True)
    ensemble = F.interpolate(mean, size=(2 * height, 2 * width), mode="bilinear", align_corners=False)
    return ((ensemble + correction) / 2)[:, 0]


@pytest.mark.parametrize("form", [PiGMA, FastPiGMA])
@pytest.mark.parametrize(
    ("queries", "channels", "size", "image_size"),
    [(3, 1, (8, 8), (32, 32)), (10, 3, (16, 16), (64, 64)), (1, 3, (5, 9), (20, 36)), (4, 2, (16, 12), (7, 11))],
)
def test_equals_the_two_convolutions(
    form: type[PiGMA], queries: int, channels: int, size: tuple[int, int], image_size: tuple[int, int]
):
    torch.manual_seed(0)
    pigma = randomise(form(queries=queries, image_channels=channels, channels=6))
    masks = torch.randn(2, 3, queries, *size, requires_grad=True)
    image = torch.rand(2, channels, *image_size)
    logits = pigma(masks, image)
    expected = torch.stack([literal(pigma, masks[:, p], image) for p in range(3)], dim=1)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(logits)
    parameters = [masks, *pigma.parameters()]
    ours = torch.autograd.grad((logits * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("queries", [1, 17, 18, 40])
def test_masks_that_are_not_computed(queries: int, correction: bool):
    generator = torch.Generator().manual_seed(0)
    pigma = randomise(FastPiGMA(queries=queries, channels=6, correction=correction)).double()

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    mu, fine, weight, bias, mask_bias = draw(2, 3, queries, 12), draw(2, 5, 8, 6), draw(12, 5, 3, 3), draw(12), draw()
    masks = Masks(mu, SemanticMap(fine, weight, bias), mask_bias)
    image = torch.rand(2, 3, 32, 24, dtype=torch.float64)
    expected = PiGMA.forward(pigma, masks.logits(), image)
    logits = pigma(masks, image)
    torch.testing.assert_close(logits, expected)
    leaves = [mu, fine, weight, bias, mask_bias, *pigma.parameters()]
    of_logits = torch.randn_like(logits)
    ours, theirs = (torch.autograd.grad((x * of_logits).sum(), leaves) for x in (logits, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("form", [PiGMA, FastPiGMA])
def test_without_correction_it_is_the_upsampled_mean(form: type[PiGMA]):
    pigma = form(queries=3, correction=False)
    assert not list(pigma.parameters())
    masks = torch.randn(1, 2, 3, 4, 6)
    expected = F.interpolate(masks.mean(2), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(pigma(masks, torch.rand(1, 3, 16, 24)), expected)
