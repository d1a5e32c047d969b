"""The catalogue is well formed, and agrees with what the package can import and with the presets."""

from __future__ import annotations

import re

import pytest

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.models.catalogue import CATALOGUE, catalogue_text, entry_named
from boltzformer_monai.models.licence import Licence
from boltzformer_monai.networks.published import SOURCES


def test_every_entry_says_what_a_user_must_know() -> None:
    text = catalogue_text()
    for name, entry in CATALOGUE.items():
        assert re.fullmatch(r"[a-z0-9_]+", name)
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo)
        assert entry.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", entry.sha256)
        assert {*entry.use.split(", ")} <= {"segment", "backbone", "text_encoder"}
        assert entry.source in SOURCES.names()
        assert entry.licence.url.startswith("https://")
        assert entry.licence.restricted == Licence.named(entry.licence.name).restricted
        for words in (name, entry.what, entry.repo, entry.file, entry.licence.name):
            assert words in text
    biomedparse = CATALOGUE["biomedparse_v2"]
    assert biomedparse.gated
    assert biomedparse.licence.restricted
    assert biomedparse.licence.name == "CC-BY-NC-SA-4.0"


def test_a_misspelt_name() -> None:
    with pytest.raises(ConfigError, match="unknown weights 'biomedparse'; did you mean biomedparse_v[12]?"):
        entry_named("biomedparse")
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        entry_named("zzz")
