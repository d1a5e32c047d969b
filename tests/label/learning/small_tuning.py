"""A fine-tuning of the label server in a process of its own, which may be killed on the way.

``python -m tests.label.learning.small_tuning CHECKPOINT DATASET FOLDER [MOMENT]``; a moment is JSON, as
:mod:`tests.engines.small_training` has it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.engines.small_training import send

EPOCHS = 4


def main(checkpoint: str, dataset: str, folder: str, moment: str = "null") -> None:
    """Fine-tune; the new checkpoint is FOLDER/out.pt, its best key metric FOLDER/best.json."""
    import torch

    from boltzformer_monai.label.learning.fine_tune import fine_tune

    torch.set_num_threads(1)
    if when := json.loads(moment):
        send(when)
    best = fine_tune(
        checkpoint=Path(checkpoint),
        dataset=Path(dataset),
        folder=Path(folder) / "training",
        output=Path(folder) / "out.pt",
        device=torch.device("cpu"),
        precision="fp32",
        epochs=EPOCHS,
        learning_rate=1e-4,
        learned={"names": ["Bright Block"], "labels": ["1"]},
    )
    (Path(folder) / "best.json").write_text(json.dumps(best))


if __name__ == "__main__":
    main(*sys.argv[1:])
