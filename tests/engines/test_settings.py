from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path

import pytest

from boltzformer_monai.engines import SETTINGS, TrainingSettings, training_settings
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import PRESETS

ROOT = Path(__file__).resolve().parents[2]
LESIONS = {"liver lesion": 3.0, "lung nodule": 3.0}


def test_every_network_has_settings_of_its_size():
    assert set(SETTINGS) == set(PRESETS)
    for name, settings in SETTINGS.items():
        assert settings.preset == name
        assert settings.image_size == PRESETS[name].image_size


def test_the_table_of_the_documentation_is_that_of_the_code():
    """docs/how-to/training.md says which of these numbers are the paper's."""
    names = {
        "–": {},
        "no part": [],
        "true": True,
        "false": False,
        "0 (off)": 0,
        "liver lesion 3, lung nodule 3": LESIONS,
    }
    compared = set()
    for line in (ROOT / "docs" / "how-to" / "training.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        settings = re.findall(r"`(\w+)`", cells[0])
        if len(cells) != 5 or not settings or not hasattr(SETTINGS["tiny"], settings[0]):
            continue
        for cell, presets in zip(cells[1:4], (("hiera_s", "hiera_bp"), ("focal_l",), ("tiny",)), strict=True):
            values = [cell] if cell in names else cell.split(", ")
            for name, value in zip(settings, values, strict=True):
                for preset in presets:
                    stored = getattr(SETTINGS[preset], name)
                    assert stored == names.get(value, value if isinstance(stored, str) else None) or stored == float(
                        value
                    ), (name, preset)
        compared.update(settings)
    assert compared == {field.name for field in dataclasses.fields(TrainingSettings)} - {"preset"}


def test_auto_chooses_by_the_device(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        assert training_settings("auto", "cpu").preset == "tiny"
    assert "training the preset 'tiny' at 192 pixels" in caplog.text
    assert training_settings("auto", "cuda:0").preset == "hiera_s"


def test_overrides_replace_defaults():
    settings = training_settings("tiny", "cpu", overrides={"epochs": 3, "learning_rate": 1e-4})
    assert (settings.epochs, settings.learning_rate) == (3, 1e-4)
    assert settings.batch_size == SETTINGS["tiny"].batch_size


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("tyny", {}, "unknown preset 'tyny'; did you mean 'tiny'"),
        ("autoo", {}, "did you mean 'auto'"),
        ("tiny", {"epoch": 3}, "unknown training setting 'epoch'; did you mean 'epochs'"),
        ("tiny", {"lr": 1}, "unknown training setting 'lr'"),
        ("tiny", {"epochs": 0}, "epochs must be at least 1, got 0"),
        ("tiny", {"epochs": "three"}, "epochs must be a whole number, got 'three'"),
        ("tiny", {"epochs": True}, "epochs must be a whole number, got True"),
        ("tiny", {"batch_size": 2.5}, "batch_size must be a whole number, got 2.5"),
        ("tiny", {"mask_size": 0}, "mask_size must be at least 1"),
        ("tiny", {"patience": -1}, "patience"),
        ("tiny", {"negatives": 1.1}, "negatives must be between 0 and 1, got 1.1"),
        ("tiny", {"warm_up": -0.1}, "warm_up must be between 0 and 1"),
        ("tiny", {"learning_rate": -1e-3}, "learning_rate must be at least 0"),
        ("tiny", {"learning_rate": float("nan")}, "learning_rate must be at least 0"),
        ("tiny", {"weight_decay": -1}, "weight_decay"),
        ("tiny", {"workers": -1}, "workers"),
        ("tiny", {"layer_supervision": -0.5}, "layer_supervision must be at least 0"),
        ("tiny", {"layer_supervision_stride": 3}, "layer_supervision_stride must be one of 1, 2, 4, 8, got 3"),
        ("tiny", {"augmentation": "heavy"}, "augmentation must be one of paper, light, strong, none, got 'heavy'"),
        ("tiny", {"schedule": "step"}, "schedule must be one of constant, cosine"),
        ("tiny", {"precision": "fp64"}, "precision must be one of auto, fp32, bf16"),
        ("tiny", {"target_weights": {"liver": "3"}}, "target_weights must be a mapping of names, each to a number"),
    ],
)
def test_what_is_unknown_or_out_of_range_is_refused(preset: str, overrides: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        training_settings(preset, "cpu", overrides=overrides)
