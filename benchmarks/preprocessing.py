"""Slicing one labelled scan: ours, the usual way, and the least that any way must do.

    python benchmarks/preprocessing.py --image image.nii.gz --label label.nii.gz --labels-json labels.json \
        --json benchmarks/results/preprocessing.json

- *usual*: what scripts for 2-D networks commonly do, written here from scratch: for every slice load the volume,
  window, stretch to its minimum and maximum, resize by a cubic spline to 1024² RGB, save as PNG. Its speed is taken
  from a few slices spread over the scan, since all take the same time. Its disk space counts one 0/255 mask of that
  size per target as well; making these is not timed.
- *ours*: the whole command but for Python's start: from the files to the finished data set (images, labels, record,
  tables, report).
- *floor*: load scan and label once, window, save one native PNG of each per slice, with the encoder settings of ours.
  Nothing is checked or recorded.

All three run in turns in this one process, on one core; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from boltzformer_monai.cli import slice as slice_volumes  # noqa: E402
from boltzformer_monai.data.label_names import LabelMap, parse_label_values, read_label_names  # noqa: E402
from boltzformer_monai.data.slices.volume import save_png  # noqa: E402
from boltzformer_monai.data.windows import default_window  # noqa: E402

USUAL_SIZE = 1024


def usual_way(image: Path, label: Path, names: LabelMap, output: Path, indices: list[int]) -> None:
    """Save some axial slices as scripts commonly do."""
    import nibabel

    output.mkdir()
    low, high = _limits(names)
    for index in indices:
        volume = nibabel.load(image).get_fdata()  # type: ignore[attr-defined]
        grey = np.clip(volume[:, :, index].T, low, high)
        grey = (grey - grey.min()) / max(grey.max() - grey.min(), 1e-8) * 255
        square = Image.fromarray(grey.astype(np.uint8)).resize((USUAL_SIZE, USUAL_SIZE), Image.Resampling.BICUBIC)
        square.convert("RGB").save(output / f"{index}.png")


def usual_masks(label: Path, names: LabelMap, output: Path, indices: list[int]) -> None:
    """Save the masks of these slices, for the disk space they take."""
    import nibabel

    values = np.asarray(nibabel.load(label).dataobj)  # type: ignore[attr-defined]
    for index in indices:
        for number, value in enumerate(names.labels):
            mask = Image.fromarray(np.isin(values[:, :, index].T, parse_label_values(value)).astype(np.uint8) * 255)
            if mask.getextrema() != (0, 0):
                mask.resize((USUAL_SIZE, USUAL_SIZE), Image.Resampling.NEAREST).save(output / f"{index}_{number}.png")


def our_way(image: Path, label: Path, names: LabelMap, output: Path, labels_json: Path) -> None:
    """Slice the scan into a data set of its own, by the command line's own function."""
    paths = ("--image", image, "--label", label, "--labels-json", labels_json, "--output", output)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as errors:
        code = slice_volumes.main([*map(str, paths), "--patient", "somebody"])
    if code:
        raise SystemExit(errors.getvalue())


def floor(image: Path, label: Path, names: LabelMap, output: Path) -> None:
    """Save native PNGs of scan and label."""
    import nibabel

    low, high = _limits(names)
    for folder in ("images", "labels"):
        (output / folder).mkdir(parents=True)
    volume = np.asarray(nibabel.load(image).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    grey = (np.clip((volume - low) * np.float32(255 / (high - low)), 0, 255) + 0.5).astype(np.uint8)
    values = np.asarray(nibabel.load(label).dataobj).astype(np.uint8)  # type: ignore[attr-defined]
    for index in range(grey.shape[2]):
        save_png(np.ascontiguousarray(grey[:, :, index].T), output / "images" / f"{index}.png")
        save_png(np.ascontiguousarray(values[:, :, index].T), output / "labels" / f"{index}.png")


def _limits(names: LabelMap) -> tuple[float, float]:
    window = default_window(names.modality, names.site).to_dict()
    if window["kind"] != "hu":
        raise SystemExit("error: this comparison is about CT windows; give a CT scan")
    return window["level"] - window["width"] / 2, window["level"] + window["width"] / 2


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("image", "label", "labels-json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--usual-slices", type=int, default=4, help="slices on which the usual way is timed, per round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    names = read_label_names(arguments.labels_json)
    import nibabel

    shape = [int(size) for size in nibabel.load(arguments.image).shape]  # type: ignore[attr-defined]
    count = shape[2]
    source = (arguments.image, arguments.label, names)
    some = [int(index) for index in np.linspace(0, count - 1, arguments.usual_slices + 2)[1:-1]]
    seconds: dict[str, list[float]] = {"usual": [], "ours": [], "floor": []}
    size: dict[str, float] = {}
    ways: dict[str, tuple[Callable[..., None], tuple[object, ...], int]] = {
        "usual": (usual_way, (some,), len(some)), "ours": (our_way, (arguments.labels_json,), count),
        "floor": (floor, (), count),
    }  # fmt: skip
    for _ in range(arguments.rounds):
        for name, (function, extra, slices) in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                output = Path(folder, "out")
                started = time.perf_counter()
                function(*source, output, *extra)
                seconds[name].append((time.perf_counter() - started) / slices)
                if name == "usual":
                    usual_masks(arguments.label, names, output, some)
                size[name] = sum(path.stat().st_size for path in output.rglob("*") if path.is_file()) / slices
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [
        result("slices_per_second_vs_usual", median["usual"] / median["ours"], "times"),
        result("time_vs_floor", median["ours"] / median["floor"], "times"),
        *(result(f"slices_per_second_{name}", 1 / value, "1/s") for name, value in median.items()),
        *(result(f"kib_per_slice_{name}", value / 1024, "KiB") for name, value in size.items()),
        result("disk_usual_vs_ours", size["usual"] / size["ours"], "times"),
        result("slices", count, "slices"),
    ]
    report(rows, arguments.json, settings={
        "scan": arguments.image.absolute().parent.name, "shape": shape, "targets": len(names.labels),
        "rounds": arguments.rounds, "usual_slices": some,
        "seconds_per_slice": {name: [round(value, 5) for value in times] for name, times in seconds.items()},
    })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
