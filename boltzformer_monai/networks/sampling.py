"""Attention-set policies: which patches a query attends to, by default sampled from a Boltzmann distribution (Eq. 5).

A policy takes the level's mask logits ``(…, m, N_v)``, the layer index and a source of randomness. It returns a boolean
attention set of the same shape, ``True`` = attended. Policies with ``per_head`` set get logits with a head axis,
``(…, heads, m, N_v)``: the published code samples one set per head, the paper one per query.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from boltzformer_monai.errors import ConfigError

_MASK32 = 0xFFFFFFFF
_SEED_FACTOR, _LAYER_FACTOR, _PROMPT_FACTOR = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35


class CounterNoise:
    """Counter-based uniform numbers: a hash of (seed, layer, head, query, patch), computed in tensor operations.

    Unlike those of a stateful generator, the numbers depend on neither batch, other prompts nor device, so the same
    slice and prompt give the same mask. With one seed all slices and prompts share them (common random numbers): each
    set keeps its distribution, and adjacent slices differ only by their logits. In training every example has a seed
    and every prompt its own numbers.

    Args:
        seed: one for all, or one for each example: ``(B,)`` int64, 0 or more and below 2³¹.
    """

    def __init__(self, seed: int | Tensor = 0) -> None:
        self.seed = seed if isinstance(seed, Tensor) else int(seed)

    def uniform(self, shape: torch.Size | tuple[int, ...], *, layer: int, device: torch.device) -> Tensor:
        """Float32 in [0, 1), broadcasting to ``shape``, ``(B, P, [heads,] queries, patches)``.

        With one seed only the last three axes (head, query, patch) count.
        """
        own = tuple(shape[-3:]) if len(shape) >= 5 else (1, *shape[-2:])
        state = torch.arange(own[0] * own[1] * own[2], device=device, dtype=torch.int64).view(own)
        if isinstance(self.seed, Tensor):
            state = state ^ self._keys(self.seed.to(device), shape[1], layer)
        else:
            state ^= _scalar_mix32(self.seed * _SEED_FACTOR + layer * _LAYER_FACTOR + 1)
        uniform = _mix32(state).bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-24)
        return uniform if len(shape) >= 5 else uniform.squeeze(-3)

    @staticmethod
    def _keys(seeds: Tensor, prompts: int, layer: int) -> Tensor:
        """What distinguishes examples and prompts, ``(B, P, 1, 1, 1)``; a single seed's is that of the first prompt."""
        prompt = torch.arange(prompts, device=seeds.device, dtype=torch.int64) * _PROMPT_FACTOR
        keys = seeds[:, None] * _SEED_FACTOR + (layer * _LAYER_FACTOR + 1) + prompt
        return _mix32(keys & _MASK32)[..., None, None, None]


Randomness = torch.Generator | CounterNoise | None


def _mix32(x: Tensor) -> Tensor:
    """A 32-bit integer hash (xor-shift and multiply, full avalanche), in place on int64, for all devices."""
    shifted = torch.empty_like(x)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x ^= torch.bitwise_right_shift(x, shift, out=shifted)
        x *= factor
        x &= _MASK32
    x ^= torch.bitwise_right_shift(x, 16, out=shifted)
    return x


def _scalar_mix32(value: int) -> int:
    value &= _MASK32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        value = ((value ^ (value >> shift)) * factor) & _MASK32
    return value ^ (value >> 16)


def draw_uniform(
    shape: torch.Size | tuple[int, ...], *, layer: int, generator: Randomness, device: torch.device
) -> Tensor:
    """Uniform numbers in [0, 1) from ``generator``, of ``shape`` or broadcasting to it."""
    if isinstance(generator, CounterNoise):
        return generator.uniform(shape, layer=layer, device=device)
    return torch.rand(shape, generator=generator, device=device)


class AttentionSetPolicy(Protocol):
    """Protocol of an attention-set policy."""

    per_head: bool

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """Mask logits ``(…, m, N_v)`` → boolean attention set ``(…, m, N_v)``."""
        ...


class BoltzmannSampling:
    """Boltzmann attention sampling (Sec. 3.2.2): N = ratio·N_v independent draws from p ∝ exp(U/τ_ℓ), τ_ℓ = τ0/(1+ℓ).

    Args:
        base_temperature: τ0 > 0 (paper: 1).
        sample_ratio: draws per patch of the level, in (0, 1] (paper: 0.1).
        exact: draw N patches with replacement and take their union, so that ``|A| ≤ N``; otherwise include each patch
            independently with probability ``1 − (1 − p)^N`` (the paper's footnote 1).
        per_head: one set per head (published code) instead of one per query (paper).
        at_least_one: draw at least one patch: N is at least 1, and a Bernoulli set that is empty gets one patch drawn
            from p. By default such a query attends to everything, which on small grids is not rare: three draws leave
            5 % of the sets empty.
        threshold: always attend to patches with confidence U ≥ threshold and draw from the others (an option of the
            published code); ``None`` (paper) draws from all patches.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        base_temperature: float = 1.0,
        sample_ratio: float = 0.1,
        *,
        exact: bool = False,
        per_head: bool = False,
        at_least_one: bool = False,
        threshold: float | None = None,
    ) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise ConfigError(f"threshold must be in (0, 1), got {threshold}")
        if not base_temperature > 0:
            raise ConfigError(f"base_temperature must be positive, got {base_temperature}")
        if not 0 < sample_ratio <= 1:
            raise ConfigError(f"sample_ratio must be in (0, 1], got {sample_ratio}")
        self.base_temperature = float(base_temperature)
        self.sample_ratio = float(sample_ratio)
        self.exact = exact
        self.per_head = per_head
        self.at_least_one = at_least_one
        self.threshold = threshold

    def temperature(self, layer: int) -> float:
        """τ_ℓ = τ0/(1 + ℓ): the annealing schedule."""
        return self.base_temperature / (1 + layer)

    def draws(self, patches: int) -> int:
        """N, rounded down as in the published code. At 0 the set is empty, and the query attends to everything."""
        return max(int(patches * self.sample_ratio), int(self.at_least_one))

    def distribution(self, logits: Tensor, layer: int) -> Tensor:
        """Boltzmann distribution over the level's patches (Eq. 5), ``(…, m, N_v)``, float32, rows sum to 1."""
        confidence = torch.sigmoid(logits.float())
        if self.threshold is not None:
            # If no patch is left to draw from, the row is all zero instead of NaN.
            energy = (confidence / self.temperature(layer)).masked_fill(confidence >= self.threshold, float("-inf"))
            return torch.softmax(energy, dim=-1).nan_to_num()
        return torch.softmax(confidence / self.temperature(layer), dim=-1)

    @torch.no_grad()
    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """Sample the attention sets, without gradients."""
        probability = self.distribution(logits, layer)
        draws = self.draws(logits.shape[-1])
        if self.exact:
            attend = self._union_of_draws(probability, draws, layer, generator)
        else:
            uniform = draw_uniform(logits.shape, layer=layer, generator=generator, device=logits.device)
            attend = uniform < self.inclusion(probability, draws)
            if self.at_least_one:
                attend = attend | self._first(probability, uniform)
        return attend if self.threshold is None else attend | (torch.sigmoid(logits.float()) >= self.threshold)

    @staticmethod
    def inclusion(probability: Tensor, draws: int) -> Tensor:
        """``1 − (1 − p)^N``, the probability that N draws contain a patch, without cancellation for small p."""
        return (-probability).log1p_().mul_(draws).expm1_().neg_()

    @staticmethod
    def _first(probability: Tensor, uniform: Tensor) -> Tensor:
        """The patch that is drawn first, by the same numbers.

        A patch is in the set if its exponential waiting time, −log(1 − u)/−log(1 − p), is below N. The shortest of all
        is in every set that is not empty. Beyond N it is patch i with a probability of log(1 − pᵢ)/Σ log(1 − p), since
        exponential times have no memory.
        """
        waiting = torch.log1p(-uniform) / torch.log1p(-probability)
        waiting = torch.where(probability > 0, waiting, torch.inf)
        first = torch.zeros_like(probability, dtype=torch.bool)
        return first.scatter_(-1, waiting.argmin(-1, keepdim=True), True)

    @staticmethod
    def _union_of_draws(probability: Tensor, draws: int, layer: int, generator: Randomness) -> Tensor:
        """The union of ``draws`` draws with replacement, by inverting the cumulative distribution."""
        summed = probability.cpu() if probability.device.type == "mps" else probability  # Metal has no float64
        cumulative = summed.cumsum(-1, dtype=torch.float64).float().to(probability.device)
        shape = (*probability.shape[:-1], draws)
        uniform = draw_uniform(shape, layer=layer, generator=generator, device=probability.device)
        drawn = torch.searchsorted(cumulative, uniform.expand(shape).contiguous(), right=True)
        attend = torch.zeros_like(probability, dtype=torch.bool)
        attend.scatter_(-1, drawn.clamp_(max=probability.shape[-1] - 1), True)
        return attend & (probability > 0)


class ThresholdMask:
    """Masked attention as in Mask2Former: attend where U ≥ ``threshold`` (baseline of Table 3)."""

    per_head = False

    def __init__(self, threshold: float = 0.5) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(f"threshold must be in (0, 1), got {threshold}")
        self.threshold = float(threshold)

    @torch.no_grad()
    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """Deterministic; ignores layer and generator."""
        return torch.sigmoid(logits.float()) >= self.threshold


class FullAttention:
    """Every query attends to every patch (baseline of Table 3)."""

    per_head = False

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """All ``True``."""
        return torch.ones_like(logits, dtype=torch.bool)


class RecordingPolicy:
    """Wrap a policy and record the sets of all layers, for figures."""

    def __init__(self, policy: AttentionSetPolicy) -> None:
        self.policy = policy
        self.per_head = policy.per_head
        self.sets: list[Tensor] = []
        self.empty: list[Tensor] = []
        """Which sets of :attr:`sets`, ``(…, m)``, were drawn empty."""

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        """The wrapped policy's set."""
        attend = self.policy(logits, layer, generator)
        # As in the decoder: a query with an empty set attends to everything.
        empty = ~attend.any(-1, keepdim=True)
        self.sets.append((attend | empty).detach().cpu())
        self.empty.append(empty.squeeze(-1).detach().cpu())
        return attend
