"""Does looking closer at a lesion raise its Dice? On the demo's held-out phantoms, every true lesion clicked once.

    make demo
    python benchmarks/look_closer.py --demo runs/demo --json benchmarks/results/look_closer.json

A click is the voxel of the lesion nearest to its centre. Before and after, the lesion found there (`lesion_at`: the
component at the click, or the nearest within its reach; none counts as Dice 0) is compared with the true one. Lesions
are grouped by the largest share that they take of a slice: objects under 0.1 % are what looking closer is for.
Differences are paired by lesion; their 95 % interval is a bootstrap over patients.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.data.planes import radiological  # noqa: E402
from boltzformer_monai.demo.demo import DemoVolume, read_demo_volumes  # noqa: E402
from boltzformer_monai.evaluation.bootstrap import Bootstrap, Observation  # noqa: E402
from boltzformer_monai.evaluation.components import label_components  # noqa: E402
from boltzformer_monai.evaluation.mask_pair import dice  # noqa: E402
from boltzformer_monai.inferers.point import LEAST_ZOOM, lesion_at  # noqa: E402
from boltzformer_monai.inferers.run_settings import RunSettings  # noqa: E402
from boltzformer_monai.inferers.segmenter import VolumeSegmenter  # noqa: E402
from boltzformer_monai.io.label_map import reorient_label  # noqa: E402
from boltzformer_monai.io.read import read_label_map, read_volume  # noqa: E402
from boltzformer_monai.io.volume import Volume  # noqa: E402

SMALL = 0.001
"""Of a slice: the objects that looking closer is for."""


@dataclass(frozen=True)
class Lesion:
    """One true lesion, and how well it was found."""

    patient: str
    target: str
    share: float
    """The largest part that it takes of an axial slice."""
    whole: float
    """Dice without looking closer."""
    closer: float
    """Dice after it."""


def mask_at(found: np.ndarray, scan: Volume, point: Sequence[float]) -> np.ndarray:
    """The lesion found at a point; an empty mask if there is none."""
    lesion = lesion_at(found, scan, point)
    return np.zeros_like(found) if lesion is None else lesion.only(found)


def lesions_of(segmenter: VolumeSegmenter, volume: DemoVolume, targets: Sequence[str], zoom: float) -> Iterator[Lesion]:
    """Every true lesion of a scan, clicked once."""
    scan = read_volume(volume.image, modality=volume.modality)
    label = reorient_label(read_label_map(volume.label), scan).array
    for target in targets:
        truth = np.isin(label, [value for value, name in volume.labels.items() if name == target])
        components, count = label_components(truth)
        if not count:
            continue
        whole = found(segmenter, scan, RunSettings(prompts=[f"{target} in CT"]))
        for number in range(1, count + 1):
            wanted = components == number
            voxels = np.argwhere(wanted)
            click = voxels[np.linalg.norm(voxels - voxels.mean(axis=0), axis=1).argmin()]
            point = tuple(float(each) for each in scan.affine[:3, :3] @ click + scan.affine[:3, 3])
            settings = RunSettings(
                prompts=[f"{target} in CT"], point=point, look_closer=True, protocol_settings={"least_zoom": zoom}
            )
            slices = radiological(scan, "axial").extract(wanted)
            before, after = (
                dice(int((mask & wanted).sum()), int(mask.sum()), len(voxels))
                for mask in (mask_at(each, scan, point) for each in (whole, found(segmenter, scan, settings)))
            )
            yield Lesion(volume.patient, target, float(slices.mean(axis=(1, 2)).max()), before or 0.0, after or 0.0)


def found(segmenter: VolumeSegmenter, scan: Volume, settings: RunSettings) -> np.ndarray:
    """The mask of the only prompt."""
    with segmenter.inferer(settings, slices_together=8).segment(scan, segmenter.network) as result:
        return result.mask(0)


def rows_of(name: str, lesions: Sequence[Lesion]) -> list[dict[str, object]]:
    """The record's rows of a group of lesions."""
    patients = len({each.patient for each in lesions})
    counted = [result(f"{name}: lesions", len(lesions), "n"), result(f"{name}: patients", patients, "n")]
    if not lesions:
        return counted
    difference = Bootstrap().estimate([Observation(each.patient, each.closer - each.whole) for each in lesions])
    return [
        *counted,
        result(f"{name}: Dice, whole slices", float(np.mean([each.whole for each in lesions])), "Dice"),
        result(f"{name}: Dice, looked closer", float(np.mean([each.closer for each in lesions])), "Dice"),
        result(f"{name}: found, whole slices", float(np.mean([each.whole > 0 for each in lesions])), "share"),
        result(f"{name}: found, looked closer", float(np.mean([each.closer > 0 for each in lesions])), "share"),
        result(f"{name}: difference of Dice", difference.mean, "Dice"),
        result(f"{name}: difference, low", difference.low, "Dice"),
        result(f"{name}: difference, high", difference.high, "Dice"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--demo", type=Path, required=True, metavar="DIR", help="folder that boltzformer demo wrote")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the demo's model.pt")
    parser.add_argument(
        "--target", action="append", metavar="NAME", help="repeat for several (its lesions and nodules)"
    )
    parser.add_argument("--split", action="append", metavar="NAME", help="repeat for several (test)")
    parser.add_argument("--zoom", type=float, action="append", metavar="TIMES", help="repeat for several (the default)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    segmenter = VolumeSegmenter.from_checkpoint(arguments.checkpoint or arguments.demo / "model.pt")
    splits = arguments.split or ["test"]
    volumes = [each for each in read_demo_volumes(arguments.demo / "data") if each.split in splits]
    targets = arguments.target or ["liver lesion", "lung nodule"]
    rows = []
    for zoom in arguments.zoom or [LEAST_ZOOM]:
        lesions = [lesion for volume in volumes for lesion in lesions_of(segmenter, volume, targets, zoom)]
        small = [each for each in lesions if each.share < SMALL]
        groups = {"all": lesions, "below 0.1 %": small, "from 0.1 %": [each for each in lesions if each not in small]}
        groups |= {target: [each for each in lesions if each.target == target] for target in targets}
        for name, group in groups.items():
            rows += rows_of(f"zoom {zoom:g}, {name}", group)
    rows.append(result("time_total", (time.monotonic() - started) / 60, "min"))
    report(rows, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
