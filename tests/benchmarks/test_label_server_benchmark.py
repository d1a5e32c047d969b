"""The label server's benchmark, without a server: what it asks, in which order, and what its figures mean."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from benchmarks import label_server
from boltzformer_monai.networks.weights import load_checkpoint


class Stopwatch(label_server.Client):
    """Answers at once: the first request on a scan takes four times as long as the others."""

    def __init__(self) -> None:
        super().__init__("")
        self.asked: list[tuple[str, str, tuple[str, ...]]] = []
        self.known: set[str] = set()

    def forget(self) -> None:
        self.known.clear()

    def stock(self, image: str, prompts: list[str]) -> float:
        return self._answer("stock", image, prompts)

    def own(self, image: str, prompts: list[str]) -> float:
        return self._answer("own", image, prompts)

    def _answer(self, way: str, image: str, prompts: list[str]) -> float:
        self.asked.append((way, image, tuple(prompts)))
        seconds = len(prompts) * (1.0 if image in self.known else 4.0)
        self.known.add(image)
        return seconds


def test_ratio_of_the_first_to_the_second_prompt_with_scans_in_turns() -> None:
    watch = Stopwatch()
    rows = {row["name"]: row["value"] for row in label_server.measure(watch, ["a", "b"], rounds=2)}
    assert rows["second_prompt_faster_stock"] == rows["second_prompt_faster_own"] == 4
    assert rows["time_first_stock"] == 4
    assert rows["time_15_prompts_known_scan_own"] == 15
    single = [(image, prompts[0]) for way, image, prompts in watch.asked[2:] if way == "stock" and len(prompts) == 1]
    for one, other in zip(single, single[1:], strict=False):
        assert one[0] != other[0]  # never the same scan twice running


def test_random_checkpoint_and_slices_from_the_middle(tmp_path: Path) -> None:
    network, description = load_checkpoint(label_server.write_checkpoint(tmp_path / "model.pt", "tiny", 64))
    assert description.network.image_size == 64
    array = np.arange(4 * 5 * 9, dtype=np.int16).reshape(4, 5, 9)
    nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])).to_filename(tmp_path / "scan.nii.gz")
    folder = tmp_path / "studies"
    folder.mkdir()
    assert label_server.write_studies(folder, [tmp_path / "scan.nii.gz"] * 2, 3) == ["scan_0", "scan_1"]
    written = nibabel.load(folder / "scan_1.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), array[..., 3:6])
    assert written.affine[2, 3] == 6


@pytest.fixture
def requests() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server that takes everything, and what it was asked."""
    seen: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            seen.append((self.command, self.path, body))
            answer = json.dumps({"result": "rid"}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = _take  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()
    server.server_close()


def test_both_ways_fetch_the_voxels(requests: tuple[str, list[tuple[str, str, bytes]]]) -> None:
    client = label_server.Client(requests[0])
    assert client.stock("scan_0", ["liver"]) > 0
    assert client.own("scan_0", ["liver"]) > 0
    (_, stock, form), (_, segment, body), (_, fetched, _) = requests[1]
    assert stock == "/infer/boltzformer?image=scan_0&output=all"
    assert b'"prompts": ["liver"]' in form
    assert segment == "/boltzformer/api/segment"
    assert json.loads(body)["image"] == "scan_0"
    assert fetched == "/boltzformer/api/results/rid/labels.nii.gz"
