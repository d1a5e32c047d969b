"""The network that a training starts with: at random, from published weights, or in part; and what of it is frozen."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boltzformer_monai.engines.layer_supervision import supervise_layers
from boltzformer_monai.engines.settings import TrainingSettings
from boltzformer_monai.errors import ConfigError, reject_unknown
from boltzformer_monai.models.initial import describe_initial, initial_path
from boltzformer_monai.networks.backbone import of_timm
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.layout import set_layout
from boltzformer_monai.networks.presets import create_boltzformer
from boltzformer_monai.networks.published.initial import WHOLE, describe_parts, init_from
from boltzformer_monai.networks.published.report import ImportReport, PartReport
from boltzformer_monai.networks.published.source import PARTS

__all__ = ["PAPER_STARTS", "InitialWeights", "find_initial_weights", "training_network"]

_log = logging.getLogger(__name__)

_UNICL = "UniCL's text encoder"
PAPER_STARTS: dict[str, str] = {
    "hiera_s": f"SAM 2's Hiera-S (boltzformer weights fetch sam2_hiera_small) and {_UNICL}",
    "hiera_bp": f"SAM 2's Hiera-B+ (boltzformer weights fetch sam2_hiera_base_plus) and {_UNICL}",
    "focal_l": f"a pre-trained FocalNet-L and {_UNICL}; boltzformer weights fetch biomedparse_v1 brings such",
    "biomedparse_v2": "BiomedParse v2 (boltzformer weights fetch biomedparse_v2), which its authors fine-tune",
}
"""Preset → what the training of its authors starts from, and what brings it."""


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """What a training starts from.

    Attributes:
        places: part of the network, or ``"model"`` → file or folder.
        data: what the model's description says of it: sources, hashes, licence.
    """

    places: Mapping[str, Path] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)


def find_initial_weights(init_from: Mapping[str, str | Path] | None, *, config: NetworkConfig) -> InitialWeights:
    """Find the files that a training shall start from, and what is known of them.

    Args:
        init_from: part of the network, or ``"model"`` → file, folder, or name of ``boltzformer weights list``.
        config: of the network, which may bring pre-trained parts of its own.

    Raises:
        ConfigError: it is no such mapping, there is no such part, or the network brings the part itself.
        CheckpointError: a file is not there, was changed, or is of no known source.
    """
    given = init_from or {}
    if not isinstance(given, Mapping) or not all(isinstance(each, str | Path) and str(each) for each in given.values()):
        raise ConfigError(f"init_from must be a mapping like {{'backbone': 'sam2_hiera_small.pt'}}, got {init_from!r}")
    reject_unknown(given, (*PARTS, WHOLE), what="part to start from (init_from)")
    brought = {}
    if config.pretrained:
        brought["backbone"] = ("pretrained", {"part": "backbone", "source": "timm", "file": config.backbone})
    if config.text_model:
        name = Path(config.text_model).name
        brought["text_encoder"] = ("text_model", {"part": "text_encoder", "source": "transformers", "file": name})
    for part, (setting, _) in brought.items():
        if part in given or WHOLE in given:
            msg = f"both init_from and network_overrides {{{setting!r}: …}} give the {part}'s weights; leave one out"
            raise ConfigError(msg)
    places = {part: initial_path(place) for part, place in given.items()}
    data = describe_initial(places)
    entries = [*data.get("initial_weights", []), *(entry for _, entry in brought.values())]
    return InitialWeights(places, {**data, "initial_weights": entries} if entries else {})


def training_network(
    config: NetworkConfig,
    settings: TrainingSettings,
    *,
    device: torch.device,
    initial: InitialWeights | None = None,
    is_main: bool = True,
) -> BoltzFormer:
    """A network ready to train: with its initial weights, on its device, in its layout, in the settings' precision.

    Args:
        config: of the network.
        settings: precision, whether layers are supervised, and what is frozen. Weights that a file lacks are trained
            also in a frozen part.
        device: where the network goes.
        initial: see :func:`find_initial_weights`; random without.
        is_main: whether this process logs.

    Raises:
        CheckpointError: the initial weights do not fit the network.
        ConfigError: it computes otherwise than their source, a part would be frozen at random, or the decoder has no
            masks between its layers that could be supervised.
    """
    network = create_boltzformer(config)
    if not supervise_layers(network, settings) and settings.layer_supervision and is_main:
        _log.info("the decoder %s gives no masks between its layers: layer_supervision is off", config.decoder)
    places = {} if initial is None else initial.places
    reports = [*_brought(network, config), *(init_from(network, places) if places else [])]
    found = {each.part for report in reports for each in report.parts}
    for part in settings.freeze:
        if part not in found:
            msg = f"freeze: the {part} would stay at random; name its weights in init_from, or do not freeze it"
            raise ConfigError(msg)
    network.freeze(settings.freeze)
    left = {name for report in reports for each in report.parts for name in each.random}
    for name, parameter in network.named_parameters():
        if name in left:
            parameter.requires_grad_(True)
    if is_main:
        expected = {"backbone": of_timm(config), "text_encoder": True}
        random = [part for part, expect in expected.items() if expect and part not in found]
        _log_start(network, reports, settings.preset, random=random)
    return set_layout(network.to(device), trains=True).set_precision(settings.precision)


def _brought(network: BoltzFormer, config: NetworkConfig) -> list[ImportReport]:
    """The parts that other libraries made with their weights."""

    def report(part: str, module: nn.Module, path: str, source: str, why: str) -> ImportReport:
        whole = getattr(network, part)
        inside = {id(parameter) for parameter in module.parameters()}
        random = {f"{part}.{name}": why for name, each in whole.named_parameters() if id(each) not in inside}
        sizes = [each.numel() for each in module.parameters()]
        return ImportReport(path, source, (PartReport(part, len(sizes), sum(sizes), random),))

    reports = []
    if config.pretrained:
        trunk = network.backbone if config.neck_channels is None else network.backbone.backbone
        reports.append(report("backbone", trunk, config.backbone, "timm", "no neck"))  # type: ignore[arg-type]
    if config.text_model:
        text = network.text_encoder.model
        reports.append(report("text_encoder", text, config.text_model, "transformers", "no such map"))  # type: ignore[arg-type]
    return reports


def _log_start(network: BoltzFormer, reports: Sequence[ImportReport], preset: str, *, random: Sequence[str]) -> None:
    for line in (line for report in reports for line in report.lines()):
        _log.info("%s", line)
    if reports:
        _log.info("the training starts from:\n%s", "\n".join(describe_parts(network, reports)))
    if random and preset in PAPER_STARTS:
        parts = " and ".join(part.replace("_", " ") for part in random)
        _log.warning(
            "%s start%s at random, which is not the training that was published: %s starts from %s (--init_from)",
            parts,
            "s" if len(random) == 1 else "",
            preset,
            PAPER_STARTS[preset],
        )
