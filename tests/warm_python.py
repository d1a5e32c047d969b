"""Python processes that start in a second: the libraries are imported once, and each process is a copy of that one.

``python -m tests.warm_python`` is the process that is copied: each line on standard input is a request (JSON) and gets
an answer. A copy has the command line, environment, folder, output and limits of the request before it imports MONAI
Label or this package, and then runs like ``python WORDS``. Libraries that a copy never asked for lie in its memory, and
all copies hash alike: what such a test is about needs a new interpreter.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.offline import attempts, offline

__all__ = ["Copy", "run_copy", "start_copy"]

_ROOT = Path(__file__).resolve().parents[1]
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

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-python-")
        self._connections = Path(self._folder.name) / "connections.txt"
        environment = offline(self._connections)
        places = os.pathsep.join([environment["PYTHONPATH"], str(_ROOT)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_python"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=_ROOT, env={**environment, "PYTHONPATH": places},
        )  # fmt: skip
        self._lock = threading.Lock()

    def ask(self, request: Mapping[str, Any]) -> Any:
        commands, answers = self._process.stdin, self._process.stdout
        assert commands
        assert answers
        with self._lock:
            print(json.dumps(request), file=commands, flush=True)
            answer = answers.readline()
        assert answer, "the process that others are copied from has ended"
        assert attempts(self._connections) == []
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


def start_copy(
    words: Sequence[str], *, folder: Path, log: Path, environment: Mapping[str, str], errors: Path | None = None
) -> Copy:
    """Run ``python WORDS`` in a copy, which leads a process group of its own.

    Args:
        words: ``-m MODULE …``, ``-c CODE …`` or ``SCRIPT …``.
        folder: where it runs.
        log: gets what it prints.
        environment: all of it.
        errors: gets its standard error; None: ``log`` does.
    """
    import resource

    if not _templates:
        _templates.append(_Template())
    template = _templates[0]
    request = {"words": list(words), "folder": str(folder), "log": str(log), "errors": str(errors or log)}
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Copy(template, template.ask({**request, "environment": dict(environment), "files": files}))


def run_copy(
    words: Sequence[str], *, folder: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS`` in a copy to its end."""
    with tempfile.TemporaryDirectory() as place:
        out, errors = Path(place) / "out", Path(place) / "errors"
        copy = start_copy(words, folder=folder, log=out, environment=environment, errors=errors)
        try:
            code = copy.wait(timeout)
        except subprocess.TimeoutExpired:
            copy.kill()
            raise
        return subprocess.CompletedProcess(list(words), code, out.read_text(), errors.read_text())


def _poll(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def _become(request: Mapping[str, Any], libraries: Sequence[str]) -> None:
    """All that a new process would have: group, output, folder, limits, environment, places to import from."""
    import resource

    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "log"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.chdir(request["folder"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["files"]))
    os.environ.clear()
    os.environ.update(request["environment"])
    given = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [request["folder"], *given, *libraries]
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator is seeded anew by itself


def _run(words: list[str]) -> None:
    """As the interpreter does it."""
    if words[0] == "-W":
        warnings.simplefilter(words[1])  # type: ignore[arg-type]
        words = words[2:]
    kind, *rest = words
    if kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0] = str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    """Answer requests; the copies go on from here."""
    for library in _LIBRARIES:
        with contextlib.suppress(ImportError):
            __import__(library)
    own = {str(_ROOT), "", *os.environ["PYTHONPATH"].split(os.pathsep)}
    libraries = [each for each in sys.path if each not in own]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            answer = _poll(request["poll"])
        elif (answer := os.fork()) == 0:
            _become(request, libraries)
            _run(request["words"])
            return
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
