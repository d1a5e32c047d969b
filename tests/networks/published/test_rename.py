from __future__ import annotations

import pytest
import torch

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.published.rename import (
    convert_focal,
    convert_hiera,
    convert_pixel_decoder,
    convert_text_encoder,
    placed,
)


def test_published_focal_weights():
    names = {
        "patch_embed.proj.weight": "model.stem.proj.weight",
        "layers.0.blocks.1.gamma_2": "model.layers_0.blocks.1.ls2.gamma",
        "layers.2.blocks.0.norm1.bias": "model.layers_2.blocks.0.norm1_post.bias",
        "layers.1.downsample.proj.weight": "model.layers_2.downsample.proj.weight",
        "norm3.weight": "norms.3.weight",
    }
    weights = {name: torch.rand(2, 2) for name in names}
    converted = convert_focal(weights)
    assert {name: weights[name] is converted[place] for name, place in names.items()} == dict.fromkeys(names, True)
    linear = convert_focal({"layers.0.blocks.0.mlp.fc1.weight": torch.rand(4, 2)})
    assert linear["model.layers_0.blocks.0.mlp.fc1.weight"].shape == (4, 2, 1, 1)


def test_published_backbones_are_told_apart():
    with pytest.raises(CheckpointError, match="published weight 'stem.weight'"):
        convert_hiera({"stem.weight": torch.ones(1)})


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_a_projection_that_is_not_three_is_named(shape: tuple[int, ...]):
    with pytest.raises(CheckpointError, match="'resblocks.3.attn.in_proj_weight' of shape .* no query, key and value"):
        convert_text_encoder({"resblocks.3.attn.in_proj_weight": torch.ones(shape)})


def test_two_weights_for_one_place_are_refused():
    """A dict would take the last of them, and the other would be missed by nobody."""
    one = torch.ones(1)
    for convert, names in (
        (convert_hiera, ("trunk.blocks.0.mlp.layers.0.weight", "trunk.blocks.0.mlp.fc1.weight")),
        (convert_pixel_decoder, ("layer_1.weight", "layer_1.conv.weight")),
    ):
        with pytest.raises(CheckpointError, match="two published weights are .* one of them has no place"):
            convert(dict.fromkeys(names, one))


def test_the_last_of_equal_names_is_not_taken_silently():
    with pytest.raises(CheckpointError, match="two published weights are 'a' here"):
        placed([("a", torch.zeros(1)), ("b", torch.zeros(1)), ("a", torch.ones(1))])
