from __future__ import annotations

import pytest
import torch
from monai.transforms import Compose
from torch import Tensor

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.transforms import light_augmentation, paper_augmentation, strong_augmentation
from boltzformer_monai.transforms.augment import RandIntensityd, RandRotateCropd

SIZE = 32


def example(size: int = SIZE) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, size, size, generator=generator)
    return {"image": image, "label_map": torch.randint(0, 900, (1, size, size), generator=generator).float()}


def coordinates(size: int = 64) -> Tensor:
    """Row and column of every pixel as fractions of the edge, ``(2, S, S)``."""
    place = (torch.arange(size) + 0.5) / size
    return torch.stack(torch.meshgrid(place, place, indexing="ij"))


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("size", [32, 33])
def test_quarter_turns_are_exact(quarters: int, size: int):
    data = example(size)
    turned = RandRotateCropd(prob=1, rotations=(quarters,), shift=0, scale=0)(data)
    for key, tolerance in (("label_map", 0.0), ("image", 2e-5)):
        expected = [torch.rot90(data[key], k, (1, 2)) for k in (quarters, -quarters)]
        errors = [float((turned[key] - e).abs().max()) for e in expected]
        assert min(errors) <= tolerance
    assert data["image"] is not turned["image"]


def test_all_quarter_turns_are_drawn_alike():
    data = example()
    turns = [torch.rot90(data["label_map"], k, (1, 2)) for k in range(4)]
    transform = RandRotateCropd(prob=1, shift=0, scale=0).set_random_state(0)
    counts = [0] * 4
    for _ in range(400):
        out = transform(data)["label_map"]
        counts[next(k for k in range(4) if torch.equal(out, turns[k]))] += 1
    assert min(counts) > 70


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_the_probability_is_that_of_anything_happening(prob: float):
    data = example()
    transform = RandRotateCropd(prob=prob, rotations=(0,)).set_random_state(1)
    changed = sum(not torch.equal(transform(data)["image"], data["image"]) for _ in range(400)) / 400
    assert abs(changed - prob) < 0.08


def test_image_and_label_move_alike():
    size = 96
    rows, columns = coordinates(size)
    blob = ((rows - 0.35) ** 2 + (columns - 0.6) ** 2 < 0.05).float()[None]
    transform = Compose([RandRotateCropd(prob=1, angle=15.0)]).set_random_state(2)
    positions = set()
    for _ in range(25):
        out = transform({"image": blob.clone(), "label_map": blob.clone()})
        image, label = out["image"] > 0.5, out["label_map"] > 0.5
        assert float((image ^ label).sum()) <= 0.03 * float(label.sum())
        positions.add(tuple(label.nonzero().float().mean(0).round().tolist()))
    assert len(positions) > 15


@pytest.mark.parametrize("augmentation", [light_augmentation, paper_augmentation, strong_augmentation])
def test_an_object_of_one_pixel_stays_while_the_image_shows_it(augmentation):
    moved = augmentation()[0]
    label = torch.zeros(1, 48, 48)
    label[0, 13, 31], label[0, 20, 20], label[0, 21, 20] = 7, 300, 300
    for seed in range(200):
        moved.set_random_state(seed=seed)
        out = moved({"image": (label == 7).float(), "label_map": label})
        assert out["image"].max() > 0.2  # well inside
        assert set(out["label_map"].unique().tolist()) == {0, 7, 300}
        assert (out["label_map"] == 7).sum() <= 4


def test_shift_and_scale_keep_their_bounds():
    place = coordinates()
    transform = RandRotateCropd(prob=1, rotations=(0,), shift=0.1, scale=0.1).set_random_state(3)
    shifts, zooms = [], []
    middle = slice(16, 48)  # never outside
    for _ in range(300):
        inner = transform({"image": place})["image"][:, middle, middle]
        shifts.append(inner.mean((1, 2)) - 0.5)
        zooms.append((inner[0, -1, 0] - inner[0, 0, 0]) / (31 / 64))
        torch.testing.assert_close(inner[1, 0, -1] - inner[1, 0, 0], inner[0, -1, 0] - inner[0, 0, 0])
    shift, zoom = torch.stack(shifts), torch.stack(zooms)
    assert 0.09 < float(shift.abs().max()) <= 0.1 + 1e-5
    assert 0.9 - 1e-4 <= float(zoom.min()) < 0.91
    assert 1.09 < float(zoom.max()) <= 1.1 + 1e-4
    assert float(shift.mean(0).abs().max()) < 0.015
    assert abs(float(torch.corrcoef(shift.T)[0, 1])) < 0.25  # rows and columns are shifted independently


def test_outside_the_slice_there_is_nothing():
    transform = RandRotateCropd(prob=1, rotations=(0,), shift=0.3, scale=0).set_random_state(0)  # shifts by pixels
    out = transform({"image": torch.ones(1, 32, 32)})
    assert float(out["image"].min()) == 0
    assert "label_map" not in out


@pytest.mark.parametrize("augmentation", [light_augmentation, strong_augmentation])
def test_the_seed_decides(augmentation):
    data = example()
    first, again, other = (Compose(augmentation()).set_random_state(seed)(data)["image"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_paper_s_numbers():
    (only,) = paper_augmentation()
    assert isinstance(only, RandRotateCropd)
    assert (only.prob, only.rotations, only.shift, only.scale, only.angle) == (0.5, (0, 1, 2, 3), 0.1, 0.1, 0.0)


@pytest.mark.parametrize("augmentation", [light_augmentation, strong_augmentation])
def test_patients_are_never_turned(augmentation):
    size = 64
    half = torch.zeros(1, size, size)
    half[:, : size // 2] = 1
    transform = Compose(augmentation()).set_random_state(0)
    for _ in range(40):
        out = transform({"image": half, "label_map": half.clone()})["label_map"]
        assert float(out[:, : size // 2].mean()) > 0.6
        assert float(out[:, size // 2 :].mean()) < 0.4


def test_strong_augmentation_changes_images_more_than_light():
    """Mean absolute difference to the image, over 60 draws; values stay near the scale, labels whole numbers."""
    data = example()
    changes = []
    for augmentation in (light_augmentation, strong_augmentation):
        transform = Compose(augmentation()).set_random_state(0)
        drawn = [transform(data) for _ in range(60)]
        assert {float(value) for each in drawn for value in each["label_map"].unique()} <= set(
            data["label_map"].unique().tolist()
        )
        assert all(float(each["image"].min()) > -0.5 and float(each["image"].max()) < 1.5 for each in drawn)
        changes.append(sum(float((each["image"] - data["image"]).abs().mean()) for each in drawn) / 60)
    assert changes[1] > 1.1 * changes[0]


def test_intensity_stays_on_the_scale_and_leaves_the_label():
    data = example()
    transform = RandIntensityd(prob=1).set_random_state(0)
    gains = []
    for _ in range(50):
        out = transform(data)
        assert 0 <= float(out["image"].min()) <= float(out["image"].max()) <= 1
        assert out["label_map"] is data["label_map"]
        gains.append(float(out["image"].mean()) - float(data["image"].mean()))
    assert max(gains) > 0.05
    assert min(gains) < -0.05
    assert RandIntensityd(prob=0)(data)["image"] is data["image"]


@pytest.mark.parametrize("settings", [{"rotations": ()}, {"shift": 1.0}, {"scale": -0.1}, {"scale": 1.0}])
def test_impossible_settings(settings: dict[str, object]):
    with pytest.raises(ConfigError, match="rotations must not be empty"):
        RandRotateCropd(**settings)
