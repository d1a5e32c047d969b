from __future__ import annotations

import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.precision import autocast, default_device, device_by_name, resolve_precision


def test_what_is_named_is_taken():
    for device in ("cpu", "cuda"):
        assert resolve_precision("bf16", device) == "bf16"
        assert resolve_precision("fp32", device) == "fp32"


def test_auto_follows_the_hardware(monkeypatch: pytest.MonkeyPatch):
    for capability, expected in (((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        assert resolve_precision("auto", "cuda") == expected
    monkeypatch.setattr("boltzformer_monai.precision._cpu_has_bf16", lambda: True)
    assert resolve_precision("auto", torch.device("cpu")) == "bf16"
    assert resolve_precision("auto", "meta") == "fp32"


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
