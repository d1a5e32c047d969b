"""Windows and macOS, as far as Linux can tell: no call that only POSIX has outside of a guard, and files as they are
opened there. The systems themselves are in ``.github/workflows/tests.yml``."""

from __future__ import annotations

import ast
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from boltzformer_monai.engines.bundle import make_training
from tests.engines.cases import write_dataset
from tests.engines.small_training import BUNDLE, settings
from tests.warm_python import run_copy

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    file
    for folder in ("boltzformer_monai", "preprocessing", "viewer")
    for file in (ROOT / folder).rglob("*.py")
    if "node_modules" not in file.parts
)

# What Windows does not have, by Python's documentation ("Availability: Unix").
MODULES = {"crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}
OF_OS = {
    "EX_TEMPFAIL", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC", "WNOHANG", "chown", "chroot",
    "fchmod", "fchown", "fork", "forkpty", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid",
    "getpriority", "getuid", "killpg", "lchown", "mkfifo", "nice", "pread", "pwrite", "sched_getaffinity",
    "sched_setaffinity", "sendfile", "setgid", "setpgid", "setpriority", "setsid", "setuid", "statvfs", "sysconf",
    "uname", "wait", "wait3", "wait4", "waitid",
}  # fmt: skip
OF_SIGNAL = {
    "SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1", "SIGUSR2",
    "alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait",
}  # fmt: skip
# There, but another thing on Windows: kill ends the process, rename refuses an existing target.
DIFFERENT = {"kill", "rename"}
CAUGHT = {"ImportError", "ModuleNotFoundError", "AttributeError", "OSError", "Exception"}


def _parents(tree: ast.AST) -> dict[ast.AST, ast.AST]:
    return {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def _names(node: ast.AST | None) -> set[str]:
    if node is None:
        return set()
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)
    }


def _guarded(node: ast.AST, parents: dict[ast.AST, ast.AST], source: str) -> bool:
    """Whether a call lies in a try that catches its absence, or in a branch that asks for it or for the system."""
    child = node
    while (parent := parents.get(child)) is not None:
        caught = [_names(handler.type) for handler in parent.handlers] if isinstance(parent, ast.Try) else []
        if isinstance(parent, ast.Try) and child in parent.body and any(CAUGHT & names for names in caught):
            return True
        if isinstance(parent, ast.If | ast.IfExp | ast.BoolOp):
            asked = parent if isinstance(parent, ast.BoolOp) else parent.test
            text = ast.get_source_segment(source, asked) or ""
            if any(word in text for word in ("hasattr(", "os.name", "sys.platform")):
                return True
        child = parent
    return False


def _posix_only(tree: ast.AST, source: str) -> Iterator[str]:
    parents = _parents(tree)
    for node in ast.walk(tree):
        found = ""
        if isinstance(node, ast.Import):
            found = ", ".join(each.name for each in node.names if each.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            found = node.module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            ours = {"os": OF_OS | DIFFERENT, "signal": OF_SIGNAL}.get(node.value.id, set())
            found = f"{node.value.id}.{node.attr}" if node.attr in ours else ""
        elif isinstance(node, ast.keyword) and node.arg in ("preexec_fn", "pass_fds", "start_new_session"):
            found = node.arg
        if found and not _guarded(node, parents, source):
            yield f"{getattr(node, 'lineno', 0)}: {found}"


def _unclear_files(tree: ast.AST) -> Iterator[str]:
    """Text without an encoding, which is another one on Windows, and temporary files that nobody can open there."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = {each.arg for each in node.keywords}
        if name == "NamedTemporaryFile" and "delete" not in given:
            yield f"{node.lineno}: NamedTemporaryFile"
        method = isinstance(node.func, ast.Attribute)
        if method and name in ("read_text", "write_text") and "encoding" not in given:
            yield f"{node.lineno}: {name} without encoding"
        if name == "open" and "encoding" not in given:
            number = 0 if method else 1  # path.open(mode), open(path, mode)
            mode = node.args[number] if len(node.args) > number else None
            if (mode is None and len(node.args) == number) or (
                isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwaxt+")
            ):
                yield f"{node.lineno}: open without encoding"


def test_what_only_posix_has_is_guarded() -> None:
    found = []
    for file in SOURCES:
        source = file.read_text(encoding="utf-8")
        found += [f"{file.relative_to(ROOT)}:{each}" for each in _posix_only(ast.parse(source), source)]
    assert found == []


def test_text_files_have_an_encoding_and_temporary_files_can_be_opened() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{each}"
        for file in SOURCES
        for each in _unclear_files(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import fcntl", 1),
        ("try:\n    import fcntl\nexcept ImportError:\n    fcntl = None", 0),
        ("try:\n    import fcntl\nexcept ValueError:\n    pass", 1),
        ("os.nice(3)", 1),
        ("if hasattr(os, 'nice'):\n    os.nice(3)", 0),
        ("if enabled:\n    os.kill(1, 2)", 1),
        ("a = os.EX_TEMPFAIL if hasattr(os, 'EX_TEMPFAIL') else 75", 0),
        ("signal.signal(signal.SIGUSR1, f)", 1),
        ("signal.signal(signal.SIGTERM, f)", 0),
        ("subprocess.run(words, start_new_session=True)", 1),
        ("open(path)", 1),
        ("open(path, 'rb')", 0),
        ("path.open('w')", 1),
        ("path.open('w', encoding='utf-8')", 0),
        ("archive.open(name)", 0),
        ("path.read_text()", 1),
        ("with tempfile.NamedTemporaryFile() as file: pass", 1),
    ],
)
def test_the_checks_find_what_they_look_for(source: str, count: int) -> None:
    tree = ast.parse(source)
    assert len([*_posix_only(tree, source), *_unclear_files(tree)]) == count


_WITHOUT_POSIX = f"""
import importlib, os, pkgutil, signal, sys
for name in ("torch", "monai.bundle", "monai.engines", "ignite.handlers", "dask", "filelock", "SimpleITK", "highdicom"):
    importlib.import_module(name)
server = importlib.util.find_spec("monailabel") is not None
if server:
    importlib.import_module("monailabel.interfaces.app")
    importlib.import_module("uvicorn")
for name in {sorted(MODULES)}:
    sys.modules[name] = None
for module, names in ((os, {sorted(OF_OS - {"uname", "wait", "WNOHANG"})}), (signal, {sorted(OF_SIGNAL)})):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import boltzformer_monai
for module in pkgutil.walk_packages(boltzformer_monai.__path__, "boltzformer_monai."):
    if module.name.endswith("__main__") or (module.name.startswith("boltzformer_monai.label") and not server):
        continue
    importlib.import_module(module.name)

from pathlib import Path
from boltzformer_monai import limits, parallel, storage
from boltzformer_monai.engines import stop, throughput
assert limits.memory_budget() > 0
assert parallel.processor_pool()
assert stop.STOPPED == 75
with stop.StopSignals() as signals:
    signal.raise_signal(signal.SIGTERM)
    assert signals.requested()
assert throughput.Throughput(device="cpu")._peak_memory() == 0
with storage.replacing(Path("a") / "b.txt") as temporary:
    temporary.write_text("x", encoding="utf-8")
if server:
    from boltzformer_monai.label.server.temporary import temporary_folder
    with temporary_folder(Path("w")) as folder:
        (folder / "upload").write_bytes(b"x")
    assert not folder.exists()
print("imported")
"""


@pytest.mark.slow
def test_every_module_is_imported_and_works_without_what_only_posix_has(tmp_path: Path) -> None:
    done = run_copy(["-W", "ignore", "-c", _WITHOUT_POSIX], folder=tmp_path, environment=os.environ)
    assert done.stdout.splitlines()[-1:] == ["imported"], done.stdout + done.stderr


def test_what_data_loaders_send_to_spawned_workers_can_be_sent(tmp_path: Path) -> None:
    """Windows and macOS start the workers of a data loader anew: data set, sampler and collating go through pickle."""
    dataset = write_dataset(tmp_path / "slices")
    trainer, evaluator, _ = make_training(settings(dataset, tmp_path / "models"), root=BUNDLE)
    for loader in (trainer.data_loader.loader, evaluator.data_loader):
        assert isinstance(loader, DataLoader)
        assert not loader.pin_memory  # Apple's GPU has none
        sent = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn, loader.worker_init_fn)))
        assert len(sent[0]) == len(loader.dataset)
        assert sent[0][0]["image"].shape == loader.dataset[0]["image"].shape
