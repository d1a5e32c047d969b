"""The training loss: Dice + binary cross-entropy, equal weight (Sec. 3.3, A.4), plus the presence head's loss."""

from __future__ import annotations

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.interfaces import Decoded


class BoltzFormerLoss(nn.Module):
    """Dice on the sigmoid with squared denominators + pixel-wise BCE, per prompt, averaged.

    Args:
        balance: largest weight of foreground pixels in the BCE, chosen so that foreground and background contribute
            equally; 0 (paper) weights all pixels equally. Helps small objects when training from random weights.
        empty_weight: weight of prompts whose target is absent from the slice (paper: 1).
        presence_weight: weight of the presence head's cross-entropy, balanced between present and absent targets.
    """

    def __init__(self, *, balance: float = 0.0, empty_weight: float = 1.0, presence_weight: float = 0.0) -> None:
        super().__init__()
        if min(balance, empty_weight, presence_weight) < 0:
            given = f"{balance}, {empty_weight} and {presence_weight}"
            raise ConfigError(f"balance, empty_weight and presence_weight must not be negative, got {given}")
        self.balance = balance
        self.empty_weight = empty_weight
        self.presence_weight = presence_weight
        self.dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0.0, smooth_dr=1e-6, reduction="none")

    def forward(self, prediction: Tensor | Decoded, target: Tensor) -> Tensor:
        """Loss of mask logits ``(B, P, h, w)`` against masks ``(B, P, H, W)`` in 0–1; a scalar.

        The presence loss is added if the prediction has presence logits. Mask logits are resized to the target's size,
        bicubic with antialiasing, as in the published code.
        """
        if isinstance(prediction, Tensor):
            return self._masks(prediction, target)
        loss = self._masks(prediction.logits, target)
        if prediction.presence is None or not self.presence_weight:
            return loss
        return loss + self.presence_weight * self._presence(prediction.presence, target)

    @staticmethod
    def _presence(logits: Tensor, target: Tensor) -> Tensor:
        present = (target.flatten(2).amax(2) > 0).to(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, present, reduction="none")
        absent = 1 - present
        weight = present / present.sum().clamp_min(1) + absent / absent.sum().clamp_min(1)
        return (entropy * weight).sum() / weight.sum()

    def _masks(self, logits: Tensor, target: Tensor) -> Tensor:
        logits, target = logits.float(), target.float()
        if logits.shape[-2:] != target.shape[-2:]:
            logits = F.interpolate(logits, size=target.shape[-2:], mode="bicubic", align_corners=False, antialias=True)
        dice = self.dice(logits, target).flatten(2).mean(2)
        loss = dice + self._cross_entropy(logits, target)
        if self.empty_weight == 1:
            return loss.mean()
        weight = (target.flatten(2).amax(2) > 0).to(loss) * (1 - self.empty_weight) + self.empty_weight
        return (loss * weight).sum() / weight.sum().clamp_min(1e-6)

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """``(B, P)``."""
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        if not self.balance:
            return entropy.flatten(2).mean(2)
        pixels = target[0, 0].numel()
        positives = target.flatten(2).sum(2).clamp_min(1e-6)
        factor = ((pixels - positives) / positives).clamp(1.0, self.balance)[..., None, None]
        weight = 1 + (factor - 1) * target
        return (entropy * weight).flatten(2).sum(2) / weight.flatten(2).sum(2)
