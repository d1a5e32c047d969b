"""A day of use, over REST and through ``monailabel.client.MONAILabelClient``, which is what 3D Slicer's module calls.

The real server runs in a process of its own; the tests follow one another, as a day does.
"""

from __future__ import annotations

import gzip
import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from monailabel.client import MONAILabelClient  # noqa: E402

from boltzformer_monai.engines.resume import read_state  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.io.read import read_volume  # noqa: E402
from tests.label.conftest import AFFINE, SHAPE, scan  # noqa: E402
from tests.label.day import write_block, write_studies  # noqa: E402
from tests.label.live_server import Server, running  # noqa: E402
from tests.sizes import count  # noqa: E402

pytestmark = pytest.mark.slow  # one day of one server: every test goes on where the one before ended

FIFTEEN = (
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate",
)  # fmt: skip
MODEL = "boltzformer"
SURE = {"threshold": 0.3, "presence": False}
"""So that the random network finds something."""
_TRAINED_S = 600


class Day:
    """The server, which may be started again, and what the tests hand on to each other."""

    def __init__(self, studies: Path, folder: Path, checkpoint: Path) -> None:
        self.studies, self.folder = studies, folder
        self.images = write_studies(studies)
        self.conf = {"checkpoint": checkpoint, "modality": "CT", "epochs": 2}
        self.stack = ExitStack()
        self.server: Server = self.start()

    @property
    def workspace(self) -> Path:
        return self.studies / ".boltzformer"

    def start(self) -> Server:
        self.stack.close()
        self.server = self.stack.enter_context(running(self.studies, self.folder, self.conf))
        return self.server

    def labels(self) -> dict[str, int]:
        """Names and numbers, as /info declares them."""
        return dict(self.server.get("/info/").json()["models"]["boltzformer"]["labels"])

    def checksum(self) -> str:
        return str(self.server.get("/model/info/boltzformer").json()["checksum"])

    def save(self, image: str, name: str, value: int) -> None:
        """PUT a corrected label with the name of its segment, as 3D Slicer does."""
        file = write_block(self.folder / "label.nii.gz", value)
        params = {"label_info": [{"name": name, "idx": value}]}
        self.server.form("PUT", f"/datastore/label?image={image}", {"params": params}, {"label": file}).json()

    def trained(self) -> list[str]:
        """Wait until no training runs; the states of all of them."""
        end = time.monotonic() + _TRAINED_S
        while time.monotonic() < end:
            states = [task["status"] for task in self.server.get("/train/", all="true").json()]
            if not {"SUBMITTED", "RUNNING"} & set(states):
                return states
            time.sleep(0.2)
        pytest.fail(f"the training did not end: {self.server.log.read_text()[-2000:]}")


@pytest.fixture(scope="module")
def day(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """From morning to evening."""
    day = Day(tmp_path_factory.mktemp("studies"), tmp_path_factory.mktemp("day"), checkpoint)
    with day.stack:
        yield day


@pytest.fixture(scope="module")
def client(day: Day, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """As 3D Slicer makes it, before the server of the morning."""
    return MONAILabelClient(day.server.url, tmpdir=str(tmp_path_factory.mktemp("replies")), client_id="user-xyz")


def voxels(image: bytes) -> np.ndarray:
    return np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(image)).dataobj)


def voxels_in(file: str) -> np.ndarray:
    return np.asarray(nibabel.load(file).dataobj)


def test_the_server_says_what_it_offers(day: Day) -> None:
    info = day.server.get("/info/").json()
    model = info["models"]["boltzformer"]
    assert model["config"]["prompts"] == "liver; left kidney"
    assert model["labels"] == {"liver": 1, "left kidney": 2}
    assert "uncertainty" in info["strategies"]
    assert "uncertainty" in info["scoring"]
    assert "boltzformer" in info["trainers"]
    config = day.server.get("/boltzformer/api/config").json()
    assert [each["id"] for each in config["images"]] == day.images


def test_the_client_sees_it(day: Day, client: Any) -> None:
    info = client.info()
    assert info["models"][MODEL]["type"] == "segmentation"
    assert info["models"][MODEL]["config"]["prompts"] == "liver; left kidney"
    assert not client.auth_enabled()


def test_the_second_prompt_is_not_encoded_again(day: Day) -> None:
    """On every scan, by either interface; another scan in between does not matter."""
    for image in day.images:
        assert day.server.infer(image, prompts="liver").json()["cached"] is False
    for image in day.images:
        assert day.server.infer(image, prompts="left kidney").json()["cached"] is True
        body = {"image": image, "prompts": ["spleen"], "window": "abdomen"}
        assert day.server.post("/boltzformer/api/segment", body).json()["cached"] is True


@pytest.mark.parametrize("count", [1, 3, 15])
def test_many_prompts_in_one_request(day: Day, count: int) -> None:
    """Map and reply say the same, and the map lies on the scan's grid."""
    prompts = list(FIFTEEN[:count])
    for image in day.images[:2]:
        parts = day.server.infer(image, output="all", prompts=prompts, **SURE).parts()
        labels, params = voxels(parts["image"]), json.loads(parts["params"])
        assert [each["prompt"] for each in params["findings"]] == prompts
        assert labels.shape == read_volume(day.studies / f"{image}.nii.gz", modality="CT").shape
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) - {0} == set(params["label_names"].values())
        declared = day.labels()
        assert all(declared[name] == value for name, value in params["label_names"].items())
        assert len({each["label"] for each in params["findings"]}) == count
        assert set(params["not_found"]) == {each["prompt"] for each in params["findings"] if not each["found"]}


def test_parallel_requests_get_what_serial_ones_get(day: Day) -> None:
    """Many at once, each with prompts of its own, on different scans; byte for byte."""
    words = (*FIFTEEN, "a bright block")
    asked = [
        (day.images[number % len(day.images)], [words[number % 16], words[(number * 5 + 3) % 16] + f" {number}"])
        for number in range(count(8, thorough=64))
    ]

    def ask(each: tuple[str, list[str]]) -> bytes:
        reply = day.server.infer(each[0], output="image", prompts=each[1], **SURE)
        assert reply.status == 200, reply.content
        return reply.content

    with ThreadPoolExecutor(len(asked)) as pool:
        parallel = list(pool.map(ask, asked))
    assert parallel == [ask(each) for each in asked]
    assert len(set(parallel)) > len(asked) // 2


def test_a_session_is_segmented_and_removed(day: Day) -> None:
    file = day.studies / "first.nii.gz"
    session = day.server.form("PUT", "/session/", {}, {"files": file}).json()["session_id"]
    path = f"/infer/boltzformer?session_id={session}&output=image"
    params = {"prompts": ["liver"], **SURE}
    of_session = day.server.form("POST", path, {"params": params})
    assert of_session.status == 200, of_session.content
    assert np.array_equal(voxels(of_session.content), voxels(day.server.infer("first", "image", **params).content))
    assert day.server.ask("DELETE", f"/session/{session}").status == 200
    assert day.server.form("POST", path, {"params": params}).status == 404


@pytest.mark.parametrize("extension", [".nii.gz", ".nrrd"])
def test_prompts_as_slicer_sends_them(client: Any, extension: str) -> None:
    """The options of its table are one text with ``;`` and plain values; it asks for .nrrd."""
    params = {"prompts": "left kidney; liver ;a bright block", "result_extension": extension, "threshold": "0.3"}
    file, reply = client.infer(MODEL, "second", {**params, "presence": False})
    assert file.endswith(extension)
    assert [each["prompt"] for each in reply["findings"]] == ["left kidney", "liver", "a bright block"]
    if extension == ".nii.gz":
        labels = voxels_in(file)
        assert labels.shape == SHAPE
        assert set(np.unique(labels)) - {0} == set(reply["label_names"].values())
    assert client.infer(MODEL, "second", {"prompts": "spleen", "window": "abdomen"})[1]["cached"] is True


def test_a_mistake_is_an_error_with_a_reason(client: Any) -> None:
    with pytest.raises(Exception, match="threshold should be a valid number") as caught:
        client.infer(MODEL, "second", {"prompts": "liver", "threshold": "high"})
    assert type(caught.value).__name__ == "MONAILabelClientException"


def test_an_uploaded_scan_and_a_session(day: Day, client: Any, tmp_path: Path) -> None:
    file = tmp_path / "visit.nii.gz"
    write_image_file(scan(7), AFFINE, file)
    client.upload_image(str(file), "visit 7")
    assert "visit 7" in client.datastore()["objects"]
    stored = voxels_in(client.infer(MODEL, "visit 7", {"prompts": "liver", **SURE})[0])
    session = client.create_session(str(file))["session_id"]
    assert client.get_session(session)
    of_session = client.infer(MODEL, "", {"prompts": "liver", **SURE}, session_id=session)[0]
    assert np.array_equal(voxels_in(of_session), stored)
    client.remove_session(session)
    of_file = client.infer(MODEL, "", {"prompts": "liver", **SURE}, file=str(file))[0]
    assert np.array_equal(voxels_in(of_file), stored)
    assert day.server.ask("DELETE", "/datastore/image?id=visit%207").status == 200


def test_scores_choose_the_next_scan(day: Day) -> None:
    body = {"prompts": ["liver", "left kidney"], "uncertainty": 3}
    scores = day.server.post("/scoring/uncertainty?run_sync=true", body).json()
    assert set(scores) == set(day.images)
    assert all(0 <= score <= 1 for score in scores.values())
    assert len(set(scores.values())) > 1
    chosen = day.server.post("/activelearning/uncertainty").json()
    assert chosen["id"] == max(scores, key=lambda image: scores[image])
    assert chosen["weight"] == scores[chosen["id"]]
    assert day.server.post("/activelearning/uncertainty").json()["id"] != chosen["id"]


def test_all_scans_at_once(day: Day) -> None:
    body = {"prompts": ["liver", "left kidney"], "save_label": True, **SURE}
    day.server.post("/batch/infer/boltzformer?images=all&run_sync=true", body).json()
    objects = day.server.get("/datastore/", output="all").json()["objects"]
    assert all("original" in objects[image]["labels"] for image in day.images)
    label = day.server.get("/datastore/label", label="first", tag="original").content
    alone = day.server.infer("first", "image", prompts=["liver", "left kidney"], **SURE).content
    assert np.array_equal(voxels(label), voxels(alone))


def test_a_corrected_label_teaches_its_name_once(day: Day, client: Any, tmp_path: Path) -> None:
    """While it is trained a second training is refused; numbers that were given before stay."""
    numbers, before = day.labels(), day.checksum()
    assert {"id", "path"} <= set(client.next_sample("first", {}))
    block = write_block(tmp_path / "label.nii.gz", 3)
    client.save_label("first", str(block), params={"label_info": [{"name": "Bright Block", "idx": 3}]})
    assert np.array_equal(voxels_in(client.download_label("first", "final")), voxels_in(str(block)))

    status = client.train_start(MODEL, {"epochs": 1})["status"]
    end = time.monotonic() + _TRAINED_S
    while status == "SUBMITTED" and time.monotonic() < end:
        time.sleep(0.05)
        status = client.train_status()["status"]
    assert status == "RUNNING"
    assert day.server.post("/train/boltzformer", {"epochs": 1}).status == 429
    assert day.trained() == ["DONE"]
    assert client.train_status()["status"] == "DONE"
    assert not client.train_status(check_if_running=True)
    assert client.next_sample("uncertainty", {})["id"] != "first"
    log = day.server.log.read_text(errors="replace")
    assert log.count("learned Bright Block from 1 labels") == 1
    assert day.checksum() != before
    model = day.server.get("/info/").json()["models"]["boltzformer"]
    assert model["config"]["prompts"] == "liver; left kidney; Bright Block"
    assert {name: model["labels"][name] for name in numbers} == numbers
    findings = day.server.infer("second", **SURE).json()["findings"]  # the default prompts
    assert [each["prompt"] for each in findings] == ["liver", "left kidney", "Bright Block"]
    assert day.server.post("/train/boltzformer?run_sync=true").json()["trained"] is False


def test_a_training_that_was_killed_goes_on_and_the_rest_was_kept(day: Day) -> None:
    day.save("second", "Other Block", 5)
    # Prompts that the network does not know have passing numbers, which a restart forgets.
    names = json.loads((day.workspace / "labels.json").read_text(encoding="utf-8"))["names"]
    declared = {name: number for name, number in day.labels().items() if name in names}
    assert set(declared) == {"liver", "left kidney", "Bright Block"}
    kept = (declared, day.checksum(), (day.workspace / "scores.json").read_bytes())
    assert day.server.post("/train/boltzformer", {"epochs": 6}).status == 200
    training, end = day.workspace / "training", time.monotonic() + _TRAINED_S
    while not list(training.glob("*/states/state_*.pt")) and time.monotonic() < end:
        time.sleep(0.02)
    day.server.stop(signal.SIGKILL)
    state = read_state(max(training.glob("*/states/state_*.pt")))["training"]
    assert state["step"] // state["epoch_length"] < 6

    day.start()
    assert (day.labels(), day.checksum(), (day.workspace / "scores.json").read_bytes()) == kept
    objects = day.server.get("/datastore/", output="all").json()["objects"]
    assert {image for image in day.images if "final" in objects[image]["labels"]} == {"first", "second"}
    saved = day.server.get("/datastore/label", label="second", tag="final").content
    assert set(np.unique(voxels(saved))) == {0, 5}
    scores = json.loads(kept[2])
    chosen = day.server.post("/activelearning/uncertainty").json()["id"]
    assert chosen in scores
    assert chosen not in ("first", "second")

    assert day.server.post("/train/boltzformer", {"epochs": 6}).status == 200
    assert day.trained() == ["DONE"]
    assert f"going on after step {state['step']}, epoch" in day.server.log.read_text(errors="replace")
    assert day.checksum() != kept[1]
    prompts = day.server.get("/info/").json()["models"]["boltzformer"]["config"]["prompts"]
    assert prompts == "liver; left kidney; Bright Block; Other Block"
