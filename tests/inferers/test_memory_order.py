"""Shapes and views that spare copies say the same as the copies."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.data.planes import PLANE_AXES, extract_slices, slices_to_volume, stack_shape
from boltzformer_monai.inferers.volume_result import in_memory_order
from boltzformer_monai.io.volume import Volume

TURNED = np.array([[0, 0, 3.0, 0], [-2.0, 0, 0, 0], [0, 1.5, 0, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("affine", [np.diag([1.0, 2.0, 3.0, 1.0]), TURNED], ids=["straight", "turned"])
@pytest.mark.parametrize("plane", sorted(PLANE_AXES))
def test_views_of_slices(affine: np.ndarray, plane: str) -> None:
    volume = Volume(np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5), affine)
    slices = extract_slices(volume, plane)
    assert stack_shape(volume, plane) == slices.shape
    view = slices_to_volume(slices, volume, plane, view=True)
    assert np.shares_memory(view, slices)
    np.testing.assert_array_equal(view, volume.array)
    laid, order = in_memory_order(view)
    assert laid.shape == tuple(view.shape[axis] for axis in order)
    assert [abs(step) for step in laid.strides] == sorted((abs(step) for step in view.strides), reverse=True)
    np.testing.assert_array_equal(laid, view.transpose(order))
