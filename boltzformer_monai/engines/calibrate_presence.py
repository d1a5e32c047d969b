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
    split: str = "val",
    device: torch.device | str = "cpu",
    batch_size: int = 8,
) -> PresenceRule | None:
    """Ask every labelled slice of a split for all its targets, and choose the thresholds by what the head says.

    Args:
        network: on ``device``; its mode (training or evaluation) is the same afterwards.
        reader: the data set.
        tokenizer: of the network's text model.
        size: edge of the network's square in pixels.
        neighbours: slices on either side that the network sees too.
        split: the volumes to choose on.
        device: where the network is.
        batch_size: slices at once.

    Returns:
        The rule; None, with a warning, where there is nothing to calibrate on, and for a network without presence head.

    Raises:
        DatasetError: the split has no labelled slices.
    """
    if network.presence is None:
        return None
    transform = evaluation_transform(reader, tokenizer=tokenizer, size=size, neighbours=neighbours)
    loader: DataLoader[Item] = DataLoader(
        [*evaluation_items(reader, split=split)],  # type: ignore[arg-type]
        batch_size=batch_size,
        collate_fn=lambda items: collate_slices([transform(item) for item in items]),
    )
    scorer = ScoreSlices(root=reader.root, size=size)
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
    except ConfigError as error:  # a short training on a small data set: its weights are worth keeping all the same
        _log.warning("%s", error)
        return None
    _log.info("presence thresholds from %d volumes × targets: high %.3f, low %.3f", len(slices), rule.high, rule.low)
    return rule


def _in_order(slices: dict[int, tuple[float, bool, bool]]) -> PresenceEvidence:
    probabilities, shown, hit = zip(*(slices[index] for index in sorted(slices)), strict=True)
    return PresenceEvidence(np.array(probabilities), np.array(shown), np.array(hit))


def store_presence(
    checkpoint: str | Path,
    *,
    network: BoltzFormer,
    description: Description,
    reader: SliceReader,
    tokenizer: PromptTokenizer,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    is_main: bool = True,
) -> None:
    """Choose the thresholds of the best checkpoint, and write them into it and into ``description``.

    Nothing happens without presence head, without a checkpoint, in other processes than the first, or a second time.

    Args:
        checkpoint: ``model.pt`` of the training; the network has its weights afterwards.
        network: the trained network.
        description: of the checkpoint.
        reader: the data set, whose validation split is used.
        tokenizer: of the network's text model.
        device: where the network is.
        batch_size: slices at once.
        is_main: whether this process writes anything.

    Raises:
        StorageError: the checkpoint cannot be written; it stays as it was.
    """
    done = network.presence is None or "presence" in description.data
    if done or not is_main or not Path(checkpoint).is_file():
        return
    calibrate_checkpoint(
        checkpoint,
        network=network,
        description=description,
        reader=reader,
        tokenizer=tokenizer,
        device=device,
        batch_size=batch_size,
    )


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
    adjust: Callable[[PresenceRule], PresenceRule] = lambda rule: rule,
) -> None:
    """Calibrate the weights of a checkpoint, and write the thresholds into it and into ``description``.

    Where nothing can be calibrated, both stay as they are.

    Args:
        checkpoint: of this network, which has its weights afterwards.
        network: on ``device``.
        description: of the checkpoint.
        reader: the data set.
        tokenizer: of the network's text model.
        split: the volumes to choose on.
        device: where the network is.
        batch_size: slices at once.
        adjust: what is stored, from what was found.

    Raises:
        StorageError: the checkpoint cannot be written; it stays as it was.
    """
    content = read_weights(checkpoint)
    network.load_state_dict(content["model"])
    config = description.network
    rule = calibrate_presence(
        network,
        reader,
        tokenizer=tokenizer,
        size=config.image_size,
        neighbours=config.neighbours,
        split=split,
        device=device,
        batch_size=batch_size,
    )
    if rule is None:
        return
    description.data["presence"] = adjust(rule).as_dict()
    save_checkpoint({**content, "description": description.state_dict()}, Path(checkpoint))
