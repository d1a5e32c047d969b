"""The steps of the demo, the same as on real scans."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from boltzformer_monai.cli.train_processes import train_in_processes
from boltzformer_monai.data.slices.reader import SliceReader, SliceRow, read_mask, read_png
from boltzformer_monai.demo.demo import DemoVolume, ensure_demo_dataset, read_demo_volumes
from boltzformer_monai.engines.bundle import run_workflow
from boltzformer_monai.engines.settings import training_settings
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid, sampled_patches
from boltzformer_monai.evaluation.mask_pair import dice
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.tables import write_metrics_json
from boltzformer_monai.inferers.run_settings import RunSettings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.inferers.slice_prediction import predict_slice
from boltzformer_monai.io.label_map import reorient_label
from boltzformer_monai.io.read import read_label_map, read_volume
from boltzformer_monai.parallel import processor_count

_log = logging.getLogger(__name__)

# 5 + 3 scans for training, 1 + 1 for validation, 1 + 1 held out.
_FAST_SCANS: Mapping[str, Any] = {"abdomen": 7, "chest": 5, "size": (96, 96, 12)}
_FAST_EPOCHS = 2
_PRESET = "tiny"
# Eight minutes of two cores: steps of twice the preset's images, in which processes wait less for each other, and no
# validation but the last.
_STEP = 16
_SCHEDULE: Mapping[str, Any] = {"epochs": 5, "val_interval": 5, "learning_rate": 8e-4}


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Result files and Dice of the demo."""

    files: Mapping[str, Path]
    mean_dice: float


def run_demo(
    output: Path,
    *,
    bundle_root: Path,
    epochs: int | None,
    seed: int,
    fast: bool = False,
    processes: int | None = None,
) -> DemoResult:
    """Phantoms → slices → bundle training → evaluation → ``segment`` on a held-out DICOM phantom → report.

    Args:
        output: folder of the results; created if needed.
        bundle_root: the bundle's folder.
        epochs: of training; by default 5, or 2 with ``fast``.
        seed: of phantoms, split and training.
        fast: a tenth of the phantoms, with an eighth of the voxels, and the preset's own batch and learning rate.
        processes: that train together, and share the images of a step; by default two, where there are two processors
            and no GPU, and one with ``fast``.

    Raises:
        ConfigError: so many processes cannot share a batch.
    """
    started = time.monotonic()
    processes = processes or _processes(fast)
    settings = {"epochs": _FAST_EPOCHS} if fast else {**_SCHEDULE}
    settings |= _shared_step(processes, fast=fast)
    if epochs is not None:
        settings["epochs"] = epochs
    output.mkdir(parents=True, exist_ok=True)
    _log.info("making synthetic scans and slicing them")
    slices = ensure_demo_dataset(output / "data", seed=seed, workers=processes, **(_FAST_SCANS if fast else {}))
    sliced = time.monotonic()
    common = {"dataset_dir": str(slices)}
    training = {**common, "output_dir": str(output), "seed": seed, "preset": _PRESET, **settings}
    if processes == 1:
        run_workflow("train", training, root=bundle_root)
    else:
        train_in_processes(processes, training, root=bundle_root)
    trained = time.monotonic()
    evaluation = {"checkpoint": str(output / "model.pt"), "output_dir": str(output), "split": "test"}
    run_workflow("evaluate", {**common, **evaluation}, root=bundle_root)
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    segmenter = VolumeSegmenter.from_checkpoint(output / "model.pt")
    metrics["dicom_scan"] = _segment_dicom(segmenter, read_demo_volumes(output / "data"), output)
    metrics["minutes"] = {
        "data": (sliced - started) / 60,
        "training": (trained - sliced) / 60,
        "total": (time.monotonic() - started) / 60,
    }
    write_metrics_json(metrics, output / "metrics.json")
    _write_report(segmenter, SliceReader(slices), metrics, output)
    names = {"report": "report.html", "examples": "examples.png", "metrics": "metrics.json", "checkpoint": "model.pt"}
    files = {**{key: output / name for key, name in names.items()}, "segmentation": output / "segmentation.nii.gz"}
    return DemoResult(files, float(metrics["slices"]["overall"]["dice"]["mean"]))


def _processes(fast: bool) -> int:
    return 1 if fast or torch.cuda.is_available() else min(2, processor_count())


def _shared_step(processes: int, *, fast: bool) -> dict[str, int]:
    """Settings with which processes share the images of a step, so that their number changes none."""
    batch = training_settings(_PRESET, "cpu").batch_size
    step = batch if fast else _STEP
    if step % processes:
        msg = f"--processes {processes}: the demo's steps of {step} images cannot be shared equally; take 2"
        raise ConfigError(msg)
    return {"batch_size": min(batch, step // processes), "global_batch": step}


def _segment_dicom(segmenter: VolumeSegmenter, volumes: Sequence[DemoVolume], output: Path) -> dict[str, Any]:
    """Segment the held-out DICOM series; 3-D Dice per prompt."""
    volume = next(v for v in volumes if v.split == "test" and v.image.is_dir())
    targets = dict(volume.labels)
    inferer = segmenter.inferer(RunSettings(prompts=[f"{name} in CT" for name in targets.values()]))
    segmenter.segment(volume.image, output / "segmentation.nii.gz", inferer)
    scan = read_volume(volume.image)
    truth = reorient_label(read_label_map(volume.label), scan).array
    found = reorient_label(read_label_map(output / "segmentation.nii.gz"), scan).array
    scores = {}
    for index, (value, name) in enumerate(targets.items(), start=1):
        predicted, wanted = found == index, truth == value
        scores[name] = dice(int((predicted & wanted).sum()), int(predicted.sum()), int(wanted.sum()))
    return {"volume": volume.volume_id, "dice_3d_by_target": scores}


def _write_report(segmenter: VolumeSegmenter, reader: SliceReader, metrics: dict[str, Any], output: Path) -> None:
    rows = _examples(reader.select(split="test", present=True))
    predictions = [predict_slice(segmenter, row) for row in rows]
    panels = [
        OverlayPanel(image=read_png(row.image), prediction=each.mask, truth=read_mask(row), title=row.prompts[0])
        for row, each in zip(rows, predictions, strict=True)
    ]
    examples = overlay_grid(panels)
    (output / "examples.png").write_bytes(examples)
    samplings = [
        (
            f"Patches that the first query attends to, layer by layer: {row.prompts[0]}",
            sampled_patches(each.square, each.sets, each.truth, row.prompts[0]),
        )
        for row, each in zip(rows, predictions, strict=True)
        if "lesion" in row.target or "nodule" in row.target or "kidney" in row.target
    ]
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    write_report(
        output / "report.html",
        title="BoltzFormer demo on synthetic CT",
        metrics=metrics,
        history=history,
        overlays=[("Prediction (green) and truth (red outline) on held-out scans", examples)],
        samplings=samplings,
        facts={
            "Data": f"{len(reader.volumes)} synthetic CT scans, {len({r.image for r in reader.rows})} slices",
            "Network": f"preset tiny, {segmenter.description.network.image_size} pixels, random initial weights",
            "Training": f"{len(history)} epochs, {metrics['minutes']['training']:.1f} minutes",
            "PyTorch": torch.__version__,
        },
    )


def _examples(rows: Sequence[SliceRow]) -> list[SliceRow]:
    """The slice of median size of each target."""
    chosen = []
    for target in sorted({row.target for row in rows}):
        ordered = sorted((row for row in rows if row.target == target), key=lambda row: row.area_fraction)
        chosen.append(ordered[len(ordered) // 2])
    return chosen
