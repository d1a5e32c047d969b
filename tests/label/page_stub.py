"""A stand-in for the server: the page's files, and its own routes answered from a phantom and its label map.

What a prompt finds is the phantom's structure of that name; "spots" finds three boxes. Prompts decide the rest:
"absent" in one is not found, "refuse" in one is answered with 422, "break" with a page of HTML and 500.
"""

from __future__ import annotations

import functools
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import nibabel as nib
import numpy as np

from boltzformer_monai.data.prompt_check import PromptReader
from boltzformer_monai.demo.phantom import labels_of, make_phantom
from boltzformer_monai.findings.lesions import find_lesions
from boltzformer_monai.inferers.point import lesion_at
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.label.completions import complete_prompt

PAGE = Path(__file__).resolve().parents[2] / "boltzformer_monai" / "label" / "page"
_TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript"}
REFUSAL = "prompt 1 is refused; type another one"
TARGETS = ("liver", "left kidney", "right kidney", "spleen")
SPOTS = ((slice(20, 26), slice(30, 36), slice(4, 8)), (slice(60, 64), slice(50, 54), slice(10, 12)), (48, 20, 15))
"""Voxels that "spots" finds, the largest first."""


def nifti_bytes(array: np.ndarray, affine: np.ndarray) -> bytes:
    """A gzipped NIfTI file."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), 1)


@functools.cache
def _images() -> dict[str, tuple[Volume, Volume, dict[str, int], str | None]]:
    found = {}
    for name, kind, modality in (("abdomen one", "abdomen", "CT"), ("chest_2", "chest", None)):
        scan, labels = make_phantom(kind, seed=3, size=(96, 80, 20))
        found[name] = (scan, labels, {text: value for value, text in labels_of(kind).items()}, modality)
    return found


class Phantoms:
    """Two scans, and what is found in them."""

    def __init__(self) -> None:
        self.images = _images()
        self.results: dict[str, dict[str, bytes]] = {}
        self.orders: list[dict[str, Any]] = []
        self.token = ""
        self.dicom_seg = True
        self.dicom_sr_note: str | None = None

    def config(self) -> dict[str, Any]:
        images = [{"id": name, "modality": content[3]} for name, content in self.images.items()]
        return {
            "model": "boltzformer",
            "version": "0.0",
            "prompts": ["liver"],
            "targets": list(TARGETS),
            "uncertainty": list(range(2, 21)),
            "presence": True,
            "images": images,
            "dicom_seg": self.dicom_seg,
        }

    def complete(self, text: str) -> dict[str, Any]:
        reader = PromptReader([{"target": target, "site": "abdomen", "modality": "CT"} for target in TARGETS])
        return complete_prompt(reader, text)

    def scan(self, name: str) -> bytes:
        scan = self.images[name][0]
        return nifti_bytes(scan.array.astype(np.int16), scan.affine)

    def segment(self, order: dict[str, Any]) -> dict[str, Any]:
        self.orders.append(order)
        scan, truth, names, _ = self.images[order["image"]]
        labels = np.zeros(truth.shape, np.uint8)
        findings = []
        for number, prompt in enumerate(order["prompts"], 1):
            value = names.get(prompt)
            mask = truth.array == value if value and "absent" not in prompt else np.zeros(truth.shape, bool)
            for spot in SPOTS if prompt == "spots" else ():
                mask[spot] = True
            here = lesion_at(mask, scan, order["point"]) if "point" in order else None
            others = 0
            if order.get("keep_lesions") == "at_point":
                others = 0 if here is None else here.others
                mask = mask & (here is not None and here.only(mask))
            lesions = find_lesions(mask, scan, at=None if here is None else here.voxel)
            at_point = {
                "lesion": next((each.number for each in lesions if each.at_point), None),
                "distance_mm": None if here is None else here.distance_mm,
                "dropped": others,
            }
            labels[mask] = number
            count = int(mask.sum())
            findings.append(
                {
                    "prompt": prompt,
                    "found": count > 0,
                    "presence": 0.97 if count else 0.04,
                    "confidence": 0.87 if count else None,
                    "slices": int(mask.any((0, 1)).sum()),
                    "voxels": count,
                    "volume_ml": count * float(np.prod(scan.spacing)) / 1000,
                    "label": number,
                    "caveats": [f"{prompt} is in doubt"] if "absent" in prompt else [],
                    **({"at_point": at_point} if "point" in order else {}),
                    "lesions": [{**lesion.as_dict(), "confidence": 0.8} for lesion in lesions],
                }
            )
        rid = f"r{len(self.orders)}"
        files = {
            "labels.nii.gz": nifti_bytes(labels, scan.affine),
            "summary.json": json.dumps({"prompts": findings}),
            "lesions.csv": "scan",
            "report.html": "<p>",
        }
        if order["uncertainty"]:
            edge = sum(np.abs(part) for part in np.gradient((labels > 0).astype(float)))
            files["uncertainty.nii.gz"] = nifti_bytes(np.clip(edge * 255, 0, 255).astype(np.uint8), scan.affine)
        if self.dicom_seg:
            files["segmentation.dcm"] = files["report.sr.dcm"] = bytes(128) + b"DICM"
        self.results[rid] = {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}
        return {
            "result": rid,
            "findings": findings,
            "label_names": {finding["prompt"]: finding["label"] for finding in findings if finding["found"]},
            "not_found": [finding["prompt"] for finding in findings if not finding["found"]],
            "in_doubt": any("absent" in prompt for prompt in order["prompts"]),
            "caveats": [{"kind": "assumed modality", "text": "taken as CT, a remark", "in_doubt": False}],
            "uncertainty": bool(order["uncertainty"]),
            "dicom_seg": self.dicom_seg,
            "dicom_sr": self.dicom_seg,
            "dicom_sr_note": self.dicom_sr_note,
            "seconds": 0.25,
            "cached": len(self.orders) > 1,
        }


class _Handler(BaseHTTPRequestHandler):
    phantoms: Phantoms

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, value: object) -> None:
        self._send(status, json.dumps(value).encode())

    def _refused(self, path: str) -> bool:
        token = self.phantoms.token
        if not token or not path.startswith("/boltzformer/api/") or self.headers["Authorization"] == f"Bearer {token}":
            return False
        self._json(401, {"detail": "Not authenticated"})
        return True

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self._refused(path):
            return
        parts = path.removeprefix("/boltzformer/").split("/")
        if parts == ["api", "config"]:
            self._json(200, self.phantoms.config())
        elif parts == ["api", "complete"]:
            self._json(200, self.phantoms.complete(parse_qs(urlsplit(self.path).query)["q"][0]))
        elif parts[:2] == ["api", "images"] and parts[2] in self.phantoms.images:
            self._send(200, self.phantoms.scan(parts[2]), "application/gzip")
        elif parts[:2] == ["api", "results"] and parts[3] in self.phantoms.results.get(parts[2], {}):
            self._send(200, self.phantoms.results[parts[2]][parts[3]], "application/octet-stream")
        elif parts[0] != "api" and (file := PAGE / "/".join(parts or ["index.html"])).is_file():
            self._send(200, file.read_bytes(), _TYPES.get(file.suffix, "text/plain"))
        elif parts == [""]:
            self._send(200, (PAGE / "index.html").read_bytes(), _TYPES[".html"])
        else:
            self._json(404, {"detail": f"nothing at {path}"})

    def do_POST(self) -> None:
        order = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused(self.path):
            return
        if any("refuse" in prompt for prompt in order["prompts"]):
            self._json(422, {"detail": REFUSAL})
        elif any("break" in prompt for prompt in order["prompts"]):
            self._send(500, b"<html>broken</html>", "text/html")
        else:
            self._json(200, self.phantoms.segment(order))


@contextmanager
def serve_phantoms() -> Iterator[tuple[str, Phantoms]]:
    """Address of the page and what it is served from, on a free port of this machine, until the block is left."""
    phantoms = Phantoms()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"phantoms": phantoms}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/boltzformer/", phantoms
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
