"""The steps of the demo; each is what a user would run on real scans."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import create_workflow

from boltzformer_monai.data.demo import DemoVolume, ensure_demo_dataset, read_demo_volumes
from boltzformer_monai.data.slices import SliceReader, SliceRow, read_mask, read_png
from boltzformer_monai.evaluation.figures import OverlayPanel, overlay_grid, sampled_patches
from boltzformer_monai.evaluation.metrics import dice
from boltzformer_monai.evaluation.report import write_report
from boltzformer_monai.evaluation.tables import write_metrics_json
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.volume import read_label_map, read_volume, reorient_label
from boltzformer_monai.networks.sampling import RecordingPolicy
from boltzformer_monai.transforms.load import image_tensor, slice_fit

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Where the demo's results are, and how good."""

    files: Mapping[str, Path]
    mean_dice: float


def run_demo(output: Path, *, bundle_root: Path, epochs: int | None, seed: int) -> DemoResult:
    """Phantoms → slices → bundle training → evaluation → ``segment`` on a held-out DICOM phantom → report."""
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    _log.info("making synthetic scans and slicing them")
    slices = ensure_demo_dataset(output / "data", seed=seed)
    common = {"bundle_root": str(bundle_root), "dataset_dir": str(slices)}
    training = {**common, "output_dir": str(output), "seed": seed, "preset": "tiny"}
    _run_workflow(bundle_root, "train", training if epochs is None else {**training, "epochs": epochs})
    trained = time.monotonic()
    evaluation = {"checkpoint": str(output / "model.pt"), "output_dir": str(output), "split": "test"}
    _run_workflow(bundle_root, "evaluate", {**common, **evaluation})
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    segmenter = VolumeSegmenter.from_checkpoint(output / "model.pt")
    metrics["dicom_scan"] = _segment_dicom(segmenter, read_demo_volumes(output / "data"), output)
    metrics["minutes"] = {"training": (trained - started) / 60, "total": (time.monotonic() - started) / 60}
    write_metrics_json(metrics, output / "metrics.json")
    _write_report(segmenter, SliceReader(slices), metrics, output)
    names = {"report": "report.html", "metrics": "metrics.json", "checkpoint": "model.pt"}
    files = {**{key: output / name for key, name in names.items()}, "segmentation": output / "segmentation.nii.gz"}
    return DemoResult(files, float(metrics["mean_dice"]))


def _run_workflow(bundle_root: Path, name: str, overrides: Mapping[str, Any]) -> None:
    config = "train" if name == "train" else "evaluate"
    workflow = create_workflow(
        workflow_type="train" if name == "train" else "infer",
        config_file=str(bundle_root / "configs" / f"{config}.json"),
        logging_file=False,
        **overrides,
    )
    workflow.run()
    workflow.finalize()


def _segment_dicom(segmenter: VolumeSegmenter, volumes: Sequence[DemoVolume], output: Path) -> dict[str, Any]:
    """``segment`` on the held-out DICOM series; 3-D Dice of the label map per prompt."""
    volume = next(v for v in volumes if v.split == "test" and v.image.is_dir())
    targets = dict(volume.labels)
    inferer = segmenter.inferer([f"{name} in CT" for name in targets.values()])
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
    shown = [_predict(segmenter, row) for row in rows]
    panels = [
        OverlayPanel(image=read_png(row.image), prediction=mask, truth=read_mask(row), title=row.prompts[0])
        for row, (mask, _) in zip(rows, shown, strict=True)
    ]
    samplings = [
        (
            f"Patches that the first query attends to, layer by layer: {row.prompts[0]}",
            sampled_patches(read_png(row.image), sets, read_mask(row), row.prompts[0]),
        )
        for row, (_, sets) in zip(rows, shown, strict=True)
        if "lesion" in row.target or "nodule" in row.target or "kidney" in row.target
    ]
    history = json.loads((output / "history.json").read_text(encoding="utf-8"))
    write_report(
        output / "report.html",
        title="BoltzFormer demo on synthetic CT",
        metrics=metrics,
        history=history,
        overlays=[("Prediction (green) and truth (red outline) on held-out scans", overlay_grid(panels))],
        samplings=samplings,
        facts={
            "Data": f"{len(reader.volumes)} synthetic CT scans, {len({r.image for r in reader.rows})} slices",
            "Network": f"preset tiny, {segmenter.description.network.image_size} pixels, random initial weights",
            "Training": f"{len(history)} epochs, {metrics['minutes']['training']:.1f} minutes",
            "PyTorch": torch.__version__,
        },
    )


def _examples(rows: Sequence[SliceRow]) -> list[SliceRow]:
    """Per target the held-out slice in which it has its median size."""
    chosen = []
    for target in sorted({row.target for row in rows}):
        ordered = sorted((row for row in rows if row.target == target), key=lambda row: row.area_fraction)
        chosen.append(ordered[len(ordered) // 2])
    return chosen


@torch.inference_mode()
def _predict(segmenter: VolumeSegmenter, row: SliceRow) -> tuple[np.ndarray, list[np.ndarray]]:
    """Mask of a row's prompt on its slice, and the attention sets of its first query, layer by layer."""
    network = segmenter.network
    pixels = read_png(row.image)
    fit = slice_fit(pixels.shape, row, segmenter.description.network.image_size)
    decoder: Any = network.decoder
    recording = RecordingPolicy(decoder.policy)
    decoder.policy = recording
    try:
        features = network.encode_image(fit.image(image_tensor(pixels)))
        text = network.encode_text(segmenter.tokenizer([row.prompts[0]])[None])
        logits = network.decode(features, text).logits
    finally:
        decoder.policy = recording.policy
    mask = (fit.restore(logits)[0, 0] > 0).numpy()
    levels = [tuple(level.shape[-2:]) for level in features.levels]
    sets = [
        _on_slice(attend.flatten(0, -3)[0, 0].view(levels[i % len(levels)]), fit)
        for i, attend in enumerate(recording.sets)
    ]
    return mask, sets


def _on_slice(attend: torch.Tensor, fit: Any) -> np.ndarray:
    """A set on its grid ``(h, w)`` → the same cells as pixels of the slice ``(H, W)``."""
    square = torch.nn.functional.interpolate(attend[None, None].float(), size=(fit.size, fit.size), mode="nearest")
    top, left = fit.offset
    height, width = fit.content
    content = square[..., top : top + height, left : left + width]
    return (torch.nn.functional.interpolate(content, size=fit.shape, mode="nearest")[0, 0] > 0.5).numpy()
