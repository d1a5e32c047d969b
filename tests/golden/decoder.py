"""The golden check of the decoder: outputs of every block, gradients, and the attention sets themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.fast.decoder import FastBoltzFormerDecoder
from boltzformer_monai.networks.published.rename import NOT_OF_THE_MASKS, convert_decoder, without
from boltzformer_monai.networks.sampling import BoltzmannSampling, CounterNoise, Randomness, ThresholdMask
from tests.golden.modules import state_dict, tensor, worst

# Rounding may flip a set bit where a uniform number lies this close to the inclusion probability: left uncounted.
_ROUNDING = 1e-5

FORMS = {"plain": BoltzFormerDecoder, "fast": FastBoltzFormerDecoder}


class ReplayedSets:
    """A policy that attends to recorded sets, and keeps the logits it was shown."""

    per_head = True

    def __init__(self, sets: list[Tensor]) -> None:
        self.sets = sets
        self.logits: list[Tensor] = []

    def __call__(self, logits: Tensor, layer: int, generator: Randomness = None) -> Tensor:
        self.logits.append(logits.clone())
        return self.sets[layer].view(logits.shape)


def check_decoder(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Rows (quantity, largest absolute error) of all cases in the file, for both forms of the decoder."""
    for case in sorted(name.removesuffix("/cfg") for name in arrays if name.endswith("/cfg")):
        for form, decoder in FORMS.items():
            for name, error in _check_case(arrays, case, decoder):
                yield f"{case}/{name} ({form})", error


def recorded_sets(arrays: Mapping[str, np.ndarray], case: str, layers: int) -> list[Tensor]:
    """The set of each layer as it was recorded, ``True`` = attended."""
    sets = []
    for i in range(layers):
        shape = tuple(int(n) for n in arrays[f"{case}/mask{i}_shape"])
        bits = np.unpackbits(arrays[f"{case}/mask{i}"])[: int(np.prod(shape))].reshape(shape)
        sets.append(torch.from_numpy(bits == 0))
    return sets


def _check_case(
    arrays: Mapping[str, np.ndarray], case: str, form: type[BoltzFormerDecoder]
) -> Iterator[tuple[str, float]]:
    weights = convert_decoder(without(state_dict(arrays), NOT_OF_THE_MASKS)[0])
    levels, dim = weights["level_embed.weight"].shape
    layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
    inputs = {f"x{i}": tensor(arrays, f"in/x{i}").requires_grad_() for i in range(levels)}
    inputs["mask_features"] = tensor(arrays, "in/mask_features").requires_grad_()
    inputs["text"] = tensor(arrays, "in/text").requires_grad_()
    batch = len(inputs["x0"])
    sets = recorded_sets(arrays, case, layers)
    policy = ReplayedSets(sets)
    decoder = form(
        dim=dim,
        policy=policy,
        queries=len(weights["query_feat.weight"]),
        heads=len(sets[0]) // batch,
        hidden=len(weights["layers.0.ffn.linear1.weight"]),
        layers=layers,
        levels=levels,
        text_prior="prior_ffn.linear1.weight" in weights,
    )
    decoder.load_state_dict(weights)
    seen: dict[str, Tensor] = {}
    mus: list[Tensor] = []
    _record(decoder, seen, mus)

    text = inputs["text"].permute(1, 0, 2)[:, None]  # (L, B, C) → (B, P=1, L, C)
    logits = decoder(
        [inputs[f"x{i}"] for i in range(levels)],
        inputs["mask_features"],
        text,
        torch.ones(text.shape[:3], dtype=torch.bool),
    )
    for name, output in seen.items():
        yield name, worst(output.transpose(0, 1), arrays[f"{case}/{name}"])
    for i, mu in enumerate(mus):
        predicted = torch.einsum("bpmd,bdhw->bpmhw", mu, inputs["mask_features"])[:, 0]
        recorded = arrays[f"{case}/logits256_{i}"]
        yield f"logits256_{i}", worst(predicted if recorded.ndim == 4 else predicted.mean((2, 3)), recorded)
    yield "pred_gmasks", worst(logits[:, 0], arrays[f"{case}/pred_gmasks"])
    yield from _check_policy(arrays, case, policy, sets)

    (logits[:, 0] * tensor(arrays, "in/grad_out")).sum().backward()
    for name, leaf in inputs.items():
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        yield f"grad/{name}", worst(gradient, arrays[f"{case}/grad/{name}"])


def _record(decoder: BoltzFormerDecoder, seen: dict[str, Tensor], mus: list[Tensor]) -> None:
    """Hooks that keep the output of every block under its golden name, and μ of every prediction."""

    def keep(name: str) -> Any:
        def hook(module: torch.nn.Module, args: Any, output: Tensor) -> None:
            seen[name] = output.detach().flatten(0, -3)  # (B, m, d), with P = 1

        return hook

    if decoder.text_prior:
        decoder.prior_inter.register_forward_hook(keep("init/self"))
        decoder.prior_ffn.register_forward_hook(keep("init/ffn"))
    for i, layer in enumerate(decoder.layers):
        for block, name in ((layer.cross, "cross"), (layer.inter, "self"), (layer.ffn, "ffn")):
            block.register_forward_hook(keep(f"layer{i}/{name}"))
    decoder.mask_head.register_forward_hook(lambda module, args, output: mus.append(output.detach()))


def _check_policy(
    arrays: Mapping[str, np.ndarray], case: str, policy: ReplayedSets, sets: list[Tensor]
) -> Iterator[tuple[str, float]]:
    """Our own policies must give the recorded sets: fraction of patches that differ beyond rounding, per layer."""
    threshold, do_boltzmann, ratio, temperature = (float(x) for x in arrays[f"{case}/cfg"])
    limit = threshold if threshold < 1 else None
    boltzmann = BoltzmannSampling(temperature, ratio, per_head=True, threshold=limit)
    for i, (logits, recorded) in enumerate(zip(policy.logits, sets, strict=True)):
        recorded = recorded.view(logits.shape)
        undecided = (torch.sigmoid(logits) - threshold).abs() < _ROUNDING
        if do_boltzmann:
            attend, close = drawn(boltzmann, logits, i, tensor(arrays, f"{case}/noise{i}"))
            undecided = undecided | close
        else:
            attend = ThresholdMask(threshold)(logits, i)
        yield f"set{i} (fraction differing)", differing(attend, recorded, undecided)


def drawn(policy: BoltzmannSampling, logits: Tensor, layer: int, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Our sets for recorded uniform numbers, and where rounding may decide otherwise."""
    # The published code leaves a patch out where the number falls below (1 − p)^N: the mirror image of ours.
    mirrored = 1 - noise.view(logits.shape)
    inclusion = policy.inclusion(policy.distribution(logits, layer), policy.draws(logits.shape[-1]))
    return policy(logits, layer, _Recorded(mirrored)), (mirrored - inclusion).abs() < _ROUNDING


def differing(attend: Tensor, recorded: Tensor, undecided: Tensor) -> float:
    """Fraction of patches that are in one of two sets only, rounding apart."""
    attend = attend | ~attend.any(-1, keepdim=True)
    return float(((attend != recorded) & ~undecided).float().mean())


class _Recorded(CounterNoise):
    """A source that returns recorded uniform numbers."""

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def uniform(self, shape: torch.Size | tuple[int, ...], *, layer: int, device: torch.device) -> Tensor:
        return self.noise
