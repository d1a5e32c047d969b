"""A request's protocol reaches the settings of the run, and what is none is refused in one line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.errors import ConfigError  # noqa: E402
from boltzformer_monai.label.infer_request import parse_request  # noqa: E402


def test_a_protocol_and_its_settings() -> None:
    params = {
        "prompts": "liver",
        "protocol": "biomedparse",
        "protocol_settings": {"suppress": False, "orientation": "flipped"},
    }
    settings = parse_request(params, default_prompts=()).run_settings(batch_size=1, modality="CT")
    assert settings.protocol == "biomedparse"
    assert settings.protocol_settings == {"suppress": False, "orientation": "flipped"}
    without = parse_request({"prompts": "liver", "protocol": "", "protocol_settings": {}}, default_prompts=())
    assert without.run_settings(batch_size=1, modality="CT").protocol is None


@pytest.mark.parametrize(
    "given",
    [{"protocol": 5}, {"protocol": "x" * 100}, {"protocol_settings": "suppress"}, {"protocol_settings": {"a": ["b"]}},
     {"protocol_settings": {str(n): n for n in range(50)}}],
    ids=str,
)  # fmt: skip
def test_what_is_none(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_request({"prompts": "liver", **given}, default_prompts=())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250
