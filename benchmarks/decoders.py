"""The paper's decoder, its ablations and the decoders that it compares with: parameters and time.

    python benchmarks/decoders.py --json benchmarks/results/decoders.json

Backbone, pixel decoder and text encoder are the same for all, with random weights and the sizes of ``--preset``.
``parameters`` are the decoder's; ``step`` is a training step of the whole network, forward and backward, on images of
``--prompts`` prompts; ``prompts1`` and ``prompts15`` decode so many prompts on an encoded image; medians of rounds in
turns. ``--sizes published`` gives the decoders of SAM the width and hidden size that SAM has.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decoder_contest import medians  # noqa: E402
from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.networks import (  # noqa: E402
    BoltzFormer,
    ImageFeatures,
    NetworkConfig,
    create_boltzformer,
    network_config,
)
from boltzformer_monai.networks.layout import set_layout  # noqa: E402

PUBLISHED = {"width": 256, "hidden": 2048}
TOKENS = 8
"""Of a prompt."""


def contestants(*, published: bool) -> dict[str, dict[str, Any]]:
    """Name → settings of the network."""
    sam = {"decoder_settings": PUBLISHED} if published else {}
    return {
        "boltzmann": {},
        "full": {"policy": "full"},
        "threshold": {"policy": "threshold"},
        "seem": {"decoder": "seem"},
        "seem_10_queries": {"decoder": "seem", "decoder_settings": {"queries": 10}},
        "sam": {"decoder": "sam", **sam},
        "sam2": {"decoder": "sam2", **sam},
    }


def network_of(config: NetworkConfig) -> BoltzFormer:
    """A network with random weights, the same for all but in the decoder."""
    torch.manual_seed(0)
    return create_boltzformer(config)


def step(network: BoltzFormer, image: Tensor, tokens: Tensor) -> None:
    """Forward and backward."""
    network.zero_grad(set_to_none=True)
    decoded = network(image, tokens, with_presence=True)
    loss = decoded.logits.square().mean()
    (loss if decoded.presence is None else loss + decoded.presence.mean()).backward()


@torch.no_grad()
def decode(network: BoltzFormer, features: ImageFeatures, tokens: Tensor) -> None:
    """Prompts on an encoded image."""
    network.decode(features, network.encode_text(tokens))


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="tiny", help="whose sizes")
    parser.add_argument("--size", type=int, default=0, help="of the image; default: the preset's")
    parser.add_argument("--sizes", choices=("ours", "published"), default="ours", help="of SAM's decoders")
    parser.add_argument("--batch", type=int, default=8, help="images of a training step")
    parser.add_argument("--prompts", type=int, default=4, help="prompts of each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=contestants(published=False), help="some of them")
    parser.add_argument("--json", type=Path, help="the record to write")
    given = parser.parse_args(arguments)
    overrides = {"image_size": given.size} if given.size else {}

    results = []
    steps: dict[str, Callable[[], object]] = {}
    all_of_them = contestants(published=given.sizes == "published")
    for name in given.only or all_of_them:
        settings = all_of_them[name]
        config = network_config(given.preset, **overrides, **settings)
        trained = set_layout(network_of(config).train(), trains=True)
        network = set_layout(network_of(config).eval(), trains=False)
        count = sum(each.numel() for each in network.decoder.parameters())
        results.append(result(f"parameters_{name}", count / 1e6, "million"))
        image = torch.rand(given.batch, 2 * config.neighbours + 1, config.image_size, config.image_size)
        tokens = torch.randint(1, 40000, (given.batch, given.prompts, TOKENS))
        steps[f"step_{name}"] = partial(step, trained, image, tokens)
        with torch.no_grad():
            features = network.encode_image(image[:1])
        for prompts in (1, 15):
            texts = torch.randint(1, 40000, (1, prompts, TOKENS))
            steps[f"prompts{prompts}_{name}"] = partial(decode, network, features, texts)
    seconds = medians(steps, rounds=given.rounds)
    results += [result(name, value, "s") for name, value in seconds.items()]
    report(results, given.json)


if __name__ == "__main__":
    main()
