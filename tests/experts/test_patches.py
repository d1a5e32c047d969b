"""Patches of prepared scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from boltzformer_monai.experts.patches import FixedPatches, RandPatch, training_transform
from boltzformer_monai.experts.plan import Plan
from boltzformer_monai.experts.prepare import Prepared
from boltzformer_monai.experts.settings import ExpertSettings
from tests.experts.test_plan import planned

SHAPE = (20, 24, 28)


@pytest.fixture
def plan() -> Plan:
    return planned(SHAPE, (1.0, 1.0, 1.0), budget=2 * 16 * 16 * 16)


@pytest.fixture
def scan(tmp_path: Path) -> Prepared:
    """Its image is its mask, a box in a corner, plus one."""
    mask = np.zeros((1, *SHAPE), bool)
    mask[0, 12:18, 3:9, 14:26] = True
    np.save(tmp_path / "a.image.npy", mask[0].astype(np.float32) + 1)
    np.save(tmp_path / "a.masks.npy", mask)
    np.savez(tmp_path / "a.centres.npz", **{"0000": np.argwhere(mask[0]).astype(np.int32)})
    return Prepared(tmp_path, "a")


def test_patches_lie_in_the_scan_and_cover_all_of_it(plan: Plan, scan: Prepared) -> None:
    patch = RandPatch(plan, foreground=0.0, augment=False)
    whole, starts = torch.from_numpy(np.array(scan.image())), set()
    for seed in range(60):
        patch.set_random_state(seed=seed)
        found = patch({"scan": scan})
        assert found["image"].shape == (1, *plan.patch)
        assert found["label"].shape == (1, *plan.patch)
        assert found["image"].min() >= 1  # no padding
        assert torch.equal(found["label"], found["image"] - 1)
        starts.add(tuple(patch._place(np.asarray(SHAPE), scan)))
    for axis in range(3):
        assert {0, SHAPE[axis] - plan.patch[axis]} <= {start[axis] for start in starts}
    assert whole.min() == 1


def test_a_patch_is_centred_on_a_target_where_it_is_wanted(plan: Plan, scan: Prepared) -> None:
    patch = RandPatch(plan, foreground=1.0, augment=False)
    for seed in range(20):
        patch.set_random_state(seed=seed)
        assert patch({"scan": scan})["label"].any()


def test_a_scan_smaller_than_the_patch_lies_in_its_middle(scan: Prepared) -> None:
    plan = planned((32, 32, 32), (1.0, 1.0, 1.0), budget=2 * 32**3)
    found = RandPatch(plan, foreground=0.0, augment=False).set_random_state(seed=0)({"scan": scan})["image"][0]
    expected = np.zeros(plan.patch, np.float32)
    expected[6:26, 4:28, 2:30] = scan.image()
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_masks_follow_a_turned_and_resized_image(scan: Prepared, dimensions: int) -> None:
    plan = planned(SHAPE, (1.0, 1.0, 1.0), dimensions=dimensions, budget=2**14)
    patch = RandPatch(plan, foreground=1.0, augment=True)
    turned = 0
    for seed in range(40):
        patch.set_random_state(seed=seed)
        found = patch({"scan": scan})
        assert found["image"].shape == (1, *plan.patch)
        inside = found["image"] > 0.99
        agree = (found["label"] > 0.5) == (found["image"] > 1.5)
        assert agree[inside].float().mean() > 0.9
        turned += bool((found["image"] % 1 > 0.01).any())
    assert 5 < turned < 30  # 36 % are turned or resized


@pytest.mark.parametrize("dimensions", [2, 3])
def test_an_example_follows_from_its_seed(scan: Prepared, dimensions: int) -> None:
    plan = planned(SHAPE, (1.0, 1.0, 1.0), dimensions=dimensions, budget=2**13)
    transform = training_transform(plan, ExpertSettings())

    def example(seed: int) -> dict[str, torch.Tensor]:
        transform.set_random_state(seed=seed)
        return transform({"scan": scan})  # type: ignore[return-value]

    one, other, same = example(1), example(2), example(1)
    assert type(one["image"]) is torch.Tensor
    assert one["image"].shape == (1, *plan.patch)
    assert set(one["label"].unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(one["image"], same["image"])
    assert torch.equal(one["label"], same["label"])
    assert not torch.equal(one["image"], other["image"])


def test_validation_patches_are_always_the_same(plan: Plan, scan: Prepared) -> None:
    patches = FixedPatches([scan], count=3, plan=plan, foreground=0.33)
    first = [patches[index]["image"] for index in range(len(patches))]
    again = [patches[index]["image"] for index in (2, 1, 0)]
    assert all(map(torch.equal, first, again[::-1]))
