"""The label server's first prompt on a scan against the next ones, over HTTP, by MONAI Label's interface and by ours.

    python benchmarks/label_server.py --image amos.nii.gz chest.nii.gz --json benchmarks/results/label_server.json

A real server is started on copies of the scans. The scans take turns, so that a request is never the last one's repeat;
in every round the server first forgets scans and features, then each scan gets a new prompt, and then another one, of
which only the decoding is left. ``second_prompt_faster_…`` is the ratio of the medians of whole
requests, the reply's voxels included. Weights are random unless a checkpoint is given: time does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.record import report, result  # noqa: E402
from benchmarks.volume import ORGANS, middle  # noqa: E402
from boltzformer_monai.io.formats import write_image_file  # noqa: E402
from boltzformer_monai.io.read import read_volume  # noqa: E402
from boltzformer_monai.networks import create_boltzformer, network_config  # noqa: E402
from boltzformer_monai.networks.weights import Description  # noqa: E402

APP = ROOT / "boltzformer_monai" / "label"
_START_S = 600
_REPLY_S = 3600


def write_checkpoint(path: Path, preset: str, size: int | None) -> Path:
    """Random weights as a checkpoint of one abdominal target."""
    torch.manual_seed(0)
    config = network_config(preset, **({} if size is None else {"image_size": size}))
    window = {"kind": "hu", "level": 40.0, "width": 400.0}
    target = {"target": "liver", "modality": "CT", "site": "abdomen", "window": window}
    description = Description(config, {"plane": "axial", "targets": [target]})
    torch.save({"model": create_boltzformer(config).state_dict(), "description": description.state_dict()}, path)
    return path


def write_studies(folder: Path, images: list[Path], slices: int | None) -> list[str]:
    """The scans as int16, or some slices from their middle; returns their ids."""
    names = []
    for number, image in enumerate(images):
        name = f"scan_{number}"
        volume = read_volume(image)
        volume = volume if slices is None else middle(volume, slices)
        write_image_file(volume.array.astype("int16"), volume.affine, folder / f"{name}.nii.gz")
        names.append(name)
    return names


class Client:
    """Whole requests, as a viewer makes them."""

    def __init__(self, url: str, process: int = 0) -> None:
        self.url = url
        self.process = process

    def peak_memory(self) -> float:
        """Largest resident memory of the server so far, in GB (Linux)."""
        status = Path(f"/proc/{self.process}/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9

    def send(self, path: str, **body: Any) -> bytes:
        """GET without a body, POST with ``json`` or ``files``."""
        reply = requests.request("POST" if body else "GET", self.url + path, timeout=_REPLY_S, **body)
        reply.raise_for_status()
        return reply.content

    def forget(self) -> None:
        """Have the server drop scans and features, and load its network again."""
        self.send("/reload", json={})
        self.send("/info/")

    def stock(self, image: str, prompts: list[str]) -> float:
        """Seconds of MONAI Label's infer with map and parameters in the reply, as 3D Slicer asks for them."""
        params = json.dumps({"prompts": prompts, "result_extension": ".nrrd", "threshold": 0.3})
        started = time.perf_counter()
        self.send(f"/infer/boltzformer?image={image}&output=all", files={"params": (None, params)})
        return time.perf_counter() - started

    def own(self, image: str, prompts: list[str]) -> float:
        """Seconds of what the page does: segment, then fetch the map."""
        body = {"image": image, "prompts": prompts, "threshold": 0.3}
        started = time.perf_counter()
        reply = json.loads(self.send("/boltzformer/api/segment", json=body))
        self.send(f"/boltzformer/api/results/{reply['result']}/labels.nii.gz")
        return time.perf_counter() - started


def measure(client: Client, images: list[str], rounds: int) -> list[dict[str, Any]]:
    """First and second prompts in turns over the scans, then 1, 3 and 15 prompts on scans that are known."""
    times: dict[str, list[float]] = defaultdict(list)
    ways: dict[str, Callable[[str, list[str]], float]] = {"stock": client.stock, "own": client.own}
    for way in ways.values():  # threads, allocators and lazy imports are there before anything counts
        way(images[0], [ORGANS[0]])
    for turn in range(rounds):
        for name, way in ways.items():
            client.forget()
            for step in ("first", "second", "third"):
                for image in images:
                    prompt = ORGANS[(3 * turn + ("first", "second", "third").index(step)) % len(ORGANS)]
                    times[f"{step}_{name}"].append(way(image, [prompt]))
            for count in (1, 3, 15):
                for image in images:
                    times[f"{count}_prompts_known_scan_{name}"].append(way(image, list(ORGANS[:count])))
    median = {key: statistics.median(values) for key, values in times.items()}
    rows = [
        result(f"second_prompt_faster_{name}", median[f"first_{name}"] / median[f"second_{name}"], "times")
        for name in ways
    ]
    return rows + [result(f"time_{key}", value, "s") for key, value in median.items()]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def with_server(studies: Path, checkpoint: Path, threads: int, work: Callable[[Client], Any]) -> Any:
    """Run the server in a process of its own while the work is done."""
    port, log = free_port(), studies.parent / "server.log"
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", str(studies)]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    for key, value in (("checkpoint", str(checkpoint)), ("modality", "CT")):
        command += ["--conf", key, value]
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("wb") as sink:
        server = subprocess.Popen(
            command, cwd=studies.parent, stdout=sink, stderr=sink, start_new_session=True, env=variables
        )
    client = Client(f"http://127.0.0.1:{port}", server.pid)
    try:
        _wait(client, server, log)
        return work(client)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)


def _wait(client: Client, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and server.poll() is None:
        try:
            client.send("/info/")
        except requests.RequestException:
            time.sleep(0.3)
        else:
            return
    raise RuntimeError("the server did not start:\n" + log.read_text(errors="replace")[-2000:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--image", type=Path, nargs="+", required=True, metavar="SCAN", help="CT scans; two or more")
    parser.add_argument("--checkpoint", type=Path, help="model.pt; random weights by default")
    parser.add_argument("--preset", default="tiny", help="network of the random weights")
    parser.add_argument("--size", type=int, help="edge of its square; the preset's by default")
    parser.add_argument("--slices", type=int, help="from the middle of each scan; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        studies, checkpoint = Path(folder) / "studies", Path(folder) / "model.pt"
        studies.mkdir()
        images = write_studies(studies, arguments.image, arguments.slices)
        if arguments.checkpoint:
            shutil.copyfile(arguments.checkpoint, checkpoint)
        else:
            write_checkpoint(checkpoint, arguments.preset, arguments.size)
        rows = with_server(
            studies, checkpoint, arguments.threads, lambda client: measure(client, images, arguments.rounds)
        )
    settings = {"preset": arguments.preset, "size": arguments.size, "slices": arguments.slices}
    report(rows, arguments.json, settings=settings | {"rounds": arguments.rounds})
    return 0


if __name__ == "__main__":
    sys.exit(main())
