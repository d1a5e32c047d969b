"""Test-time averaging: what a pose moves, it brings back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.run_settings import MOST_POSES
from boltzformer_monai.transforms.poses import POSES, Pose, first_poses, mean_logits


def _blob(size: int, row: float, column: float, width: float = 0.1) -> torch.Tensor:
    """A Gaussian of 1 at a place in the square, 0 to 1 from its upper left corner."""
    at = (torch.arange(size) + 0.5) / size
    return torch.exp(-((at[:, None] - row) ** 2 + (at[None] - column) ** 2) / (2 * width**2))[None, None]


@pytest.mark.parametrize("pose", POSES[1:])
@pytest.mark.parametrize("mask_size", [64, 32])
def test_masks_come_back_to_their_place(pose: Pose, mask_size: int) -> None:
    image = _blob(64, 0.4, 0.7)
    shown = pose.image(image)
    assert (shown - image).abs().max() > 0.1  # it has moved
    small = torch.nn.functional.interpolate(shown, size=mask_size, mode="bilinear", antialias=True)
    torch.testing.assert_close(pose.restore(small, 64), image, rtol=0, atol=0.05)


def test_a_pose_moves_as_it_says_and_mirrors_nothing() -> None:
    shown = Pose(rows=0.1, columns=-0.2).image(_blob(64, 0.5, 0.5))
    row, column = np.unravel_index(int(shown.argmax()), (64, 64))
    assert max(abs(row - 0.4 * 64), abs(column - 0.7 * 64)) < 1.5  # the content moves against the view
    smaller = Pose(scale=1.25).image(_blob(64, 0.5, 0.5))
    assert smaller.sum().item() == pytest.approx(_blob(64, 0.5, 0.5, 0.08).sum().item(), rel=0.02)
    for pose in POSES:
        assert np.linalg.det(pose._matrix()[:, :2]) > 0
        assert abs(pose.angle) <= 10
        assert abs(pose.scale - 1) <= 0.1


def test_the_first_pose_is_the_slice_itself() -> None:
    image = torch.rand(2, 3, 16, 16)
    (pose,) = first_poses(1)
    assert pose.image(image) is image
    assert pose.restore(image, 16) is image
    assert len(first_poses(5)) == len(set(first_poses(5))) == 5
    assert len(POSES) == MOST_POSES
    for count in (0, 6, True, 2.0, "2"):
        with pytest.raises(ConfigError, match="tta averages 1 to 5 poses"):
            first_poses(count)


def test_probabilities_are_averaged_not_logits() -> None:
    mean = mean_logits([torch.tensor([0.0, -2.0, 40.0]), torch.tensor([0.0, 9.0, 40.0])])
    expected = [0.5, (torch.sigmoid(torch.tensor(-2.0)) + torch.sigmoid(torch.tensor(9.0))).item() / 2, 1]
    torch.testing.assert_close(mean.sigmoid(), torch.tensor(expected), rtol=0, atol=1e-5)
