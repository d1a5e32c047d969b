"""The benchmark of exports: its figures mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.deploy import Exported, parity, seconds


@pytest.mark.slow
def test_every_part_is_compared_and_timed(small_model: Path, small_onnx: Path) -> None:
    exported = Exported(small_model, small_onnx)
    assert exported.bytes == {
        name: (small_onnx / f"{name}.onnx").stat().st_size for name in ("image_encoder", "text_encoder", "decoder")
    }
    found = {row["name"]: row["value"] for row in parity(exported)}
    assert found["equal_pixels"] >= 0.9999
    assert found["presence"] <= 1e-4
    assert found["logits"] <= 1e-4
    timed = {row["name"]: row["value"] for row in seconds(exported, 1)}
    parts = ("image_encoder", "text_encoder", "decoder_1", "decoder_5")
    assert set(timed) == {f"seconds_{part}_{way}" for part in parts for way in ("onnx", "torch")}
    assert min(timed.values()) > 0
