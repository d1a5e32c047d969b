"""What the keys of the bundle's configurations mean that are no field of a settings class.

``CONFIG.KEY`` is a key of one configuration, ``KEY`` one of all that have it.
"""

from __future__ import annotations

from collections.abc import Mapping

KEYS: Mapping[str, str] = {
    "bundle_root": "folder of the bundle",
    "dataset_dir": "slice dataset; none: the demo's is made",
    "demo_dir": "where the demo dataset is made when no other is given",
    "output_dir": "folder of the results",
    "device": "`cpu`, `cuda`, `cuda:1`, …; a GPU where there is one",
    "seed": "of everything that is drawn",
    "plugins": "modules or `.py` files with [parts of your own](../how-to/extending.md)",
    "planes": "planes of a dataset of several to use; all",
    "checkpoint": "`model.pt`, a [model folder](../how-to/weights.md#a-model-is-a-folder), or a fetched model's id",
    "precision": "`auto`, `fp32` or `bf16`",
    "workers": "loader processes",
    "train.preset": "name of the [settings](settings.md#training); `auto` is `hiera_s` with a GPU and `tiny` without",
    "train.resume": "`auto` or a state: [go on](../how-to/training.md#going-on) with a stopped training",
    "train.save_minutes": "minutes between states; 0 writes none by time",
    "train.save_steps": "steps between states; 0 writes none by steps",
    "train.overlays": "validation slices whose overlays are drawn; 0 draws none",
    "train.folds": "[folds](../how-to/training.md#folds) that the patients of `train` and `val` are divided into",
    "train.fold": "the fold that validates, from 0",
    "train.init_from": "part → [weights to start from](../how-to/training.md#weights-to-start-from)",
    "train.network_overrides": "settings of the [network](settings.md#network) that differ from the preset's",
    "train.settings_overrides": "settings of the [training](settings.md#training) that have no key of their own",
    "train.key_metric": "what selects `model.pt`: `val_loss` or a 2-D [metric](../how-to/evaluation.md)",
    "train.global_batch": "images of a step on all processes, a multiple of `batch_size`; one batch each",
    "train.is_main": "whether this process writes files; `multi_gpu_train.json` sets it",
    "evaluate.split": "`train`, `val` or `test`",
    "evaluate.batch_size": "slices per pass",
    "evaluate.threshold": "probability from which a pixel belongs to an object",
    "evaluate.tta": "poses of each slice whose probabilities are averaged; 1: as it is",
    "evaluate.fresh_draws": "numbers of its own for each slice and prompt, as in training",
    "evaluate.presence": "apply the checkpoint's presence thresholds to volumes",
    "evaluate.tolerance_mm": "of the surface Dice",
    "evaluate.resamples": "of the patients, for confidence intervals",
    "evaluate.update_card": "write the numbers into the model's card and `metrics.json`",
    "evaluate.focus": "measure [where the sampling looks](../how-to/evaluation.md#where-the-sampling-looks)",
    "inference.image": "the scan: a file or a DICOM folder",
    "inference.dataset_dir": "MONAI's name for `image`",
    "inference.displayable_configs": "what MONAI Label's stock app shows for editing",
    "inference.output": "the label map to write",
    "inference.series": "SeriesInstanceUID, where a folder holds several",
}
