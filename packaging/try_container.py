"""Carries out the Dockerfile where there is no container engine: its steps and its server in bubblewrap.

    python packaging/try_container.py WORK --model MODEL [--scans FOLDER] [--torch cpu] [--wheels FOLDER] [--demo]

The image is folders in WORK, mounted where the Dockerfile puts them; the file system below is this machine's /usr and
/etc, read-only, and Python is the one that runs this. So what apt-get installs must be here, and its RUN is left out,
as is the one that makes the user. All other instructions are read from the Dockerfile. The server then runs as the
Dockerfile's USER with its ENV and CMD, no capabilities, no network but its own, a read-only root, and only its volumes
and /tmp to write; its HEALTHCHECK must pass, and it must end on SIGTERM.
`--demo` runs `boltzformer demo --fast` in the same way first; `--wheels` takes what an earlier call left in
WORK/wheels. Needs bubblewrap and git, and npm for the wheels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = ("apt-get ", "useradd ")
"""Beginnings of the RUN instructions that need a Debian of one's own."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: `RUN --network=none command` is ("RUN", ("--network=none",), "command")."""

    keyword: str
    flags: tuple[str, ...]
    value: str


def read_dockerfile(path: Path = ROOT / "Dockerfile") -> list[Instruction]:
    """The instructions, with continued lines joined and comments left out."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    found = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if line.strip():
            keyword, rest = line.split(maxsplit=1)
            flags = re.match(r"(?:--\S+\s+)*", rest)[0]  # type: ignore[index]
            found.append(Instruction(keyword, tuple(flags.split()), rest[len(flags) :].strip()))
    return found


def is_left_out(instruction: Instruction) -> bool:
    return instruction.keyword == "RUN" and instruction.value.startswith(LEFT_OUT)


@dataclass(frozen=True)
class Sandbox:
    """Folders of `work` in place of a container's; `/base/bin/python` is the image's Python."""

    work: Path

    def folder(self, place: str) -> Path:
        """What stands for an absolute path of the image."""
        path = self.work / place.strip("/").replace("/", "_")
        path.mkdir(parents=True, exist_ok=True)
        return path

    def command(
        self,
        words: Sequence[str],
        *,
        writable: Iterable[str] = (),
        readable: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
        user: str = "0:0",
        folder: str = "/",
        network: bool = False,
    ) -> list[str]:
        """A command line of bubblewrap.

        Args:
            words: the command inside.
            writable: folders of the image.
            readable: places in the sandbox, and what lies there.
            environment: all of it; None: this process's.
            user: user and group inside.
            folder: the working directory.
            network: this machine's, or one without any other machine.
        """
        number, group = user.split(":")
        line = ["bwrap", "--unshare-all", "--die-with-parent", "--uid", number, "--gid", group, "--cap-drop", "ALL"]
        line += ["--share-net"] if network else []
        for place in ("/usr", "/etc", sys.base_prefix):
            line += ["--ro-bind", place, place]
        for name in ("bin", "sbin", "lib", "lib64"):
            line += ["--symlink", f"usr/{name}", f"/{name}"]
        line += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--ro-bind", str(self.folder("/base")), "/base"]
        for place, path in (readable or {}).items():
            line += ["--ro-bind", str(path.resolve()), place]
        for place in writable:
            line += ["--bind", str(self.folder(place)), place]
        line += ["--remount-ro", "/"]
        if environment is not None:
            line += ["--clearenv", *(word for pair in environment.items() for word in ("--setenv", *pair))]
        return [*line, "--chdir", folder, *words]


def build(sandbox: Sandbox, torch: str, wheels: Path | None) -> dict[str, str]:
    """Carry out the instructions up to ENTRYPOINT.

    Returns:
        What the image says of itself: ENV's variables, and USER, WORKDIR, VOLUME, HEALTHCHECK, ENTRYPOINT and CMD.

    Raises:
        subprocess.CalledProcessError: a step failed, and has said why.
    """
    if not (sandbox.folder("/base") / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(sandbox.folder("/base"))], check=True)
    built = {"PATH": "/base/bin:/usr/bin:/bin", "HOME": "/tmp"}
    image: dict[str, str] = {"WORKDIR": "/"}
    stage = ""
    for step in read_dockerfile():
        if step.keyword == "FROM":
            stage = step.value.partition(" AS ")[2] or "final"
            image = {"WORKDIR": "/"}
        elif step.keyword == "ARG":
            built[step.value.partition("=")[0]] = torch
        elif stage == "wheels" and wheels is not None:
            continue
        elif is_left_out(step):
            _say(f"left out: RUN {step.value[:60]} …")
        elif step.keyword == "RUN":
            _say(f"RUN {step.value}")
            mounted = [flag for flag in step.flags if flag.startswith("--mount=")]
            line = sandbox.command(
                ["/bin/sh", "-c", step.value],
                writable=["/tmp", *(["/base", "/src", "/wheels"] if stage == "wheels" else ["/opt/boltzformer"])],
                readable={"/wheels": wheels or sandbox.folder("/wheels")} if mounted else {},
                environment={**_certificates(), **built},
                folder=image["WORKDIR"],
                network="--network=none" not in step.flags,
            )
            subprocess.run(line, check=True)
        elif step.keyword == "COPY":
            _copy(sandbox.folder(image["WORKDIR"]))
        elif step.keyword == "ENV":
            image |= {f"ENV {name}": value for name, value in (word.split("=", 1) for word in shlex.split(step.value))}
        else:
            image[step.keyword] = step.value
    return image


def _certificates() -> dict[str, str]:
    """What this machine needs to reach a package index."""
    names = re.compile(r"PIP_|UV_|SSL_|REQUESTS_|CURL_|NODE_EXTRA|npm_|NPM_|https?_proxy|HTTPS?_PROXY")
    return {name: value for name, value in os.environ.items() if names.match(name)}


def _copy(target: Path) -> None:
    """`COPY . .`: the tracked files that .dockerignore lets through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    names = [line[1:] for line in lines if line.startswith("!")]
    listed = subprocess.run(["git", "ls-files", "-z", *names], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.split("\0")[:-1]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target / name)


_PROBE = """
import json, os, signal, subprocess, sys, time, urllib.request
server, health, seconds = json.loads(sys.argv[1]), json.loads(sys.argv[2]), float(sys.argv[3])
for place in ("/", "/opt/boltzformer", "/usr", "/models/model"):
    try:
        open(os.path.join(place, "written") if os.path.isdir(place) else place, "a").close()
    except OSError:
        continue
    sys.exit(f"{place} can be written")
with open("/proc/self/status") as file:
    capabilities = next(line.split()[1] for line in file if line.startswith("CapEff"))
print("user", os.getuid(), "capabilities", capabilities, flush=True)
start = time.monotonic()
running = subprocess.Popen(server)
while subprocess.run(health, capture_output=True).returncode:
    if running.poll() is not None or time.monotonic() - start > seconds:
        running.kill()
        sys.exit("the server is not healthy")
    time.sleep(1)
print(f"healthy after {time.monotonic() - start:.0f} s", flush=True)
info = json.load(urllib.request.urlopen("http://127.0.0.1:8000/info/", timeout=60))
print("models", *info["models"], flush=True)
start = time.monotonic()
running.send_signal(signal.SIGTERM)
code = running.wait(120)
print(f"ended {time.monotonic() - start:.0f} s after SIGTERM with {code}", flush=True)
sys.exit(code != 0)
"""


def _as_its_user(sandbox: Sandbox, image: Mapping[str, str], words: Sequence[str], **readable: Path) -> list[str]:
    """A command line in the finished image, without a network; `readable`: what is mounted in /models."""
    return sandbox.command(
        words,
        writable=json.loads(image["VOLUME"]),
        readable={
            "/opt/boltzformer": sandbox.folder("/opt/boltzformer"),
            **{f"/models/{name}": path for name, path in readable.items()},
        },
        environment={name.removeprefix("ENV "): value for name, value in image.items() if name.startswith("ENV ")},
        user=image["USER"],
        folder=image["WORKDIR"],
    )


def try_demo(sandbox: Sandbox, image: Mapping[str, str]) -> None:
    """Check that what is installed fits together, and run the demo.

    Raises:
        subprocess.CalledProcessError: either failed, and has said why.
    """
    for command in (["python", "-m", "pip", "check"], ["boltzformer", "demo", "--fast", "--output", "/workspace/demo"]):
        _say(" ".join(command))
        subprocess.run(_as_its_user(sandbox, image, command), check=True)


def try_server(sandbox: Sandbox, image: Mapping[str, str], model: Path) -> None:
    """Run the image's command and its health check.

    Raises:
        subprocess.CalledProcessError: the server did not start, is not healthy, or did not end.
    """
    health = json.loads(image["HEALTHCHECK"].partition("CMD ")[2])
    server = [*json.loads(image["ENTRYPOINT"]), *json.loads(image["CMD"])]
    probe = ["/base/bin/python", "-c", _PROBE, json.dumps(server), json.dumps(health), "300"]
    line = _as_its_user(sandbox, image, probe, model=model)
    _say(" ".join(server))
    subprocess.run(line, check=True)


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description="Carry out the Dockerfile in bubblewrap, and try its server.")
    parser.add_argument("work", type=Path, help="folder for the image's files; an environment takes about 8 GB")
    parser.add_argument("--model", type=Path, required=True, help="model folder or checkpoint")
    parser.add_argument("--scans", type=Path, help="folder of scans, copied")
    parser.add_argument("--torch", choices=("cpu", "cuda"), default="cuda", help="as the Dockerfile's argument TORCH")
    parser.add_argument("--wheels", type=Path, help="made by an earlier call")
    parser.add_argument("--demo", action="store_true", help="run the demo first")
    arguments = parser.parse_args()
    if shutil.which("bwrap") is None:
        parser.exit(2, "error: bubblewrap is not installed (Debian: bubblewrap)\n")
    for path in filter(None, (arguments.model, arguments.scans, arguments.wheels)):
        if not path.exists():
            parser.exit(2, f"error: {path} does not exist\n")
    sandbox = Sandbox(arguments.work.resolve())
    try:
        image = build(sandbox, arguments.torch, arguments.wheels)
        if arguments.demo:
            try_demo(sandbox, image)
        if arguments.scans:
            shutil.copytree(arguments.scans, sandbox.folder("/data"), dirs_exist_ok=True)
        try_server(sandbox, image, arguments.model)
    except subprocess.CalledProcessError as error:
        parser.exit(1, f"error: a step failed with exit code {error.returncode}; see above\n")
    _say("the server ran as it would in the container")
    return 0


if __name__ == "__main__":
    sys.exit(main())
