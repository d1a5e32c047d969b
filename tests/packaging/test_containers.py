"""Dockerfile, compose.yaml, boltzformer.def and boltzformer.service: what they install and start exists, is the same
everywhere, and has no rights that it does not need. No engine is needed; packaging/try_container.py runs the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from boltzformer_monai.cli import build_parser
from boltzformer_monai.cli.command_line import USER_ERROR
from tests.needs import need_program
from tests.packaging.tools import ROOT, load_script, release_tool

docker = load_script("try_container")
STEPS = docker.read_dockerfile()


def _value(keyword: str) -> str:
    return [step.value for step in STEPS if step.keyword == keyword][-1]


def _apptainer() -> dict[str, list[str]]:
    """The lines of each section, without comments."""
    text = (ROOT / "packaging" / "boltzformer.def").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    sections: dict[str, list[str]] = {"": []}
    into = sections[""]
    for line in lines:
        if line.startswith("%"):
            into = sections[line[1:]] = []
        else:
            into.append(line)
    return sections


def _runs_of_wheels() -> list[list[str]]:
    """The arguments of packaging/wheels.py in both files."""
    lines = [step.value for step in STEPS if step.keyword == "RUN"] + _apptainer()["post"]
    return [line.partition("wheels.py ")[2].split() for line in lines if "packaging/wheels.py" in line]


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_asks_the_server_and_no_proxy(status: int, healthy: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    python, *rest = json.loads(_value("HEALTHCHECK").partition("CMD ")[2])
    assert python == "python"
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, *(each.replace("8000", str(server.server_port)) for each in rest)]
        proxy = {"http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        done = subprocess.run(command, env={**os.environ, **proxy}, check=False, capture_output=True, timeout=60)
        server.shutdown()
    assert (done.returncode == 0) is healthy, done.stderr


def test_every_step_is_carried_out_but_those_that_need_a_debian_of_their_own() -> None:
    runs = [step for step in STEPS if step.keyword == "RUN"]
    assert [step.value.split()[0] for step in runs if docker.is_left_out(step)] == ["apt-get", "useradd"]
    assert len(runs) == 5
    known = {
        "FROM",
        "ARG",
        "RUN",
        "WORKDIR",
        "COPY",
        "ENV",
        "USER",
        "VOLUME",
        "EXPOSE",
        "HEALTHCHECK",
        "ENTRYPOINT",
        "CMD",
    }
    assert {step.keyword for step in STEPS} == known


def test_hadolint_finds_no_fault_in_the_dockerfile() -> None:
    command = [str(release_tool("hadolint")), str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_containers_install_the_same_way_from_the_lock_without_a_network() -> None:
    install = " --no-index --find-links {} --require-hashes -r {}/requirements.txt"
    (step,) = (step for step in STEPS if "--no-index" in step.value)
    assert "--network=none" in step.flags
    assert install.format("/wheels", "/wheels") in step.value
    assert any(install.format("/opt/wheels", "/opt/wheels") in line for line in _apptainer()["post"])
    pins = set(re.findall(r"uv==([\d.]+)", "\n".join([*(step.value for step in STEPS), *_apptainer()["post"]])))
    assert len(pins) == 1
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(_runs_of_wheels()) == 2
    for words in _runs_of_wheels():
        extras = [words[place + 1] for place, word in enumerate(words) if word == "--extra"]
        assert extras
        assert all(f"\n{extra} = [" in project for extra in extras)
    bases = {step.value.split()[0] for step in STEPS if step.keyword == "FROM"} - {"base"}
    assert bases == {line.split()[1] for line in _apptainer()[""] if line.startswith("From:")}


def test_what_is_copied_is_there_and_enough_for_a_wheel() -> None:
    needed = {
        "boltzformer_monai",
        "bundles",
        "viewer",
        "packaging",
        "pyproject.toml",
        "uv.lock",
        "setup.py",
        "README.md",
    }
    copied = dict(line.split() for line in _apptainer()["files"])
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    assert needed <= set(copied) == let_through
    assert all((ROOT / source).exists() and target == f"/opt/src/{source}" for source, target in copied.items())


def test_the_server_has_no_rights_and_can_be_asked_for_its_health() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", _value("USER"))
    assert " USER=" in _value("ENV")  # MONAI asks for the user's name, which an orchestrator's user has not
    kept = json.loads(_value("VOLUME"))
    options = build_parser().parse_args(json.loads(_value("CMD")))
    assert [str(options.workspace), options.studies] == sorted(kept, reverse=True)
    assert str(options.checkpoint).startswith("/models/")
    assert f"http://127.0.0.1:{options.port}/health" in _value("HEALTHCHECK")
    assert _value("EXPOSE") == str(options.port)
    assert not [step for step in STEPS if step.keyword == "COPY" and "models" in step.value]


def test_compose_starts_the_server_without_rights_on_an_archive_that_nobody_else_reaches() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    server, archive = compose["services"]["boltzformer"], compose["services"]["orthanc"]
    assert (server["read_only"], server["cap_drop"]) == (True, ["ALL"])
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert "ports" not in archive
    assert compose["networks"]["archive"] == {"internal": True}
    options = build_parser().parse_args(server["command"])
    assert options.studies.startswith("http://orthanc:")
    targets = {volume.rsplit(":", 2 if volume.endswith(":ro") else 1)[1] for volume in server["volumes"]}
    assert {str(options.checkpoint), str(options.workspace)} == targets


def test_compose_has_its_form() -> None:
    command = [str(release_tool("check-jsonschema")), "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(ROOT / "compose.yaml")], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout


def test_apptainer_s_sections_and_commands_exist() -> None:
    sections = _apptainer()
    assert [line.partition(":")[0] for line in sections.pop("")] == ["Bootstrap", "From"]
    assert set(sections) == {"arguments", "files", "post", "environment", "runscript", "test"}
    assert set(re.findall(r"{{ (\w+) }}", "\n".join(sections["post"]))) == {"torch"}
    (known,) = (action.choices for action in build_parser()._actions if action.dest == "command")
    commands = [line.split()[1] for line in sections["test"] if "/boltzformer " in line]
    assert set(commands) <= set(known or ())
    assert commands


def _unit() -> tuple[Path, str]:
    path = ROOT / "packaging" / "boltzformer.service"
    return path, path.read_text(encoding="utf-8")


def test_the_service_starts_the_server() -> None:
    start = re.search(r"^ExecStart=(.*)$", _unit()[1], re.MULTILINE)
    assert start
    program, *words = shlex.split(start[1].replace("${CHECKPOINT}", "/srv/models/mine"))
    options: Any = build_parser().parse_args(words)
    assert program == "/opt/boltzformer/bin/boltzformer"
    assert options.host == "127.0.0.1"
    assert f"\nRestartPreventExitStatus={USER_ERROR}\n" in _unit()[1]
    assert f"StateDirectory={options.workspace.name}" in _unit()[1]
    assert f"ReadWritePaths={options.studies}" in _unit()[1]


def test_the_service_lets_background_work_step_back() -> None:
    filters = re.findall(r"^SystemCallFilter=(.*)$", _unit()[1], re.MULTILINE)
    assert filters.index("setpriority") > filters.index("~@privileged @resources")


def test_systemd_finds_the_service_hardened(tmp_path: Path) -> None:
    analyze = need_program("systemd-analyze", "systemd")
    command = [analyze, "security", "--offline=true", "--threshold=15", "--no-pager", str(_unit()[0])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    here = tmp_path / "boltzformer.service"  # whose program exists
    here.write_text(_unit()[1].replace("/opt/boltzformer/bin/boltzformer", sys.executable), encoding="utf-8")
    done = subprocess.run([analyze, "verify", str(here)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["Dockerfile", "packaging/boltzformer.def"])
def test_pytorch_comes_with_or_without_cuda_by_one_argument(name: str) -> None:
    assert "--torch" in (ROOT / name).read_text(encoding="utf-8")
    for words in _runs_of_wheels():
        assert words[words.index("--torch") + 1 :][0] in ('"$TORCH"', "{{")
