"""The training loss: Dice + binary cross-entropy, equal weight (Sec. 3.3, A.4), plus the presence head's loss.

Where ``layer_supervision`` says so, the masks between the decoder's layers are compared with the target, too.

A loss is computed on micro-batches, on several processes: what it divides by is counted over all of them first
(:meth:`~StepLoss.counts`), and the parts are added. So the sum is the loss of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.engines.layer_loss import layer_losses
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.interfaces import Decoded
from boltzformer_monai.transforms.square import resized_logits

__all__ = ["BoltzFormerLoss", "ReplacedLoss", "StepLoss", "training_loss"]


@runtime_checkable
class StepLoss(Protocol):
    """A loss whose parts add up to that of the whole batch."""

    def counts(self, target: Tensor) -> Tensor:
        """What of masks ``(B, P, H, W)`` the loss divides by; a vector whose sum over parts is that of the whole."""
        ...

    def mask_weight(self, counts: Tensor) -> Tensor:
        """The weight of masks with these counts: the masks' loss of several is the mean with it."""
        ...

    def __call__(self, prediction: Tensor | Decoded, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """The part of some examples in a loss over all those ``counts`` are of; by default over these examples."""
        ...


class _PromptLoss(nn.Module):
    """Counts present and absent targets, and has the presence head's loss.

    Args:
        presence_weight: of that, which is balanced between present and absent targets.
        layer_supervision: weight of the mean loss of the masks in ``Decoded.layers``.
    """

    def __init__(self, *, presence_weight: float, layer_supervision: float) -> None:
        super().__init__()
        self.presence_weight = presence_weight
        self.layer_supervision = layer_supervision

    def counts(self, target: Tensor) -> Tensor:
        """Numbers of prompts whose target is in the slice, and is not: ``(2,)``."""
        present = _present(target).sum()
        return torch.stack([present, target.shape[0] * target.shape[1] - present])

    def with_presence(self, masks: Tensor, prediction: Tensor | Decoded, target: Tensor, counts: Tensor) -> Tensor:
        """The masks' loss with that of the presence head, where there is one."""
        if isinstance(prediction, Tensor) or prediction.presence is None or not self.presence_weight:
            return masks
        logits = prediction.presence
        is_present = _present(target).to(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, is_present, reduction="none")
        present, absent = counts.to(logits)
        weight = is_present / present.clamp_min(1) + (1 - is_present) / absent.clamp_min(1)
        kinds = (counts > 0).sum()
        return masks + self.presence_weight * (entropy * weight).sum() / kinds

    def layers(self, prediction: Tensor | Decoded, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Masks between the layers ``(B, P, K, h, w)``, and the target averaged to their size ``(B, P, h, w)``."""
        if isinstance(prediction, Tensor) or prediction.layers is None or not self.layer_supervision:
            return None
        logits = prediction.layers.float()
        return logits, F.adaptive_avg_pool2d(target.float(), (logits.shape[-2], logits.shape[-1]))


class BoltzFormerLoss(_PromptLoss):
    """Dice on the sigmoid with squared denominators + pixel-wise BCE, per prompt, averaged.

    Args:
        balance: largest weight of foreground pixels in the BCE, chosen so that foreground and background contribute
            equally; 0 (paper) weights all pixels equally. Helps small objects when training from random weights.
        empty_weight: weight of prompts whose target is absent from the slice (paper: 1).
        presence_weight: weight of the presence head's cross-entropy, balanced between present and absent targets.
        layer_supervision: weight of the same loss of the masks in ``Decoded.layers``, averaged over them; the target is
            averaged to their size. 0 (paper) leaves them out.
    """

    def __init__(
        self,
        *,
        balance: float = 0.0,
        empty_weight: float = 1.0,
        presence_weight: float = 0.0,
        layer_supervision: float = 0.0,
    ) -> None:
        super().__init__(presence_weight=presence_weight, layer_supervision=layer_supervision)
        if min(balance, empty_weight, presence_weight, layer_supervision) < 0:
            names = "balance, empty_weight, presence_weight and layer_supervision"
            given = f"{balance}, {empty_weight}, {presence_weight} and {layer_supervision}"
            raise ConfigError(f"{names} must not be negative, got {given}")
        self.balance = balance
        self.empty_weight = empty_weight
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, reduction="none")

    def mask_weight(self, counts: Tensor) -> Tensor:
        """Prompts, those of absent targets by ``empty_weight``."""
        return (counts[0] + self.empty_weight * counts[1]).clamp_min(1e-6)

    def forward(self, prediction: Tensor | Decoded, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """Loss of mask logits ``(B, P, h, w)`` against masks ``(B, P, H, W)`` in 0–1; a scalar.

        The presence loss is added if the prediction has presence logits. Mask logits are resized to the target's size,
        bicubic with antialiasing, as in the published code.
        """
        counts = self.counts(target) if counts is None else counts
        logits = prediction if isinstance(prediction, Tensor) else prediction.logits
        loss = self._each(_resized(logits, target), target.float())
        if (layers := self.layers(prediction, target)) is not None:
            each = layer_losses(*layers, self._factor(layers[1]))
            loss = loss + self.layer_supervision * each.mean(2)
        weight = _present(target).to(loss) * (1 - self.empty_weight) + self.empty_weight
        masks = (loss * weight).sum() / self.mask_weight(counts)
        return self.with_presence(masks, prediction, target, counts)

    def _each(self, logits: Tensor, target: Tensor) -> Tensor:
        """Dice + cross-entropy of every mask, ``(B, P)``."""
        return self.dice(logits, target).flatten(2).mean(2) + self._cross_entropy(logits, target)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """``(B, P)``."""
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if not self.balance:
            return entropy.flatten(2).mean(2)
        weight = 1 + (self._factor(target)[..., None, None] - 1) * target
        return (entropy * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)

    def _factor(self, target: Tensor) -> Tensor:
        """Weight of the object's pixels, ``(B, P)``."""
        if not self.balance:
            return torch.ones_like(target[:, :, 0, 0])
        pixels = target[0, 0].numel()
        positives = target.flatten(2).sum(2).clamp_min(1e-6)
        return ((pixels - positives) / positives).clamp(1.0, self.balance)


class ReplacedLoss(_PromptLoss):
    """Another loss of the masks, e.g. one of MONAI's, in the place of :class:`BoltzFormerLoss`.

    Every prompt is an example of one channel: it gets logits ``(B·P, 1, H, W)``, resized to the target's size, and
    masks of this shape. One with a true attribute ``of_prompts`` gets the whole prediction, a tensor ``(B, P, h, w)``
    (validation) or a ``Decoded``, and masks ``(B, P, H, W)``; then the presence head's loss is its own matter.

    Its values of several micro-batches are averaged by their prompts.

    Args:
        loss: (prediction, target) → scalar.
        presence_weight: of the presence head's loss, which is added.
        layer_supervision: weight of the same loss of the masks in ``Decoded.layers``, taken together.
    """

    def __init__(
        self, loss: Callable[..., Tensor], *, presence_weight: float = 0.0, layer_supervision: float = 0.0
    ) -> None:
        super().__init__(presence_weight=presence_weight, layer_supervision=layer_supervision)
        self.loss = loss
        self.of_prompts = bool(getattr(loss, "of_prompts", False))

    def mask_weight(self, counts: Tensor) -> Tensor:
        """Prompts."""
        return counts.sum()

    def forward(self, prediction: Tensor | Decoded, target: Tensor, counts: Tensor | None = None) -> Tensor:
        """As that of :class:`BoltzFormerLoss`.

        Raises:
            ConfigError: the loss does not take this, or returns no scalar.
        """
        counts = self.counts(target) if counts is None else counts
        share = target.shape[0] * target.shape[1] / counts.sum()
        if self.of_prompts:
            return self._value(prediction, target) * share
        logits = prediction if isinstance(prediction, Tensor) else prediction.logits
        logits, masks = _resized(logits, target), target.float()
        value = self._value(*(each.flatten(0, 1)[:, None] for each in (logits, masks)))
        if (layers := self.layers(prediction, target)) is not None:
            logits, masks = layers[0], layers[1][:, :, None].expand_as(layers[0])
            value = value + self.layer_supervision * self._value(*(x.flatten(0, 2)[:, None] for x in (logits, masks)))
        return self.with_presence(value * share, prediction, target, counts)

    def _value(self, prediction: Tensor | Decoded, target: Tensor) -> Tensor:
        name = type(self.loss).__name__
        try:
            value = self.loss(prediction, target)
        except (TypeError, ValueError, AssertionError, AttributeError) as error:
            raise ConfigError(f"the loss {name} does not take logits and masks of one channel: {error}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            what = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ConfigError(f"the loss {name} must return a scalar, got {what}; see its reduction")
        return value.reshape(())


def training_loss(
    loss: Callable[..., Tensor], *, presence_weight: float = 0.0, layer_supervision: float = 0.0
) -> StepLoss:
    """A loss as the training uses it: itself if it is a :class:`StepLoss`, else in a :class:`ReplacedLoss`.

    Raises:
        ConfigError: it cannot be called.
    """
    if not callable(loss):
        raise ConfigError(f"the loss must be a function of prediction and target, got {loss!r}")
    if isinstance(loss, StepLoss):
        return loss
    return ReplacedLoss(loss, presence_weight=presence_weight, layer_supervision=layer_supervision)


def _present(target: Tensor) -> Tensor:
    """Whether the target is in the slice, ``(B, P)``."""
    return target.flatten(2).amax(2) > 0


def _resized(logits: Tensor, target: Tensor) -> Tensor:
    return resized_logits(logits.float(), (target.shape[-2], target.shape[-1]))
