from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from boltzformer_monai.errors import CancelledError, ConfigError, PromptError, VolumeError
from boltzformer_monai.inferers import PresenceRule, RunSettings, SlidingVolumeInferer, VolumeSegmenter
from boltzformer_monai.inferers import probability_store as store_module
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import BoltzFormer, create_boltzformer, network_config
from boltzformer_monai.transforms import PromptTokenizer
from tests.inferers.stubs import Stub, inferer

TWELVE = [
    "left kidney", "lung nodule", "liver", "spleen in abdominal CT", "aorta", "right kidney", "gallbladder", "stomach",
    "the pancreas of the patient that lies in the scanner and has had a long day already", "bladder", "prostate",
    "duodenum",
]  # fmt: skip


def test_as_a_monai_inferer_it_takes_a_batch_of_one(tokenizer: PromptTokenizer) -> None:
    array = torch.full((1, 1, 4, 4, 3), 100.0)
    batch = MetaTensor(array, affine=torch.eye(4)[None], meta={"modality": "CT"})
    found = inferer(tokenizer, 32)(batch, Stub())
    assert found.shape == array.shape
    assert found.dtype == torch.uint8
    assert bool((found == 1).all())


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> VolumeSegmenter:
    return VolumeSegmenter.from_checkpoint(checkpoint, precision="fp32")


@pytest.fixture(scope="module")
def network() -> BoltzFormer:
    """Random weights, with a presence head; several windows of patches, so that sampling has something to choose."""
    torch.manual_seed(0)
    model = create_boltzformer(network_config("tiny", image_size=96, mask_bias=0.0, presence=True)).eval()
    with torch.no_grad():
        model.decoder.query_decoder.mask_head.layers[-1].weight.mul_(100)
    return model


@pytest.fixture(scope="module")
def scan() -> Volume:
    values = np.random.default_rng(1).normal(40, 150, (19, 23, 5)).astype(np.float32)
    return Volume(values, np.diag([-2.0, -2.0, 4.0, 1.0]), "CT")


def _everything(network: BoltzFormer, scan: Volume, asked: SlidingVolumeInferer) -> dict[str, tuple[bytes, object]]:
    """For each prompt the bytes of its probability, and what was found."""
    with asked.segment(scan, network) as result:
        return {
            prompt: (result.probability(index).tobytes(), result.findings[index])
            for index, prompt in enumerate(result.prompts)
        }


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"in_plane": "tiles", "repeats": 2, "planes": ("axial", "coronal")}], ids=str)
def test_same_bytes_whatever_the_batch_and_the_other_prompts(
    network: BoltzFormer, scan: Volume, tokenizer: PromptTokenizer, settings: dict
) -> None:
    size = 64 if "in_plane" in settings else 96
    if "in_plane" in settings:  # larger than the square, so that there are tiles
        scan = Volume(np.tile(scan.array[:, :4, :2], (4, 1, 1)), scan.affine, "CT")
    chosen = TWELVE if not settings else TWELVE[3:9]

    def ask(prompts: list[str], batch_size: int) -> dict[str, tuple[bytes, object]]:
        return _everything(network, scan, inferer(tokenizer, size, prompts=prompts, batch_size=batch_size, **settings))

    first = ask(chosen, 16)
    assert len({content for content, _ in first.values()}) == len(chosen)  # the prompts matter, or nothing is shown
    assert ask(chosen, 16) == first
    assert ask(chosen, 1) == first
    assert ask(chosen[::-1], 3) == first
    for prompt in (chosen[0], chosen[3], chosen[-1]):
        assert ask([prompt], 3)[prompt] == first[prompt]


def test_the_batch_size_changes_nothing_where_windows_differ(segmenter: VolumeSegmenter, scan: Volume) -> None:
    prompts = ["left kidney", "lung nodule"]
    maps = [
        segmenter.inferer(RunSettings(prompts=prompts, batch_size=n)).label_map(scan, segmenter.network)
        for n in (1, 3, 16)
    ]
    assert set(np.unique(maps[0])) >= {1, 2}  # the random network answers both, or the test shows nothing
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_a_prompt_among_others_loses_only_what_another_wins(segmenter: VolumeSegmenter, scan: Volume) -> None:
    alone = segmenter.inferer(RunSettings(prompts=["left kidney"])).label_map(scan, segmenter.network) == 1
    among = segmenter.inferer(RunSettings(prompts=["lung nodule", "left kidney"])).label_map(scan, segmenter.network)
    assert alone.any()
    assert not (among == 2)[~alone].any()
    assert (among[alone] != 0).all()


def test_the_seed_matters_and_repeats_average(network: BoltzFormer, scan: Volume, tokenizer: PromptTokenizer) -> None:
    def probability(**settings: object) -> np.ndarray:
        with inferer(tokenizer, 96, **settings).segment(scan, network) as result:
            return result.probability(0).astype(int)

    one, other, mean = probability(), probability(seed=7919), probability(repeats=2)
    assert (one != other).any()
    assert abs(mean - (one + other) / 2).max() <= 1


def test_the_planes_are_averaged(network: BoltzFormer, scan: Volume, tokenizer: PromptTokenizer) -> None:
    def probability(*planes: str) -> np.ndarray:
        with inferer(tokenizer, 96, planes=planes).segment(scan, network) as result:
            return result.probability(0).astype(int)

    axial, coronal = probability("axial"), probability("coronal")
    assert (axial != coronal).any()
    np.testing.assert_array_equal(probability("axial", "coronal"), (axial + coronal) // 2)


def test_a_rule_drops_slices_of_a_network_with_a_head(
    network: BoltzFormer, scan: Volume, tokenizer: PromptTokenizer
) -> None:
    with inferer(tokenizer, 96, rule=PresenceRule(high=0.9999, low=0.9999)).segment(scan, network) as result:
        assert not result.findings[0].found
        assert 0 < result.findings[0].presence < 1


class _Noise(Stub):
    """Probabilities that do not compress, other ones for each slice."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        super().__init__(lambda image: torch.randn(image.shape, generator=generator))


def _peak(tokenizer: PromptTokenizer, prompts: int) -> int:
    """Bytes that NumPy and Python held at most."""
    names = [f"lesion {number}" for number in range(prompts)]
    volume = Volume(np.zeros((96, 96, 40), np.float32), np.eye(4), "CT")
    tracemalloc.start()
    try:
        with inferer(tokenizer, 64, prompts=names).segment(volume, _Noise()) as result:
            result.label_map()
            assert len(result.findings) == prompts
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_prompts(tokenizer: PromptTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "IN_MEMORY", 2**16)
    _peak(tokenizer, 15)  # what the first run keeps would count for the few
    few, many = _peak(tokenizer, 15), _peak(tokenizer, 60)
    assert many < 1.1 * few


def test_it_can_be_stopped_and_leaves_nothing(
    tokenizer: PromptTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(store_module, "IN_MEMORY", 16)
    volume = Volume(np.zeros((16, 16, 9), np.float32), np.eye(4), "CT")
    network = _Noise()
    opened = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    asked = inferer(tokenizer, 32, should_stop=lambda: len(network.encoded) == 4)
    with pytest.raises(CancelledError, match="after 4 of 9 axial slices"):
        asked.segment(volume, network)

    def interrupt(image: Tensor) -> Tensor:
        if len(broken.encoded) == 3:
            raise KeyboardInterrupt
        return torch.randn(image.shape)

    broken = Stub(interrupt)
    with pytest.raises(KeyboardInterrupt):
        inferer(tokenizer, 32).segment(volume, broken)
    assert not list(tmp_path.iterdir())
    if opened:
        assert len(os.listdir("/proc/self/fd")) == opened


@pytest.mark.parametrize(
    "prompts",
    [[], "liver", [""], ["  "], ["liver", ""], ["liver " * 100], ["x" * 10_000], [1], ["Liver", " liver"], ["\udcff"]],
    ids=lambda prompts: repr(prompts)[:20],
)
def test_prompts_that_cannot_be_asked(segmenter: VolumeSegmenter, prompts: object) -> None:
    with pytest.raises(PromptError) as caught:
        segmenter.inferer(RunSettings(prompts=prompts))
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prompt", ["肝脏", "الكبد", "печень в КТ", "foie 🫀", "ήπαρ"])
def test_prompts_in_another_script_are_asked_as_they_are(
    segmenter: VolumeSegmenter, scan: Volume, prompt: str, caplog: pytest.LogCaptureFixture
) -> None:
    with segmenter.inferer(RunSettings(prompts=[prompt])).segment(scan, segmenter.network) as result:
        assert result.findings[0].prompt == prompt
    assert "names no target of the training" in caplog.text


def test_a_volume_without_slices(tokenizer: PromptTokenizer) -> None:
    empty = MetaTensor(torch.zeros(1, 1, 4, 4, 0), affine=torch.eye(4)[None], meta={"modality": "CT"})
    with pytest.raises(VolumeError, match="non-empty"):
        inferer(tokenizer, 32)(empty, Stub())


@pytest.mark.parametrize("execution", [{"together": 0}, {"slices_together": 0}], ids=str)
def test_numbers_out_of_range(segmenter: VolumeSegmenter, execution: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        segmenter.inferer(RunSettings(prompts=["liver"]), **execution)
