"""What a source of published weights is, and which one a file comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.published.rename import Tensors
from boltzformer_monai.registry import Registry

PARTS = ("backbone", "pixel_decoder", "text_encoder", "decoder")
"""The parts of :class:`~boltzformer_monai.networks.boltzformer.BoltzFormer` that have weights."""


@dataclass(frozen=True, eq=False)
class PublishedFile:
    """What was read of a file, before anything is renamed.

    Attributes:
        path: of the file.
        weights: under their published names.
        about: what lies beside the weights: the ``config.json`` of a folder, or our checkpoint's description.
        left: entries of the file that are no weights.
    """

    path: Path
    weights: Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)
    left: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Converted:
    """Weights under this package's names.

    Attributes:
        parts: part of :data:`PARTS` → its weights, named as in that part's module.
        dropped: published name → why nothing here needs it.
        lacks: beginning of a name, part first, that the source has no weights for → why; left at random.
        surplus: regular expression of our names, without the part → why a network without a place for them needs none.
        optional: names, part first, that are left at random where the network's sizes differ → what they are.
        settings: part → network settings that no weight shows and the network must have.
        buffers: ``mean`` and ``std`` that the images were normalised with, ``(1, C, 1, 1)``, where the file has them.
        notes: what the user should know and the file does not tell.
    """

    parts: dict[str, Tensors]
    dropped: dict[str, str] = field(default_factory=dict)
    lacks: dict[str, str] = field(default_factory=dict)
    surplus: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """One kind of published weights. Registered with :data:`register_source`."""

    title: str
    """Whose weights, for messages and lists."""

    def recognises(self, names: Collection[str]) -> bool:
        """Whether weights of these names are of this kind; at most one source says so."""
        ...

    def convert(self, file: PublishedFile) -> Converted:
        """Rename and reshape.

        Raises:
            CheckpointError: a weight has no place here, and no reason to be dropped.
        """
        ...

    def config(self, file: PublishedFile) -> NetworkConfig | None:
        """The whole network that the file holds; ``None`` where it holds parts only.

        Raises:
            CheckpointError: it is a network of another size than those that are known.
        """
        ...


SOURCES: Registry[Source] = Registry("source of weights", group="boltzformer_monai.weights")
register_source = SOURCES.register


def find_source(file: PublishedFile, name: str | None = None) -> tuple[str, Source]:
    """The source of a file, by its weights' names or as the user says.

    Raises:
        CheckpointError: nobody knows these weights, or several sources do.
        ConfigError: there is no source of that name.
    """
    if name is not None:
        return name, SOURCES.make(name, settings={})
    sources = {each: SOURCES.make(each, settings={}) for each in SOURCES.names()}
    names = set(file.weights)
    found = [each for each, source in sources.items() if source.recognises(names)]
    if len(found) == 1:
        return found[0], sources[found[0]]
    shown = ", ".join(sorted(names)[:3])
    if found:
        msg = f"{file.path} looks like weights of {' and '.join(found)}; say which by its name"
    else:
        msg = f"{file.path} holds weights of no known source ({shown}, …); known are {', '.join(sources)}"
    raise CheckpointError(msg)
