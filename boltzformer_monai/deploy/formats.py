"""The two forms of a graph: a file of ONNX, run by onnxruntime, and one of ``torch.export``, run by PyTorch."""

from __future__ import annotations

import importlib.util
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from boltzformer_monai.deploy.graphs import Graph
from boltzformer_monai.errors import BoltzFormerError, ConfigError, reject_unknown

__all__ = ["FORMATS", "GraphFormat", "RunGraph", "graph_format"]

RunGraph = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""Inputs by name → outputs by name."""

OPSET = 18
"""The oldest with all operations needed, so that older runtimes read it, and the one that PyTorch translates to."""
_LARGEST_FILE = 1 << 30  # bytes of weights within a file of ONNX; a protobuf ends at 2 GiB
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_log = logging.getLogger(__name__)


class GraphFormat(Protocol):
    """A form of graphs on disk."""

    suffix: str
    """Of the file."""

    def require(self) -> None:
        """Raise a ``ConfigError`` if packages are missing."""
        ...

    def write(self, graph: Graph, path: Path) -> None:
        """Trace and write it.

        Raises:
            ConfigError: its operations cannot be exported.
        """
        ...

    def load(self, graph: Graph, path: Path) -> RunGraph:
        """Read a file as its users do.

        Raises:
            ConfigError: it cannot be read; and where it is run, that it cannot be run.
        """
        ...


class OnnxFormat:
    """Weights in the file, or beside it as ``NAME.onnx.data`` where they are larger than 1 GiB."""

    suffix = ".onnx"

    def require(self) -> None:
        """Packages of the extra ``deploy``."""
        if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
            packages = " and ".join(missing)
            raise ConfigError(f"exporting to ONNX needs {packages}; pip install 'boltzformer-monai[deploy]'")

    def write(self, graph: Graph, path: Path) -> None:
        """As in the protocol."""
        with refused(graph, "exported to ONNX"):
            program = graph.program()
            translated = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                verbose=False,
            )
        _forget_sources(translated)
        size = sum(value.numel() * value.element_size() for value in program.state_dict.values())
        translated.save(str(path), external_data=size > _LARGEST_FILE)  # type: ignore[union-attr]

    def load(self, graph: Graph, path: Path) -> RunGraph:
        """As in the protocol."""
        import onnxruntime

        with refused(graph, "read by onnxruntime"):
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with refused(graph, "run by onnxruntime"):
                found = session.run(list(graph.outputs), {name: inputs[name].numpy() for name in graph.inputs})
            return {name: torch.from_numpy(value) for name, value in zip(graph.outputs, found, strict=True)}

        return run


class TorchFormat:
    """An archive of ``torch.export``; takes the inputs in their order and gives a tuple."""

    suffix = ".pt2"

    def require(self) -> None:
        """Nothing but PyTorch."""

    def write(self, graph: Graph, path: Path) -> None:
        """As in the protocol."""
        with refused(graph, "exported by torch.export"):
            program = graph.program()
        graphs = [each.graph for each in program.graph_module.modules() if isinstance(each, torch.fx.GraphModule)]
        for node in itertools.chain.from_iterable(graph.nodes for graph in graphs):
            node.meta.pop("stack_trace", None)  # paths of this machine
        program.example_inputs = None  # type: ignore[assignment]  # would be kept, and are larger than the weights
        torch.export.save(program, path)

    def load(self, graph: Graph, path: Path) -> RunGraph:
        """As in the protocol."""
        with refused(graph, "read by torch.export"):
            module = torch.export.load(path).module()

        def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with refused(graph, "run by torch.export"), torch.no_grad():
                found = module(*(inputs[name] for name in graph.inputs))
            return dict(zip(graph.outputs, found, strict=True))

        return run


FORMATS: Mapping[str, GraphFormat] = {"onnx": OnnxFormat(), "torch": TorchFormat()}


def graph_format(name: str) -> GraphFormat:
    """The form of this name, if its packages are there.

    Raises:
        ConfigError: there is none, or packages are missing.
    """
    reject_unknown([name], FORMATS, what="form of graphs")
    FORMATS[name].require()
    return FORMATS[name]


def _forget_sources(translated: Any) -> None:
    """Take paths and lines of this machine out of a graph of ONNX, which are most of a small one."""
    from onnxscript import ir

    for node in ir.traversal.RecursiveGraphIterator(translated.model.graph):
        node.metadata_props.clear()


@contextmanager
def refused(graph: Graph, what: str) -> Iterator[None]:
    """Turn what tracers, translators and runtimes raise, which is anything, into one line."""
    try:
        yield
    except (BoltzFormerError, OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        lines: Any = (line.strip() for line in str(error).splitlines())
        first = next(filter(None, lines), type(error).__name__)[:200]
        _log.debug("%s", graph.name, exc_info=error)
        raise ConfigError(f"{graph.part} cannot be {what}: {first}") from error
