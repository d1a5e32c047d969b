"""The network as three graphs: image encoder, text encoder and decoder, for any number of images and prompts.

What the encoders give has the names that the decoder takes, so a program passes it on as it is. All images of a call
share the prompts. The decoder has its plain form: the fast one chooses its way by sizes and memory formats, which a
graph cannot.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.interfaces import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.presets import create_boltzformer
from boltzformer_monai.networks.sampling import CounterNoise
from boltzformer_monai.networks.text_encoder import PADDING

__all__ = ["Graph", "axes_of", "channels_of", "graphs_of", "plain_network"]

_LEVELS = {"level_32": 32, "level_16": 16, "level_8": 8}
_BATCH, _PROMPTS, _TOKENS = "batch", "prompts", "tokens"
_IMAGES = ("image", *_LEVELS, "semantic_map", "normalised")
_AXES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(_IMAGES, (_BATCH,)),
    **dict.fromkeys(("tokens", "text", "valid"), (_PROMPTS, _TOKENS)),
    **dict.fromkeys(("logits", "presence", "edges"), (_BATCH, _PROMPTS)),
    "seed": (),
}
_MOST = 4096  # images, and prompts: PyTorch wants a limit
_EXAMPLE = {_BATCH: 2, _PROMPTS: 3, _TOKENS: 5}  # PyTorch takes an axis of length 1 for a constant


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One of the three.

    Attributes:
        name: ``"image_encoder"``, ``"text_encoder"`` or ``"decoder"``.
        part: which part of the network it is made of, in words.
        module: its computation; takes the inputs in their order.
        inputs: name → example, whose values do not matter.
        outputs: their names.
        longest: most tokens of a prompt.
    """

    name: str
    part: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    longest: int

    def program(self) -> torch.export.ExportedProgram:
        """The traced module, in which the leading axes of :func:`axes_of` may have any length."""
        most = {_BATCH: _MOST, _PROMPTS: _MOST, _TOKENS: self.longest}
        dims = {name: torch.export.Dim(name, min=1, max=limit) for name, limit in most.items()}
        shapes = tuple({axis: dims[kind] for axis, kind in enumerate(_AXES[name])} or None for name in self.inputs)
        with torch.no_grad():
            return torch.export.export(self.module, tuple(self.inputs.values()), dynamic_shapes=shapes, strict=False)


def axes_of(name: str, shape: Iterable[int]) -> list[str | int]:
    """The shape of an input or output, with names for the axes of any length."""
    names = _AXES[name]
    return [*names, *list(shape)[len(names) :]]


def channels_of(config: NetworkConfig) -> int:
    """Channels of the image: one where the slice alone is shown, whatever the backbone has."""
    return 2 * config.neighbours + 1


def plain_network(network: BoltzFormer, config: NetworkConfig) -> BoltzFormer:
    """The same network in its plain form, with the same weights in memory."""
    plain = create_boltzformer(dataclasses.replace(config, fast=False, pretrained=False))
    plain.load_state_dict(network.state_dict(), assign=True)
    plain.seed = network.seed
    return plain.eval().requires_grad_(False)


def graphs_of(network: BoltzFormer, config: NetworkConfig, found: Decoded) -> list[Graph]:
    """The three graphs of a network in its plain form and in evaluation mode.

    Args:
        network: whose weights the graphs get.
        config: of the network.
        found: anything that the network decoded; says which outputs there are.
    """
    size, dim = config.image_size, config.dim
    batch, prompts, tokens = _EXAMPLE.values()
    features = {
        **{name: torch.zeros(batch, dim, size // stride, size // stride) for name, stride in _LEVELS.items()},
        "semantic_map": torch.zeros(batch, dim, size // 4, size // 4),
        "normalised": torch.zeros(batch, config.in_channels, size, size),
    }
    prompt = {
        "text": torch.zeros(prompts, tokens, dim),
        "valid": torch.ones(prompts, tokens, dtype=torch.bool),
    }
    longest = int(network.text_encoder.context)  # type: ignore[arg-type]
    outputs = tuple(name for name, value in found._asdict().items() if value is not None)
    return [
        Graph(
            name="image_encoder",
            part=f"the backbone {config.backbone!r} with its pixel decoder",
            module=ImageEncoder(network),
            inputs={"image": torch.zeros(batch, channels_of(config), size, size)},
            outputs=tuple(features),
            longest=longest,
        ),
        Graph(
            name="text_encoder",
            part="the text encoder",
            module=TextEncoder(network),
            inputs={"tokens": torch.full((prompts, tokens), PADDING + 1)},
            outputs=tuple(prompt),
            longest=longest,
        ),
        Graph(
            name="decoder",
            part=f"the decoder {config.decoder!r} with the policy {config.policy!r}",
            module=Decoder(network, outputs),
            inputs={**features, **prompt, "seed": torch.tensor(network.seed)},
            outputs=outputs,
            longest=longest,
        ),
    ]


class ImageEncoder(nn.Module):
    """Images ``(B, C, S, S)`` on the 0–1 scale → visual features, semantic map and the normalised image."""

    def __init__(self, network: BoltzFormer) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All that the decoder needs of the images."""
        features = self.network.encode_image(image)
        return (*features.levels, features.semantic_map, features.image)


class TextEncoder(nn.Module):
    """Tokens ``(P, N_T)`` int64, −1 = padding → text ``(P, N_T, d)`` and its validity ``(P, N_T)``."""

    def __init__(self, network: BoltzFormer) -> None:
        super().__init__()
        self.encoder = network.text_encoder

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """All that the decoder needs of the prompts."""
        text, valid = self.encoder(tokens[None])
        return text[0], valid[0]


class Decoder(nn.Module):
    """Features of B images and P prompts → fields of ``Decoded`` by name, float32."""

    def __init__(self, network: BoltzFormer, outputs: Sequence[str]) -> None:
        super().__init__()
        self.decoder = network.decoder
        self.outputs = outputs

    def forward(
        self,
        level_32: Tensor,
        level_16: Tensor,
        level_8: Tensor,
        semantic_map: Tensor,
        normalised: Tensor,
        text: Tensor,
        valid: Tensor,
        seed: Tensor,
    ) -> tuple[Tensor, ...]:
        """Takes what both encoders give, and the seed of the draws, int64 without axes."""
        batch = normalised.shape[0]  # len() would make a constant of it
        prompts = TextFeatures(*(x[None].expand(batch, *x.shape) for x in (text, valid)))
        image = ImageFeatures((level_32, level_16, level_8), semantic_map, normalised)
        decoded = self.decoder(image, prompts, generator=SharedNoise(seed))
        return tuple(getattr(decoded, name).float() for name in self.outputs)


class SharedNoise(CounterNoise):
    """The numbers of an evaluation, which all images and prompts share, for a seed that is an input of the graph.

    Args:
        seed: int64 without axes, 0 or more and below 2³¹.
    """

    def __init__(self, seed: Tensor) -> None:
        super().__init__(seed.view(1))

    def uniform(self, shape: torch.Size | tuple[int, ...], *, layer: int, device: torch.device) -> Tensor:
        """As of one image and one prompt, ``(1, 1, [heads,] queries, patches)``."""
        return super().uniform((1, 1, *shape[2:]), layer=layer, device=device)
