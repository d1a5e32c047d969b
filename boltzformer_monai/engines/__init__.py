"""Training and evaluation engines on MONAI's, and what the bundle's configurations wire."""

from boltzformer_monai.engines.bundle import (
    find_bundle,
    make_training,
    mask_size_for,
    start,
    training_network_config,
)
from boltzformer_monai.engines.calibrate_presence import calibrate_checkpoint, calibrate_presence
from boltzformer_monai.engines.data import (
    collate_examples,
    collate_slices,
    describe_data,
    open_dataset,
    prompt_length,
    slice_sampler,
    training_items,
    training_transform,
    validation_items,
)
from boltzformer_monai.engines.evaluate_volumes import ScoreVolumes
from boltzformer_monai.engines.evaluator import (
    AveragingInferer,
    ScoreSlices,
    evaluation_items,
    evaluation_transform,
    run_evaluation,
)
from boltzformer_monai.engines.initial import InitialWeights, find_initial_weights, training_network
from boltzformer_monai.engines.key_metric import validation_metrics
from boltzformer_monai.engines.loss import BoltzFormerLoss, StepLoss, training_loss
from boltzformer_monai.engines.optimizer import make_optimizer, make_scheduler
from boltzformer_monai.engines.overlays import WatchedSlices
from boltzformer_monai.engines.publish import publish_metrics, publish_model, require_card
from boltzformer_monai.engines.ranks import leave_distributed, start_distributed
from boltzformer_monai.engines.sampler import EpochSampler, SeededExamples
from boltzformer_monai.engines.settings import SETTINGS, TrainingSettings, training_settings
from boltzformer_monai.engines.step import StepLoader, training_step
from boltzformer_monai.engines.throughput import Throughput
from boltzformer_monai.engines.trainer import DecodingInferer, run_training
from boltzformer_monai.evaluation.presence_rule import presence_rule
from boltzformer_monai.precision import default_device, distributed_device

__all__ = [
    "SETTINGS",
    "AveragingInferer",
    "BoltzFormerLoss",
    "DecodingInferer",
    "EpochSampler",
    "InitialWeights",
    "ScoreSlices",
    "ScoreVolumes",
    "StepLoader",
    "StepLoss",
    "Throughput",
    "SeededExamples",
    "TrainingSettings",
    "WatchedSlices",
    "calibrate_checkpoint",
    "calibrate_presence",
    "collate_examples",
    "collate_slices",
    "default_device",
    "describe_data",
    "distributed_device",
    "evaluation_items",
    "evaluation_transform",
    "find_bundle",
    "find_initial_weights",
    "leave_distributed",
    "make_optimizer",
    "make_scheduler",
    "make_training",
    "mask_size_for",
    "open_dataset",
    "presence_rule",
    "prompt_length",
    "publish_metrics",
    "publish_model",
    "require_card",
    "run_evaluation",
    "run_training",
    "slice_sampler",
    "start",
    "start_distributed",
    "training_items",
    "training_loss",
    "training_network",
    "training_network_config",
    "training_settings",
    "training_step",
    "training_transform",
    "validation_items",
    "validation_metrics",
]
