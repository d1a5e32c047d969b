"""The label server serves a model folder, shows its licence, and takes up a new one in its place."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from huggingface_hub import constants

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.label.server_settings import ServerSettings
from boltzformer_monai.label.service import SegmentService
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.folder import load_model
from tests.models.conftest import RESTRICTED, write_model


def test_a_model_folder_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "mine"
    convert(write_model(tmp_path / "model.pt", licence=RESTRICTED.as_dict()), folder)
    conf = {"checkpoint": str(folder), "device": "cpu", "cache_mb": "0"}
    with caplog.at_level(logging.WARNING):
        service = SegmentService(ServerSettings.from_conf(conf, studies=str(tmp_path)))
        model = service.model()
    assert model.sha256 == load_model(folder).sha256
    assert model.segmenter.summary() == {"sha256": model.sha256, "licence": RESTRICTED.as_dict()}
    assert [str(RESTRICTED) in message for message in caplog.messages] == [True]
    assert service.model() is model
    convert(write_model(tmp_path / "model.pt", seed=8), folder)
    assert service.model().sha256 == load_model(folder).sha256 != model.sha256


def test_a_fetched_model_is_served_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="boltzformer weights fetch owner/name"):
        ServerSettings.from_conf({"checkpoint": "owner/name"}, studies=str(tmp_path))
    cached = tmp_path / "models--owner--name"
    convert(write_model(tmp_path / "model.pt"), cached / "snapshots" / ("a" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("a" * 40)
    settings = ServerSettings.from_conf({"checkpoint": "owner/name"}, studies=str(tmp_path))
    assert settings.checkpoint == cached / "snapshots" / ("a" * 40)
