from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from boltzformer_monai.errors import DatasetError
from boltzformer_monai.transforms import LoadSliced
from boltzformer_monai.transforms.load import image_tensor, slice_fit
from tests.transforms.cases import write_slice

GREY = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)


def test_a_slice_with_its_label(tmp_path: Path):
    label = np.zeros((12, 16), np.uint8)
    label[2:5, 3:9] = 7
    row = write_slice(tmp_path, GREY, label, spacing=(1.0, 1.0, 5.0))
    out = LoadSliced(size=16)({"rows": [row], "more": 1})
    assert out["more"] == 1
    assert out["image"].shape == out["label_map"].shape == (1, 16, 16)
    assert out["image"].dtype == out["label_map"].dtype == torch.float32
    torch.testing.assert_close(out["image"][0, 2:14], torch.from_numpy(GREY) / 255)
    assert torch.equal(out["label_map"][0, 2:14], torch.from_numpy(label).float())
    assert not out["image"][0, :2].any()


def test_sixteen_bit_labels_and_anisotropic_spacing(tmp_path: Path):
    label = np.full((12, 16), 40_000, np.uint16)
    row = write_slice(tmp_path, GREY, label, values=(40_000,), spacing=(4.0, 1.0, 1.0))
    out = LoadSliced(size=64)({"rows": [row]})
    assert slice_fit((12, 16), row, 64).content == (64, 21)
    assert out["label_map"].unique().tolist() == [0, 40_000]


def test_a_slice_without_a_label(tmp_path: Path):
    out = LoadSliced(size=16)({"rows": [write_slice(tmp_path, GREY, None)]})
    assert "label_map" not in out


def test_the_scale_of_the_network_s_input():
    batch = image_tensor(np.stack([GREY, GREY[::-1]]))
    assert batch.shape == (2, 1, 12, 16)
    assert (float(batch.min()), float(batch.max())) == (0.0, pytest.approx(191 / 255))
    assert torch.equal(batch[1, 0], image_tensor(GREY)[0, 0].flip(0))


def test_missing_and_damaged_files(tmp_path: Path):
    row = write_slice(tmp_path, GREY, np.zeros((12, 16), np.uint8))
    row.label.write_bytes(row.label.read_bytes()[:40])
    with pytest.raises(DatasetError, match="label.png: cannot be read as PNG"):
        LoadSliced(size=16)({"rows": [row]})
    row.image.unlink()
    with pytest.raises(DatasetError, match="image.png: cannot be read as PNG"):
        LoadSliced(size=16)({"rows": [row]})


def test_a_label_of_another_size(tmp_path: Path):
    row = write_slice(tmp_path, GREY, np.zeros((16, 12), np.uint8))
    with pytest.raises(DatasetError, match=r"label.png: is \(16, 12\), its image \(12, 16\)"):
        LoadSliced(size=16)({"rows": [row]})


def test_an_image_of_sixteen_bits(tmp_path: Path):
    row = write_slice(tmp_path, GREY.astype(np.uint16) * 100, None)
    with pytest.raises(DatasetError, match="has 16 bits"):
        LoadSliced(size=16)({"rows": [row]})


def test_an_object_that_shrinking_would_lose_keeps_a_pixel(tmp_path: Path):
    label = np.zeros((64, 64), np.uint8)
    label[21, 42] = 3
    row = write_slice(tmp_path, np.zeros((64, 64), np.uint8), label, values=(3,))
    label_map = LoadSliced(size=16)({"rows": [row]})["label_map"][0]
    assert (label_map == 3).nonzero().tolist() == [[5, 10]]
