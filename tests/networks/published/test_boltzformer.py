"""Microsoft's BoltzFormer: every published weight finds its place, and none is overlooked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks import BoltzFormer
from boltzformer_monai.networks.backbone import FeaturePyramidNeck, TimmBackbone
from boltzformer_monai.networks.decoder import BoltzFormerDecoder
from boltzformer_monai.networks.mask_decoder import MaskDecoder
from boltzformer_monai.networks.pigma import PiGMA
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.published import import_weights, load_published
from boltzformer_monai.networks.published.boltzformer import convert_parts
from boltzformer_monai.networks.sampling import BoltzmannSampling
from boltzformer_monai.networks.text_encoder import clip_text_encoder
from tests.networks.cases import images, randomise
from tests.networks.published.layouts import published_state
from tests.networks.test_backbone import SMALL_HIERA


def hiera_network(seed: int) -> BoltzFormer:
    """The published architecture with everything small."""
    torch.manual_seed(seed)
    backbone = FeaturePyramidNeck(TimmBackbone("sam2_hiera_tiny", settings=SMALL_HIERA), channels=8)
    network = BoltzFormer(
        backbone=backbone,
        pixel_decoder=PixelDecoder(in_channels=backbone.channels, dim=16, heads=2, hidden=20, layers=2),
        text_encoder=clip_text_encoder(dim=16, width=12, layers=2, heads=2, vocabulary=60, context=9),
        decoder=MaskDecoder(
            query_decoder=BoltzFormerDecoder(
                dim=16, policy=BoltzmannSampling(), queries=3, heads=2, hidden=20, layers=3
            ),
            aggregation=PiGMA(queries=3),
        ),
        mean=(0.1, 0.2, 0.3),
        std=(1, 2, 3),
        default_tokens=(1, 2),
    )
    randomise(network, seed)
    return network.eval()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_published_weights_find_their_places(tmp_path: Path, nested: bool, suffix: str):
    source, target = hiera_network(1), hiera_network(2)
    state = {name: weight.contiguous() for name, weight in published_state(source).items()}
    path = tmp_path / f"published{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state} if nested else state, path)
    image = images(1, 64, 3)
    assert not torch.equal(source(image), target(image))
    report = load_published(target, path)
    assert torch.equal(source(image), target(image))
    assert "not taken: 1 (classified masks; no mask depends on it), 1 (compared image and text" in str(report)


def test_a_loaded_network_does_not_depend_on_its_file(tmp_path: Path):
    path = tmp_path / "published.pt"
    torch.save(published_state(hiera_network(1)), path)
    network, image = hiera_network(2), images(1, 64, 3)
    load_published(network, path)
    before = network(image)
    with path.open("r+b") as file:  # as a copy over the file does
        file.write(bytes(path.stat().st_size))
    assert torch.equal(network(image), before)


def test_published_weights_that_do_not_fit(tmp_path: Path):
    state = published_state(hiera_network(1))
    path = tmp_path / "published.pt"
    torch.save({**state, "sem_seg_head.predictor.strange.weight": torch.ones(1)}, path)
    with pytest.raises(
        CheckpointError, match=r"published.pt: published weight 'sem_seg_head\.predictor\.strange\.weight' has no"
    ):
        load_published(hiera_network(2), path)
    torch.save({name: weight for name, weight in state.items() if name != "output_conv.bias"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(output_conv.bias \(here decoder.aggregation.conv.bias\)\)"):
        load_published(hiera_network(2), path)


@pytest.mark.parametrize("name", ["head.weight", "backbone.stem.weight", "sem_seg_head.pixel_decoder.extra.weight"])
def test_strange_published_names(name: str):
    with pytest.raises(CheckpointError, match="has no place in this network"):
        convert_parts({"backbone.trunk.pos_embed": torch.ones(1), name: torch.ones(1)})


def test_a_backbone_of_another_size_is_no_preset(tmp_path: Path):
    torch.save(published_state(hiera_network(1)), tmp_path / "small.pt")
    with pytest.raises(CheckpointError, match="its Hiera begins with 8 channels; known are 96, 112"):
        import_weights(tmp_path / "small.pt")
