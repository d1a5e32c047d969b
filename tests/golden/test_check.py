"""The golden checker: passes on the published recordings, passes on other sizes, and can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.golden import check
from tests.golden.plain_decoder import Arrays, record_decoder


def record_pigma(*, queries: int, channels: int, size: tuple[int, int], image: tuple[int, int], batch: int) -> Arrays:
    """The two convolutions of the published code, recorded."""
    torch.manual_seed(0)
    deconv = nn.ConvTranspose2d(queries + 3, channels, 4, stride=2, padding=1)
    conv = nn.Conv2d(channels + 3, 1, 1)
    pixels = torch.randint(0, 256, (batch, 3, *image), dtype=torch.uint8)
    masks = torch.randn(batch, queries, *size)
    mean, std = torch.tensor([[123.675, 116.28, 103.53], [58.395, 57.12, 57.375]])[:, :, None, None]
    normalised = (pixels - mean) / std
    double = (2 * size[0], 2 * size[1])
    small, large = (F.interpolate(normalised, size=s, mode="bilinear", align_corners=False) for s in (size, double))
    corrected = conv(torch.cat((large, deconv(torch.cat((small, masks), 1))), 1))
    ensemble = F.interpolate(masks.mean(1, keepdim=True), size=double, mode="bilinear", align_corners=False)
    weights = {f"w/output_deconv.{n}": p for n, p in deconv.named_parameters()}
    weights |= {f"w/output_conv.{n}": p for n, p in conv.named_parameters()}
    arrays = {"in/image_uint8": pixels, "in/pred_gmasks": masks, "out": (ensemble + corrected) / 2, **weights}
    return {name: tensor.detach().numpy() for name, tensor in arrays.items()}


def record_loss(*, size: int, batch: int) -> Arrays:
    """Dice with squared denominators and binary cross-entropy, equal weight."""
    torch.manual_seed(0)
    logits, target = torch.randn(batch, 1, size, size), (torch.rand(batch, 1, size, size) > 0.8).float()

    def loss(target: torch.Tensor) -> torch.Tensor:
        p = logits.sigmoid()
        shared = 2 * (p * target).sum((2, 3)) / (p.square().sum((2, 3)) + target.square().sum((2, 3)))
        return (1 - shared).mean() + F.binary_cross_entropy(p, target)

    arrays = {"logits": logits, "target_same": target, "loss_same": loss(target)}
    arrays["logits_zero_target"] = loss(torch.zeros_like(target))
    return {name: tensor.numpy() for name, tensor in arrays.items()}


@pytest.fixture(scope="module")
def recorded() -> Arrays:
    """A decoder of other sizes than the shared one: 2 heads, 3 layers, batch 3, a ratio of 3 between the sizes."""
    sizes = [(2, 3), (4, 6), (12, 18)]
    return record_decoder(dim=24, heads=2, hidden=20, queries=5, layers=3, batch=3, sizes=sizes, tokens=4)


def run(path: Path, arrays: Arrays) -> int:
    np.savez(path, **arrays)
    return check.main([str(path)])


def shared_files(golden: Path) -> list[str]:
    files = sorted(str(path) for path in golden.iterdir() if path.suffix in (".npz", ".json"))
    if not files:
        pytest.skip(f"no recordings in {golden}")
    return files


def test_the_published_recordings(golden: Path, capsys: pytest.CaptureFixture[str]):
    files = shared_files(golden)
    assert check.main(files) == 0
    assert capsys.readouterr().out.count("passed: largest absolute error") == len(files)


def test_a_decoder_of_other_sizes(recorded: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(tmp_path / "decoder.npz", recorded) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "decoder, 138 quantities" in printed
    for name in ("boltz/set2", "part/layer2/ffn", "threshold/grad/text", "boltz/pred_gmasks"):
        assert printed.count(name) == 2  # plain and fast


@pytest.mark.parametrize(
    "settings",
    [
        {"dim": 12, "heads": 3, "queries": 1, "layers": 5, "batch": 1, "sizes": [(3, 3), (6, 6), (24, 24)]},
        {"dim": 8, "heads": 1, "queries": 7, "layers": 2, "batch": 2, "sizes": [(5, 4), (7, 9)]},
    ],
)
def test_decoders_of_still_other_sizes(settings: dict[str, object], tmp_path: Path):
    assert run(tmp_path / "decoder.npz", record_decoder(hidden=9, tokens=2, **settings)) == 0


def test_pigma_and_loss_of_other_sizes(tmp_path: Path):
    pigma = record_pigma(queries=5, channels=4, size=(20, 28), image=(50, 70), batch=2)
    assert run(tmp_path / "pigma.npz", pigma) == 0
    loss = record_loss(size=12, batch=3)
    assert run(tmp_path / "loss.npz", loss) == 0
    for name, arrays in (("out", pigma), ("loss_same", loss), ("logits_zero_target", loss)):
        assert run(tmp_path / "changed.npz", {**arrays, name: arrays[name] + np.float32(2e-4)}) == 1


@pytest.mark.parametrize(
    "name",
    [
        "boltz/pred_gmasks",
        "boltz/layer1/cross",
        "part/init/self",
        "threshold/logits256_1",
        "boltz/grad/text",
        "boltz/grad/x0",
        "in/text",
        "w/mask_embed.layers.1.bias",
        "w/transformer_cross_attention_layers.2.multihead_attn.in_proj_weight",
    ],
)
def test_a_changed_number_is_found(recorded: Arrays, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changed = recorded[name].copy()
    changed.flat[3] += 0.01
    assert run(tmp_path / "decoder.npz", {**recorded, name: changed}) == 1
    assert "FAILED: largest absolute error" in capsys.readouterr().out


def test_a_changed_set_is_found(recorded: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bits = recorded["boltz/mask1"].copy()
    bits[0] ^= 0b1000
    assert run(tmp_path / "decoder.npz", {**recorded, "boltz/mask1": bits}) == 1
    assert any("boltz/set1" in line and "FAILED" in line for line in capsys.readouterr().out.splitlines())


def test_numbers_that_are_none_fail(recorded: Arrays, tmp_path: Path):
    changed = np.full_like(recorded["boltz/pred_gmasks"], np.nan)
    assert run(tmp_path / "decoder.npz", {**recorded, "boltz/pred_gmasks": changed}) == 1


def test_another_shape_fails(recorded: Arrays, tmp_path: Path):
    assert run(tmp_path / "decoder.npz", {**recorded, "boltz/pred_gmasks": recorded["boltz/pred_gmasks"][:1]}) == 1


def test_a_file_without_a_case_fails(recorded: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    bare = {name: array for name, array in recorded.items() if name.startswith(("w/", "in/"))}
    assert run(tmp_path / "decoder.npz", bare) == 1
    assert "decoder, 0 quantities" in capsys.readouterr().out


def test_files_that_cannot_be_checked(recorded: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "file.npz"
    assert run(path, {"some/thing": np.ones(3)}) == 2
    assert "no known kind" in capsys.readouterr().err
    assert run(path, {n: a for n, a in recorded.items() if n != "w/decoder_norm.bias"}) == 2
    assert run(path, {n: a for n, a in recorded.items() if n != "boltz/layer1/ffn"}) == 2
    assert run(path, {**recorded, "w/stranger": np.ones(3)}) == 2
    path.write_bytes(path.read_bytes()[:-100])
    assert check.main([str(path)]) == 2
    path.write_bytes(b"not an archive")
    assert check.main([str(path)]) == 2
    assert check.main([str(tmp_path / "missing.npz")]) == 2
    assert capsys.readouterr().err.count("error: ") == 6


def test_one_bad_file_among_good_ones_is_told(tmp_path: Path):
    np.savez(tmp_path / "good.npz", **record_loss(size=12, batch=3))
    np.savez(tmp_path / "bad.npz", a=np.ones(1))
    assert check.main([str(tmp_path / "bad.npz"), str(tmp_path / "good.npz")]) == 2
