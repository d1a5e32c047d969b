from __future__ import annotations

import json

import numpy as np
import pytest

from boltzformer_monai.data.windows import (
    NAMED_WINDOWS,
    MRPercentiles,
    Window,
    default_window,
    parse_window,
    window_from_dict,
)
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.modality import parse_modality


def test_window_maps_its_ends_and_centre_and_clips_beyond():
    hu = np.array([-3000, -160, 40, 240, 3000], np.float32)
    np.testing.assert_array_equal(Window(40, 400).apply(hu), [0, 0, 128, 255, 255])


def test_window_rounds_to_nearest_and_is_monotonic():
    hu = np.linspace(-200, 300, 5001, dtype=np.float32)
    grey = Window(40, 400).apply(hu)
    assert grey.dtype == np.uint8
    assert (np.diff(grey.astype(int)) >= 0).all()
    inside = (hu >= -160) & (hu <= 240)
    np.testing.assert_allclose(grey[inside], (hu[inside] + 160) / 400 * 255, atol=0.501)


def test_window_gives_slices_what_it_gives_the_volume():
    volume = np.random.default_rng(0).normal(0, 300, (8, 9, 10)).astype(np.float32)
    window = Window(-600, 1500)
    one_by_one = np.stack([window.apply(volume[..., k]) for k in range(10)], axis=-1)
    np.testing.assert_array_equal(window.apply(volume), one_by_one)


def test_integer_input_and_nan():
    np.testing.assert_array_equal(Window(0, 2).apply(np.array([-1, 0, 1], np.int16)), [0, 128, 255])
    np.testing.assert_array_equal(Window(0, 2).apply(np.array([np.nan, np.inf, -np.inf], np.float32)), [0, 255, 0])


@pytest.mark.parametrize(("level", "width"), [(40, 0), (40, -1), (float("nan"), 400), (40, float("inf"))])
def test_impossible_windows_are_refused(level: float, width: float):
    with pytest.raises(ConfigError, match="width"):
        Window(level, width)


@pytest.mark.parametrize(("lower", "upper"), [(5, 5), (-1, 99), (1, 101), (99, 1)])
def test_impossible_percentiles_are_refused(lower: float, upper: float):
    with pytest.raises(ConfigError, match="percentiles"):
        MRPercentiles(lower, upper)


@pytest.mark.parametrize("air", [0.0, 0.5, 0.95])
def test_percentiles_do_not_depend_on_the_share_of_air(air: float):
    rng = np.random.default_rng(1)
    body = rng.uniform(200, 1000, 40_000)
    noise = rng.uniform(0, 12, int(air / (1 - air) * body.size))
    black, white = MRPercentiles().limits(np.concatenate([noise, body]).astype(np.float32))
    assert black == pytest.approx(204, abs=60)  # the darkest 5 % of the range may be taken for air
    assert white == pytest.approx(996, abs=5)


def test_percentiles_ignore_a_few_very_bright_voxels():
    rng = np.random.default_rng(2)
    volume = rng.uniform(100, 1000, 50_000).astype(np.float32)
    volume[:50] = 1e6
    _, white = MRPercentiles().limits(volume)
    assert white < 1001


@pytest.mark.parametrize("value", [0, 7, -3])
def test_constant_volumes_become_zeros(value: float):
    grey = MRPercentiles().apply(np.full((3, 4, 5), value, np.float32))
    assert grey.dtype == np.uint8
    assert not grey.any()


def test_empty_and_nan_volumes_become_zeros():
    assert MRPercentiles().apply(np.empty((0, 2, 2), np.float32)).shape == (0, 2, 2)
    assert not MRPercentiles().apply(np.full((2, 2, 2), np.nan, np.float32)).any()


def test_two_valued_volume_keeps_its_contrast():
    volume = np.zeros((10, 10, 10), np.float32)
    volume[2:5] = 80
    grey = MRPercentiles().apply(volume)
    assert grey[3, 0, 0] == 255
    assert grey[0, 0, 0] == 0


@pytest.mark.parametrize("window", [*NAMED_WINDOWS.values(), MRPercentiles(), MRPercentiles(1, 99)])
def test_dict_round_trip(window: Window | MRPercentiles):
    assert window_from_dict(json.loads(json.dumps(window.to_dict()))) == window


@pytest.mark.parametrize(
    "data",
    [{}, {"kind": "hu", "level": 1}, {"kind": "hu", "level": 1, "width": "x"}, {"kind": "x", "level": 1, "width": 2},
     {"kind": "hu", "level": 1, "width": 2, "gamma": 3}, {"kind": "hu", "level": 1, "width": None}],
)  # fmt: skip
def test_damaged_dicts_are_refused(data: dict):
    with pytest.raises(ConfigError, match="a window is"):
        window_from_dict(data)


@pytest.mark.parametrize("value", ["40 400", "40/400", "40, 400", (40, 400), ["40", "400"], "abdomen", ["Abdomen"]])
def test_spellings_of_one_window(value: object):
    assert parse_window(value) == Window(40, 400)


def test_parse_window_passes_windows_and_dicts_on():
    assert parse_window(Window(1, 2)) == Window(1, 2)
    assert parse_window({"kind": "hu", "level": 1, "width": 2}) == Window(1, 2)
    assert parse_window("percentiles") == MRPercentiles()
    assert parse_window("-600 1500") == Window(-600, 1500)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'lung'"):
        parse_window("lungs")
    with pytest.raises(ConfigError, match="LEVEL WIDTH"):
        parse_window(["forty", "400"])
    with pytest.raises(ConfigError, match="known are"):
        parse_window("qqq")


@pytest.mark.parametrize(
    ("modality", "site", "expected"),
    [
        ("CT", "abdomen", NAMED_WINDOWS["abdomen"]),
        ("ct", "pelvis", NAMED_WINDOWS["abdomen"]),
        ("CT", "", NAMED_WINDOWS["abdomen"]),
        ("CT", "Thorax", NAMED_WINDOWS["chest"]),
        ("CT", "chest and abdomen", NAMED_WINDOWS["chest"]),
        ("CT", "brain", NAMED_WINDOWS["brain"]),
        ("CT", "head and neck", NAMED_WINDOWS["abdomen"]),
        ("CT", "spine", NAMED_WINDOWS["bone"]),
        ("MRI", "brain", MRPercentiles()),
    ],
)
def test_default_windows(modality: str, site: str, expected: Window | MRPercentiles):
    assert default_window(modality, site) == expected


def test_the_chest_window_parts_everything_a_chest_prompt_asks_for():
    lung, fat, nodule, heart, bone = default_window("CT", "chest").apply(np.array([-850, -100, 30, 160, 500.0]))
    assert lung + 60 < fat
    assert fat + 15 < nodule
    assert nodule + 15 < heart
    assert heart + 30 < bone < 255


def test_an_unknown_modality_gets_no_guess():
    with pytest.raises(ConfigError, match="does not say its modality"):
        default_window("unknown", "abdomen")
    with pytest.raises(ConfigError, match="use CT or MR"):
        parse_modality("PET")
