"""The golden check of BiomedParse v2's network: from normalised slices to masks, outlines and existence.

Assembled from this package's modules at the recorded sizes, with the recorded attention sets, in both forms.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models import FeatureListNet
from timm.models.focalnet import FocalNet
from torch import Tensor, nn

from boltzformer_monai.networks import BoltzFormer, NetworkConfig
from boltzformer_monai.networks.backbone import TimmBackbone
from boltzformer_monai.networks.biomedparse import biomedparse_decoder
from boltzformer_monai.networks.fast.semantic_map import Masks, SemanticConvolution
from boltzformer_monai.networks.pixel_decoder import PixelDecoder
from boltzformer_monai.networks.published.biomedparse_v2 import BiomedParseV2Source
from boltzformer_monai.networks.published.importing import whole_names
from boltzformer_monai.networks.published.source import Converted, PublishedFile
from boltzformer_monai.networks.sampling import BoltzmannSampling
from boltzformer_monai.networks.text_encoder import PADDING, clip_text_encoder
from boltzformer_monai.networks.weights import load_strictly
from tests.golden.decoder import ReplayedSets, differing, drawn, recorded_sets
from tests.golden.modules import state_dict, tensor, worst

Arrays = Mapping[str, np.ndarray]
FORMS = {"plain": False, "fast": True}


@torch.no_grad()
def check_network(arrays: Arrays) -> Iterator[tuple[str, float]]:
    """Rows (quantity, largest absolute error) of all cases in the file, for both forms of the network."""
    sizes = json.loads(str(arrays["cfg"]))
    converted = BiomedParseV2Source().convert(PublishedFile(Path("recording"), state_dict(arrays)))
    for form, fast in FORMS.items():
        network = build(sizes, converted, fast=fast)
        for case in sorted({name.split("/")[0] for name in arrays if "/batch0/" in name}):
            for name, error in _check_case(arrays, case, sizes, network):
                yield f"{case}/{name} ({form})", error


def build(sizes: Mapping[str, Any], converted: Converted, *, fast: bool) -> BoltzFormer:
    """The network of the recorded sizes with the recorded weights."""
    dim, heads, hidden = sizes["dim"], sizes["heads"], sizes["ff"]
    config = NetworkConfig(
        backbone="tiny",  # not built: the decoder alone is made of these settings
        image_size=sizes["image_size"],
        dim=dim,
        heads=heads,
        hidden=hidden,
        queries=sizes["queries"],
        layers=sizes["dec"],
        presence=True,
        per_head=True,
        fast=fast,
    )
    backbone = focal_backbone(embed_dim=sizes["embed_dim"], depths=sizes["depths"])
    network = BoltzFormer(
        backbone=backbone,
        pixel_decoder=PixelDecoder(
            in_channels=backbone.channels,
            dim=dim,
            heads=heads,
            hidden=hidden,
            layers=sizes["enc"],
            map_convolution=SemanticConvolution if fast else nn.Conv2d,
        ),
        text_encoder=clip_text_encoder(
            dim=dim,
            width=sizes["width"],
            layers=sizes["tl"],
            heads=sizes["th"],
            context=sizes["context"],
            vocabulary=sizes["vocab"],
        ),
        decoder=biomedparse_decoder(config, edge_queries=sizes["edge"], attend_padding=True),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        default_tokens=(),
    )
    load_strictly(network, {**whole_names(converted.parts), **converted.buffers}, source="the recording")
    return network.eval()


def focal_backbone(*, embed_dim: int, depths: list[int]) -> TimmBackbone:
    """FocalNet-L's form at other sizes, which timm's own names do not offer."""
    with torch.device("meta"):
        backbone = TimmBackbone("focalnet_large_fl4", normalise=True, settings={"normalize_modulator": True})
    model = FocalNet(
        embed_dim=embed_dim,
        depths=depths,
        focal_levels=[4] * 4,
        use_post_norm=True,
        use_overlap_down=True,
        layerscale_value=1e-4,
        normalize_modulator=True,
    )
    backbone.model = FeatureListNet(model, out_indices=(0, 1, 2, 3), flatten_sequential=True)
    backbone.channels = [embed_dim * 2**stage for stage in range(4)]
    backbone.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-5) for channels in backbone.channels)
    return backbone


def _check_case(
    arrays: Arrays, case: str, sizes: Mapping[str, Any], network: BoltzFormer
) -> Iterator[tuple[str, float]]:
    tokens = _tokens(arrays, case)
    slices = tensor(arrays, "in/square").float() / 255
    text = network.encode_text(tokens)
    decoded, size = [], sizes["slice_batch_size"]
    for batch, start in enumerate(range(0, len(slices), size)):
        rows = range(start, min(start + size, len(slices)))
        place = f"{case}/batch{batch}"
        sets = recorded_sets(arrays, place, sizes["dec"])
        network.decoder.query_decoder.policy = policy = ReplayedSets(sets)
        features = network.encode_image(torch.stack([_with_neighbours(slices, row) for row in rows]))
        every = type(text)(*(each.expand(len(rows), *each.shape[1:]) for each in text))
        seen: dict[str, Tensor] = {}
        handles = _record(network.decoder, seen, prompts=tokens.shape[1])
        try:
            decoded.append(network.decode(features, every))
        finally:
            for handle in handles:
                handle.remove()
        if f"{place}/res2" in arrays:
            yield from ((f"batch{batch}/{name}", e) for name, e in _check_features(arrays, place, network, features))
            yield f"batch{batch}/text", worst(every.tokens.flatten(0, 1).transpose(0, 1), arrays[f"{place}/text"])
            policy_errors = _check_sets(arrays, place, policy, sets, sizes)
            yield from ((f"batch{batch}/set{i} (fraction differing)", error) for i, error in enumerate(policy_errors))
        masks = seen.pop("masks")
        recorded = arrays[f"{place}/pred_gmasks"]
        yield f"batch{batch}/pred_gmasks", worst(masks if recorded.ndim == 4 else masks.mean((2, 3)), recorded)
        existence = decoded[-1].presence
        yield f"batch{batch}/object_existence", worst(existence.flatten()[:, None], arrays[f"{place}/object_existence"])
        for name, output in seen.items():
            if f"{place}/{name}" in arrays:
                yield f"batch{batch}/{name}", worst(output.transpose(0, 1), arrays[f"{place}/{name}"])
    outputs = {
        "pred_gmasks": torch.cat([each.logits for each in decoded]).transpose(0, 1),
        "edge_masks": torch.cat([each.edges for each in decoded]).transpose(0, 1),
        "object_existence": torch.cat([each.presence for each in decoded]).T,
        # The class embedding is the token at the end-of-text id, the largest of the vocabulary.
        "class_emb": text.tokens[0, torch.arange(tokens.shape[1]), tokens[0].argmax(-1)],
    }
    for name, output in outputs.items():
        yield f"out/{name}", worst(output, arrays[f"{case}/out/{name}"])


def _tokens(arrays: Arrays, case: str) -> Tensor:
    """``(1, P, N_T)`` with −1 as padding: all prompts together, or the one that the case names."""
    number = case.removeprefix("alone")
    names = sorted(name for name in arrays if name.startswith("in/ids/"))
    ids = [tensor(arrays, name).flatten() for name in (names if number == case else [f"in/ids/p{number}"])]
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=PADDING).long()[None]


def _with_neighbours(slices: Tensor, index: int) -> Tensor:
    """The slice before, this one and the one after ``(3, H, W)``, mirrored at the ends."""
    last = len(slices) - 1
    places = (abs(index - 1), index, last - abs(last - index - 1))
    return torch.stack([slices[min(max(place, 0), last)] for place in places])


def _check_features(arrays: Arrays, place: str, network: BoltzFormer, features: Any) -> Iterator[tuple[str, float]]:
    yield "image", worst(features.image[:, [1, 0, 2]], arrays[f"{place}/image"])
    pyramid = network.backbone(features.image)
    for stage, feature in enumerate(pyramid):
        yield f"res{stage + 2}", worst(feature, arrays[f"{place}/res{stage + 2}"])
    decoder = network.pixel_decoder
    encoded = decoder.encode(decoder.input_proj(pyramid[-1]))
    yield "transformer_encoder_features", worst(encoded, arrays[f"{place}/transformer_encoder_features"])
    for level, feature in enumerate(features.levels):
        yield f"ms{level}", worst(feature, arrays[f"{place}/ms{level}"])
    semantic = features.semantic_map
    semantic = semantic if isinstance(semantic, Tensor) else semantic.build().fine
    yield "mask_features", worst(semantic, arrays[f"{place}/mask_features"])


def _check_sets(
    arrays: Arrays, place: str, policy: ReplayedSets, sets: list[Tensor], sizes: Mapping[str, Any]
) -> Iterator[float]:
    """Our own policy must give the recorded sets: fraction of patches that differ beyond rounding, per layer."""
    boltzmann = BoltzmannSampling(sizes["base_temp"], sizes["ratio"], per_head=True)
    for layer, (logits, recorded) in enumerate(zip(policy.logits, sets, strict=True)):
        attend, undecided = drawn(boltzmann, logits, layer, tensor(arrays, f"{place}/noise{layer}"))
        yield differing(attend, recorded.view(logits.shape), undecided)


def _record(decoder: Any, seen: dict[str, Tensor], *, prompts: int) -> list[Any]:
    """Hooks that keep the output of every block as ``(rows, tokens, d)`` under its golden name, and all masks."""

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = output.flatten(0, -3) if output.dim() == 4 else output
            if name.endswith("/cross"):  # the queries of all prompts together
                rows = rows.unflatten(1, (prompts, -1)).flatten(0, 1)
            seen[name] = rows

        return hook

    def keep_masks(module: nn.Module, args: tuple[Masks | Tensor, ...], output: Tensor) -> None:
        masks = args[0]
        seen["masks"] = (masks.logits() if isinstance(masks, Masks) else masks).flatten(0, 1)

    queries = decoder.query_decoder
    blocks = {"init/self": queries.prior_inter, "init/ffn": queries.prior_ffn}
    for i, (layer, classifier) in enumerate(zip(queries.layers, decoder.presence.layers, strict=True)):
        blocks |= {f"layer{i}/cross": layer.cross, f"layer{i}/self": layer.inter, f"layer{i}/ffn": layer.ffn}
        blocks |= {f"layer{i}/classifier_cross": classifier.cross, f"layer{i}/classifier_ffn": classifier.ffn}
    handles = [block.register_forward_hook(keep(name)) for name, block in blocks.items()]
    return [*handles, decoder.aggregation.register_forward_hook(keep_masks)]
