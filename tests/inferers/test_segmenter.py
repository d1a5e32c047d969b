"""What a checkpoint says about its training decides how its inferer works, unless the user says otherwise."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.evaluation.presence_rule import PresenceRule
from boltzformer_monai.inferers.run_settings import ModelRecord, RunSettings
from boltzformer_monai.inferers.segmenter import VolumeSegmenter
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks.weights import Description

LIVER = RunSettings(prompts=["liver"])


@pytest.fixture
def segmenter(checkpoint: Path) -> VolumeSegmenter:
    return VolumeSegmenter.from_checkpoint(checkpoint)


def _with(segmenter: VolumeSegmenter, **data: object) -> VolumeSegmenter:
    description = Description(segmenter.description.network, {**segmenter.description.data, **data})
    return VolumeSegmenter(segmenter.network, description)


def test_plane_and_presence_rule_are_the_training_s(segmenter: VolumeSegmenter) -> None:
    rule = PresenceRule(high=0.6, low=0.2)
    trained = _with(segmenter, plane="coronal", presence=rule.as_dict())
    assert trained.inferer(LIVER).protocol.planes == ("coronal",)
    assert trained.inferer(LIVER).protocol.rule == rule
    assert trained.inferer(replace(LIVER, presence=False)).protocol.rule is None
    assert segmenter.inferer(LIVER).protocol.rule is None
    assert trained.inferer(replace(LIVER, planes="axial")).protocol.planes == ("axial",)
    assert trained.inferer(replace(LIVER, planes=["axial", "sagittal"])).protocol.planes == ("axial", "sagittal")


def test_a_model_trained_along_several_planes_averages_them_all(segmenter: VolumeSegmenter) -> None:
    rule = PresenceRule(high=0.6, low=0.2)
    trained = _with(segmenter, plane="axial", planes=["axial", "sagittal"], presence=rule.as_dict())
    for planes in (None, "all", ["all"]):
        settings = replace(LIVER, planes=planes)
        protocol = trained.inferer(settings).protocol
        assert protocol.planes == ("axial", "sagittal")
        assert list(protocol.rule_planes()) == ["axial", "sagittal"]
        assert protocol.caveats() == []
        assert settings.record(trained.record(settings))["planes"] == ["axial", "sagittal"]
    settings = replace(LIVER, planes=("sagittal", "coronal"))
    protocol = trained.inferer(settings).protocol
    assert (protocol.planes, protocol.rule_planes()) == (("sagittal", "coronal"), ["sagittal"])
    assert "trained on axial and sagittal slices; coronal ones are new to it" in protocol.caveats()[0].text
    assert settings.record(trained.record(settings))["planes"] == ["sagittal", "coronal"]
    assert replace(LIVER, planes="all").record(segmenter.record(LIVER))["planes"] == ["axial"]


def test_what_the_user_should_know_of_a_checkpoint_is_known_before_any_scan(segmenter: VolumeSegmenter) -> None:
    plane, thresholds = segmenter.inferer(replace(LIVER, planes=["axial", "sagittal"])).caveats
    assert "trained on axial slices; sagittal ones are new to it" in plane.text
    assert "presence head but no thresholds" in thresholds.text  # its training was stopped before they were chosen
    assert segmenter.inferer(replace(LIVER, presence=False)).caveats == ()


def test_presence_thresholds_that_cannot_be_used_matter_only_where_they_are_used(segmenter: VolumeSegmenter) -> None:
    broken, off = _with(segmenter, presence={"high": 2}), replace(LIVER, presence=False)
    for use in (broken.inferer, lambda settings: broken.record(settings)):
        with pytest.raises(CheckpointError, match="presence thresholds"):
            use(LIVER)
        assert use(off)


def test_the_record_says_what_of_the_model_decides(segmenter: VolumeSegmenter) -> None:
    rule = PresenceRule(high=0.6, low=0.2)
    model = _with(segmenter, plane="coronal", presence=rule.as_dict())
    precision = segmenter.network.precision  # what is faster on this machine
    assert model.record(LIVER) == ModelRecord(sha256="", plane="coronal", presence=rule, precision=precision)
    assert model.record(replace(LIVER, presence=False)).presence is None


def test_the_label_map_s_log_names_what_was_not_found(
    segmenter: VolumeSegmenter, caplog: pytest.LogCaptureFixture
) -> None:
    volume = Volume(np.zeros((16, 16, 2), np.float32), np.diag([-2.0, -2.0, 5.0, 1.0]), modality="CT")
    inferer = segmenter.inferer(RunSettings(prompts=["left kidney", "lung nodule"], threshold=0.999))
    with caplog.at_level(logging.INFO):
        labels = inferer.label_map(volume, segmenter.network)
    assert not labels.any()
    assert "not found: left kidney; lung nodule" in caplog.text
