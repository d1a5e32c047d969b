"""The last step of a training with a presence head: its thresholds, chosen on validation, go into the checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from boltzformer_monai.data.slices.reader import SliceReader
from boltzformer_monai.engines.calibrate_presence import calibrate_presence
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.weights import Description, read_weights, save_checkpoint
from boltzformer_monai.transforms import PromptTokenizer


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
    content = read_weights(checkpoint)
    network.load_state_dict(content["model"])
    config = description.network
    rule = calibrate_presence(
        network,
        reader,
        tokenizer=tokenizer,
        size=config.image_size,
        neighbours=config.neighbours,
        device=device,
        batch_size=batch_size,
    )
    if rule is None:
        return
    description.data["presence"] = rule.as_dict()
    save_checkpoint({**content, "description": description.state_dict()}, Path(checkpoint))
