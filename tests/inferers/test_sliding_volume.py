from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

from boltzformer_monai.errors import ConfigError, PromptError
from boltzformer_monai.inferers import PromptWindows, SlidingVolumeInferer, VolumeSegmenter
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.transforms import PromptTokenizer
from tests.io.cases import ORIENTATIONS


class Threshold(nn.Module):
    """Stands in for a network: the mask of every prompt is where the image is brighter than half."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def encode_image(self, image: Tensor) -> ImageFeatures:
        return ImageFeatures((), image, image)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(tokens[..., None].float(), tokens >= 0)

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: object = None) -> Decoded:
        prompts = text.tokens.shape[1]
        return Decoded((image.image - 0.5).expand(-1, prompts, -1, -1) * 100)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer()


def _inferer(tokenizer: PromptTokenizer, size: int, **settings: object) -> SlidingVolumeInferer:
    options = {"prompts": ["liver"], "modality": "CT", "windows": PromptWindows({}, window=[0, 200]), **settings}
    return SlidingVolumeInferer(tokenizer=tokenizer, image_size=size, **options)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_the_label_map_lies_on_the_grid_of_the_scan(tokenizer: PromptTokenizer, codes: str) -> None:
    rng = np.random.default_rng(0)
    array = np.where(rng.random((6, 7, 5)) > 0.6, 100.0, -100.0).astype(np.float32)
    ras = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(codes)
    )
    affine = nibabel.orientations.inv_ornt_aff(ras, array.shape)
    volume = Volume(array, affine, "CT")
    assert "".join(volume.axis_codes) == codes
    size = 64  # a multiple of no edge: resized and restored
    for plane in ("axial", "coronal", "sagittal"):
        found = _inferer(tokenizer, size, plane=plane).label_map(volume, Threshold())
        np.testing.assert_array_equal(found, array > 0)


def test_anisotropic_and_oblique(tokenizer: PromptTokenizer) -> None:
    array = np.full((8, 10, 4), -100.0, np.float32)
    array[2:5, 3:9, 1:3] = 100
    turn = np.array([[0.98, -0.17, 0.05], [0.17, 0.98, -0.02], [-0.05, 0.03, 1.0]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([0.8, 0.8, 5.0])
    for plane in ("axial", "coronal"):
        found = _inferer(tokenizer, 160, plane=plane).label_map(Volume(array, affine, "CT"), Threshold())
        np.testing.assert_array_equal(found, array > 0)


def test_as_a_monai_inferer_it_takes_a_batch_of_one(tokenizer: PromptTokenizer) -> None:
    array = torch.full((1, 1, 4, 4, 3), 100.0)
    batch = MetaTensor(array, affine=torch.eye(4)[None], meta={"modality": "CT"})
    found = _inferer(tokenizer, 32)(batch, Threshold())
    assert found.shape == array.shape
    assert found.dtype == torch.uint8
    assert bool((found == 1).all())


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> VolumeSegmenter:
    return VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")


@pytest.fixture(scope="module")
def scan() -> Volume:
    values = np.random.default_rng(1).normal(40, 150, (20, 24, 7)).astype(np.float32)
    return Volume(values, np.diag([-2.0, -2.0, 4.0, 1.0]), "CT")


def test_the_batch_size_changes_nothing(segmenter: VolumeSegmenter, scan: Volume) -> None:
    prompts = ["left kidney", "lung nodule"]
    maps = [segmenter.inferer(prompts, batch_size=n).label_map(scan, segmenter.network) for n in (1, 3, 16)]
    assert set(np.unique(maps[0])) >= {1, 2}  # the random network answers both, or the test shows nothing
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_a_prompt_among_others_loses_only_what_another_wins(segmenter: VolumeSegmenter, scan: Volume) -> None:
    alone = segmenter.inferer(["left kidney"]).label_map(scan, segmenter.network) == 1
    among = segmenter.inferer(["lung nodule", "left kidney"]).label_map(scan, segmenter.network)
    assert alone.any()
    assert not (among == 2)[~alone].any()
    assert (among[alone] != 0).all()


def test_runs_are_repeatable_and_the_seed_matters(segmenter: VolumeSegmenter, scan: Volume) -> None:
    first, again, other = (
        segmenter.inferer(["left kidney"], seed=seed).label_map(scan, segmenter.network) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("prompts", [[], "liver", [""], ["  "], ["liver " * 100], [1], ["Liver", " liver"]])
def test_prompts_that_cannot_be_asked(segmenter: VolumeSegmenter, prompts: object) -> None:
    with pytest.raises(PromptError):
        segmenter.inferer(prompts)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"threshold": 0.0}, {"threshold": 1.5}])
def test_settings_out_of_range(segmenter: VolumeSegmenter, settings: dict) -> None:
    with pytest.raises(ConfigError):
        segmenter.inferer(["liver"], **settings)
