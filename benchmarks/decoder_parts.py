"""Ways of computing the decoder's parts that were tried against each other: one table, milliseconds of medians.

    python benchmarks/decoder_parts.py --json benchmarks/results/decoder_parts.json

Paper sizes: 512 channels, y and S of 256², features of 128². The first way of each group is the one in use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decoder_contest import Step, medians  # noqa: E402
from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.networks.fast.pixel_products import pixel_products  # noqa: E402
from boltzformer_monai.networks.fast.semantic_map import SemanticMap, downsample, fold  # noqa: E402


def memory(maps: Tensor) -> dict[str, Step]:
    """A sum into memory that is there, and into fresh memory."""
    there = torch.empty_like(maps)
    return {"in place": lambda: torch.mul(maps, 2, out=there), "fresh memory": lambda: maps * 2}


def products(maps: Tensor, queries: int) -> dict[str, Step]:
    """Vectors times pixels of a contiguous map, and of one with channels last."""
    vectors = torch.randn(1, queries, maps.shape[1])
    last = maps.contiguous(memory_format=torch.channels_last)
    return {
        "portions": lambda: pixel_products(maps, vectors),
        "at once": lambda: torch.bmm(vectors, maps.flatten(2)),
        "convolution": lambda: F.conv2d(maps, vectors[0, ..., None, None]),
        "channels last": lambda: pixel_products(last, vectors),
        "making channels last": lambda: maps.contiguous(memory_format=torch.channels_last),
    }


def shrinking(maps: Tensor) -> dict[str, Step]:
    """S at half its size."""
    size = (maps.shape[-2] // 2, maps.shape[-1] // 2)
    return {
        "through the cache": lambda: downsample(maps, size),
        "interpolate": lambda: F.interpolate(maps, size=size, mode="bilinear", align_corners=False),
        "avg_pool2d": lambda: F.avg_pool2d(maps, 2),
    }


def half_size(maps: Tensor, queries: int) -> dict[str, Step]:
    """Mask logits at ratio 2 from y; making the planes, or the means, is a row of its own, once for all layers."""
    channels = maps.shape[1]
    weight, bias = torch.randn(channels, channels, 3, 3) / 70, torch.zeros(channels)
    last = maps.contiguous(memory_format=torch.channels_last)
    size = (maps.shape[-2] // 2, maps.shape[-1] // 2)
    source, mu = SemanticMap(last, weight, bias), torch.randn(1, queries, channels)
    planes = source.at_levels({size: 1}, queries=queries)[size]
    means = F.avg_pool2d(last, 2, stride=1, padding=1)

    def stride_2() -> Tensor:
        return F.conv2d(means, fold(mu, weight)[0], bias.new_zeros(queries), stride=2).contiguous()

    return {
        "four planes": lambda: planes.logits(mu),
        "stride 2": stride_2,
        "making planes": lambda: source.at_levels({size: 1}, queries=queries),
        "making means": lambda: F.avg_pool2d(last, 2, stride=1, padding=1),
        "folding": lambda: torch.matmul(mu[0], weight.flatten(1)),
        "folding a reordered copy": lambda: torch.matmul(mu[0], weight.permute(0, 2, 3, 1).flatten(1)),
    }


@torch.no_grad()
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="height = width of y and S")
    parser.add_argument("--channels", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.manual_seed(0)
    channels, size = arguments.channels, arguments.size
    full, level = torch.randn(1, channels, size, size), torch.randn(1, channels, size // 2, size // 2)
    groups: dict[str, Callable[[], dict[str, Step]]] = {
        "memory": lambda: memory(full),
        "product of S, 10 queries": lambda: products(full, 10),
        "product of features, 80 vectors": lambda: products(level, 80),
        "shrinking S": lambda: shrinking(full),
        "ratio 2, 10 queries": lambda: half_size(full, 10),
        "ratio 2, 101 queries": lambda: half_size(full, 101),
    }
    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        rows = [
            result(f"{group}: {name}", 1000 * seconds, "ms")
            for group, ways in groups.items()
            for name, seconds in medians(ways(), rounds=arguments.rounds).items()
        ]
        report(rows, arguments.json, settings={"size": size, "channels": channels, "rounds": arguments.rounds})
    finally:
        torch.set_num_threads(before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
