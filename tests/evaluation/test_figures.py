"""Pictures: what must be bright is bright, what must be green is green, and nothing global changes."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.evaluation.figures import OverlayPanel, loss_curve, overlay, overlay_grid, sampled_patches

GREY = np.full((40, 60), 128, dtype=np.uint8)
SAMPLED = int(255 * (0.15 + 0.85 * 128 / 255))


def _mask(*region: slice) -> np.ndarray:
    mask = np.zeros(GREY.shape, dtype=bool)
    mask[region] = True
    return mask


def _pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def _green(pixels: np.ndarray) -> float:
    return float(((pixels[..., 1] > pixels[..., 0] + 50) & (pixels[..., 1] > pixels[..., 2] + 30)).mean())


def _red(pixels: np.ndarray) -> float:
    return float(((pixels[..., 0] > pixels[..., 1] + 80) & (pixels[..., 0] > pixels[..., 2] + 80)).mean())


def test_overlay_fills_the_prediction_green_and_outlines_the_truth_red() -> None:
    pixels = _pixels(overlay(GREY, _mask(slice(10, 30), slice(10, 30)), _mask(slice(5, 35), slice(20, 50)), "liver"))
    assert 0.08 < _green(pixels) < 0.17  # 400 of 2,400 image pixels, less margins and outline
    assert 0.003 < _red(pixels) < 0.05


def test_overlay_without_truth_or_prediction_has_no_colour() -> None:
    pixels = _pixels(overlay(GREY, _mask(slice(0)), None, "nothing"))
    assert _green(pixels) == _red(pixels) == 0


def test_the_outline_of_a_single_pixel_is_visible() -> None:
    assert _red(_pixels(overlay(GREY, _mask(slice(0)), _mask(slice(20, 21), slice(30, 31))))) > 0


def test_the_outline_surrounds_the_truth() -> None:
    truth = _mask(slice(0, 20), slice(0, 30))  # the upper left quarter, touching two edges
    pixels = _pixels(overlay(GREY, _mask(slice(0)), truth))
    rows, columns = np.nonzero(pixels[..., 0] > pixels[..., 1] + 80)
    height, width = pixels.shape[:2]
    assert rows.max() < 0.62 * height
    assert columns.max() < 0.58 * width


def test_grid_grows_with_its_panels() -> None:
    panel = OverlayPanel(GREY, _mask(slice(5, 9), slice(5, 9)), None, "a $ in a title")
    one, four, five = (_pixels(overlay_grid([panel] * count)).shape for count in (1, 4, 5))
    assert four[1] > 3 * one[1]
    assert five[1] == four[1]
    assert five[0] > 1.8 * four[0]


def test_sampled_patches_are_bright_the_rest_dark() -> None:
    half = np.zeros((4, 6), dtype=bool)
    half[:, :3] = True
    everything, nothing = np.ones((8, 12), dtype=bool), np.zeros((2, 3), dtype=bool)
    pixels = _pixels(sampled_patches(GREY, [half, everything, nothing], None, "liver in abdominal CT"))
    bright, dark = (np.abs(pixels - level).max(axis=2) < 6 for level in (SAMPLED, int(0.22 * 128)))
    third = pixels.shape[1] // 3
    shares = [
        (bright[:, i * third : (i + 1) * third].sum(), dark[:, i * third : (i + 1) * third].sum()) for i in range(3)
    ]
    assert shares[0][0] == pytest.approx(shares[0][1], rel=0.15)
    assert shares[1][0] > 20 * shares[1][1]
    assert shares[2][1] > 20 * shares[2][0]


def test_patches_cover_the_right_pixels_on_uneven_grids() -> None:
    patches = np.zeros((3, 7), dtype=bool)
    patches[2, 6] = True
    pixels = _pixels(sampled_patches(GREY, [patches]))
    rows, columns = np.nonzero(np.abs(pixels - SAMPLED).max(axis=2) < 3)
    big = (rows > pixels.shape[0] * 0.3) & (columns < pixels.shape[1] * 0.5)
    assert not big.any(), "the last patch lies at the lower right"
    assert len(rows) > 50


def test_sampled_air_differs_from_air_that_was_not_sampled() -> None:
    patches = np.array([[True, False]])
    pixels = _pixels(sampled_patches(np.zeros_like(GREY), [patches]))
    assert (
        pixels[pixels.shape[0] // 2, pixels.shape[1] // 4, 0] > pixels[pixels.shape[0] // 2, -pixels.shape[1] // 4, 0]
    )


def test_nine_layers_are_three_rows_of_three() -> None:
    one = _pixels(sampled_patches(GREY, [np.ones((2, 2), dtype=bool)])).shape
    nine = _pixels(sampled_patches(GREY, [np.ones((2, 2), dtype=bool)] * 9)).shape
    assert nine[1] == pytest.approx(3 * one[1], abs=3)
    assert nine[0] == pytest.approx(3 * one[0], abs=3)


def test_loss_curve_takes_gaps_and_nothing() -> None:
    history = [
        {"epoch": 1, "train_loss": 1.2, "val_loss": 1.1, "val_dice": 0.2},
        {"epoch": 2, "train_loss": 0.8, "val_loss": None},
        {"epoch": 3, "train_loss": float("nan"), "val_loss": 0.7, "val_dice": 0.5},
    ]
    full, empty = _pixels(loss_curve(history)), _pixels(loss_curve([]))
    assert full.shape == empty.shape
    assert _red(full) > 0
    assert _red(empty) == 0


def test_same_input_same_bytes() -> None:
    arguments = (GREY, _mask(slice(3, 9)), None, "same")
    assert overlay(*arguments) == overlay(*arguments)


def test_pyplot_is_never_touched() -> None:
    before = "matplotlib.pyplot" in sys.modules
    overlay(GREY, _mask(slice(3, 9)))
    loss_curve([{"epoch": 1, "train_loss": 1.0}])
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_wrong_arrays_are_refused() -> None:
    with pytest.raises(ConfigError, match="uint8"):
        overlay(GREY.astype(float), _mask(slice(3)))
    with pytest.raises(ConfigError, match="prediction"):
        overlay(GREY, np.zeros((3, 3), dtype=bool))
    with pytest.raises(ConfigError, match="truth"):
        overlay(GREY, _mask(slice(3)), _mask(slice(3)).astype(int))
    with pytest.raises(ConfigError, match="at least one panel"):
        overlay_grid([])
    with pytest.raises(ConfigError, match="at least one layer"):
        sampled_patches(GREY, [])
    with pytest.raises(ConfigError, match="layer 2"):
        sampled_patches(GREY, [np.ones((2, 2), dtype=bool), np.ones((2, 2))])
