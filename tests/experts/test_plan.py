"""Planning, compared with plans that nnU-Net's authors published."""

from __future__ import annotations

import numpy as np
import pytest

from boltzformer_monai.errors import CheckpointError, ConfigError
from boltzformer_monai.experts.plan import Fingerprint, Plan, make_plan, pooling
from boltzformer_monai.experts.settings import ExpertSettings, expert_settings


def planned(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], *, scans: int = 200, **settings: object
) -> Plan:
    given = Fingerprint([shape] * scans, [spacing] * scans, True, np.arange(1001, dtype=np.float32))
    targets = settings.pop("targets", ("liver",))
    return make_plan(
        given, ExpertSettings(**settings), targets=targets, plane="axial", original=True, lateral_axis=2  # type: ignore[arg-type]
    )  # fmt: skip


def test_hippocampus() -> None:
    plan = planned((36, 50, 35), (1.0, 1.0, 1.0))
    assert plan.patch == (40, 56, 40)
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2))
    assert plan.kernels == ((3, 3, 3),) * 4
    assert plan.filters == (32, 64, 128, 256)
    assert plan.outputs == 2


def test_prostate_pools_its_thick_slices_later() -> None:
    levels = pooling((20, 320, 256), (3.6, 0.625, 0.625))
    assert levels.strides == (
        (1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 2, 2)
    )  # fmt: skip
    assert levels.kernels == ((1, 3, 3), (1, 3, 3), *((3, 3, 3),) * 5)
    assert levels.divisor == (4, 64, 64)


def test_thick_slices_take_the_tenth_percentile_of_their_spacing() -> None:
    spacings = [(float(mm), 0.8, 0.8) for mm in range(3, 14)]
    given = Fingerprint([(30, 400, 400)] * 11, spacings, True, np.zeros(0))
    plan = make_plan(given, ExpertSettings(), targets=("liver",), plane="axial", original=True, lateral_axis=2)
    assert plan.spacing == pytest.approx((4.0, 0.8, 0.8))


@pytest.mark.parametrize("budget", [2**14, 2**16, 2**18, 2**20])
@pytest.mark.parametrize("shape", [(100, 512, 512), (17, 130, 90), (300, 300, 300)])
def test_two_patches_fit_into_the_budget(budget: int, shape: tuple[int, int, int]) -> None:
    plan = planned(shape, (2.5, 0.8, 0.8), budget=budget)
    assert 2 * np.prod(plan.patch) <= budget
    assert (np.asarray(plan.patch) % np.prod(plan.strides, axis=0) == 0).all()
    assert plan.batch == max(2, budget // int(np.prod(plan.patch)))


def test_a_batch_is_at_most_a_twentieth_of_the_data() -> None:
    assert (
        planned((36, 50, 35), (1.0, 1.0, 1.0), scans=100).batch > planned((36, 50, 35), (1.0, 1.0, 1.0), scans=60).batch
    )
    assert planned((36, 50, 35), (1.0, 1.0, 1.0), scans=3).batch == 2


def test_slices_are_planned_in_their_plane() -> None:
    plan = planned((40, 96, 128), (3.0, 1.0, 1.0), dimensions=2, budget=2**18)
    assert plan.patch == (96, 128)
    assert plan.strides[1:] == ((2, 2),) * (len(plan.strides) - 1)


def test_no_mirroring_from_right_to_left_for_targets_named_by_side() -> None:
    assert planned((40, 96, 128), (1.0, 1.0, 1.0)).mirrored == (0, 1, 2)
    assert planned((40, 96, 128), (1.0, 1.0, 1.0), targets=("liver", "Left kidney")).mirrored == (0, 1)
    assert planned((40, 96, 128), (1.0, 1.0, 1.0), targets=("left kidney",), dimensions=2).mirrored == (0,)
    assert planned((40, 96, 128), (1.0, 1.0, 1.0), mirror=False).mirrored == ()


def test_intensities_are_those_of_the_targets() -> None:
    plan = planned((40, 96, 128), (1.0, 1.0, 1.0))
    assert (plan.low, plan.high, plan.mean) == (5.0, 995.0, 500.0)
    assert plan.std == pytest.approx(np.arange(1001).std())


def test_scans_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match="too small for an expert in 3-D.*dimensions 2"):
        planned((4, 10, 10), (1.0, 1.0, 1.0))


def test_a_plan_comes_back_from_plain_values() -> None:
    plan = planned((36, 50, 35), (1.0, 1.0, 1.0))
    assert Plan.of(plan.as_dict(), source="x") == plan


@pytest.mark.parametrize(
    "change", [{"patch": [8, 8]}, {"std": 0.0}, {"filters": "many"}, {"unknown": 1}, {"targets": []}]
)
def test_a_damaged_plan_is_refused(change: dict[str, object]) -> None:
    values = {**planned((36, 50, 35), (1.0, 1.0, 1.0)).as_dict(), **change}
    with pytest.raises(CheckpointError, match=r"model\.pt: its plan cannot be used"):
        Plan.of(values, source="model.pt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "unknown expert setting 'step'; did you mean 'steps'"),
        ({"dimensions": 4}, "dimensions must be 2"),
        ({"foreground": 1.5}, "foreground must be from 0 to 1"),
        ({"steps": "many"}, "steps must be a whole number"),
        ({"plane": "axal"}, "unknown plane 'axal'"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expert_settings("cpu", settings)


def test_epochs_are_whole() -> None:
    assert (ExpertSettings(steps=5).epochs, ExpertSettings(steps=5).steps_per_epoch) == (1, 5)
    assert ExpertSettings(steps=1000, epoch_steps=300).epochs == 3
