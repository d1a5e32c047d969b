"""Predictions of an expert, and their scores by the same evaluation as BoltzFormer's."""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor
from tqdm import tqdm

from boltzformer_monai.data.slices.reader import SliceReader, SliceRow
from boltzformer_monai.engines.data import open_dataset
from boltzformer_monai.engines.evaluate_volumes import ScoreVolumes
from boltzformer_monai.engines.evaluator import ScoreSlices, write_evaluation
from boltzformer_monai.errors import CheckpointError, DatasetError
from boltzformer_monai.experts.network import ExpertNetwork, load_expert
from boltzformer_monai.experts.plan import Plan
from boltzformer_monai.experts.prepare import is_thick, new_shape, normalised, resampled
from boltzformer_monai.experts.scans import Original, Stack, choose_plane, list_scans, read_stack
from boltzformer_monai.storage import file_sha256, require_writable

__all__ = ["evaluate_expert", "predict"]

_log = logging.getLogger(__name__)

_OVERLAP = 0.5
_WINDOW_VOXELS = 2**22  # that are predicted at once
_SLICES = 16  # likewise, in 2-D


def predict(network: ExpertNetwork, plan: Plan, stack: Stack, *, device: torch.device, mirror: bool = True) -> Tensor:
    """Logits ``(C, N, H, W)`` of a stack's voxels, on the CPU.

    Windows overlap by half and are averaged by a Gaussian; with ``mirror`` the logits are averaged over all mirrored
    inputs that training has seen.

    Args:
        network: of the plan.
        plan: of the expert.
        stack: slices of a scan.
        device: of the network.
        mirror: whether to average over mirrored inputs.
    """
    shape, thick = new_shape(stack, plan), is_thick(stack, plan)
    image = torch.from_numpy(resampled(normalised(stack.image, plan), shape, smooth=True, thick=thick))
    at_once = max(1, _WINDOW_VOXELS // int(np.prod(plan.patch)))
    window = SlidingWindowInferer(
        roi_size=plan.patch, sw_batch_size=min(at_once, 16), overlap=_OVERLAP, mode="gaussian", padding_mode="constant"
    )
    inputs = image[None, None] if plan.dimensions == 3 else image[:, None]
    with torch.inference_mode():
        parts = (part.to(device) for part in inputs.split(_SLICES))
        found = torch.cat([_mirrored(window, network, part, plan, mirror).cpu() for part in parts])
    logits = found[0] if plan.dimensions == 3 else found.transpose(0, 1)
    native = [resampled(each.numpy(), stack.image.shape, smooth=False, thick=thick) for each in logits]
    return torch.from_numpy(np.stack(native))


def _mirrored(window: SlidingWindowInferer, network: ExpertNetwork, inputs: Tensor, plan: Plan, mirror: bool) -> Tensor:
    """Mean logits over all combinations of mirrored axes."""
    axes = [axis + 2 for axis in plan.mirrored] if mirror else []
    flips = [list(each) for count in range(len(axes) + 1) for each in itertools.combinations(axes, count)]
    total = torch.zeros(())
    for flip in flips:
        logits = cast(Tensor, window(inputs.flip(flip) if flip else inputs, network))
        total = total.to(logits) + (logits.flip(flip) if flip else logits)
    return total / len(flips)


def evaluate_expert(
    checkpoint: str | Path,
    data: str | Path,
    *,
    output_dir: str | Path,
    device: torch.device,
    split: str = "val",
    originals: Mapping[str, Original] | None = None,
    threshold: float = 0.5,
    tolerance_mm: float = 2.0,
    resamples: int = 1000,
    seed: int = 0,
    mirror: bool = True,
) -> dict[str, Any]:
    """Score an expert on a split of a slice dataset; writes what ``boltzformer evaluate`` writes.

    An expert that was trained on a fold is evaluated with that split. Only its targets are scored, along its plane.

    Args:
        checkpoint: of the expert.
        data: folder of the slice dataset.
        output_dir: for the results.
        device: to predict on.
        split: ``"train"``, ``"val"`` or ``"test"``.
        originals: scan → what reads the original, for an expert that was trained on originals.
        threshold: smallest probability of a mask's voxels.
        tolerance_mm: of the surface Dice.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        mirror: whether predictions are averaged over mirrored inputs.

    Returns:
        The content of ``metrics.json``.

    Raises:
        BoltzFormerError: the checkpoint or a scan cannot be read, or there is nothing to evaluate.
    """
    require_writable(Path(output_dir))
    network, plan, about = load_expert(checkpoint, device=device)
    if plan.original != (originals is not None):
        seen, todo = ("the original scans", "with") if plan.original else ("the dataset's slices", "without")
        raise CheckpointError(f"{checkpoint} was trained on {seen}; evaluate it {todo} --recipe and --scans")
    opened = open_dataset(data, demo_dir="", model=about)
    reader = of_targets(choose_plane(opened, plan.plane), plan.targets)
    volumes = ScoreVolumes(
        reader=reader, split=split, threshold=threshold, tolerance=tolerance_mm, resamples=resamples, seed=seed
    )
    scorer = ScoreSlices(root=reader.root, size=1, threshold=threshold, tolerance=tolerance_mm, volumes=volumes)
    scans = [scan for scan in list_scans(reader, originals) if scan.split == split]
    if not scans:
        raise DatasetError(f"{reader.root} has no annotated scans in the split {split!r}")
    for scan in tqdm(scans, desc="evaluation", unit="scan", dynamic_ncols=True, disable=None):
        stack = read_stack(scan, whole=plan.dimensions == 3)
        logits = predict(network, plan, stack, device=device, mirror=mirror)
        places = {index: number for number, index in enumerate(stack.indices)}
        slices: dict[int, list[SliceRow]] = defaultdict(list)
        for row in reader.select(split=split, volume=scan.volume):
            slices[row.slice_index].append(row)
        for index, rows in slices.items():
            channels = [plan.targets.index(row.target) for row in rows]
            scorer.scores.extend(scorer.score_native(logits[channels, places[index]], rows))
    model = {"name": f"expert {plan.dimensions}-D", "sha256": file_sha256(Path(checkpoint)), "plan": plan.as_dict()}
    return write_evaluation(scorer, output_dir=output_dir, bootstrap=volumes.bootstrap, model=model)


def of_targets(reader: SliceReader, targets: tuple[str, ...]) -> SliceReader:
    """The dataset with the rows of some targets only; its volumes list no others.

    Raises:
        DatasetError: it annotates none of them.
    """
    import copy

    other = copy.copy(reader)
    other.rows = [row for row in reader.rows if row.target in targets]
    other.volumes = {
        name: {**entry, "targets": {target: text for target, text in entry["targets"].items() if target in targets}}
        for name, entry in reader.volumes.items()
    }
    if not other.rows:
        raise DatasetError(f"{reader.root} annotates none of the expert's targets ({', '.join(targets)})")
    return other
