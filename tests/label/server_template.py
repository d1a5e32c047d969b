"""Servers that start in a second: the libraries are imported once, and each server is a copy of that process.

``python -m tests.label.server_template``: each line on standard input is a request (JSON) and gets an answer. A copy
has the command line, environment, folder and limits of the request before it imports MONAI Label or this package, and
then runs like ``python -m MODULE …``.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["Copy", "start_copy"]

_LIBRARIES = (
    "monai.apps",
    "monai.bundle",
    "monai.networks.nets",
    "ignite.handlers",
    "mlflow",
    "timm",
    "SimpleITK",
    "fastapi",
    "uvicorn",
)
"""What takes long to import and looks at no setting of a test."""


class _Template:
    """The process that is copied."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "tests.label.server_template"]
        places = os.pathsep.join([environment["PYTHONPATH"], str(Path(__file__).resolve().parents[2])])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**environment, "PYTHONPATH": places},
        )  # fmt: skip
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> Any:
        commands, answers = self._process.stdin, self._process.stdout
        assert commands
        assert answers
        with self._lock:
            print(json.dumps(request), file=commands, flush=True)
            answer = answers.readline()
        assert answer, "the process that servers are copied from has ended"
        return json.loads(answer)


_templates: list[_Template] = []


class Copy:
    """A copied process, with what is used of ``subprocess.Popen``."""

    def __init__(self, template: _Template, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._template = template

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = self._template.ask({"poll": self.pid})
        return self.returncode

    def kill(self) -> None:
        """End it by SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has ended."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code


def start_copy(words: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str]) -> Copy:
    """Run ``python -m WORDS`` in a copy; it leads a process group of its own, and its output goes to ``log``."""
    import resource

    if not _templates:
        _templates.append(_Template(environment))
    template = _templates[0]
    request = {"words": list(words), "folder": str(folder), "log": str(log), "environment": dict(environment)}
    return Copy(template, template.ask({**request, "files": resource.getrlimit(resource.RLIMIT_NOFILE)}))


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(request: Mapping[str, Any]) -> None:
    """All that a new process would have: group, output, folder, limits, environment, command line."""
    import resource

    os.setsid()
    sink = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["files"]))
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = list(request["words"])
    sys.path[0] = request["folder"]  # as `python -m` has it


def main() -> None:
    """Answer requests; the copies go on from here."""
    for library in _LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(library)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            answer = _poll(request["poll"])
        elif (answer := os.fork()) == 0:
            _become(request)
            runpy.run_module(request["words"][0], run_name="__main__", alter_sys=True)
            return
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
