"""Calibrate the thresholds of the presence head on validation volumes, and store them in the checkpoint."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.data import Item, collate_slices
from boltzformer_monai.engines.evaluator import ScoreSlices, evaluation_items, evaluation_transform
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.presence_rule import PresenceEvidence, PresenceRule, calibrate
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.weights import Description, read_weights, save_checkpoint
from boltzformer_monai.transforms import PromptTokenizer

_log = logging.getLogger(__name__)


def calibrate_presence(
    network: BoltzFormer,
    reader: SliceReader,
    *,
    tokenizer: PromptTokenizer,
    size: int,
    neighbours: int = 0,
    neighbour_mm: float = 0.0,
    split: str = "val",
    device: torch.device | str = "cpu",
    batch_size: int = 8,
) -> PresenceRule | None:
    """Prompt every labelled slice of a split for all its targets, and calibrate thresholds on the presence logits.

    Args:
        network: on ``device``; its mode (training or evaluation) is restored.
        reader: the dataset.
        tokenizer: of the network's text model.
        size: edge of the network's input in pixels.
        neighbours: slices on each side that are input too.
        neighbour_mm: from one of them to the next; 0: adjacent slices.
        split: volumes to calibrate on.
        device: of the network.
        batch_size: slices per pass.

    Returns:
        The rule; None for a network without presence head, and, with a warning, if the volumes do not suffice.

    Raises:
        DatasetError: the split has no labelled slices.
    """
    if network.presence is None:
        return None
    transform = evaluation_transform(
        reader, tokenizer=tokenizer, size=size, neighbours=neighbours, neighbour_mm=neighbour_mm
    )
    loader: DataLoader[Item] = DataLoader(
        [*evaluation_items(reader, split=split)],  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=lambda items: collate_slices([transform(item) for item in items]),
    )
    scorer = ScoreSlices(root=reader.root, size=size, metrics=[])  # counts of pixels
    # (volume, target) → slice index → presence probability, target in the slice, mask overlaps the target
    slices: dict[tuple[str, str], dict[int, tuple[float, bool, bool]]] = defaultdict(dict)
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for batch in loader:
                decoded = network(batch["image"].to(device), batch["tokens"].to(device), with_presence=True)
                for index, rows in enumerate(batch["rows"]):
                    probabilities = decoded.presence[index].sigmoid().tolist()
                    scores = scorer.score(decoded.logits[index, : len(rows)], rows)
                    for row, probability, score in zip(rows, probabilities, scores, strict=False):
                        found = (probability, score.truth > 0, score.intersection > 0)
                        slices[row.volume, row.target][row.slice_index] = found
    finally:
        network.train(training)
    try:
        rule = calibrate(_in_order(each) for each in slices.values())
    except ConfigError as error:  # after a short training on few data; keep the weights
        _log.warning("%s", error)
        return None
    _log.info("presence thresholds from %d volumes × targets: high %.3f, low %.3f", len(slices), rule.high, rule.low)
    return rule


def _in_order(slices: dict[int, tuple[float, bool, bool]]) -> PresenceEvidence:
    probabilities, present, hit = zip(*(slices[index] for index in sorted(slices)), strict=True)
    return PresenceEvidence(np.array(probabilities), np.array(present), np.array(hit))


def calibrate_checkpoint(
    checkpoint: str | Path,
    *,
    network: BoltzFormer,
    description: Description,
    reader: SliceReader,
    tokenizer: PromptTokenizer,
    split: str = "val",
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    is_main: bool = True,
    adjust: Callable[[PresenceRule], PresenceRule] | None = None,
) -> None:
    """Calibrate the best weights, and write the thresholds into the checkpoint and into ``description``.

    Both stay unchanged without presence head or checkpoint, if the volumes do not suffice, in other processes than the
    first, and where thresholds are there already, unless ``adjust`` is given.

    Args:
        checkpoint: ``model.pt`` of the training; the network has its weights afterwards.
        network: on ``device``.
        description: of the checkpoint.
        reader: the dataset.
        tokenizer: of the network's text model.
        split: volumes to calibrate on.
        device: of the network.
        batch_size: slices per pass.
        is_main: whether this process writes.
        adjust: found thresholds → stored ones.

    Raises:
        StorageError: the checkpoint cannot be written; it is left untouched.
    """
    done = network.presence is None or (adjust is None and "presence" in description.data)
    if done or not is_main or not Path(checkpoint).is_file():
        return
    content = read_weights(checkpoint)
    network.load_state_dict(content["model"])
    config = description.network
    rule = calibrate_presence(
        network,
        reader,
        tokenizer=tokenizer,
        size=config.image_size,
        neighbours=config.neighbours,
        neighbour_mm=config.neighbour_mm,
        split=split,
        device=device,
        batch_size=batch_size,
    )
    if rule is None:
        return
    description.data["presence"] = (rule if adjust is None else adjust(rule)).as_dict()
    save_checkpoint({**content, "description": description.state_dict()}, Path(checkpoint))
