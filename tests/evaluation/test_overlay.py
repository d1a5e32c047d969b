from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from boltzformer_monai.evaluation.overlay import OPACITY, blend, new_figure, plain_text, png_bytes


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16])
def test_labelled_pixels_are_blended_with_their_colour_and_others_stay_grey(dtype: type) -> None:
    image = np.array([[0, 51, 255]], np.uint8)
    labels = np.array([[1, 0, 1 if dtype is bool else 2]]).astype(dtype)
    rgb = blend(image, labels, np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])[: int(labels.max())])
    second = [0.0, 1.0, 0.0] if dtype is not bool else [1.0, 0.0, 0.5]
    expected = [
        OPACITY * np.array([1.0, 0.0, 0.5]),
        np.full(3, 0.2),
        (1 - OPACITY) * np.ones(3) + OPACITY * np.array(second),
    ]
    np.testing.assert_allclose(rgb[0], expected)


def test_a_figure_has_its_size_and_equal_figures_equal_bytes() -> None:
    pngs = []
    for _ in range(2):
        figure = new_figure(2, 1)
        figure.suptitle(plain_text("costs $5 or $6"))
        pngs.append(png_bytes(figure))
    assert pngs[0] == pngs[1]
    assert Image.open(io.BytesIO(pngs[0])).size == (200, 100)
