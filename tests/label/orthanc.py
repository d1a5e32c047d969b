"""A real Orthanc with its DICOMweb plugin, on this machine only and with nothing in it."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.needs import missing

_PROGRAM = shutil.which("Orthanc") or shutil.which("orthanc") or next(iter(Path("/usr/sbin").glob("Orthanc")), None)
_PLUGIN = next(
    (
        path
        for folder in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")
        for path in sorted(Path(folder).glob("libOrthancDicomWeb.so*"))
    ),
    None,
)
_START_S = 180


def require_orthanc() -> None:
    """Skip where there is no Orthanc or it has no DICOMweb."""
    if _PROGRAM is None:
        missing("no Orthanc here (Debian: apt install orthanc)")
    if _PLUGIN is None:
        missing("Orthanc has no DICOMweb plugin here (Debian: apt install orthanc-dicomweb)")


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Orthanc:
    """A server that was started.

    Args:
        folder: of its data and settings.
        user: ``(name, password)`` that it asks for.
    """

    def __init__(self, folder: Path, user: tuple[str, str] | None = None) -> None:
        self.folder, self.user, self.port = folder, user, free_port()
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/dicom-web"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, or start again with what is stored."""
        require_orthanc()
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(self.folder / "data"),
            "IndexDirectory": str(self.folder / "data"),
            "HttpPort": self.port,
            "DicomServerEnabled": False,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": self.user is not None,
            "RegisteredUsers": dict([self.user]) if self.user else {},
            "Plugins": [str(_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        file = self.folder / "orthanc.json"
        file.write_text(json.dumps(settings))
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen([str(_PROGRAM), str(file)], stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.ask("/system")
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
            else:
                return
        pytest.fail(f"Orthanc did not start: {(self.folder / 'log.txt').read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """Stop; the data stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def ask(self, path: str, body: bytes | None = None, *, method: str | None = None) -> Any:
        """Ask Orthanc's own interface; the answer's JSON, or its bytes."""
        request = urllib.request.Request(f"{self.root}{path}", data=body, method=method)
        if self.user:
            token = base64.b64encode(":".join(self.user).encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=120) as reply:
            content = reply.read()
            return json.loads(content) if "json" in reply.headers.get("Content-Type", "") else content

    def empty(self) -> None:
        """Remove all that is stored."""
        for patient in self.ask("/patients"):
            self.ask(f"/patients/{patient}", method="DELETE")

    def add(self, folder: Path) -> None:
        """Store all files of a folder."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.ask("/instances", file.read_bytes())


@contextmanager
def orthanc(folder: Path, user: tuple[str, str] | None = None) -> Iterator[Orthanc]:
    """A running Orthanc, stopped when the block is left."""
    server = Orthanc(folder, user)
    server.start()
    try:
        yield server
    finally:
        server.stop()
