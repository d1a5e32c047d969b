"""Requests about a point, over HTTP: the lesion there, a closer look, and what is refused."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.needs import need_module

need_module("monailabel")

from tests.label.conftest import AFFINE, SHAPE  # noqa: E402

COMMON = {"image": "scan_0", "prompts": ["left kidney"], "threshold": 0.3, "presence": False}


def _centre() -> list[float]:
    return [float(each) for each in (AFFINE @ (*(n / 2 for n in SHAPE), 1))[:3]]


def _labels(client: Any, reply: dict[str, Any]) -> np.ndarray:
    content = client.get(f"/boltzformer/api/results/{reply['result']}/labels.nii.gz").content
    return np.asarray(nibabel.Nifti1Image.from_stream(io.BytesIO(gzip.decompress(content))).dataobj)


def test_the_lesion_at_a_point_and_the_others_dropped(client: Any) -> None:
    every = client.post("/boltzformer/api/segment", json={**COMMON, "point": _centre()}).json()
    (finding,) = every["findings"]
    number = finding["at_point"]["lesion"] or 1
    lesion = next(each for each in finding["lesions"] if each["number"] == number)
    voxel = np.argwhere(_labels(client, every) == finding["label"])
    point = lesion["centre_mm"]
    nearest = voxel[np.linalg.norm(voxel @ AFFINE[:3, :3].T + AFFINE[:3, 3] - point, axis=1).argmin()]
    point = [float(each) for each in (AFFINE @ (*nearest, 1))[:3]]
    body = {**COMMON, "point": point, "keep_lesions": "at_point"}
    for reply in (
        client.post("/boltzformer/api/segment", json=body).json(),
        client.post(
            "/infer/boltzformer?image=scan_0&output=json",
            data={"params": json.dumps({key: value for key, value in body.items() if key != "image"})},
        ).json(),
    ):
        (kept,) = reply["findings"]
        assert len(kept["lesions"]) == 1
        assert kept["lesions"][0]["at_point"] is True
        assert kept["at_point"] == {"lesion": 1, "distance_mm": 0.0, "dropped": len(finding["lesions"]) - 1}
        assert kept["voxels"] == kept["lesions"][0]["voxels"] <= finding["voxels"]
        assert "only at the point" in [each["kind"] for each in reply["caveats"]]


def test_a_closer_look_says_so(client: Any) -> None:
    whole = client.post("/boltzformer/api/segment", json=COMMON).json()
    assert "at_point" not in whole["findings"][0]
    closer = client.post("/boltzformer/api/segment", json={**COMMON, "point": _centre(), "look_closer": True}).json()
    assert "looked closer" in [each["kind"] for each in closer["caveats"]]
    assert (_labels(client, closer) != _labels(client, whole)).any()
    summary = client.get(f"/boltzformer/api/results/{closer['result']}/summary.json").json()
    assert summary["point"] == pytest.approx(_centre())
    assert summary["look_closer"] is True
    assert summary["protocol_settings"] == {"least_zoom": 1.5}


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"point": [1e5, 0, 0]}, "outside of the scan"),
        ({"point": [1, 2]}, "point"),
        ({"point": [1, 2, 3, 4]}, "point"),
        ({"point": ["a", 2, 3]}, "point"),
        ({"point": [True, 2, 3]}, "point"),
        ({"point": {"x": 1}}, "point"),
        ({"point": 5}, "point"),
        ({"point": "nowhere"}, "point"),
        ({"keep_lesions": "at_point"}, "needs a point"),
        ({"look_closer": True}, "needs a point"),
        ({"point": [0, 0, 0], "closer_point": [0, 0, 0]}, "closer_point"),
        ({"point": [0, 0, 0], "look_closer": True, "closer_point": [1, 2]}, "closer_point"),
        ({"point": _centre(), "look_closer": True, "closer_point": [9e4, 0, 0]}, "outside of the scan"),
        ({"point": [0, 0, 0], "keep_lesions": "one"}, "all or at_point"),
        ({"point": [0, 0, 0], "look_closer": "maybe"}, "look_closer"),
    ],
    ids=str,
)
def test_what_is_refused_in_one_line(client: Any, given: dict[str, Any], word: str) -> None:
    reply = client.post("/boltzformer/api/segment", json={**COMMON, **given})
    assert reply.status_code == 400, reply.text
    assert word in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    assert len(reply.json()["detail"]) < 250
