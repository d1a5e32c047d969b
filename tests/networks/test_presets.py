from __future__ import annotations

import dataclasses

import pytest
import torch

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks import (
    PRESETS,
    BoltzmannSampling,
    FullAttention,
    NetworkConfig,
    ThresholdMask,
    create_boltzformer,
    network_config,
)
from boltzformer_monai.networks.backbone import FeaturePyramidNeck, TimmBackbone, TinyBackbone
from tests.networks.cases import SMALL


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds(preset: str):
    with torch.device("meta"):
        network = create_boltzformer(preset)
    assert network.mean.shape == (1, network_config(preset).in_channels, 1, 1)
    millions = {"tiny": 5, "hiera_s": 171, "hiera_bp": 206, "focal_l": 343, "biomedparse_v2": 372}
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions[preset]


def test_backbones_of_the_presets():
    with torch.device("meta"):
        assert isinstance(create_boltzformer("hiera_s").backbone, FeaturePyramidNeck)
        focal = create_boltzformer("focal_l").backbone
    assert isinstance(focal, TimmBackbone)
    assert focal.norms is not None


@pytest.mark.parametrize(
    ("settings", "kind", "attributes"),
    [
        ({}, BoltzmannSampling, {"base_temperature": 1.0, "sample_ratio": 0.1, "exact": False, "per_head": False}),
        (
            {"base_temperature": 0.5, "sample_ratio": 0.2, "exact": True, "per_head": True},
            BoltzmannSampling,
            {"base_temperature": 0.5, "sample_ratio": 0.2, "exact": True, "per_head": True},
        ),
        ({"policy": "threshold", "threshold": 0.7}, ThresholdMask, {"threshold": 0.7}),
        ({"policy": "full"}, FullAttention, {}),
    ],
)
def test_the_policy_follows_the_settings(settings: dict[str, object], kind: type, attributes: dict[str, object]):
    with torch.device("meta"):
        policy = create_boltzformer("tiny", **SMALL, **settings).decoder.query_decoder.policy
    assert isinstance(policy, kind)
    assert {name: getattr(policy, name) for name in attributes} == attributes


def test_overrides_reach_the_network():
    with torch.device("meta"):
        network = create_boltzformer("tiny", **{**SMALL, "queries": 7, "text_prior": False, "pigma_correction": False})
    assert isinstance(network.backbone, TinyBackbone)
    assert network.decoder.query_decoder.query_feat.weight.shape == (7, 16)
    assert not hasattr(network.decoder.query_decoder, "prior_inter")
    assert not list(network.decoder.aggregation.parameters())


def test_a_complete_configuration_can_be_built_and_changed():
    config = network_config("tiny", **SMALL)
    with torch.device("meta"):
        assert create_boltzformer(config, queries=5).decoder.query_decoder.query_feat.weight.shape == (5, 16)
        with pytest.raises(ConfigError, match="did you mean 'queries'"):
            create_boltzformer(config, querys=5)


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("hiera-s", {}, "unknown preset 'hiera-s'; did you mean 'hiera_s'"),
        ("tinny", {}, "did you mean 'tiny'"),
        ("zzz", {}, "known: biomedparse_v2, focal_l, hiera_bp, hiera_s, tiny"),
        ("tiny", {"sample_ration": 0.1}, "unknown network setting 'sample_ration'; did you mean 'sample_ratio'"),
        ("tiny", {"querys": 3}, "did you mean 'queries'"),
        ("tiny", {"image_size": 100}, "image_size must be a positive multiple of 32, got 100"),
        ("tiny", {"image_size": 0}, "image_size"),
        ("tiny", {"image_size": 192.0}, "image_size"),
        ("tiny", {"queries": 0}, "queries must be a whole number of at least 1, got 0"),
        ("tiny", {"heads": "4"}, "heads must be a whole number"),
        ("tiny", {"text_norm_eps": 0}, "text_norm_eps must be between 0 and 1, got 0"),
        ("tiny", {"text_activation": "relu"}, "text_activation must be one of quick_gelu, gelu"),
        ("tiny", {"decoder": None}, "decoder must be a text, got None"),
        ("tiny", {"policy_settings": [1]}, "policy_settings must be a mapping, got"),
        ("tiny", {"decoder_settings": {"layer": torch.nn.ReLU}}, "decoder_settings must map names to plain values"),
        ("tiny", {"std": [0.0]}, "std must be positive and mean finite"),
        ("tiny", {"mean": [float("nan")]}, "std must be positive and mean finite"),
        ("tiny", {"in_channels": 3}, "mean and std need one value for each of the 3 in_channels"),
    ],
)
def test_what_is_not_possible_is_refused(preset: str, overrides: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        network_config(preset, **overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"policy": "boltzman"}, "unknown attention policy 'boltzman'; did you mean 'boltzmann'"),
        ({"sample_ratio": 2.0}, "sample_ratio must be in"),
        ({"heads": 3}, "dim 16 is not divisible by heads 3"),
        ({"backbone": "resnet_18"}, "resnet18"),
        ({"decoder": "boltzman"}, "unknown decoder 'boltzman'; did you mean 'boltzmann'"),
        ({"decoder_settings": {"scal": 1}}, "unknown setting 'scal' of the decoder 'boltzmann'"),
        (
            {"policy_settings": {"sample_ration": 1}},
            "unknown setting 'sample_ration' of the attention policy 'boltzmann'",
        ),
        (
            {"policy_settings": {"exact": "no"}},
            "exact of the attention policy 'boltzmann' must be true or false, got 'no'",
        ),
        (
            {"sample_ratio": 0.2, "policy_settings": {"sample_ratio": 0.3}},
            "sample_ratio 0.2 and policy_settings {'sample_ratio': 0.3} set the same; give one of them",
        ),
        ({"pretrained": True}, "pretrained is for timm's backbones, and 'tiny' is none; leave it out"),
        ({"normalise_features": True}, "normalise_features is for timm's backbones, and 'tiny' is none"),
        ({"policy_settings": {"base_temperature": "hot"}}, "base_temperature of .* must be a number, got 'hot'"),
        ({"backbone_settings": {"widths": 3}}, "widths must name five strides"),
        ({"backbone_settings": {"widths": [0] * 5}}, "widths must name five strides"),
        ({"neck_channels": 0}, "neck_channels must be a whole number of at least 1"),
        ({"backbone": "resnet10t.nope"}, "timm has no weights 'resnet10t.nope'"),
        ({"backbone_settings": {"width": 1}}, "unknown setting 'width' of the backbone 'tiny'; did you mean 'widths'"),
    ],
)
def test_what_parts_cannot_be_is_refused_when_they_are_made(overrides: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        create_boltzformer("tiny", **{**SMALL, **overrides})


def test_lists_from_a_configuration_file_are_taken():
    config = network_config("tiny", in_channels=2, mean=[0.1, 0.2], std=[1, 2])
    assert config.mean == (0.1, 0.2)
    assert dataclasses.replace(config) == config
    assert isinstance(config, NetworkConfig)
