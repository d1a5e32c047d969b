"""The needle test: what its images show, what arms of one seed share, and what it measures."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.studies.needle import (
    NeedleResult,
    NeedleSettings,
    _set_size_and_coverage,
    _vectors,
    make_batch,
    run_needle,
)
from boltzformer_monai.studies.scores import ScoreRow
from tests.sizes import THOROUGH

QUICK: dict[str, Any] = {"image_size": 64, "steps": 3, "batch_size": 4, "test_images": 8}
POLICIES = ("boltzmann", "threshold", "full")


def quick(**overrides: Any) -> NeedleSettings:
    return NeedleSettings(**{**QUICK, **overrides})


@pytest.fixture(scope="module")
def by_policy() -> dict[str, NeedleResult]:
    return {policy: run_needle(quick(network={"policy": policy}), seed=1) for policy in POLICIES}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": "10"}, "steps must be a whole number, got '10'"),
        ({"batch_size": 1}, "batch_size must be at least 2: V is swapped between images; got 1"),
        ({"test_images": 6}, "test_images must be a multiple of batch_size 4, got 6"),
        ({"noise": -1.0}, "noise must be 0 or more and finite, got -1.0"),
        ({"objects": 5}, "5 objects need as many classes and coarse patches; at most 4 here"),
        ({"code": 30}, "4 classes and a code of 30 need 34 channels, the network has dim 32"),
        ({"network": {"image_size": 64}}, "network names image_size; set that of the needle test instead"),
        ({"network": {"polcy": "full"}}, "unknown network setting 'polcy'"),
        ({"image_size": 100}, "image_size must be a positive multiple of 32, got 100"),
        ({"training": {"learning_rate": -1.0}}, "learning_rate must be at least 0, got -1.0"),
        ({"training": {"epochs": 3}}, "unknown training setting of a needle test 'epochs'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        quick(**overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_seed_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="the seed must be from 0 to 2147483647, got -1"):
        run_needle(quick(), seed=-1)


def test_v_shows_class_and_code_s_the_code_and_the_text_the_class() -> None:
    settings = quick(image_size=128, noise=0.0, objects=3)
    batch = make_batch(settings, key="k", count=5)
    of_class, of_code, of_text = _vectors(settings)
    coarse, middle, fine = batch.image.levels
    assert [level.shape[-1] for level in (coarse, middle, fine)] == [4, 8, 16]
    assert batch.image.semantic_map.shape == (5, 32, 32, 32)
    for image in range(5):
        assert len(set(batch.kind[image].tolist())) == 3
        assert len({(row // 4, column // 4) for row, column in batch.cell[image].tolist()}) == 3
        for prompt in range(3):
            row, column = batch.cell[image, prompt].tolist()
            code = settings.signal * batch.code[image, prompt] @ of_code
            both = code + settings.signal * of_class[batch.kind[image, prompt]]
            torch.testing.assert_close(fine[image, :, row, column], both)
            torch.testing.assert_close(middle[image, :, row // 2, column // 2], both)
            torch.testing.assert_close(coarse[image, :, row // 4, column // 4], both)
            for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                torch.testing.assert_close(batch.image.semantic_map[image, :, 2 * row + i, 2 * column + j], code)
            torch.testing.assert_close(batch.text.tokens[image, prompt, 0], of_text[batch.kind[image, prompt]])
            mask = torch.zeros(64, 64)
            mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 1
            torch.testing.assert_close(batch.mask[image, prompt], mask)
    assert [int((level.abs().sum(1) > 1e-6).sum()) for level in (coarse, middle, fine)] == [15, 15, 15]
    assert int((batch.image.semantic_map.abs().sum(1) > 1e-6).sum()) == 4 * 15
    torch.testing.assert_close(of_class @ of_code.T, torch.zeros(4, 16), atol=1e-5, rtol=0)


def test_swapping_changes_v_alone() -> None:
    batch = make_batch(quick(), key="k", count=3)
    other = batch.swapped()
    for level, swapped in zip(batch.image.levels, other.image.levels, strict=True):
        torch.testing.assert_close(swapped[1], level[0])
        torch.testing.assert_close(swapped[0], level[2])
    assert other.image.semantic_map is batch.image.semantic_map
    assert (other.text, other.mask) == (batch.text, batch.mask)


def test_a_key_decides_everything_and_another_key_draws_anew() -> None:
    one, same, other = (make_batch(quick(), key=key, count=4) for key in ("a", "a", "b"))
    torch.testing.assert_close(one.image.levels[0], same.image.levels[0], rtol=0, atol=0)
    assert torch.equal(one.cell, same.cell)
    assert not torch.equal(one.code, other.code)


def test_arms_of_a_seed_share_weights_and_images(by_policy: dict[str, NeedleResult]) -> None:
    assert len({(result.initial_sha256, result.data_sha256) for result in by_policy.values()}) == 1
    other = run_needle(quick(), seed=2)
    assert other.initial_sha256 != by_policy["full"].initial_sha256
    assert other.data_sha256 != by_policy["full"].data_sha256
    assert by_policy["boltzmann"].losses[0] != by_policy["full"].losses[0]


def test_another_decoder_starts_from_the_weights_that_it_shares() -> None:
    from boltzformer_monai.studies.needle import _initial_decoder

    usual, _ = _initial_decoder(quick(), 3)
    for changes in ({"text_prior": False}, {"queries": 7}, {"mask_bias": 0.0}, {"layers": 4}):
        decoder, _ = _initial_decoder(quick(network=changes), 3)
        theirs, shared = usual.state_dict(), 0
        for name, value in decoder.state_dict().items():
            if value.dim() and name in theirs and theirs[name].shape == value.shape:
                torch.testing.assert_close(value, theirs[name], rtol=0, atol=0)
                shared += 1
        assert shared > 20
    assert _initial_decoder(quick(network={"mask_bias": 0.0}), 3)[0].query_decoder.mask_bias.item() == 0


def test_a_run_repeated_gives_the_same_numbers(by_policy: dict[str, NeedleResult]) -> None:
    again = run_needle(quick(network={"policy": "boltzmann"}), seed=1)
    first = by_policy["boltzmann"]
    measured = {"seconds": 0.0, "processor_seconds": 0.0}
    assert dataclasses.replace(again, **measured) == dataclasses.replace(first, **measured)


def test_what_is_measured(by_policy: dict[str, NeedleResult]) -> None:
    result = by_policy["full"]
    assert [(each.layer, each.patches) for each in result.layers] == list(enumerate([4, 16, 64] * 3))
    assert {(each.set_size, each.coverage, each.focus) for each in result.layers} == {(1.0, 1.0, 1.0)}
    assert all(0 < each.set_size < 0.5 for each in by_policy["boltzmann"].layers[2::3])
    assert len(result.rows) == 8 * 3
    row = result.rows[-1]
    assert (row["seed"], row["data"], row["image"], row["diameter_mm"]) == (1, "needle 4/16/64", "test 7", None)
    assert {field.name for field in dataclasses.fields(ScoreRow)} == {*row, "arm", "fold"}
    assert row["area_share"] == 1 / 64
    assert result.dice == pytest.approx(sum(row["dice"] for row in result.rows) / 24)
    assert result.missed == pytest.approx(sum(row["missed"] for row in result.rows) / 24)
    assert len(result.losses) == 3
    assert all(map(math.isfinite, (*result.losses, result.dice_swapped, result.seconds, result.processor_seconds)))
    json.dumps(result.as_dict())


def test_set_size_and_coverage_of_sets_made_by_hand() -> None:
    sets = torch.zeros(1, 2, 3, 4, 4, dtype=torch.bool)  # one image, two prompts, three queries
    sets[0, 0, 0, 1, 2] = sets[0, 0, 1] = True  # finds it; has everything
    sets[0, 1, 2, 0, :2] = True  # one of the two is it
    size, coverage = _set_size_and_coverage(sets, torch.tensor([[[1, 2], [0, 1]]]))
    assert size == pytest.approx((1 + 16 + 2) / (6 * 16))
    assert coverage == pytest.approx(3 / 6)
    heads = sets[:, :, None].expand(-1, -1, 2, -1, -1, -1)
    assert _set_size_and_coverage(heads, torch.tensor([[[1, 2], [0, 1]]])) == pytest.approx((size, coverage))


def test_a_policy_of_ones_own_learns() -> None:
    learned = quick(steps=100, batch_size=8, network={"policy": "full", "layers": 3}, training={"learning_rate": 3e-3})
    result = run_needle(learned, seed=0)
    assert sum(result.losses[-10:]) < 0.7 * sum(result.losses[:10])
    assert result.dice > 0.4 > 2 * result.dice_swapped


def test_supervised_layers_take_part_in_the_loss() -> None:
    plain, supervised = (
        run_needle(quick(steps=1, training={"layer_supervision": weight}), seed=0) for weight in (0.0, 0.5)
    )
    assert supervised.losses[0] > plain.losses[0] + 0.1
    assert supervised.initial_sha256 == plain.initial_sha256


@pytest.mark.skipif(not THOROUGH, reason="three minutes; BOLTZFORMER_THOROUGH=1")
def test_full_attention_solves_it_and_needs_v() -> None:
    result = run_needle(NeedleSettings(network={"policy": "full"}), seed=0)
    assert result.dice >= 0.9
    assert result.dice_swapped < 0.15  # not 0: the code of another image's object resembles the right one now and then
