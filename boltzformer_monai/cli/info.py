"""``boltzformer info``: what a model is."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

_DESCRIPTION = """Say what a model is: targets with sites, modalities and windows, network, presence thresholds, size,
hash, licence, metrics and where its first weights are from. The network is not built, and nothing is fetched.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("info", help="say what a model is", description=_DESCRIPTION)
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="model folder, model.pt of a training, or the id of a fetched model"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print it."""
    from boltzformer_monai.models.info import info_text, model_info

    info = model_info(options.model)
    text = json.dumps(info, indent=1, ensure_ascii=False) + "\n" if options.json else info_text(info)
    sys.stdout.write(text)
    return 0
