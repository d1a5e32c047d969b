"""``boltzformer serve`` with a model of BiomedParse v2's form: its protocol and licence are in the answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.small_biomedparse import LICENCE, write_small_biomedparse
from tests.needs import need_module

need_module("monailabel")

from tests.label.live_server import running  # noqa: E402


@pytest.mark.slow
def test_it_is_served_with_its_protocol_and_licence(studies: Path, tmp_path: Path) -> None:
    model = write_small_biomedparse(tmp_path / "small_v2")
    conf = {"checkpoint": model, "modality": "CT", "device": "cpu"}
    with running(studies, tmp_path, conf, serve=True) as server:
        described = server.get("/info/").json()["models"]["boltzformer"]
        reply = server.infer("scan_0", prompts=["liver", "left kidney"], protocol_settings={"suppress": False}).json()
        assert server.infer("scan_0", prompts=["liver"], protocol="biomed").status == 400
    assert described["weights"]["licence"] == LICENCE.as_dict()
    assert reply["protocol"] == "biomedparse"
    assert reply["licence"] == LICENCE.as_dict()
    assert [each["found"] for each in reply["findings"]] == [True, True]
    assert {each["kind"] for each in reply["caveats"]} >= {"laterality", "no vocabulary"}
