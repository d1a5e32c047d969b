"""What a checkpoint says about its training decides how its inferer works, unless the user says otherwise."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks.weights import Description


@pytest.fixture
def segmenter(checkpoint: Path) -> VolumeSegmenter:
    return VolumeSegmenter.from_checkpoint(checkpoint)


def _with(segmenter: VolumeSegmenter, **data: object) -> VolumeSegmenter:
    description = Description(segmenter.description.network, {**segmenter.description.data, **data})
    return VolumeSegmenter(segmenter.network, description)


def test_plane_and_presence_rule_are_the_training_s(segmenter: VolumeSegmenter) -> None:
    rule = PresenceRule(high=0.6, low=0.2)
    trained = _with(segmenter, plane="coronal", presence=rule.as_dict())
    assert trained.inferer(["liver"]).planes == ("coronal",)
    assert trained.inferer(["liver"]).presence == rule
    assert trained.inferer(["liver"], presence=False).presence is None
    assert segmenter.inferer(["liver"]).presence is None
    assert trained.inferer(["liver"], planes="axial").planes == ("axial",)
    assert trained.inferer(["liver"], planes=["axial", "sagittal"]).planes == ("axial", "sagittal")


def test_what_the_user_should_know_of_a_checkpoint_is_known_before_any_scan(segmenter: VolumeSegmenter) -> None:
    plane, thresholds = segmenter.inferer(["liver"], planes=["axial", "sagittal"]).caveats
    assert "trained on axial slices; sagittal ones are new to it" in plane.text
    assert "presence head but no thresholds" in thresholds.text  # its training was stopped before they were chosen
    assert segmenter.inferer(["liver"], presence=False).caveats == ()


def test_settings_reach_the_inferer(segmenter: VolumeSegmenter) -> None:
    settings = {"repeats": 3, "in_plane": "tiles", "threshold": 0.3, "seed": 5, "batch_size": 2}
    inferer = segmenter.inferer(["liver"], **settings)
    assert {name: getattr(inferer, name) for name in settings} == settings
    with pytest.raises(ConfigError, match="planes"):
        segmenter.inferer(["liver"], planes="oblique")
    with pytest.raises(CheckpointError, match="presence thresholds"):
        _with(segmenter, presence={"high": 2}).inferer(["liver"])


def test_the_label_map_s_log_names_what_was_not_found(
    segmenter: VolumeSegmenter, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume(np.zeros((16, 16, 2), np.float32), np.diag([-2.0, -2.0, 5.0, 1.0]), modality="CT")
    inferer = segmenter.inferer(["left kidney", "lung nodule"], threshold=0.999)
    with caplog.at_level(logging.INFO):
        labels = inferer.label_map(volume, segmenter.network)
    assert not labels.any()
    assert "not found: left kidney; lung nodule" in caplog.text
