"""The feature cache changes no byte, and holds no more than it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers import RunSettings, VolumeSegmenter
from boltzformer_monai.inferers.feature_cache import FeatureCache
from boltzformer_monai.io.volume import Volume

SLICES = 5


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> VolumeSegmenter:
    return VolumeSegmenter.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def volume() -> Volume:
    array = np.random.default_rng(1).normal(40, 100, (30, 28, SLICES)).astype(np.float32)
    return Volume(array, np.diag([2.0, 2.0, 5.0, 1.0]), modality="CT")


def probabilities(segmenter: VolumeSegmenter, volume: Volume, prompts: list[str], **settings: Any) -> list[np.ndarray]:
    execution = {name: settings.pop(name) for name in ("features", "slices_together") if name in settings}
    inferer = segmenter.inferer(RunSettings(prompts=prompts, presence=False, **settings), **execution)
    with inferer.segment(volume, segmenter.network) as result:
        return [result.probability(index) for index in range(len(prompts))]


@pytest.mark.parametrize("in_plane", ["fit", "tiles"])
@pytest.mark.parametrize("slices_together", [1, 3])
def test_same_bytes_as_without(segmenter: VolumeSegmenter, volume: Volume, in_plane: str, slices_together: int) -> None:
    settings = {"in_plane": in_plane, "slices_together": slices_together}
    cache = FeatureCache(2**28)
    for prompts in (["left kidney"], ["liver"], ["liver", "left kidney", "lung nodule"]):
        wanted = probabilities(segmenter, volume, prompts, **settings)
        found = probabilities(segmenter, volume, prompts, features=cache, **settings)
        assert any(each.any() for each in wanted)
        for a, b in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(a, b)
    assert cache.hits


def test_second_prompt_is_not_encoded(segmenter: VolumeSegmenter, volume: Volume) -> None:
    cache = FeatureCache(2**28)
    probabilities(segmenter, volume, ["left kidney"], features=cache)
    assert (cache.hits, cache.misses) == (0, SLICES)
    probabilities(segmenter, volume, ["right kidney"], features=cache)
    assert (cache.hits, cache.misses) == (SLICES, SLICES)


def test_window_plane_content_and_weights_are_in_the_key(
    segmenter: VolumeSegmenter, volume: Volume, checkpoint: Path
) -> None:
    cache = FeatureCache(2**28)
    probabilities(segmenter, volume, ["left kidney"], features=cache)
    probabilities(segmenter, volume, ["left kidney"], features=cache, window="bone")
    probabilities(segmenter, volume, ["left kidney"], features=cache, planes="coronal")
    other = Volume(volume.array + 5, volume.affine, modality="CT")
    probabilities(segmenter, other, ["left kidney"], features=cache)
    assert cache.hits == 0
    fresh = VolumeSegmenter.from_checkpoint(checkpoint)
    probabilities(fresh, volume, ["left kidney"], features=cache)
    assert cache.hits == 0
    with torch.no_grad():
        next(iter(fresh.network.parameters())).add_(0.1)
    probabilities(fresh, volume, ["left kidney"], features=cache)
    assert cache.hits == 0


def test_bytes_are_bounded_and_a_large_volume_keeps_its_first_slices(
    segmenter: VolumeSegmenter, volume: Volume
) -> None:
    measure = FeatureCache(2**28)
    probabilities(segmenter, volume, ["left kidney"], features=measure)
    each = measure.bytes // SLICES
    cache = FeatureCache(3 * each)
    probabilities(segmenter, volume, ["left kidney"], features=cache)
    assert 0 < cache.bytes <= cache.limit
    probabilities(segmenter, volume, ["right kidney"], features=cache)
    assert cache.hits == 3
    other = Volume(volume.array + 5, volume.affine, modality="CT")
    probabilities(segmenter, other, ["left kidney"], features=cache)  # pushes the first volume out
    probabilities(segmenter, other, ["left kidney"], features=cache)
    assert cache.hits == 6
    assert cache.bytes <= cache.limit


def test_zero_keeps_nothing_and_less_is_refused(segmenter: VolumeSegmenter, volume: Volume) -> None:
    cache = FeatureCache(0)
    probabilities(segmenter, volume, ["left kidney"], features=cache)
    assert (len(cache), cache.bytes) == (0, 0)
    with pytest.raises(ConfigError, match="feature cache"):
        FeatureCache(-1)


def test_clear_gives_all_back(segmenter: VolumeSegmenter, volume: Volume) -> None:
    cache = FeatureCache(2**28)
    probabilities(segmenter, volume, ["left kidney"], features=cache)
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)
