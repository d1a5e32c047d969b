"""A file of published weights → this package's parts, checked strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from boltzformer_monai.errors import CheckpointError
from boltzformer_monai.networks.boltzformer import BoltzFormer
from boltzformer_monai.networks.config import NetworkConfig
from boltzformer_monai.networks.presets import create_boltzformer
from boltzformer_monai.networks.published.names import PublishedNames
from boltzformer_monai.networks.published.reading import read_published
from boltzformer_monai.networks.published.rename import Tensors, UnplacedError
from boltzformer_monai.networks.published.report import ImportReport, PartReport
from boltzformer_monai.networks.published.source import Converted, PublishedFile, Source, find_source
from boltzformer_monai.networks.weights import check_described, load_strictly


@dataclass(frozen=True, eq=False)
class Imported:
    """Published weights under this package's names; the tensors are pages of the file.

    Attributes:
        source: name of the source.
        config: the whole network that the file holds; ``None`` where it holds parts only.
        parts: ``"backbone"``, ``"pixel_decoder"``, ``"text_encoder"``, ``"decoder"`` → weights as in that module.
        report: what was taken and dropped.
    """

    source: str
    config: NetworkConfig | None
    parts: dict[str, Tensors]
    report: ImportReport

    def state_dict(self) -> Tensors:
        """Of the whole network, normalisation included.

        Raises:
            CheckpointError: the file holds parts only.
        """
        config = self.whole()
        buffers = {
            name: torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)
            for name, values in (("mean", config.mean), ("std", config.std))
        }
        return {**whole_names(self.parts), **buffers}

    def network(self) -> BoltzFormer:
        """The network with these weights, in evaluation mode.

        Raises:
            CheckpointError: the file holds parts only.
        """
        network = create_boltzformer(self.whole())
        load_strictly(network, self.state_dict(), source=self.report.path)
        return network.eval()

    def whole(self) -> NetworkConfig:
        """The configuration of the whole network.

        Raises:
            CheckpointError: the file holds parts only.
        """
        if self.config is None:
            msg = (
                f"{self.report.path} holds no whole network but the {', '.join(self.parts)} of {self.report.source}; "
                "a training can start from it"
            )
            raise CheckpointError(msg)
        return self.config


def import_weights(path: str | Path, *, source: str | None = None) -> Imported:
    """Read and rename published weights; those of a whole network are compared with it, name by name.

    Args:
        path: a ``.pt``, ``.pth``, ``.ckpt``, ``.bin`` or ``.safetensors`` file, or the folder of one.
        source: a name of :data:`~boltzformer_monai.networks.published.source.SOURCES`; by default the weights' names
            tell it.

    Raises:
        CheckpointError: the file cannot be read, is of no known source, or a weight is missing, left over or misshapen.
        ConfigError: there is no such source.
    """
    return import_file(read_published(path), source=source)


def import_file(file: PublishedFile, *, source: str | None = None) -> Imported:
    """As :func:`import_weights`, for weights that are read already."""
    name, known = find_source(file, source)
    converted = convert(file, known)
    config = known.config(file)
    parts = tuple(
        PartReport(part, len(weights), sum(weight.numel() for weight in weights.values()))
        for part, weights in converted.parts.items()
    )
    imported = Imported(name, config, converted.parts, report_of(file, known, converted, parts))
    if config is not None:
        check_described(config, imported.state_dict(), source=str(file.path), names=lambda: _names(file, known))
    return imported


def load_published(network: BoltzFormer, path: str | Path, *, source: str | None = None) -> ImportReport:
    """Load a whole published model into a network of the same sizes, all of it or nothing.

    Args:
        network: made of the same settings as the published one.
        path: see :func:`import_weights`.
        source: see :func:`import_weights`.

    Raises:
        CheckpointError: the file cannot be read, is of no known source, or does not fit.
        ConfigError: there is no such source.
    """
    file = read_published(path)
    _, known = find_source(file, source)
    converted = convert(file, known)
    buffers = {name: getattr(network, name) for name in ("mean", "std")}
    weights = {**whole_names(converted.parts), **buffers, **converted.buffers}
    load_strictly(network, weights, source=str(file.path), names=lambda: _names(file, known))
    parts = tuple(
        PartReport(part, len(each), sum(weight.numel() for weight in each.values()))
        for part, each in converted.parts.items()
    )
    return report_of(file, known, converted, parts)


def convert(file: PublishedFile, source: Source) -> Converted:
    """Rename and reshape the weights of a file.

    Raises:
        CheckpointError: a weight has no place here.
    """
    try:
        return source.convert(file)
    except UnplacedError as error:
        whole = [name for name in file.weights if f".{name}".endswith(f".{error.name}")]
        published = whole[0] if len(whole) == 1 else error.name
        raise CheckpointError(f"{file.path}: published weight {published!r} has no place in this network") from error
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error}") from error


def _names(file: PublishedFile, source: Source) -> PublishedNames:
    return PublishedNames(file, lambda each: whole_names(source.convert(each).parts))


def whole_names(parts: dict[str, Tensors]) -> Tensors:
    """The weights of parts under the names they have in the network."""
    return {f"{part}.{name}": weight for part, weights in parts.items() for name, weight in weights.items()}


def report_of(file: PublishedFile, source: Source, converted: Converted, parts: tuple[PartReport, ...]) -> ImportReport:
    """What became of a file."""
    return ImportReport(
        path=str(file.path),
        source=source.title,
        parts=parts,
        dropped=converted.dropped,
        left=file.left,
        notes=converted.notes,
    )
