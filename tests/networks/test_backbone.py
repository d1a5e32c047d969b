from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.networks.backbone import FeaturePyramidNeck, TimmBackbone, TinyBackbone
from tests.networks.cases import images

# A Hiera as SAM 2's, made small.
SMALL_HIERA = {"embed_dim": 8, "num_heads": 1, "stages": (1, 1, 2, 1), "global_att_blocks": (3,)}


def shapes(features: list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(f.shape) for f in features]


@pytest.mark.parametrize("channels", [1, 3])
def test_tiny_backbone(channels: int):
    backbone = TinyBackbone(in_channels=channels, widths=(4, 6, 8, 10, 12))
    features = backbone(torch.rand(2, channels, 64, 96))
    assert backbone.channels == [6, 8, 10, 12]
    assert shapes(features) == [(2, 6, 16, 24), (2, 8, 8, 12), (2, 10, 4, 6), (2, 12, 2, 3)]
    with pytest.raises(ConfigError, match="five strides"):
        TinyBackbone(widths=(4, 6))


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "resnet18"])
def test_any_timm_model_with_strides_4_to_32(name: str):
    backbone = TimmBackbone(name, in_channels=1).eval()
    features = backbone(images(1, 64))
    assert shapes(features) == [
        (1, c, 64 // s, 64 // s) for c, s in zip(backbone.channels, (4, 8, 16, 32), strict=True)
    ]


def test_channels_last_models_are_turned():
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", settings={"img_size": 64, "embed_dim": 24}).eval()
    assert shapes(backbone(images(1, 64, 3))) == [(1, 24, 16, 16), (1, 48, 8, 8), (1, 96, 4, 4), (1, 192, 2, 2)]


def test_outputs_are_normalised_where_asked():
    backbone = TimmBackbone("test_resnet", normalise=True).eval()
    for feature in backbone(images(1, 64, 3)):
        assert float(feature.detach().mean(1).abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("name", "words"),
    [("sam2_hiera_smal", "sam2_hiera_small"), ("resnet_18", "resnet18"), ("nonsense", "timm.list_models")],
)
def test_unknown_names_suggest_known_ones(name: str, words: str):
    with pytest.raises(ConfigError, match=words):
        TimmBackbone(name)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"drop_path_rat": 0.1}, "the backbone 'test_resnet' has no setting 'drop_path_rat'; did you mean 'drop_path"),
        ({"layers": "two"}, "timm cannot make the backbone 'test_resnet': "),
        ({"out_indices": (0, 99)}, "timm cannot make the backbone 'test_resnet': "),
        *(
            ({name: value}, f"{name} is no backbone setting; use the network settings in_channels and pretrained")
            for name, value in {
                "pretrained": True, "pretrained_cfg": {"url": "http://localhost/x"}, "checkpoint_path": "/x.pt",
                "pretrained_cfg_overlay": {"file": "/x"}, "cache_dir": "/x", "in_chans": 4, "features_only": False,
            }.items()
        ),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line(settings: dict[str, object], line: str):
    with pytest.raises(ConfigError) as caught:
        TimmBackbone("test_resnet", settings=settings)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_models_of_one_size_are_made_for_the_images(name: str):
    with torch.device("meta"):
        backbone = TimmBackbone(name, image_size=192, in_channels=1)
        assert [f.shape[-1] for f in backbone(torch.zeros(1, 1, 192, 192))] == [48, 24, 12, 6]
    with pytest.raises(ConfigError, match="was made for images of 192 × 192 pixels, got 64 × 64"):
        backbone(torch.zeros(1, 1, 64, 64, device="meta"))


def test_a_model_without_the_strides_is_refused():
    with pytest.raises(ConfigError, match="strides .* are needed"):
        TimmBackbone("test_vit")


def test_sam2_hiera_with_its_neck():
    backbone = TimmBackbone("sam2_hiera_small")
    assert backbone.channels == [96, 192, 384, 768]
    neck = FeaturePyramidNeck(backbone).eval()
    assert neck.channels == [256] * 4
    with torch.no_grad():
        features = neck(images(1, 256, 3))
    assert shapes(features) == [(1, 256, s, s) for s in (64, 32, 16, 8)]


def test_the_neck_sums_top_down_at_stride_16_alone():
    neck = FeaturePyramidNeck(TimmBackbone("sam2_hiera_tiny", settings=SMALL_HIERA), channels=5).eval()
    image = images(2, 64, 3)
    own = [conv(f) for conv, f in zip(neck.convs, neck.backbone(image), strict=True)]
    expected = [own[0], own[1], own[2] + F.interpolate(own[3], scale_factor=2, mode="nearest"), own[3]]
    for feature, value in zip(neck(image), expected, strict=True):
        torch.testing.assert_close(feature, value)
