from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from boltzformer_monai import precision as room
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.precision import autocast, default_device, device_by_name, resolve_precision


def test_what_is_named_is_taken():
    for device in ("cpu", "cuda"):
        assert resolve_precision("bf16", device) == "bf16"
        assert resolve_precision("fp32", device) == "fp32"


@pytest.fixture
def bf16_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A CPU with bfloat16 instructions, and an empty cache folder."""
    monkeypatch.setattr(room, "_cpu_has_bf16", lambda: True)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    room._faster_on_cpu.cache_clear()
    yield tmp_path / "boltzformer" / "precision.json"
    room._faster_on_cpu.cache_clear()


def _measured(monkeypatch: pytest.MonkeyPatch, fp32: float, bf16: float) -> list[None]:
    """Let the measurement find these seconds; the list grows with every measurement."""
    calls: list[None] = []
    monkeypatch.setattr(room, "measure_step", lambda: calls.append(None) or {"fp32": fp32, "bf16": bf16})
    return calls


def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch):
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert resolve_precision("auto", "cuda") == expected
    monkeypatch.setattr(room, "_cpu_has_bf16", lambda: False)
    calls = _measured(monkeypatch, 1.0, 0.1)
    assert resolve_precision("auto", "cpu") == "fp32"
    assert resolve_precision("auto", "meta") == "fp32"
    assert not calls


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16"), (0.89, "bf16"), (0.95, "fp32"), (1.27, "fp32")])
def test_a_cpu_takes_what_is_clearly_faster_there(
    bf16: float, expected: str, bf16_cpu: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    calls = _measured(monkeypatch, 1.0, bf16)
    with caplog.at_level(logging.INFO):
        assert resolve_precision("auto", torch.device("cpu")) == expected
    assert f"precision auto: {expected} on this CPU" in caplog.text
    room._faster_on_cpu.cache_clear()  # as in another process
    assert resolve_precision("auto", "cpu") == expected
    assert len(calls) == 1
    (key,) = json.loads(bf16_cpu.read_text())
    assert torch.__version__ in key
    assert f"{torch.get_num_threads()} threads" in key


def test_what_the_user_names_is_never_measured(bf16_cpu: Path, monkeypatch: pytest.MonkeyPatch):
    calls = _measured(monkeypatch, 1.0, 0.5)
    assert resolve_precision("fp32", "cpu") == "fp32"
    assert resolve_precision("bf16", "cpu") == "bf16"
    assert not calls


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 3}', '{"KEY": {"fp32": "fast", "bf16": 1.0}}', "\x00"])
def test_a_damaged_cache_is_made_anew(content: str, bf16_cpu: Path, monkeypatch: pytest.MonkeyPatch):
    calls = _measured(monkeypatch, 1.0, 0.5)
    bf16_cpu.parent.mkdir()
    key = f"{room._cpu_name()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    bf16_cpu.write_text(content.replace("KEY", key))
    assert resolve_precision("auto", "cpu") == "bf16"
    assert json.loads(bf16_cpu.read_text()) == {key: {"fp32": 1.0, "bf16": 0.5}}
    assert len(calls) == 1


def test_a_cache_that_cannot_be_written_is_no_error(bf16_cpu: Path, monkeypatch: pytest.MonkeyPatch):
    _measured(monkeypatch, 1.0, 0.5)
    bf16_cpu.parent.write_text("a file where the folder should be")
    assert resolve_precision("auto", "cpu") == "bf16"


def test_the_measurement_touches_no_generator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room, "_BUDGET_S", 0.0)
    state = torch.get_rng_state()
    with torch.inference_mode():
        seconds = room.measure_step()
    assert set(seconds) == {"fp32", "bf16"}
    assert all(each > 0 for each in seconds.values())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pytorch_without_the_probes_assumes_nothing(monkeypatch: pytest.MonkeyPatch):
    for probe in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, probe, raising=False)
    assert resolve_precision("auto", "cpu") == "fp32"


@pytest.mark.parametrize("precision", ["fp16", "", "BF16"])
def test_unknown_precisions(precision: str):
    with pytest.raises(ConfigError, match="precision must be one of auto, fp32, bf16"):
        resolve_precision(precision, "cpu")


def test_autocast_is_on_for_bf16_alone():
    x = torch.ones(2, 2)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with autocast(precision, x.device):
            assert (x @ x).dtype == dtype


def test_devices_by_name():
    assert device_by_name("cpu") == torch.device("cpu")
    assert device_by_name("auto") == default_device()
    for name in ("cuda:99", "gpu"):
        with pytest.raises(ConfigError, match=f"no device '{name}' here") as refused:
            device_by_name(name)
        assert "\n" not in str(refused.value)


def test_the_gpu_of_apple_is_known(monkeypatch: pytest.MonkeyPatch):
    if not torch.backends.mps.is_available():
        with pytest.raises(ConfigError, match="no device 'mps' here .*Apple silicon"):
            device_by_name("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    assert device_by_name("mps") == torch.device("mps")
    assert default_device().type != "mps"  # only by its name
    assert resolve_precision("auto", "mps") == "fp32"
    for newer in (False, True):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version, newer=newer: newer)
        if newer:
            assert resolve_precision("bf16", "mps") == "bf16"
        else:
            with pytest.raises(ConfigError, match="needs macOS 14"):
                resolve_precision("bf16", "mps")
