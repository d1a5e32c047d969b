"""Fetching from a mirror on this machine; no other address is contacted."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from boltzformer_monai.errors import BoltzFormerError, CheckpointError, ConfigError, StorageError
from boltzformer_monai.models import catalogue
from boltzformer_monai.models.catalogue import CATALOGUE, Entry
from boltzformer_monai.models.convert import convert
from boltzformer_monai.models.fetch import fetch
from boltzformer_monai.models.folder import load_model
from boltzformer_monai.models.initial import initial_path
from boltzformer_monai.models.place import locate
from tests.models.conftest import RESTRICTED, write_model
from tests.models.mirror import Mirror, serving

WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    """A mirror that the library is told of, an empty cache, and a watch over who is contacted."""
    foreign = []
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def watched(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            foreign.append(address)
            raise OSError(f"the test denies the network: {address}")
        return connect(self, address)

    def resolved(host: Any, *arguments: Any, **settings: Any) -> Any:
        if host not in ("127.0.0.1", b"127.0.0.1", None):
            foreign.append(host)
            raise socket.gaierror(socket.EAI_NONAME, f"the test denies the network: {host}")
        return resolve(host, *arguments, **settings)

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # What the library asks once in a process, by what program it is called, it would ask in the first of these tests.
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", None, raising=False)
    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with serving() as servers:
        monkeypatch.setenv("HF_ENDPOINT", servers.hub)
        yield servers
    assert foreign == []


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch, mirror: Mirror) -> Entry:
    """An entry of the catalogue that the mirror has, free, with its hash."""
    made = dataclasses.replace(
        CATALOGUE["sam2_hiera_small"], name="mine", size=len(WEIGHTS), sha256=hashlib.sha256(WEIGHTS).hexdigest()
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "mine", made)
    mirror.files[made.repo, made.file] = WEIGHTS
    return made


def refused(kind: type[BoltzFormerError], name: str, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        fetch(name, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_redirect_is_followed_and_a_second_time_nothing_is_loaded(mirror: Mirror, entry: Entry) -> None:
    found = fetch("mine")
    assert found.path.read_bytes() == WEIGHTS
    assert (found.checked, found.sha256, found.entry) == ("catalogue", entry.sha256, entry)
    assert mirror.asked("store") == [(entry.file, None)]
    assert fetch("mine").path == found.path
    assert len(mirror.asked("store")) == 1


def test_a_cut_connection_goes_on_where_it_was(mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what is received in part is asked for again
    mirror.cut[entry.file] = 300_000
    assert fetch("mine").path.read_bytes() == WEIGHTS
    (first, nothing), (second, span) = mirror.asked("store")
    assert (first, nothing, second) == (entry.file, None, entry.file)
    assert span is not None
    assert 0 < int(span.removeprefix("bytes=").removesuffix("-")) <= 300_000


def leave_part(entry: Entry, content: bytes, name: str = "{}.0123abcd.incomplete") -> Path:
    """What a killed process leaves of the file in the cache."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{entry.repo.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / name.format(hashlib.sha256(WEIGHTS).hexdigest())
    part.write_bytes(content)
    return part


@pytest.mark.parametrize("name", ["{}.0123abcd.incomplete", "{}.incomplete"])
@pytest.mark.parametrize("size", [1, 300_000, len(WEIGHTS)])
def test_a_killed_download_goes_on_where_it_was(mirror: Mirror, entry: Entry, size: int, name: str) -> None:
    part = leave_part(entry, WEIGHTS[:size], name)
    assert fetch("mine").path.read_bytes() == WEIGHTS
    assert mirror.asked("store") == ([(entry.file, f"bytes={size}-")] if size < len(WEIGHTS) else [])
    assert not part.exists()


def test_the_next_fetch_goes_on_where_a_process_was_killed(mirror: Mirror, entry: Entry, monkeypatch: Any) -> None:
    content = WEIGHTS * 11  # more than the library receives at a time
    whole = dataclasses.replace(entry, size=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(catalogue.CATALOGUE, "mine", whole)
    mirror.files[entry.repo, entry.file] = content
    mirror.stalled[entry.file] = len(content) - 1
    command = "import sys; from huggingface_hub import hf_hub_download; hf_hub_download(*sys.argv[1:])"
    environment = {**os.environ, "HF_HUB_CACHE": constants.HF_HUB_CACHE, "HF_HUB_DISABLE_XET": "1"}
    child = subprocess.Popen([sys.executable, "-c", command, entry.repo, entry.file], env=environment)
    try:
        end, size = time.monotonic() + 60, 0
        while size == 0 and child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
            size = sum(part.stat().st_size for part in Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    finally:
        child.kill()
        child.wait()
        mirror.go_on.set()
    size = sum(part.stat().st_size for part in Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    assert 0 < size < len(content)
    assert fetch("mine").path.read_bytes() == content
    assert mirror.asked("store") == [(entry.file, None), (entry.file, f"bytes={size}-")]
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))


@pytest.mark.parametrize("wrong", [b"another" * 1000, WEIGHTS[:-1] + b"\0", WEIGHTS + b"more"])
def test_a_wrong_part_does_not_reach_the_file(mirror: Mirror, entry: Entry, wrong: bytes) -> None:
    part = leave_part(entry, wrong)
    assert fetch("mine").path.read_bytes() == WEIGHTS
    assert not part.exists()


def test_a_part_of_a_file_that_was_changed_is_not_continued(mirror: Mirror, entry: Entry) -> None:
    leave_part(entry, WEIGHTS[:300_000], "f" * 64 + ".0123abcd.incomplete")
    assert fetch("mine").path.read_bytes() == WEIGHTS
    assert mirror.asked("store") == [(entry.file, None)]


@pytest.mark.parametrize("by", ["catalogue", "hub"])
def test_a_file_that_was_changed_in_the_cache_starts_no_training(
    mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "hub":
        monkeypatch.setitem(catalogue.CATALOGUE, "mine", dataclasses.replace(entry, sha256=None))
    path = fetch("mine").path
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(path))
    assert initial_path("mine") == path
    path.resolve().write_bytes(WEIGHTS[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=f"is not what the {by} says, by its sha256; boltzformer weights fetch"):
        initial_path("mine")


@pytest.mark.parametrize("by", ["catalogue", "hub"])
def test_what_is_not_what_its_hash_says_is_removed(
    mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "hub":
        monkeypatch.setitem(catalogue.CATALOGUE, "mine", dataclasses.replace(entry, sha256=None))
    mirror.replaced[entry.file] = WEIGHTS[:-1] + b"\0"
    text = refused(CheckpointError, "mine")
    assert f"is not what the {by} says: its sha256 is" in text
    mirror.replaced.clear()
    found = fetch("mine")  # the wrong one is not given again
    assert found.path.read_bytes() == WEIGHTS
    assert found.checked == by


def test_a_restricted_licence_is_shown_and_wants_a_yes(
    mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(catalogue.CATALOGUE, "mine", dataclasses.replace(entry, licence=RESTRICTED))
    text = refused(ConfigError, "mine")
    assert "CC-BY-NC-SA-4.0, research only, https://example.org/licence" in text
    assert "--accept-licence" in text
    assert mirror.requests == []
    with caplog.at_level("INFO"):
        assert fetch("mine", accept_licence=True).licence == RESTRICTED
    assert f"licence of {entry.repo}: {RESTRICTED}" in caplog.messages


def test_a_gated_model_says_how_to_log_in(mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.gated.add(entry.repo)
    text = refused(CheckpointError, "mine")
    for words in (f"accept the conditions at {mirror.hub}/{entry.repo}", "`hf auth login`", "HF_TOKEN"):
        assert words in text
    monkeypatch.setenv("HF_TOKEN", "let-me-in")
    assert fetch("mine").path.read_bytes() == WEIGHTS


def test_offline_nothing_is_asked_and_what_is_there_is_used(
    mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids to fetch it" in refused(CheckpointError, "mine")
    assert mirror.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    path = fetch("mine").path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    mirror.requests.clear()
    assert fetch("mine").path == path
    assert mirror.requests == []


def test_a_model_folder_of_the_hub_is_used_by_its_id(mirror: Mirror, tmp_path: Path) -> None:
    convert(write_model(tmp_path / "model.pt", licence=RESTRICTED.as_dict()), tmp_path / "mine")
    for file in ("config.json", "model.safetensors", "README.md"):
        mirror.files["somebody/lungs", file] = (tmp_path / "mine" / file).read_bytes()
    assert "CC-BY-NC-SA-4.0" in refused(ConfigError, "somebody/lungs")
    assert mirror.asked("store") == []
    found = fetch("somebody/lungs", accept_licence=True)
    assert found.checked == "hub"
    assert found.path == locate("somebody/lungs").path / "model.safetensors"
    assert load_model("somebody/lungs").sha256 == load_model(tmp_path / "mine").sha256


@pytest.mark.parametrize(
    ("card", "accepted", "name"),
    [
        ("---\nlicense: mit\n---\n", False, "mit"),
        ("---\nlicense: other\nlicense_name: strange\n---\n", True, "strange"),
        ("# no licence\n", True, "not stated"),
        ("---\nlicense: [\n---\n", True, "not stated"),
        (None, True, "not stated"),
    ],
)
def test_any_file_of_the_hub(mirror: Mirror, card: str | None, accepted: bool, name: str) -> None:
    mirror.files["somebody/net", "net.bin"] = WEIGHTS
    if card is not None:
        mirror.files["somebody/net", "README.md"] = card.encode()
    if accepted:
        assert "--accept-licence" in refused(ConfigError, "somebody/net", file="net.bin")
    found = fetch("somebody/net", file="net.bin", accept_licence=accepted)
    assert found.licence.name == name
    assert found.path.read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("name", "settings", "kind", "words"),
    [
        ("minne", {}, ConfigError, "unknown weights 'minne'; did you mean mine?"),
        ("mine", {"file": "x"}, ConfigError, "--file is for models of the hub"),
        ("nobody/nothing", {"file": "x"}, CheckpointError, "no such model, or it is private; .* hf auth login"),
        ("somebody/net", {"file": "x.bin"}, CheckpointError, "x.bin of somebody/net: there is no such file"),
        ("somebody/net", {}, CheckpointError, "config.json of somebody/net: there is no such file; .* give --file"),
        ("somebody/net", {"file": "net.bin", "revision": "v9"}, CheckpointError, "at v9: there is no such revision"),
        ("somebody/net@v9", {"revision": "v8"}, ConfigError, "names a revision already"),
        ("some--body/n..et", {"file": "x"}, CheckpointError, "is no id of a model on the hub"),
    ],
)
def test_mistakes_are_one_line(
    mirror: Mirror, entry: Entry, name: str, settings: dict[str, Any], kind: type[BoltzFormerError], words: str
) -> None:
    mirror.files["somebody/net", "net.bin"] = WEIGHTS
    mirror.files["somebody/net", "README.md"] = b"---\nlicense: mit\n---\n"
    with pytest.raises(kind, match=words) as caught:
        fetch(name, **settings)
    assert "\n" not in str(caught.value)


def test_a_hub_that_does_not_answer(mirror: Mirror, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror.status = 403
    assert "access is gated" in refused(CheckpointError, "mine")
    mirror.status = 418
    text = refused(CheckpointError, "mine")
    assert "418" in text
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.1, raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)
    text = refused(CheckpointError, "mine")
    assert f"{address} cannot be reached" in text
    assert "HF_ENDPOINT" in text


@pytest.mark.parametrize("place", ["", "models--facebook--sam2-hiera-small"])
def test_a_cache_that_cannot_be_written(mirror: Mirror, entry: Entry, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "cache" / place
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file where the folder should be: refused to root, too")
    assert "name another folder by HF_HOME" in refused(StorageError, "mine")
