from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.preview import _chosen, _colour, _grey, _legend, contact_sheet
from boltzformer_monai.io.volume import Volume
from tests.inferers.volume_stub import StubResult


def _result(**masks: tuple[slice, slice, slice]) -> Any:
    rng = np.random.default_rng(0)
    grid = Volume(rng.normal(40, 60, (40, 30, 16)).astype(np.float32), np.diag([1, 1, 3, 1.0]), modality="CT")
    drawn = {}
    for name, box in masks.items():
        drawn[name] = np.zeros(grid.shape, bool)
        drawn[name][box] = True
    return StubResult(grid, drawn)


def test_every_found_prompt_has_its_largest_slice_and_the_rest_is_spread() -> None:
    labels = np.zeros((20, 6, 6), np.uint8)
    labels[3:15, :2, :2] = 1
    labels[9, :3, :2] = 1
    labels[17, 4, 4] = 2
    chosen = _chosen(labels, 3, 6)
    assert {9, 17} <= set(chosen)
    assert len(chosen) == len(set(chosen)) == 6
    assert set(chosen) <= {*range(3, 15), 17}
    assert _chosen(labels, 3, 1) == [9]
    assert _chosen(np.zeros((5, 2, 2), np.uint8), 3, 3) == [0, 2, 4]


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_masks_are_coloured_and_the_same_result_gives_the_same_bytes(plane: str) -> None:
    box = (slice(5, 20), slice(5, 20), slice(4, 9))
    with_mask, without = _result(liver=box), _result(liver=(slice(0), slice(0), slice(0)))
    picture = contact_sheet(with_mask, plane=plane)
    assert picture == contact_sheet(with_mask, plane=plane)

    def coloured(png: bytes) -> int:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        return int((np.ptp(pixels, axis=2) > 30).sum())

    assert coloured(picture) > 1000
    assert coloured(contact_sheet(without, plane=plane)) == 0


def test_the_legend_says_what_was_not_found() -> None:
    nothing = (slice(0), slice(0), slice(0))
    legend = _legend(_result(**{"liver": (slice(0, 10),) * 3, "x" * 80: nothing}))
    assert legend[0] == ("liver: 3 ml", "#E69F00")
    assert legend[1][0].endswith("…: not found")
    assert legend[1][1] is None
    assert len({_colour(index) for index in range(60)}) == 60


def test_wrong_settings() -> None:
    result = _result(liver=(slice(0, 10),) * 3)
    for change in ({"slices": 0}, {"plane": "oblique"}, {"window": ("lunge",)}):
        with pytest.raises(ConfigError):
            contact_sheet(result, **change)  # type: ignore[arg-type]


def test_a_prompt_that_the_font_cannot_write_is_named_by_its_label() -> None:
    box = (slice(0, 10),) * 3
    legend = _legend(_result(**{"ліва нирка": box, "左腎": box}))
    assert [text for text, _ in legend] == ["ліва нирка: 3 ml", "label 2 (see the summary): 3 ml"]


def test_grey_values_follow_the_modality() -> None:
    grid = Volume(np.linspace(-1000, 1000, 1000, dtype=np.float32).reshape(10, 10, 10), np.eye(4))
    as_ct = _grey(dataclasses.replace(grid, modality="CT"), None, None)
    np.testing.assert_array_equal(_grey(grid, None, "CT"), as_ct)
    assert not np.array_equal(_grey(grid, None, None), as_ct)
