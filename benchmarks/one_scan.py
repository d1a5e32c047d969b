"""One labelled scan through every room: slices, training, a volume pass with all its targets as prompts, overlays.

    python benchmarks/one_scan.py --image image.nii.gz --label label.nii.gz --labels-json labels.json \
        --output runs/one_scan --json benchmarks/results/one_scan.json

The network is fitted to the very scan that it then segments. The Dice shows that nothing is flipped, shifted or lost on
the way from the scan to the mask on its grid, and nothing about other patients.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.msd_hippocampus import bundle, step  # noqa: E402
from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.data.label_names import read_label_names  # noqa: E402
from boltzformer_monai.data.planes import extract_slices  # noqa: E402
from boltzformer_monai.data.windows import Window  # noqa: E402
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid  # noqa: E402
from boltzformer_monai.evaluation.mask_pair import dice  # noqa: E402
from boltzformer_monai.inferers import RunSettings, VolumeSegmenter  # noqa: E402
from boltzformer_monai.io import Volume, read_label_map, read_volume, reorient_label  # noqa: E402


def overlays(scan: Volume, truth: np.ndarray, found: np.ndarray, names: Mapping[int, str]) -> bytes:
    """Each target on the axial slice where it is largest, reference outlined and prediction filled, as PNG."""
    grey, reference, prediction = (
        extract_slices(Volume(array, scan.affine), "axial")
        for array in (Window(40.0, 400.0).apply(scan.array), truth, found)
    )
    panels = []
    for value, name in names.items():
        index = int(np.argmax((reference == value).sum(axis=(1, 2))))
        panels.append(OverlayPanel(grey[index], prediction[index] == value, reference[index] == value, name))
    return overlay_grid(panels)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("image", "label", "labels-json", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    image, label, labels_json, output = (
        path.resolve() for path in (arguments.image, arguments.label, arguments.labels_json, arguments.output)
    )
    slices = output / "slices"
    source = ["--image", str(image), "--label", str(label), "--labels-json", str(labels_json), "--output", str(slices)]
    for split in ("train", "val"):  # the same scan twice, under two names: see the docstring
        step("preprocessing/slice_volumes.py", *source, "--volume-id", split, "--patient", split, "--split", split)
    started = time.monotonic()
    bundle(
        "train", "training", dataset_dir=str(slices), output_dir=str(output), preset="tiny",
        epochs=str(arguments.epochs), val_interval="50", patience="150", prompts_per_image="6",
        settings_overrides="{'target_weights': {}}",
    )  # fmt: skip
    trained = time.monotonic()

    segmenter = VolumeSegmenter.from_checkpoint(output / "model.pt")
    names = {int(value): name for value, name in read_label_names(labels_json).labels.items()}
    prompts = [f"{name} in CT" for name in names.values()]
    passed = time.monotonic()
    inferer = segmenter.inferer(RunSettings(prompts=prompts, modality="CT"))
    segmenter.segment(image, output / "segmentation.nii.gz", inferer)
    seconds = time.monotonic() - passed

    scan = read_volume(image, modality="CT")
    truth, found = reorient_label(read_label_map(label), scan), read_label_map(output / "segmentation.nii.gz")
    same_grid = found.shape == scan.shape and np.allclose(found.affine, scan.affine, atol=1e-5)
    # The label map counts prompts from 1; back to the values of the truth.
    values = np.array([0, *names], dtype=np.uint16)[found.array]
    scores: dict[str, float] = {}
    for value, name in names.items():
        predicted, wanted = values == value, truth.array == value
        score = dice(int((predicted & wanted).sum()), int(predicted.sum()), int(wanted.sum()))
        if score is not None:
            scores[name] = score
    (output / "overlay.png").write_bytes(overlays(scan, truth.array, values, names))
    rows = [
        result("same_grid_and_affine", float(same_grid), "1 = yes"),
        result("mean_dice_3d on the scan it was fitted to", float(np.mean(list(scores.values()))), "Dice"),
        *(result(f"dice_3d {name}", score, "Dice") for name, score in scores.items()),
        result("prompts", len(prompts), "prompts"),
        result("slices", len(extract_slices(scan, "axial")), "slices"),
        result("time_training", (trained - started) / 60, "min"),
        result("time_volume_pass", seconds, "s"),
    ]
    report(rows, arguments.json)
    return 0 if same_grid else 1


if __name__ == "__main__":
    sys.exit(main())
