"""A whole volume through the protocol of BiomedParse v2, against an inferer of its own that shares no code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boltzformer_monai.errors import CancelledError, ConfigError
from boltzformer_monai.inferers import RunSettings, SlidingVolumeInferer
from boltzformer_monai.inferers.feature_cache import FeatureCache
from boltzformer_monai.io.volume import Volume
from boltzformer_monai.networks import Decoded, ImageFeatures, TextFeatures
from boltzformer_monai.networks.weights import Description
from boltzformer_monai.transforms import PromptTokenizer

SIZE = 64
PROMPTS = ("liver", "spleen", "kidney", "tumor of the pancreas in abdominal CT with contrast medium", "aorta")


class Network(nn.Module):
    """Logits at stride 4 and a presence, from the image's channels and the prompt's tokens.

    Args:
        attend_padding: what is found depends on the padding, too.
        presence: whether it says anything about it.
    """

    def __init__(self, *, attend_padding: bool = True, presence: bool = True) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.decoder = SimpleNamespace(attend_padding=attend_padding)
        self.precision = "fp32"
        self.says_presence = presence
        self.shown: list[Tensor] = []
        self.prompts: list[tuple[int, ...]] = []

    def encode_image(self, image: Tensor) -> ImageFeatures:
        self.shown += list(image)
        return ImageFeatures((), image, image)

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        return TextFeatures(tokens[..., None].float(), tokens >= 0)

    def decode(self, image: ImageFeatures, text: TextFeatures, *, generator: object = None) -> Decoded:
        self.prompts.append(tuple(text.tokens.shape[1:3]))
        tokens = text.tokens[..., 0]
        number = (tokens * text.valid).sum(-1) % 97 / 97  # (B, P)
        if self.decoder.attend_padding:
            number = (number + 0.13 * text.valid.shape[-1]) % 1
        small = F.avg_pool2d(image.image, 4)  # (B, C, h, w)
        weights = torch.stack([number - 0.3, 0.5 - number, number**2], -1)[..., : small.shape[1]]
        logits = torch.einsum("bpc,bchw->bphw", weights, small) * 8 - 1.5 + number[..., None, None]
        presence = logits.amax((-1, -2)) - 1.2 * number
        return Decoded(logits, presence if self.says_presence else None)


def inferer(
    settings: dict[str, Any], own: dict[str, Any], tokenizer: PromptTokenizer, *, data: Any = None, **more: Any
) -> SlidingVolumeInferer:
    network: Any = SimpleNamespace(image_size=SIZE, neighbours=1, presence=False)
    chosen = {"prompts": PROMPTS, "modality": "CT", "window": {"kind": "stored"}, "protocol": "biomedparse", **settings}
    return SlidingVolumeInferer(
        RunSettings(**chosen, protocol_settings=own),
        description=Description(network, data or {}),
        tokenizer=tokenizer,
        **more,
    )


def scan(shape: tuple[int, int, int] = (57, 40, 7), seed: int = 0, affine: Any = None) -> Volume:
    """Smooth blobs: (I, J, K)."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    smooth = F.avg_pool3d(noise[None, None], (5, 5, 1), stride=1, padding=(2, 2, 0))[0, 0].numpy()
    grey = np.clip(128 + 300 * smooth, 0, 255).round().astype(np.float32)
    return Volume(grey, np.diag([-0.8, -0.8, 3.0, 1.0]) if affine is None else affine, "CT")


def reference(
    grey: np.ndarray, network: Network, tokens: Tensor, *, suppress: bool = True, presence: bool = True
) -> np.ndarray:
    """The label map of an array (D, H, W) uint8, written from the description of the recipe, slice by slice."""
    depth, height, width = grey.shape
    axis = 0
    if abs(height - width) >= 0.5 * (height + width) / 2:
        axis = min(range(3), key=lambda each: (grey.shape[each], each))
    stack = np.moveaxis(grey, axis, 0)
    _, height, width = stack.shape
    edge = max(height, width)
    up, left = (edge - height) // 2, (edge - width) // 2
    padded = np.zeros((len(stack), edge, edge), np.uint8)
    padded[:, up : up + height, left : left + width] = stack
    square = F.interpolate(torch.from_numpy(padded)[:, None], size=SIZE, mode="bicubic")[:, 0]
    count = tokens.shape[0]
    labels = np.zeros((len(stack), SIZE, SIZE), int)
    for i in range(len(stack)):
        before = i - 1 if i else min(1, len(stack) - 1)
        after = i + 1 if i + 1 < len(stack) else max(len(stack) - 2, 0)
        image = (torch.stack([square[before], square[i], square[after]])[None].float()) / 255
        text = network.encode_text(tokens[None])
        found = network.decode(network.encode_image(image), text)
        p = F.interpolate(found.logits, size=SIZE, mode="bicubic", antialias=True)[0].sigmoid().numpy()
        there = found.presence[0].sigmoid().numpy() if found.presence is not None else np.ones(count)
        keep = []
        if count == 1:
            keep = [0] if there[0] > 0.5 or not presence else []
        elif not suppress:
            keep = [k for k in range(count) if there[k] >= 0.5 or not presence]
        else:
            for k in np.argsort(-there, kind="stable"):
                if there[k] < 0.5 and presence:
                    break
                mask = p[k] > 0.5
                if not mask.any():
                    continue
                if all((mask & (p[j] > 0.5)).sum() / (mask | (p[j] > 0.5)).sum() <= 0.5 for j in keep):
                    keep.append(int(k))
        stacked = [np.full((SIZE, SIZE), np.float32(0.5))] + [p[k] * (k in keep) for k in range(count)]
        labels[i] = np.argmax(stacked, axis=0)
    rows = [min(SIZE - 1, int(np.floor(np.float32(n) * np.float32(SIZE / edge)))) for n in range(edge)]
    restored = labels[:, rows][:, :, rows][:, up : up + height, left : left + width]
    return np.moveaxis(restored, 0, axis)


def stored(array: np.ndarray) -> np.ndarray:
    """(I, J, K) → (D, H, W) in the order of the file."""
    return np.ascontiguousarray(array.transpose(2, 1, 0))


@pytest.mark.parametrize("shape", [(57, 40, 7), (40, 61, 5), (90, 40, 6), (50, 6, 44), (64, 64, 1), (20, 30, 2)])
@pytest.mark.parametrize("settings", [{}, {"suppress": False}], ids=str)
def test_the_label_map_is_that_of_the_recipe(
    tokenizer: PromptTokenizer, shape: tuple[int, int, int], settings: dict[str, Any]
) -> None:
    volume = scan(shape)
    for prompts in (PROMPTS, PROMPTS[:1]):
        for presence in (True, False):
            asked = inferer({"prompts": prompts, "presence": presence, "batch_size": 3}, settings, tokenizer)
            found = asked.label_map(volume, Network())
            wanted = reference(
                stored(volume.array).astype(np.uint8), Network(), tokenizer(prompts), presence=presence,
                suppress=settings.get("suppress", True),
            )  # fmt: skip
            np.testing.assert_array_equal(stored(found), wanted)
    assert len(np.unique(found)) > 1 or shape[2] == 2


def test_the_same_on_any_grid_and_in_any_orientation(tokenizer: PromptTokenizer) -> None:
    """Stored: the file's own order decides, whatever the affine says; turned: as if the file were turned."""
    volume, network = scan(), Network()
    first = inferer({}, {}, tokenizer).label_map(volume, network)
    other = Volume(volume.array, np.diag([1.0, 1.0, -2.0, 1.0]), "CT")
    np.testing.assert_array_equal(inferer({}, {}, tokenizer).label_map(other, network), first)
    for name, flips in {"flipped": (1,), "mirrored": (0,), "turned": (0, 1)}.items():
        flipped = Volume(np.flip(volume.array, flips), volume.affine, "CT")
        wanted = np.flip(inferer({}, {}, tokenizer).label_map(flipped, network), flips)
        found = inferer({}, {"orientation": name}, tokenizer).label_map(volume, network)
        np.testing.assert_array_equal(found, wanted)
        assert (found != first).any()


def test_display_turns_slices_by_the_patient_s_directions(tokenizer: PromptTokenizer) -> None:
    volume = scan()  # its axes run to L, P and S... in RAS+: the first two to negative
    assert volume.axis_codes == ("L", "P", "S")
    shown = inferer({}, {"orientation": "display"}, tokenizer).label_map(volume, Network())
    np.testing.assert_array_equal(shown, inferer({}, {}, tokenizer).label_map(volume, Network()))
    turned = volume.reoriented("RAS")
    again = inferer({}, {"orientation": "display"}, tokenizer).label_map(turned, Network())
    np.testing.assert_array_equal(again, shown[::-1, ::-1])
    assert (inferer({}, {}, tokenizer).label_map(turned, Network()) != again).any()


def test_a_plane_that_is_asked_for_is_sliced(tokenizer: PromptTokenizer) -> None:
    volume, network = scan((24, 20, 22)), Network()
    assert inferer({}, {}, tokenizer).protocol.slicings(volume)[0].plane == "axial"
    with inferer({"planes": "coronal"}, {}, tokenizer).segment(volume, network) as result:
        assert result.planes == ("coronal",)
    assert len(network.shown) == 20
    rows = np.moveaxis(stored(volume.array), 1, 0)[5].astype(np.uint8)  # z down, x across
    padded = torch.from_numpy(np.pad(rows, ((1, 1), (0, 0))))[None, None]
    wanted = F.interpolate(padded, size=SIZE, mode="bicubic")[0, 0]
    assert torch.equal((network.shown[5][1] * 255).round().to(torch.uint8), wanted)


@pytest.mark.parametrize("attend", [True, False])
def test_prompts_are_decoded_together_where_the_decoder_attends_to_padding(
    tokenizer: PromptTokenizer, attend: bool
) -> None:
    volume, network = scan(), Network(attend_padding=attend)
    longest = tokenizer(PROMPTS).shape[1]
    inferer({}, {}, tokenizer, together=2).label_map(volume, network)
    shapes = set(network.prompts)
    assert shapes == ({(5, longest)} if attend else {(2, 16)})

    def of_liver(*prompts: str) -> np.ndarray:
        with inferer({"prompts": prompts}, {"suppress": False}, tokenizer).segment(volume, network) as result:
            return result.probability(0)

    alone, among = of_liver(PROMPTS[0]), of_liver(PROMPTS[0], PROMPTS[3])
    assert (alone != among).any() == attend


def test_suppression_drops_masks_and_can_be_read_from_the_result(tokenizer: PromptTokenizer) -> None:
    volume, network = scan(), Network(attend_padding=False)
    with inferer({}, {}, tokenizer).segment(volume, network) as strict:
        kept = [strict.mask(index) for index in range(5)]
        findings, labels = strict.findings, strict.label_map()
    with inferer({}, {"suppress": False}, tokenizer).segment(volume, network) as free:
        whole = [free.mask(index) for index in range(5)]
    dropped = 0
    for index, (mask, all_of_it) in enumerate(zip(kept, whole, strict=True)):
        assert not (mask & ~all_of_it).any()
        for number in range(volume.shape[2]):  # a slice keeps a mask as it is, or not at all
            assert not mask[..., number].any() or (mask[..., number] == all_of_it[..., number]).all()
        dropped += int((all_of_it & ~mask).sum())
        assert findings[index].voxels == mask.sum()
        assert not ((labels == index + 1) & ~mask).any()
    assert dropped > 0


def test_windows_compete_in_one_slice(tokenizer: PromptTokenizer) -> None:
    """Prompts of targets that were trained in different windows are shown in them, and suppressed together."""
    windows = {"liver": {"kind": "stored"}, "bone": {"kind": "hu", "level": 128, "width": 128}}
    targets = [{"target": name, "modality": "CT", "site": "", "window": each} for name, each in windows.items()]
    volume, network = scan(), Network(attend_padding=False)
    asked = inferer({"prompts": ["liver", "bone"], "window": None}, {}, tokenizer, data={"targets": targets})
    with asked.segment(volume, network) as result:
        labels, masks = result.label_map(), [result.mask(0), result.mask(1)]
    assert len(network.shown) == 2 * 7
    assert (network.shown[0] != network.shown[3]).any()
    for number in range(7):
        one, other = (mask[..., number] for mask in masks)
        union = (one | other).sum()
        assert union == 0 or (one & other).sum() / union < 0.6  # 0.5 in the square; a little else on the slice
    assert set(np.unique(labels)) <= {0, 1, 2}


def test_repeats_are_averaged_before_prompts_compete(tokenizer: PromptTokenizer) -> None:
    volume = scan()
    with inferer({"repeats": 3}, {}, tokenizer).segment(volume, Network()) as result:
        repeated, entropy = result.label_map(), result.entropy(0)
    once = inferer({}, {}, tokenizer).label_map(volume, Network())
    np.testing.assert_array_equal(repeated, once)  # the stub draws nothing
    assert entropy is not None
    assert entropy.any()


def test_a_network_without_presence_drops_nothing(tokenizer: PromptTokenizer) -> None:
    with inferer({}, {}, tokenizer).segment(scan(), Network(presence=False)) as result:
        assert all(finding.presence is None for finding in result.findings)
        assert any(finding.found for finding in result.findings)


def test_features_are_remembered(tokenizer: PromptTokenizer) -> None:
    volume, network, cache = scan(), Network(), FeatureCache(1 << 30)
    first = inferer({}, {}, tokenizer, features=cache).label_map(volume, network)
    misses = cache.misses
    second = inferer({}, {}, tokenizer, features=cache).label_map(volume, network)
    np.testing.assert_array_equal(first, second)
    assert cache.misses == misses == 7


@pytest.mark.parametrize(
    ("settings", "own", "said"),
    [
        ({"planes": ("axial", "coronal")}, {}, "one axis, not along several planes"),
        ({"in_plane": "tiles"}, {}, "whole slices"),
        ({}, {"orientation": "storred"}, "did you mean 'stored'"),
        ({}, {"supress": False}, "did you mean 'suppress'"),
        ({}, {"suppress": "no"}, "true or false"),
        ({"protocol": "biomedpars"}, {}, "did you mean 'biomedparse'"),
        ({"protocol": "boltzformer"}, {"suppress": False}, "unknown setting 'suppress'"),
    ],
    ids=str,
)
def test_what_it_cannot_do_is_one_line(
    tokenizer: PromptTokenizer, settings: dict[str, Any], own: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        inferer(settings, own, tokenizer)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_names_its_protocol_and_the_user_overrules_it(tokenizer: PromptTokenizer) -> None:
    data = {"protocol": "biomedparse", "protocol_settings": {"suppress": False}, "plane": "axial"}

    def chosen(own: dict[str, Any], **settings: Any) -> SlidingVolumeInferer:
        return inferer({"protocol": None, **settings}, own, tokenizer, data=data)

    assert chosen({}).protocol.settings == {"suppress": False, "orientation": "stored"}
    assert chosen({"orientation": "flipped"}).protocol.settings == {"suppress": False, "orientation": "flipped"}
    assert chosen({"suppress": True}).protocol.settings["suppress"] is True
    assert chosen({}, protocol="boltzformer").protocol.settings == {}
    assert chosen({}).protocol.rule is not None
    assert chosen({}, presence=False).protocol.rule is None


def test_a_side_in_a_prompt_is_doubtful(tokenizer: PromptTokenizer) -> None:
    prompts = ["Left kidney", "the right lung in CT", "liver", "bright spot"]
    found = inferer({"prompts": prompts}, {}, tokenizer, data={"protocol": "biomedparse"}).caveats
    assert [(each.kind, each.prompt, each.doubtful) for each in found] == [
        ("laterality", prompt, True) for prompt in prompts[:2]
    ]


def test_a_run_can_be_stopped_between_passes(tokenizer: PromptTokenizer) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 2

    with pytest.raises(CancelledError, match="after 2 of 7 axial slices"):
        inferer({"batch_size": 1}, {}, tokenizer, should_stop=stop).label_map(scan(), Network())
