from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from boltzformer_monai.data.planes import radiological
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers import PresenceRule, VolumeResult
from boltzformer_monai.inferers.probability_store import ProbabilityStore
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.transforms import PromptTokenizer
from tests.inferers.stubs import Stub, inferer


def _result(pictures: list[list[int]], **settings: object) -> VolumeResult:
    """A result of axial slices of 1 × 2 voxels: for each prompt the 8-bit values of both in each slice."""
    depth = len(pictures[0]) // 2
    store = ProbabilityStore(len(pictures), [(depth, 1, 2)])
    for prompt, values in enumerate(pictures):
        for number, picture in enumerate(np.asarray(values, np.uint8).reshape(depth, 1, 2)):
            store.put(prompt, 0, number, picture)
    grid = Volume(np.zeros((2, 1, depth), np.float32), np.diag([-1, -1, 4, 1.0]), "CT")
    names = [f"prompt {n}" for n in range(len(pictures))]
    cut = [radiological(grid, "axial")]
    return VolumeResult(prompts=names, grid=grid, slicings=cut, store=store, **{"threshold": 0.5, **settings})


def test_who_gets_a_voxel() -> None:
    result = _result([[128, 200, 127, 255], [127, 220, 90, 255], [129, 0, 127, 254]])
    by_probability, by_order = result.label_map(), result.label_map("first")
    assert by_probability.dtype == np.uint8
    assert by_probability[:, 0].T.tolist() == [[3, 2], [0, 1]]  # equals: the first
    assert by_order[:, 0].T.tolist() == [[1, 1], [0, 1]]
    with pytest.raises(ConfigError, match="arbitration"):
        result.label_map("loudest")
    chosen = result.label_map(values=[9, 200, 4])
    assert chosen.dtype == np.uint8
    assert chosen[:, 0].T.tolist() == [[4, 200], [0, 9]]
    assert result.label_map(values=[9, 256, 4]).dtype == np.uint16
    for values in ([1, 2], [0, 1, 2], [1, 2, 70_000]):
        with pytest.raises(ConfigError, match="a value from 1 to 65535 for each of 3 prompts"):
            result.label_map(values=values)


@pytest.mark.parametrize(("threshold", "least"), [(0.5, 128), (0.001, 1), (0.3, 77), (0.9999, 255)])
def test_the_threshold_in_eight_bits(threshold: float, least: int) -> None:
    result = _result([[0, least - 1, least, 255]], threshold=threshold)
    assert result.mask(0)[:, 0].T.tolist() == [[False, False], [True, True]]
    assert result.label_map()[:, 0].T.tolist() == [[0, 0], [1, 1]]


def test_more_prompts_than_a_byte_counts() -> None:
    labels = _result([[0, 0]] * 299 + [[255, 0]]).label_map()
    assert labels.dtype == np.uint16
    assert labels.max() == 300


def test_findings() -> None:
    with _result([[255, 51, 204, 255], [0, 127, 0, 0]]) as result:
        first, second = result.findings
    assert first.as_dict() == {
        "prompt": "prompt 0",
        "found": True,
        "presence": None,
        "confidence": pytest.approx((1 + 0.8 + 1) / 3),
        "slices": 2,
        "voxels": 3,
        "volume_ml": pytest.approx(0.012),
    }
    assert (second.found, second.confidence, second.voxels, second.slices) == (False, None, 0, 0)
    assert json.loads(json.dumps(second.as_dict()))["volume_ml"] == 0
    assert result.findings[0] is first  # still readable


def test_reading_after_closing_fails() -> None:
    result = _result([[255, 51, 204, 255]])
    result.close()
    with pytest.raises(ValueError, match="closed"):
        result.mask(0)


def _bright(image: Tensor) -> Tensor:
    """Presence: the logit of the mean brightness."""
    return torch.logit(image.mean(dim=(1, 2, 3)), eps=1e-6)


def _steps() -> Volume:
    """Eight axial slices as bright as a presence probability; all of them above the threshold of the mask."""
    presence = np.array([0.9, 0.6, 0.2, 0.6, 0.6, 0.1, 0.3, 0.95])
    values = np.broadcast_to((presence * 200 - 100).astype(np.float32), (8, 8, 8))
    return Volume(np.ascontiguousarray(values), np.eye(4), "CT")


def test_slices_that_the_presence_rule_drops(tokenizer: PromptTokenizer) -> None:
    network = Stub(lambda image: torch.full_like(image, 9.0), presence=_bright)
    rule = PresenceRule(high=0.8, low=0.5)
    with inferer(tokenizer, 32, rule=rule).segment(_steps(), network) as result:
        kept = result.mask(0).all(axis=(0, 1))
        assert result.probability(0).max(axis=(0, 1)).tolist() == [255, 255, 0, 255, 255, 0, 0, 255]
        assert kept.tolist() == [True, True, False, True, True, False, False, True]
        np.testing.assert_array_equal(result.label_map() == 1, result.mask(0))
        assert result.findings[0].presence == pytest.approx(0.95, abs=0.01)
        assert result.findings[0].slices == 5
    with inferer(tokenizer, 32, rule=PresenceRule(high=0.99, low=0.5)).segment(_steps(), network) as result:
        assert not result.findings[0].found
        assert result.findings[0].presence == pytest.approx(0.95, abs=0.01)
        assert not result.label_map().any()


def test_without_head_or_rule_nothing_is_dropped(tokenizer: PromptTokenizer) -> None:
    found = Stub(lambda image: torch.full_like(image, 9.0))
    with inferer(tokenizer, 32, rule=PresenceRule(high=0.99, low=0.99)).segment(_steps(), found) as result:
        assert result.mask(0).all()
        assert result.findings[0].presence is None
    asked = Stub(lambda image: torch.full_like(image, 9.0), presence=_bright)
    with inferer(tokenizer, 32).segment(_steps(), asked) as result:
        assert result.mask(0).all()
        assert result.findings[0].presence == pytest.approx(0.95, abs=0.01)


def test_only_the_plane_that_the_rule_was_calibrated_in_is_judged(tokenizer: PromptTokenizer) -> None:
    network = Stub(lambda image: torch.full_like(image, 9.0), presence=_bright)
    # Coronal slices show all steps: their mean brightness is 0.53, which no rule with 0.8 lets pass.
    both = {"planes": ("axial", "coronal"), "rule": PresenceRule(high=0.8, low=0.5)}
    with inferer(tokenizer, 32, **both).segment(_steps(), network) as result:
        assert result.mask(0).all(axis=(0, 1)).tolist() == [True, True, False, True, True, False, False, True]
        assert result.findings[0].presence == pytest.approx(0.95, abs=0.01)
    with inferer(tokenizer, 32, trained_plane="sagittal", **both).segment(_steps(), network) as result:
        assert not result.mask(0).any()  # where it is not among the planes, every plane is


def test_what_the_rule_dropped_stays_uncertain(tokenizer: PromptTokenizer) -> None:
    network = Stub(lambda image: torch.full_like(image, 0.5), presence=_bright)
    dropped = {"rule": PresenceRule(high=0.99, low=0.5), "repeats": 2}
    with inferer(tokenizer, 32, **dropped).segment(_steps(), network) as result:
        assert not result.mask(0).any()
        assert result.entropy(0).min() > 200  # p = 0.62


def test_an_object_present_in_one_tile_is_present_in_the_slice(tokenizer: PromptTokenizer) -> None:
    values = np.full((40, 40, 1), -100, np.float32)
    values[30:, 30:] = 100
    network = Stub(presence=lambda image: 20 * image.amax(dim=(1, 2, 3)) - 10)
    with inferer(tokenizer, 32, in_plane="tiles").segment(Volume(values, np.eye(4), "CT"), network) as result:
        assert len(network.encoded) == 4
        assert result.findings[0].presence == pytest.approx(1, abs=1e-3)
        np.testing.assert_array_equal(result.mask(0), values > 0)
