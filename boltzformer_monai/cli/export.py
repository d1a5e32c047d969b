"""``boltzformer export``: a model as graphs for programs without this package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.command_line import add_plugin
from boltzformer_monai.registry import use_plugins

_DESCRIPTION = """Write a model as three graphs (image encoder, text encoder, decoder); config.json explains them.

    boltzformer export RUN/model --to onnx --output liver_onnx

Graphs of ONNX run in onnxruntime, those of torch.export in PyTorch, both without this package; images and prompts may
be any number. They are compared with the network before they are written.
docs/how-to/deploy.md has a program that uses them.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("export", help="write a model as ONNX or torch.export", description=_DESCRIPTION)
    parser.add_argument(
        "model", metavar="MODEL", help="model folder, model.pt of a training, or the id of a fetched model"
    )
    parser.add_argument("--to", choices=("onnx", "torch"), default="onnx", help="the form of the graphs (onnx)")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder to write; an older export is replaced"
    )
    parser.add_argument(
        "--prompts", nargs="+", default=[], metavar="TEXT", help="for prompts.json, beside the prompts of the training"
    )
    add_plugin(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Export, and print the place."""
    use_plugins(options.plugins)
    from boltzformer_monai.deploy.export import export_model

    export_model(options.model, options.output, to=options.to, prompts=options.prompts)
    sys.stdout.write(f"{options.output}\n")
    return 0
