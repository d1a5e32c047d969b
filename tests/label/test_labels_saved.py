"""What comes with a label that is saved, what a training needs, and how background work behaves."""

from __future__ import annotations

import errno
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.demo.phantom import make_phantom  # noqa: E402
from boltzformer_monai.demo.phantom_files import write_phantom_dicom  # noqa: E402
from boltzformer_monai.errors import DatasetError, VolumeError  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.io.scan_list import Scan  # noqa: E402
from boltzformer_monai.label.label_info import names_in  # noqa: E402
from boltzformer_monai.label.learning.workers import FAILED, in_background  # noqa: E402
from boltzformer_monai.label.service import ScanCache  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE  # noqa: E402


@pytest.mark.parametrize("listed", [[{"nme": "a", "idx": 1}], [{"name": "a", "idx": 0}], [1], "liver", {"a": "b"}])
def test_names_that_cannot_be_read_are_refused(client: Any, tmp_path: Path, listed: Any) -> None:
    write_image_file(np.ones(SHAPE, np.uint8), AFFINE, tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        reply = client.put(
            "/datastore/label?image=scan_1&tag=mine",
            data={"params": json.dumps({"label_info": listed})},
            files={"label": ("l.nii.gz", file)},
        )
    assert reply.status_code == 400
    assert "label_info must be a list" in reply.json()["detail"]
    assert "mine" not in client.get("/datastore/?output=all").json()["objects"]["scan_1"]["labels"]


def test_an_upload_takes_no_other_images_place(client: Any, tmp_path: Path) -> None:
    def put(value: int, ending: str = ".nii.gz") -> Any:
        file = tmp_path / f"{value}{ending}"
        write_image_file(np.full(SHAPE, value, np.int16), AFFINE, file)
        return client.put("/datastore/image?image=visit", files={"file": (f"a{ending}", file.read_bytes())})

    try:
        assert put(1).status_code == 200
        kept = client.get("/datastore/image?image=visit").content
        assert client.put("/datastore/image/info?image=visit", data={"info": '{"note": "x"}'}).status_code == 200
        write_image_file(np.ones(SHAPE, np.uint8), AFFINE, tmp_path / "label.nii.gz")
        label = (tmp_path / "label.nii.gz").read_bytes()
        saved = client.put("/datastore/label?image=visit&tag=final", files={"label": ("l.nii.gz", label)})
        assert saved.status_code == 200
        assert put(1).status_code == 200  # sent again, say because the answer was lost
        for other in (put(2), put(2, ".nrrd"), put(1, ".nrrd")):
            assert other.status_code == 409
            assert "there is an image 'visit'" in other.json()["detail"]
        assert client.get("/datastore/image?image=visit").content == kept
        assert client.get("/datastore/image/info?image=visit").json()["note"] == "x"
        assert client.get("/datastore/label?label=visit&tag=final").content == label
    finally:
        client.delete("/datastore/image?id=visit")


def test_training_needs_a_label(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = client.app.state.boltzformer.datastore()
    monkeypatch.setattr(store, "get_labeled_images", lambda *_: [])
    reply = client.post("/train/boltzformer", json={"epochs": 1})
    assert reply.status_code == 409
    assert "no final label to learn from" in reply.json()["detail"]


def test_prompts_that_were_not_trained_are_told(client: Any) -> None:
    body = {"image": "scan_1", "prompts": ["a zebra", "left kidney in CT"]}
    assert client.post("/boltzformer/api/segment", json=body).json()["untrained"] == ["a zebra"]
    params = {"params": json.dumps({"prompts": "xyz; liver"})}
    assert client.post("/infer/boltzformer?image=scan_1&output=json", data=params).json()["untrained"] == ["xyz"]


def test_what_is_not_known_is_told_with_the_result_and_becomes_no_name_of_the_server(client: Any) -> None:
    body = {"image": "scan_1", "prompts": ["liver head", "Liver in CT"]}
    reply = client.post("/boltzformer/api/segment", json=body).json()
    assert reply["in_doubt"] is True
    assert [(each["kind"], each["prompt"]) for each in reply["caveats"] if each["in_doubt"]] == [
        ("unknown prompt", "liver head")
    ]
    assert ["did you mean 'liver'" in text for each in reply["findings"] for text in each["caveats"]] == [True]
    params = {"params": json.dumps({"prompts": "liver head; Liver in CT"})}
    reply = client.post("/infer/boltzformer?image=scan_1&output=json", data=params).json()
    assert reply["in_doubt"] is True
    numbers = client.app.state.boltzformer.service.label_numbers
    written = json.loads(numbers.file.read_text(encoding="utf-8"))["names"]
    assert "Liver in CT" in written
    assert "liver head" not in written


def test_prompts_are_understood_as_people_type_them_and_completed(client: Any) -> None:
    reply = client.post("/boltzformer/api/segment", json={"image": "scan_1", "prompts": ["linke Niere", "livr"]}).json()
    assert (reply["untrained"], reply["in_doubt"]) == ([], False)
    assert [each["understood"]["as"] for each in reply["findings"]] == ["left kidney", "liver"]
    texts = {each["prompt"]: each["text"] for each in reply["caveats"] if each["kind"] == "understood prompt"}
    assert texts["linke Niere"] == "'linke Niere' understood as 'left kidney' (German; score 1.00)"
    found = client.get("/boltzformer/api/complete", params={"q": "linke Ni"}).json()
    assert found["completions"][0]["target"] == "left kidney"
    assert found["understood"] is None
    found = client.get("/boltzformer/api/complete", params={"q": "left kindey", "limit": 1}).json()
    assert (found["understood"]["target"], found["understood"]["score"]) == ("left kidney", 0.83)
    for q, completions in (("", True), ("zebra", False), ("left kidney on the right", False)):
        found = client.get("/boltzformer/api/complete", params={"q": q}).json()
        assert (found["understood"], bool(found["completions"])) == (None, completions)
    for wrong in ({"q": "x" * 501}, {"q": "l", "limit": 0}, {"q": "l", "limit": "many"}):
        assert client.get("/boltzformer/api/complete", params=wrong).status_code in (400, 422)


def test_a_negation_is_refused_unless_it_is_meant_literally(client: Any) -> None:
    body = {"image": "scan_1", "prompts": ["no liver"]}
    reply = client.post("/boltzformer/api/segment", json=body)
    assert reply.status_code == 400
    assert "'no' is not understood" in reply.json()["detail"]
    params = {"params": json.dumps({"prompts": "no liver"})}
    assert client.post("/infer/boltzformer?image=scan_1&output=json", data=params).status_code == 400
    reply = client.post("/boltzformer/api/segment", json={**body, "literal": True}).json()
    assert [each["kind"] for each in reply["caveats"] if each["in_doubt"]] == ["words not understood"]


def test_a_modality_that_nobody_stated_is_told(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"image": "scan_1", "prompts": ["liver"]}
    assert client.post("/boltzformer/api/segment", json=body).json()["assumed_modality"] is None  # the server was told
    service = client.app.state.boltzformer.service
    monkeypatch.setattr(service, "settings", service.settings.model_copy(update={"modality": None}))
    assert client.post("/boltzformer/api/segment", json=body).json()["assumed_modality"] == "CT"
    stated = client.post("/boltzformer/api/segment", json={**body, "modality": "CT"}).json()
    assert stated["assumed_modality"] is None
    params = {"params": json.dumps({"prompts": "liver"})}
    reply = client.post("/infer/boltzformer?image=scan_1&output=json", data=params).json()
    assert reply["assumed_modality"] == "CT"


@pytest.mark.parametrize("assumed", [None, "CT"])
def test_a_pet_is_not_served(tmp_path: Path, assumed: str | None) -> None:
    import pydicom

    image, _ = make_phantom("abdomen", seed=1, size=(48, 48, 4))
    write_phantom_dicom(image, tmp_path / "pet", seed=1)
    for path in (tmp_path / "pet").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.Modality = "PT"
        dataset.save_as(path)
    with pytest.raises(VolumeError, match="say PT"):
        ScanCache(1 << 20).read(Scan("pet", tmp_path / "pet"), assumed)


def test_a_request_may_say_cta_and_not_pet(client: Any) -> None:
    body = {"image": "scan_1", "prompts": ["liver"]}
    assert client.post("/boltzformer/api/segment", json={**body, "modality": "CTA"}).status_code == 200
    reply = client.post("/boltzformer/api/segment", json={**body, "modality": "PET"})
    assert reply.status_code == 400
    assert "modality 'PET' is another than CT and MR" in reply.text


def test_background_work_steps_back_and_fails_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nicer: list[int] = []
    monkeypatch.setattr(os, "nice", nicer.append)
    with in_background(False):
        pass
    assert nicer == []
    with pytest.raises(SystemExit) as stopped, in_background(True):
        raise DatasetError("nothing to learn from")
    assert stopped.value.code == FAILED
    assert len(nicer) == 1
    assert nicer[0] > 0
    assert [(each.levelno, each.getMessage()) for each in caplog.records] == [
        (logging.ERROR, "error: nothing to learn from")
    ]
    with pytest.raises(SystemExit), in_background(True):
        raise RuntimeError("as MONAI wraps it") from DatasetError("nothing at all")
    assert caplog.records[-1].getMessage() == "error: nothing at all"
    with pytest.raises(ZeroDivisionError), in_background(True):
        _ = 1 / 0

    def forbidden(_: int) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "nice", forbidden)
    done = False
    with in_background(True):
        done = True
    assert done
    assert "has the priority of requests" in caplog.records[-1].getMessage()


def test_scores_after_a_training_need_no_request_to_the_server(
    client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = client.app.state.boltzformer
    scored: list[dict[str, Any]] = []

    def score(request: dict[str, Any]) -> dict[str, Any]:
        scored.append(request)
        if len(scored) > 1:
            raise DatasetError("no scan")
        return {}

    monkeypatch.setattr(app, "_server_mode", False)
    monkeypatch.setattr(app, "scoring", score)
    monkeypatch.setattr("monailabel.interfaces.app.requests.post", None)
    app.async_scoring(None)
    assert scored == [{"method": "uncertainty"}]
    app.async_scoring(None)
    assert "not scored: no scan" in caplog.text


def test_names_with_control_characters_are_refused_and_old_ones_are_read_without(client: Any, tmp_path: Path) -> None:
    write_image_file(np.ones(SHAPE, np.uint8), AFFINE, tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        reply = client.put(
            "/datastore/label?image=scan_1&tag=mine",
            data={"params": json.dumps({"label_info": [{"name": "left\u202e kidney", "idx": 1}]})},
            files={"label": ("l.nii.gz", file)},
        )
    assert reply.status_code == 400
    assert "control character U+202E" in reply.json()["detail"]
    assert names_in({"label_info": [{"name": "left\u202ekidney\0", "idx": 1}, {"name": "\u202e", "idx": 2}]}) == {
        1: "left kidney"
    }


def test_an_id_that_no_file_name_can_hold_is_refused(client: Any, tmp_path: Path) -> None:
    write_image_file(np.ones(SHAPE, np.int16), AFFINE, tmp_path / "scan.nii.gz")
    content = (tmp_path / "scan.nii.gz").read_bytes()
    for image, status in (("患" * 128, 400), ("患" * 74, 200)):
        reply = client.put(f"/datastore/image?image={image}", files={"file": ("a.nii.gz", content)})
        assert reply.status_code == status, reply.text
        label = client.put(
            f"/datastore/label?image={image}", data={"params": "{}"}, files={"label": ("l.nii.gz", content)}
        )
        assert label.status_code in ((400, 404) if status == 400 else (200,)), label.text
    assert client.delete(f"/datastore/image?id={'患' * 74}").status_code == 200


def test_no_reply_names_a_folder_of_the_server(client: Any, studies: Path) -> None:
    replies = {
        "sample": client.post("/activelearning/first", json={}),
        "list": client.get("/datastore/?output=train"),
        "session": client.put("/session/", files={"files": ("a.nii.gz", (studies / "scan_0.nii.gz").read_bytes())}),
    }
    for name, reply in replies.items():
        assert reply.status_code == 200, (name, reply.text)
        assert not [part for part in reply.text.replace("\\/", "/").split('"') if part.startswith("/")], name
    session = replies["session"].json()["session_id"]
    assert '"/' not in client.get(f"/session/{session}").text
    assert '"/' not in client.delete(f"/session/{session}").text
