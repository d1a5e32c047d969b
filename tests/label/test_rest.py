"""The stock routes and ours, over HTTP."""

from __future__ import annotations

import io
import json
import tempfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.label.datastore.label_numbers import LabelNumbers  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE  # noqa: E402


def infer(client: Any, image: str, /, output: str = "json", **params: Any) -> Any:
    return client.post(f"/infer/boltzformer?image={image}&output={output}", data={"params": json.dumps(params)})


def label_map(content: bytes) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_stream(io.BytesIO(content)).dataobj)


def test_info_declares_prompts_and_labels(client: Any) -> None:
    info = client.get("/info/").json()
    model = info["models"]["boltzformer"]
    assert model["config"]["prompts"].startswith("liver; left kidney")
    assert model["labels"]["liver"] == 1
    assert model["labels"]["left kidney"] == 2
    assert len(model["weights"]["sha256"]) == 64


def test_names_are_the_prompts_and_values_those_of_info(client: Any) -> None:
    reply = infer(client, "scan_0", prompts="left kidney;A new Thing", threshold=0.3, presence=False).json()
    labels = client.get("/info/").json()["models"]["boltzformer"]["labels"]
    assert reply["label_names"]
    for name, value in reply["label_names"].items():
        assert labels[name] == value
    assert [each["prompt"] for each in reply["findings"]] == ["left kidney", "A new Thing"]


def test_label_map_holds_what_the_reply_says(client: Any) -> None:
    import gzip

    settings = {"prompts": ["left kidney", "liver"], "threshold": 0.3, "presence": False}
    reply = infer(client, "scan_0", **settings).json()
    labels = label_map(gzip.decompress(infer(client, "scan_0", output="image", **settings).content))
    assert labels.dtype == np.uint8
    assert labels.shape == SHAPE
    for finding in reply["findings"]:
        assert int((labels == finding["label"]).sum()) == finding["label_voxels"]
    assert set(np.unique(labels)) - {0} == set(reply["label_names"].values())


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"image": "/etc/passwd"}, "image"),
        ({"model": "other"}, "model"),
        ({"promts": ["liver"]}, "prompts"),
        ({"prompts": [" "]}, "empty"),
        ({"prompts": [1]}, "prompts"),
        ({"prompts": "a;A"}, "twice"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": "x"}, "threshold"),
        ({"uncertainty": 1}, "uncertainty"),
        ({"uncertainty": 1000}, "uncertainty"),
        ({"planes": ["diagonal"]}, "planes"),
        ({"window": {"a": 1}}, "window"),
        ({"result_extension": ".exe"}, "result_extension"),
        ({"label_tag": "../x"}, "tag"),
    ],
)
def test_bad_parameters_have_a_reason(client: Any, params: dict[str, Any], word: str) -> None:
    reply = infer(client, "scan_0", **params)
    assert reply.status_code == 400
    assert word in reply.json()["detail"]


def test_a_seg_is_made_elsewhere(client: Any) -> None:
    reply = infer(client, "scan_0", output="dicom_seg")
    assert reply.status_code == 400
    assert "/boltzformer/api/segment" in reply.json()["detail"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"threshold": NaN}', '{"seed": 1e999}', '{"prompts": ["\\ud800"]}'])
def test_bad_json_is_refused(client: Any, text: str) -> None:
    reply = client.post("/infer/boltzformer?image=scan_0&output=json", data={"params": text})
    assert reply.status_code == 400, reply.text


@pytest.mark.parametrize(
    ("image", "status"), [("nope", 404), ("linked", 404), ("../x", 400), ("/etc/passwd", 400), ("labels", 404)]
)
def test_only_images_of_the_datastore(client: Any, image: str, status: int) -> None:
    for reply in (
        infer(client, image),
        client.get(f"/datastore/image?image={image}"),
        client.get(f"/datastore/image/info?image={image}"),
        client.post("/boltzformer/api/segment", json={"image": image, "prompts": ["liver"]}),
        client.put(f"/datastore/label?image={image}", files={"label": ("a.nii.gz", b"1")}),
    ):
        assert reply.status_code == status, reply.text
        assert "/etc" not in reply.json()["detail"]


def test_tags_and_new_ids_stay_inside(client: Any, studies: Path) -> None:
    upload = {"label": ("a.nii.gz", b"123")}
    assert client.put("/datastore/label?image=scan_0&tag=../../x", files=upload).status_code == 400
    assert client.put("/datastore/image?image=../evil", files={"file": ("a.nii.gz", b"1")}).status_code == 400
    assert client.put("/datastore/image?image=evil", files={"file": ("a.sh", b"1")}).status_code == 400
    assert not list(studies.parent.glob("**/evil*"))


def test_a_damaged_upload_is_the_clients_mistake(client: Any) -> None:
    reply = client.post("/infer/boltzformer?output=json", files={"file": ("a.nii.gz", b"no scan")})
    assert reply.status_code == 422
    assert "/tmp" not in reply.text


def test_too_large_an_upload_is_refused(client: Any) -> None:
    reply = client.post("/infer/boltzformer", files={"file": ("a.nii.gz", b"0" * 2_000_000)})
    assert reply.status_code == 413


def test_model_cannot_be_replaced_or_deleted(client: Any, checkpoint: Path) -> None:
    assert client.put("/model/boltzformer", files={"file": ("a.pt", b"1")}).status_code == 405
    assert client.delete("/model/boltzformer").status_code == 405
    assert checkpoint.is_file()


@pytest.mark.parametrize(
    "path", ["/infer/other?image=scan_0", "/train/other", "/scoring/other", "/activelearning/other"]
)
def test_unknown_models_and_methods(client: Any, path: str) -> None:
    assert client.post(path).status_code == 404


def test_own_interface(client: Any) -> None:
    config = client.get("/boltzformer/api/config").json()
    assert {"id": "scan_0", "modality": None} in config["images"]
    assert "picture" not in [each["id"] for each in config["images"]]
    body = {
        "image": "scan_0",
        "prompts": ["liver", "left kidney"],
        "uncertainty": 2,
        "threshold": 0.3,
        "presence": False,
    }
    reply = client.post("/boltzformer/api/segment", json=body).json()
    assert reply["label_names"] == {"liver": 1, "left kidney": 2}
    assert reply["uncertainty"] is True
    results = f"/boltzformer/api/results/{reply['result']}"
    for name in ("labels.nii.gz", "uncertainty.nii.gz", "summary.json"):
        assert client.get(f"{results}/{name}").status_code == 200, name
    assert client.get(f"{results}/segmentation.dcm").status_code == 404
    assert client.get(f"{results}/..%2f..%2fx").status_code == 404
    assert client.get("/boltzformer/api/results/x/labels.nii.gz").status_code == 404
    assert client.get("/boltzformer/api/images/scan_0/scan.nii.gz").status_code == 200


@pytest.mark.parametrize("path", ["..%2fapp.py", "x.py", "%00.html", "a/../../main.py", "none.js"])
def test_page_serves_its_folder_only(client: Any, path: str) -> None:
    assert client.get(f"/boltzformer/{path}").status_code == 404


def test_parallel_requests_equal_serial_ones(client: Any) -> None:
    jobs = [
        (f"scan_{n % 3}", prompt) for n, prompt in enumerate(["liver", "left kidney", "aorta", "a b", "c d", "e f"])
    ]

    def one(job: tuple[str, str]) -> bytes:
        return infer(client, job[0], output="image", prompts=[job[1]], threshold=0.3, presence=False).content

    serial = [one(job) for job in jobs]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, jobs)) == serial


def test_the_second_prompt_is_not_encoded_again(client: Any) -> None:
    client.post("/reload")
    assert infer(client, "scan_2", prompts=["liver"]).json()["cached"] is False
    assert infer(client, "scan_2", prompts=["left kidney"]).json()["cached"] is True


def test_scoring_then_active_learning(client: Any) -> None:
    scores = client.post("/scoring/uncertainty?run_sync=true", json={"prompts": ["liver"], "uncertainty": 2})
    assert scores.status_code == 200, scores.text
    assert set(scores.json()) == {"scan_0", "scan_1", "scan_2"}
    sample = client.post("/activelearning/uncertainty", json={}).json()
    assert sample["id"] == max(scores.json(), key=scores.json().get)  # not the link, which cannot be used


def test_all_scoring_methods_at_once(client: Any) -> None:
    """The parameters of each stand under its name."""
    params = {"uncertainty": {"prompts": ["left kidney"], "uncertainty": 3}}
    reply = client.post("/scoring/?run_sync=true", json=params)
    assert reply.status_code == 200, reply.text
    assert set(reply.json()["uncertainty"]["result"]) == {"scan_0", "scan_1", "scan_2"}
    scores = json.loads((client.app.state.boltzformer.service.settings.workspace / "scores.json").read_text())
    assert scores["scan_0"]["of"][2:] == [["left kidney"], 3]


def test_a_scan_is_shown_while_another_is_segmented(client: Any, studies: Path) -> None:
    service = client.app.state.boltzformer.service
    segmented = threading.Event()
    service._worker.submit(segmented.wait)
    with ThreadPoolExecutor(1) as pool:
        try:
            assert pool.submit(service.volume, studies / "scan_1.nii.gz").result(60).shape == SHAPE
        finally:
            segmented.set()


def test_many_at_once_each_find_their_result(client: Any) -> None:
    """More requests than results are kept: those that wait push out none that is asked for next."""

    def one(number: int) -> int:
        body = {"image": f"scan_{number % 3}", "prompts": [f"thing {number}"], "threshold": 0.3, "presence": False}
        rid = client.post("/boltzformer/api/segment", json=body).json()["result"]
        return int(client.get(f"/boltzformer/api/results/{rid}/labels.nii.gz").status_code)

    with ThreadPoolExecutor(24) as pool:
        assert set(pool.map(one, range(24))) == {200}


def test_a_failed_upload_leaves_nothing_behind(client: Any) -> None:
    before = set(Path(tempfile.gettempdir()).glob("tmp*"))
    assert client.post("/infer/boltzformer?output=json", files={"file": ("a.nii.gz", b"no scan")}).status_code == 422
    left = set(Path(tempfile.gettempdir()).glob("tmp*")) - before
    assert not [path for path in left if path.is_file() and path.read_bytes() == b"no scan"]


def test_a_label_that_does_not_lie_on_its_scan_is_refused(client: Any, tmp_path: Path) -> None:
    write_image_file(np.ones((4, 4, 4), np.uint8), AFFINE, tmp_path / "label.nii.gz")
    with (tmp_path / "label.nii.gz").open("rb") as file:
        reply = client.put("/datastore/label?image=scan_1", files={"label": ("l.nii.gz", file)})
    assert reply.status_code == 422, reply.text


def test_two_processes_give_a_name_one_number(tmp_path: Path) -> None:
    server, batch = LabelNumbers(tmp_path / "labels.json"), LabelNumbers(tmp_path / "labels.json")
    server.declare(["liver"])
    batch.declare(["pancreas"])
    server.declare(["cyst"])
    assert server.names() == batch.names() == {"liver": 1, "pancreas": 2, "cyst": 3}


def test_batch_inference_saves_labels(client: Any) -> None:
    params = {"prompts": ["liver"], "label_tag": "original"}
    reply = client.post("/batch/infer/boltzformer?images=unlabeled&run_sync=true", json=params)
    assert reply.status_code == 200, reply.text
    assert client.get("/datastore/label?label=scan_1&tag=original").status_code == 200


def test_learns_a_new_name_once(client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[8:20, 10:24, 1:5] = 3
    write_image_file(labels, AFFINE, tmp_path / "label.nii.gz")
    info = {"label_info": [{"name": "Bright Block", "idx": 3}]}
    with (tmp_path / "label.nii.gz").open("rb") as file:
        saved = client.put(
            "/datastore/label?image=scan_0", data={"params": json.dumps(info)}, files={"label": ("l.nii.gz", file)}
        )
    assert saved.status_code == 200, saved.text
    before = client.get("/model/info/boltzformer").json()["checksum"]
    trained = client.post("/train/boltzformer?run_sync=true", json={"epochs": 1}).json()
    assert trained["trained"] is True
    assert trained["names"] == ["Bright Block"]
    after = client.get("/model/info/boltzformer").json()["checksum"]
    assert after != before
    model = client.get("/info/").json()["models"]["boltzformer"]
    assert "Bright Block" in model["labels"]
    assert "Bright Block" in model["config"]["prompts"]
    again = client.post("/train/boltzformer?run_sync=true", json={"epochs": 1}).json()
    assert again["trained"] is False
    assert client.get("/model/info/boltzformer").json()["checksum"] == after
    assert infer(client, "scan_0").status_code == 200  # the default prompts, the new one among them
    told = [each.getMessage() for each in caplog.records if "not the checkpoint given" in each.getMessage()]
    assert len(told) == 1


def test_the_dataset_is_sent_and_not_kept(client: Any) -> None:
    """Of the label that was learned before."""
    before = set(Path(tempfile.gettempdir()).iterdir())
    reply = client.get("/datastore/dataset")
    assert reply.status_code == 200, reply.text
    with zipfile.ZipFile(io.BytesIO(reply.content)) as content:
        assert {"image/scan_0.nii.gz", "label/scan_0.nii.gz"} <= set(content.namelist())
    assert not [each for each in set(Path(tempfile.gettempdir()).iterdir()) - before if zipfile.is_zipfile(each)]
