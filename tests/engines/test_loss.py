"""Dice + cross-entropy (Sec. 3.3, A.4) written out in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.losses import DiceFocalLoss, DiceLoss
from torch import Tensor
from torch.nn import functional as F

from boltzformer_monai.engines import BoltzFormerLoss, training_loss
from boltzformer_monai.engines.layer_loss import layer_losses
from boltzformer_monai.engines.loss import ReplacedLoss
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.interfaces import Decoded


def some(batch: int = 2, prompts: int = 3, size: int = 12, share: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(batch, prompts, size, size, generator=generator)
    return logits, (torch.rand(logits.shape, generator=generator) < share).float()


def by_hand(logits: Tensor, target: Tensor, *, balance: float = 0.0) -> np.ndarray:
    """Loss of every prompt, ``(B, P)``."""
    z, y = logits.double().numpy(), target.double().numpy()
    p = 1 / (1 + np.exp(-z))
    axes = (2, 3)
    dice = 1 - 2 * (p * y).sum(axes) / ((p**2).sum(axes) + (y**2).sum(axes))
    entropy = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    pixels, positives = y[0, 0].size, y.sum(axes, keepdims=True)
    weight = np.ones_like(y)
    if balance:
        factor = np.clip((pixels - positives) / np.maximum(positives, 1e-6), 1, balance)
        weight += (factor - 1) * y
    return dice + (entropy * weight).sum(axes) / weight.sum(axes)


def test_the_paper_s_loss():
    logits, target = some()
    assert float(BoltzFormerLoss()(logits, target)) == pytest.approx(by_hand(logits, target).mean(), rel=1e-5)


def test_soft_targets():
    logits, _ = some()
    target = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1))
    assert float(BoltzFormerLoss()(logits, target)) == pytest.approx(by_hand(logits, target).mean(), rel=1e-5)


def test_an_empty_target_costs_one_and_the_entropy():
    logits, target = some()
    target.zero_()
    expected = 1 + float(F.softplus(logits).mean())
    assert float(BoltzFormerLoss()(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_a_perfect_mask_costs_nothing():
    _, target = some()
    assert float(BoltzFormerLoss()(60 * target - 30, target)) < 1e-5


def test_the_gradient_is_that_of_the_formula():
    logits, target = some(1, 1, 4)
    logits = logits.double().requires_grad_()
    loss = BoltzFormerLoss()(logits, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    for place in [(0, 0, 1, 2), (0, 0, 3, 3)]:
        shifted = [logits.detach().clone() for _ in range(2)]
        shifted[0][place] += 1e-4
        shifted[1][place] -= 1e-4
        slope = (by_hand(shifted[0], target) - by_hand(shifted[1], target)).mean() / 2e-4
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_the_gradient_of_an_empty_target_is_finite_at_extreme_logits():
    logits = torch.tensor([[[[-200.0, 200.0], [0.0, -50.0]]]], requires_grad=True)
    BoltzFormerLoss(balance=50)(logits, torch.zeros(1, 1, 2, 2)).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("balance", [2.0, 50.0])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.9])
def test_balance(balance: float, share: float):
    logits, target = some(share=share)
    expected = by_hand(logits, target, balance=balance).mean()
    assert float(BoltzFormerLoss(balance=balance)(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_balance_makes_object_and_background_count_one_half():
    logits = torch.zeros(1, 1, 10, 10)
    target = torch.zeros(1, 1, 10, 10)
    target[..., 0, :4] = 1
    logits[target > 0] = 2.0
    entropy = BoltzFormerLoss(balance=50)._cross_entropy(logits, target)
    expected = (F.softplus(torch.tensor(-2.0)) + F.softplus(torch.tensor(0.0))) / 2
    torch.testing.assert_close(entropy[0, 0], expected)


def test_empty_prompts_can_count_less():
    logits, target = some(1, 2)
    target[:, 1] = 0
    each = by_hand(logits, target)[0]
    for weight in (0.0, 0.25, 1.0):
        expected = (each[0] + weight * each[1]) / (1 + weight)
        assert float(BoltzFormerLoss(empty_weight=weight)(logits, target)) == pytest.approx(expected, rel=1e-5)
    assert float(BoltzFormerLoss(empty_weight=0)(logits, torch.zeros_like(target))) == 0


@pytest.mark.parametrize("size", [8, 24, 30])
def test_logits_of_another_size_are_resized(size: int):
    logits, _ = some()
    target = (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) < 0.3).float()
    resized = F.interpolate(logits, size=(size, size), mode="bicubic", align_corners=False, antialias=True)
    assert float(BoltzFormerLoss()(logits, target)) == pytest.approx(by_hand(resized, target).mean(), rel=1e-5)


def test_half_precision_is_computed_in_float32():
    logits, target = some()
    loss = BoltzFormerLoss()(logits.bfloat16(), target.bfloat16())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(by_hand(logits.bfloat16().float(), target).mean(), rel=1e-5)


@pytest.mark.parametrize("settings", [{"balance": -1}, {"empty_weight": -0.1}, {"layer_supervision": -1}])
def test_impossible_settings(settings: dict[str, float]):
    with pytest.raises(ConfigError, match="must not be negative"):
        BoltzFormerLoss(**settings)


@pytest.mark.parametrize("present", [[1, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
def test_the_presence_head_pays_for_both_kinds_of_prompts_alike(present: list[int]):
    generator = torch.Generator().manual_seed(0)
    logits, presence = torch.randn(2, 2, 4, 4, generator=generator), torch.randn(2, 2, generator=generator)
    target = torch.zeros(2, 2, 8, 8)
    target[..., 2, 3] = torch.tensor(present, dtype=torch.float32).view(2, 2) * 0.25  # a share of one pixel is enough
    masks = BoltzFormerLoss()(logits, target)
    found = BoltzFormerLoss(presence_weight=0.5)(Decoded(logits, presence), target)
    kinds = [
        [F.softplus(-sign * value) for value, here in zip(presence.flatten(), present, strict=True) if here == kind]
        for kind, sign in ((1, 1), (0, -1))
    ]
    means = [torch.stack(kind).mean() for kind in kinds if kind]
    torch.testing.assert_close(found, masks + 0.5 * torch.stack(means).mean())
    for loss, decoded in ((0.5, Decoded(logits)), (0.0, Decoded(logits, presence))):
        assert BoltzFormerLoss(presence_weight=loss)(decoded, target) == masks


@pytest.mark.parametrize(
    "loss",
    [
        BoltzFormerLoss(presence_weight=0.5),
        BoltzFormerLoss(empty_weight=0.2, balance=50, presence_weight=1),
        BoltzFormerLoss(empty_weight=0),
        BoltzFormerLoss(empty_weight=0.2, layer_supervision=0.5),
        ReplacedLoss(DiceFocalLoss(sigmoid=True), presence_weight=0.5, layer_supervision=0.5),
    ],
)
def test_parts_add_up_to_the_whole(loss: BoltzFormerLoss | ReplacedLoss):
    logits, target = some(5, 2)
    target[:3, 1] = 0  # so that micro-batches differ in what is present
    presence = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    layers = layers_of(5, 2)
    whole = loss(Decoded(logits, presence, layers=layers), target)
    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    counts = sum(loss.counts(target[part]) for part in parts)
    assert counts.tolist() == [7, 3]
    found = sum(loss(Decoded(logits[part], presence[part], None, layers[part]), target[part], counts) for part in parts)
    torch.testing.assert_close(found, whole)


def layers_of(batch: int = 2, prompts: int = 3, masks: int = 4, size: int = 6) -> Tensor:
    return 2 * torch.randn(batch, prompts, masks, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("settings", [{}, {"balance": 50.0, "empty_weight": 0.2}])
def test_masks_between_the_layers_cost_their_mean(settings: dict[str, float]):
    logits, target = some()
    target[0, 1] = 0
    layers = layers_of()
    small = F.avg_pool2d(target, 2)
    balance, empty = settings.get("balance", 0.0), settings.get("empty_weight", 1.0)
    of_layers = np.mean([by_hand(layers[:, :, k], small, balance=balance) for k in range(4)], axis=0)
    weight = np.where(target.flatten(2).amax(2).numpy() > 0, 1, empty)
    each = by_hand(logits, target, balance=balance) + 0.5 * of_layers
    loss = BoltzFormerLoss(layer_supervision=0.5, **settings)
    found = loss(Decoded(logits, layers=layers), target)
    assert float(found) == pytest.approx(float((each * weight).sum() / weight.sum()), rel=1e-5)
    without = BoltzFormerLoss(**settings)(logits, target)
    assert loss(logits, target) == loss(Decoded(logits), target) == without  # validation has no layers
    assert BoltzFormerLoss(**settings)(Decoded(logits, layers=layers), target) == without


@pytest.mark.parametrize("balance", [0.0, 50.0])
def test_the_gradient_of_masks_between_the_layers_is_that_of_single_masks(balance: float):
    layers, (_, target) = layers_of().double().requires_grad_(), some(size=6)
    target[0, 1] = 0
    target[1, 0, 2, 3] = 0.25
    loss = BoltzFormerLoss(balance=balance)
    single = loss._each(layers.flatten(1, 2), target.double()[:, :, None].expand_as(layers).flatten(1, 2))
    together = layer_losses(layers, target.double(), loss._factor(target.double()))
    torch.testing.assert_close(together.flatten(1), single)
    weights = torch.randn(single.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    (expected,) = torch.autograd.grad((single * weights).sum(), layers)
    (found,) = torch.autograd.grad((together.flatten(1) * weights).sum(), layers)
    torch.testing.assert_close(found, expected)


def test_masks_between_the_layers_can_be_extreme():
    layers = torch.tensor([-200.0, 200.0, 0.0, -50.0]).view(1, 1, 1, 2, 2).requires_grad_()
    for target in (torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)):
        found = layer_losses(layers, target, torch.ones(1, 1))
        (gradient,) = torch.autograd.grad(found.sum(), layers)
        assert found.isfinite().all()
        assert gradient.isfinite().all()


def test_masks_between_the_layers_of_a_loss_of_monai():
    logits, target = some()
    layers, small = layers_of(), F.avg_pool2d(target, 2)
    dice = DiceLoss(sigmoid=True)
    each = [
        dice(layers[b, p, k][None, None], small[b, p][None, None]) for b in (0, 1) for p in (0, 1, 2) for k in range(4)
    ]
    loss = training_loss(dice, layer_supervision=0.5)
    expected = loss(logits, target) + 0.5 * torch.stack(each).mean()
    torch.testing.assert_close(loss(Decoded(logits, layers=layers), target), expected)


def test_a_loss_of_monai_sees_every_prompt_as_an_example():
    logits, target = some(2, 3, size=12)
    loss = training_loss(DiceLoss(sigmoid=True), presence_weight=0.5)
    each = [
        DiceLoss(sigmoid=True)(logits[b, p][None, None], target[b, p][None, None]) for b in (0, 1) for p in (0, 1, 2)
    ]
    torch.testing.assert_close(loss(logits, target), torch.stack(each).mean())
    presence = torch.zeros(2, 3)
    torch.testing.assert_close(loss(Decoded(logits, presence), target), torch.stack(each).mean() + 0.5 * np.log(2))
    assert loss(logits[..., ::2, ::2], target).isfinite()


def test_a_loss_of_prompts_sees_the_whole_prediction():
    class OfPrompts(torch.nn.Module):
        of_prompts = True

        def forward(self, prediction: Tensor | Decoded, target: Tensor) -> Tensor:
            seen.append((type(prediction), target.shape))
            return (prediction.logits if isinstance(prediction, Decoded) else prediction).mean()

    seen: list[tuple[type, torch.Size]] = []
    logits, target = some()
    loss = training_loss(OfPrompts())
    assert loss(Decoded(logits, torch.zeros(2, 3)), target) == logits.mean()
    assert loss(logits, target) == logits.mean()
    assert seen == [(Decoded, target.shape), (Tensor, target.shape)]


def test_the_training_s_own_loss_is_not_wrapped():
    loss = BoltzFormerLoss()
    assert training_loss(loss) is loss


@pytest.mark.parametrize(
    ("loss", "what"),
    [
        (DiceLoss(sigmoid=True, reduction="none"), r"DiceLoss must return a scalar, got a tensor of shape"),
        (lambda prediction, target: 1.0, "must return a scalar, got 1.0"),
        (lambda prediction: prediction.sum(), "does not take logits and masks"),
        (3, "must be a function"),
    ],
)
def test_losses_that_do_not_fit(loss: object, what: str):
    with pytest.raises(ConfigError, match=what) as refused:
        training_loss(loss)(*some())
    assert "\n" not in str(refused.value)
