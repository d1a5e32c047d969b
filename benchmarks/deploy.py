"""Exported graphs in onnxruntime against the network in PyTorch: same masks, sizes of files, seconds.

    python benchmarks/deploy.py --json benchmarks/results/deploy.json

Weights are random. ``equal_pixels`` is the lowest share of pixels on the same side of the threshold ½, for 1 to 3
images and 1 to 5 prompts; ``presence`` the largest difference of a probability; ``logits`` that of a mask's logits, by
root mean square, as a share of their standard deviation. Seconds are of one image and medians of rounds in turns,
PyTorch with the fast decoder as ``boltzformer segment`` has it, in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decoder_contest import medians  # noqa: E402
from benchmarks.record import report, result, write  # noqa: E402
from boltzformer_monai.deploy.export import export_model  # noqa: E402
from boltzformer_monai.deploy.formats import graph_format  # noqa: E402
from boltzformer_monai.deploy.graphs import graphs_of, plain_network  # noqa: E402
from boltzformer_monai.deploy.parity import compare, made_up_image, reference  # noqa: E402
from boltzformer_monai.models.folder import load_model, save_model  # noqa: E402
from boltzformer_monai.networks import CounterNoise, TextFeatures, create_boltzformer, network_config  # noqa: E402
from boltzformer_monai.networks.layout import set_layout  # noqa: E402
from boltzformer_monai.networks.weights import Description  # noqa: E402
from boltzformer_monai.transforms import PromptTokenizer  # noqa: E402

TEXTS = ("liver", "left kidney in abdominal CT", "lung nodule", "aorta", "a small lesion of the spleen")
CASES = ((1, 1), (1, 5), (2, 3), (3, 2), (3, 5))
"""Images and prompts."""


class Exported:
    """A model and its graphs.

    Args:
        model: its folder.
        graphs: of its export to ONNX.
    """

    def __init__(self, model: Path, graphs: Path) -> None:
        loaded = load_model(model)
        self.config = loaded.description.network
        self.network = set_layout(loaded.network, trains=False)
        self.tokens = PromptTokenizer()(TEXTS)
        first = reference(self.network, self.image(1), self.tokens[:1], seed=0)
        form = graph_format("onnx")
        self.bytes, self.graphs = {}, {}
        for graph in graphs_of(plain_network(self.network, self.config), self.config, first.expected):
            path = graphs / f"{graph.name}{form.suffix}"
            self.bytes[graph.name] = sum(each.stat().st_size for each in graphs.glob(f"{path.name}*"))
            self.graphs[graph.name] = form.load(graph, path)

    def image(self, count: int) -> Tensor:
        """Made-up ones."""
        return made_up_image(count, 2 * self.config.neighbours + 1, self.config.image_size, seed=count)

    def run(self, known: dict[str, Tensor]) -> dict[str, Tensor]:
        """All graphs."""
        for run in self.graphs.values():
            known = {**known, **run(known)}
        return known


def parity(exported: Exported) -> list[dict[str, Any]]:
    """The largest differences over all cases."""
    found = []
    for seed, (images, prompts) in enumerate(CASES):
        case = reference(exported.network, exported.image(images), exported.tokens[-prompts:], seed=seed)
        found.append(compare([case], [exported.run(case.inputs())]))
    rows = [
        result("equal_pixels", min(each.equal_pixels for each in found), ""),
        result("logits", max(each.logits for each in found), "largest difference"),
    ]
    presence = [each.presence for each in found if each.presence is not None]
    return [*rows, *([result("presence", max(presence), "largest difference")] if presence else [])]


@torch.no_grad()
def seconds(exported: Exported, rounds: int) -> list[dict[str, Any]]:
    """Of each graph, and of the same part in PyTorch."""
    network, image = exported.network, exported.image(1)
    features = network.encode_image(image)
    rows = []
    ways: dict[str, Callable[[], object]] = {}
    for prompts in (1, 5):
        tokens = exported.tokens[:prompts]
        known = exported.run({"image": image, "tokens": tokens, "seed": torch.tensor(0)})
        text = TextFeatures(*network.encode_text(tokens[None]))
        if prompts == 1:
            ways["image_encoder_onnx"] = partial(exported.graphs["image_encoder"], known)
            ways["image_encoder_torch"] = partial(network.encode_image, image)
            ways["text_encoder_onnx"] = partial(exported.graphs["text_encoder"], known)
            ways["text_encoder_torch"] = partial(network.encode_text, tokens[None])
        ways[f"decoder_{prompts}_onnx"] = partial(exported.graphs["decoder"], known)
        ways[f"decoder_{prompts}_torch"] = partial(network.decode, features, text, generator=CounterNoise(0))
    for name, value in medians(ways, rounds=rounds).items():
        rows.append(result(f"seconds_{name}", value, "s"))
    return rows


def measure(preset: str, size: int | None, rounds: int) -> list[dict[str, Any]]:
    """All of one preset with random weights, its name before that of each result."""
    torch.manual_seed(0)
    config = network_config(preset) if size is None else network_config(preset, image_size=size)
    description = Description(config, {"plane": "axial", "targets": []}).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        model, graphs = Path(folder) / "model", Path(folder) / "onnx"
        save_model({"model": create_boltzformer(config).state_dict(), "description": description}, model)
        start = time.perf_counter()
        export_model(model, graphs, to="onnx")
        rows = [result("seconds_export", time.perf_counter() - start, "s")]
        exported = Exported(model, graphs)
        rows += [result(f"bytes_{name}", value, "bytes") for name, value in exported.bytes.items()]
        rows += [*parity(exported), *seconds(exported, rounds)]
    return [{**row, "name": f"{preset} {row['name']}"} for row in rows]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["tiny", "hiera_s"], metavar="NAME")
    parser.add_argument("--size", type=int, metavar="S", help="of the image; the preset's by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for preset in arguments.presets:
        found = measure(preset, arguments.size, arguments.rounds)
        report(found, None)
        rows += found
    if arguments.json is not None:
        write(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
