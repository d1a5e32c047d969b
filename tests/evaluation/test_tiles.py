"""Overlays as one small picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from boltzformer_monai.evaluation.figures import OverlayPanel
from boltzformer_monai.evaluation.tiles import tile_panels, tiles_png


def _panel(shape: tuple[int, int] = (20, 10), title: str = "liver lesion: Dice 0.50") -> OverlayPanel:
    truth = np.zeros(shape, bool)
    truth[4:8, 4:8] = True
    return OverlayPanel(np.full(shape, 100, np.uint8), np.roll(truth, 4, axis=0), truth, title)


def test_truth_is_red_and_prediction_green() -> None:
    sheet = tile_panels([_panel((16, 16))])
    assert sheet.dtype == np.uint8
    assert sheet.shape == (256 + 22, 256, 3)
    scale = 254 / 16
    inside = sheet[22 + 1 + round(6 * scale), 1 + round(6 * scale)].astype(int)
    assert inside.tolist() == [100, 100, 100]  # the truth is an outline only
    edge = sheet[22 + 1 + round(4 * scale) + 1, 1 + round(6 * scale)].astype(int)
    assert edge[0] > 200
    assert edge[1] < 80
    filled = sheet[22 + 1 + round(10 * scale), 1 + round(6 * scale)].astype(int)
    assert filled[1] > filled[0] + 30


def test_rows_of_four() -> None:
    assert tile_panels([_panel()] * 8).shape == (2 * 278, 4 * 256, 3)
    assert tile_panels([_panel()] * 3).shape == (278, 3 * 256, 3)


def test_pixels_have_their_shape() -> None:
    """A slice with rows of 5 mm and columns of 1 mm is as high as it is wide."""
    panel = OverlayPanel(np.full((10, 50), 90, np.uint8), np.zeros((10, 50), bool), None, "")
    sheet = tile_panels([panel], aspects=[5.0])
    assert (sheet[22 + 2 : -2, 2:-2] == 90).all()
    flat = tile_panels([panel])
    assert (flat[24:40, 2:-2] == 255).all()


def test_long_titles_are_cut() -> None:
    title = "an object with a very long name " * 5
    assert tile_panels([_panel(title=title)]).shape == (278, 256, 3)


def test_png() -> None:
    sheet = tile_panels([_panel()])
    assert (np.asarray(Image.open(io.BytesIO(tiles_png(sheet)))) == sheet).all()
