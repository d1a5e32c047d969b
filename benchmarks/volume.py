"""A volume with many prompts: time against a full pass of the dense network per slice and prompt, and peak memory.

    python benchmarks/volume.py --image amos_0507.nii.gz --json benchmarks/results/volume.json

Weights are random: neither time nor memory depends on them. ``prompts15_vs_usual`` is measured on some neighbouring
slices in the middle of the scan, the contestants in turns: ours runs the whole inferer, down to the label map; of the
usual way one full pass of the dense network is timed and counted once per slice and prompt. ``rss_60_vs_15`` is the
peak memory of a whole process with 60 prompts by that of one with 15, on these slices with the network above, and
(``rss_60_vs_15_whole_scan``) on all slices with the small network, whose own memory hides nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.decoder_contest import medians  # noqa: E402
from benchmarks.dense import dense_network  # noqa: E402
from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.inferers import RunSettings, SlidingVolumeInferer  # noqa: E402
from boltzformer_monai.io.read import read_volume  # noqa: E402
from boltzformer_monai.io.volume import Volume  # noqa: E402
from boltzformer_monai.networks import BoltzFormer, create_boltzformer, network_config  # noqa: E402
from boltzformer_monai.networks.weights import Description  # noqa: E402
from boltzformer_monai.transforms import PromptTokenizer  # noqa: E402

ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate",
)  # fmt: skip
FORMS = ("{}", "{} in abdominal CT", "{} on this scan", "the patient's {}")
WINDOW = (40.0, 400.0)


def prompts(count: int) -> list[str]:
    """15 organs in up to four wordings."""
    return [form.format(organ) for form in FORMS for organ in ORGANS][:count]


def network(preset: str) -> BoltzFormer:
    torch.manual_seed(0)
    return create_boltzformer(preset).eval().to(memory_format=torch.channels_last)


def inferer(preset: str, count: int, size: int) -> SlidingVolumeInferer:
    settings = RunSettings(prompts=prompts(count), window=WINDOW, modality="CT")
    description = Description(network_config(preset, image_size=size), {})
    return SlidingVolumeInferer(settings, description=description, tokenizer=PromptTokenizer())


def middle(volume: Volume, slices: int) -> Volume:
    """Some slices from the middle of the last axis."""
    first = max(0, (volume.shape[2] - slices) // 2)
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, 2] * first
    return replace(volume, array=volume.array[..., first : first + slices].copy(), affine=affine)


def peak_mib(arguments: argparse.Namespace, preset: str, count: int, slices: int) -> float:
    """Peak memory of a process that segments with so many prompts."""
    command = [sys.executable, __file__, "--image", str(arguments.image), "--preset", preset, "--rss", str(count)]
    more = ["--slices", str(slices), "--threads", str(arguments.threads)]
    done = subprocess.run([*command, *more], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def segment_once(arguments: argparse.Namespace) -> float:
    """Segment, label map and all, in the process that is measured; returns its peak memory in MiB."""
    volume = middle(read_volume(arguments.image), arguments.slices)
    size = arguments.size or network_config(arguments.preset).image_size
    inferer(arguments.preset, arguments.rss, size).label_map(volume, network(arguments.preset))
    status = Path("/proc/self/status")
    if status.is_file():  # Linux; there ru_maxrss begins with what the parent process had at its peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def times(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """15 prompts on some slices against as many full passes of the dense network."""
    net, count = network(arguments.preset), len(ORGANS)
    size = arguments.size or network_config(arguments.preset).image_size
    volume = middle(read_volume(arguments.image), arguments.slices)
    ours = inferer(arguments.preset, count, size)
    dense = dense_network(net)
    image, tokens = torch.rand(1, net.mean.shape[1], size, size), ours.tokens[:1][None]
    ways = {"dense_one_pass": lambda: dense(image, tokens), "ours": lambda: ours.label_map(volume, net)}
    seconds = medians(ways, rounds=arguments.rounds)
    usual = seconds["dense_one_pass"] * count * volume.shape[2]
    return [
        result("prompts15_vs_usual", usual / seconds["ours"], "times"),
        result("seconds_per_slice_ours", seconds["ours"] / volume.shape[2], "s"),
        result("seconds_per_slice_and_prompt_usual", seconds["dense_one_pass"], "s"),
    ]


def memory(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Peak memory with 60 and with 15 prompts."""
    rows = []
    whole = read_volume(arguments.image).shape[2]
    for name, preset, slices in (("", arguments.preset, 2), ("_whole_scan", "tiny", whole)):
        few, many = (peak_mib(arguments, preset, count, slices) for count in (15, 60))
        rows.append(result(f"rss_60_vs_15{name}", many / few, "times"))
        rows.extend((result(f"rss_15{name}", few, "MiB"), result(f"rss_60{name}", many, "MiB")))
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, required=True, metavar="SCAN", help="an abdominal CT")
    parser.add_argument("--preset", default="hiera_s")
    parser.add_argument("--size", type=int, help="edge of the network's square; the preset's by default")
    parser.add_argument("--slices", type=int, default=2, help="slices that are timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rss", type=int, metavar="PROMPTS", help="segment once and print the peak")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    if arguments.rss is not None:
        print(segment_once(arguments))
        return 0
    rows = [*times(arguments), *memory(arguments)]
    report(rows, arguments.json, settings={"preset": arguments.preset, "slices": arguments.slices})
    return 0


if __name__ == "__main__":
    sys.exit(main())
