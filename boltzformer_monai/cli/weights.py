"""``boltzformer weights``: public weights that are known, fetching them, and models as folders."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from boltzformer_monai.cli.command_line import add_plugin
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.registry import use_plugins
from boltzformer_monai.storage import require_writable

_log = logging.getLogger(__name__)

_LIST = """List the public weights that are known: what they are, their licence and size, and where they are from."""
_FETCH = """Fetch weights from the Hugging Face hub into its cache, and print where they are.

    boltzformer weights fetch biomedparse_v2 --accept-licence
    boltzformer segment scan.nii.gz --prompts "liver" --modality CT --checkpoint biomedparse_v2 --output out.nii.gz

Weights to segment with become a model folder (--output). NAME is one of `boltzformer weights list`, or the id of any
model of the hub; a model folder there is used by its id afterwards. HF_ENDPOINT names a mirror, HF_HUB_OFFLINE or
TRANSFORMERS_OFFLINE forbids any connection, HF_HOME says where the cache is, HF_TOKEN or `hf auth login` logs in.
"""
_CONVERT = """Make a model folder of weights in another form, or a checkpoint of a model folder.

    boltzformer weights convert biomedparse_v2.ckpt --output biomedparse_v2
    boltzformer weights convert RUN/model.pt --output my_model
    boltzformer weights convert my_model --output model.pt

Every weight finds its place, or the file is refused by the name of the one that does not.
"""
_CARD = """Write the numbers of an evaluation into a model's card, and into the metadata of a bundle.

    boltzformer evaluate --data SLICES --checkpoint RUN/model --output RUN/eval --split test
    boltzformer weights card RUN/model --metrics RUN/eval/metrics.json
"""
_BUNDLE = """Write a model as a MONAI bundle of its own, in the form of MONAI's model zoo, and as a zip file.

    boltzformer weights bundle RUN/model --output liver_lesion_ct_segmentation
    cd liver_lesion_ct_segmentation
    python -m monai.bundle run --config_file configs/inference.json --image scan.nii.gz

The zoo takes no file above 25 MB: put larger weights where everybody can fetch them, and name the place with --url.
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand with its own."""
    parser = commands.add_parser("weights", help="list, fetch and convert weights", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    listed = actions.add_parser("list", help="public weights that are known", description=_LIST)
    listed.add_argument("--json", action="store_true", help="the same as JSON")
    listed.set_defaults(run=run_list)

    fetched = actions.add_parser("fetch", help="fetch weights from the hub", description=_FETCH)
    fetched.add_argument("name", metavar="NAME", help="of the list, or OWNER/NAME of the hub")
    fetched.add_argument(
        "--accept-licence", "--accept-license", action="store_true", help="you have read the licence and keep to it"
    )
    fetched.add_argument("--output", type=Path, metavar="MODEL", help="the model folder to write (NAME)")
    fetched.add_argument("--file", metavar="FILE", help="of a hub model that is no model folder")
    fetched.add_argument("--revision", metavar="REV", help="branch, tag or commit (main)")
    fetched.set_defaults(run=run_fetch, kept="what was fetched whole stays in the cache")

    converted = actions.add_parser("convert", help="weights in another form → a model folder", description=_CONVERT)
    converted.add_argument("file", type=Path, metavar="FILE", help="weights, model.pt or model folder")
    converted.add_argument(
        "--output", type=Path, required=True, metavar="MODEL", help="the model folder to write; a checkpoint if NAME.pt"
    )
    converted.add_argument("--source", metavar="NAME", help="what the weights are, where the names do not tell")
    add_plugin(converted)
    converted.set_defaults(run=run_convert)

    card = actions.add_parser("card", help="the numbers of an evaluation into a model's card", description=_CARD)
    card.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    card.add_argument("--metrics", type=Path, required=True, metavar="FILE", help="metrics.json of its evaluation")
    card.add_argument("--bundle", type=Path, metavar="DIR", help="bundle whose metadata.json gets them too")
    card.set_defaults(run=run_card)

    bundle = actions.add_parser("bundle", help="a model folder → a MONAI bundle and its zip", description=_BUNDLE)
    bundle.add_argument("model", metavar="MODEL", help="model folder, or the id of a fetched one")
    bundle.add_argument("--output", type=Path, required=True, metavar="DIR", help="the bundle to write, and DIR.zip")
    bundle.add_argument("--url", default="", help="where models/model.pt can be fetched, for large_files.yml")
    bundle.set_defaults(run=run_bundle)


def run_list(options: argparse.Namespace) -> int:
    """Print the catalogue."""
    from boltzformer_monai.models.catalogue import CATALOGUE, catalogue_text

    if options.json:
        content = [entry.as_dict() for entry in CATALOGUE.values()]
        sys.stdout.write(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(catalogue_text())
    return 0


def run_fetch(options: argparse.Namespace) -> int:
    """Fetch, convert what is to be segmented with, and print the place."""
    from boltzformer_monai.models.catalogue import CATALOGUE
    from boltzformer_monai.models.fetch import fetch

    entry = CATALOGUE.get(options.name)
    becomes_model = entry is not None and entry.use == "segment"
    if options.output is not None and not becomes_model:
        msg = f"--output is for weights that become a model folder; {options.name} stays in the hub's cache"
        raise ConfigError(msg)
    output = options.output or Path(options.name)
    if becomes_model:
        from boltzformer_monai.models.place import require_replaceable

        require_replaceable(output)
        require_writable(output.absolute().parent, make=False)
    found = fetch(options.name, accept_licence=options.accept_licence, file=options.file, revision=options.revision)
    if becomes_model:
        from boltzformer_monai.models.convert import convert

        convert(found.path, output, entry=entry)
    sys.stdout.write(f"{output if becomes_model else found.path}\n")
    return 0


def run_convert(options: argparse.Namespace) -> int:
    """Convert, and print the place."""
    use_plugins(options.plugins)
    from boltzformer_monai.models.convert import convert

    convert(options.file, options.output, source=options.source)
    sys.stdout.write(f"{options.output}\n")
    return 0


def run_card(options: argparse.Namespace) -> int:
    """Write the card, and print the place."""
    from boltzformer_monai.models.card import add_metrics, write_bundle_metrics
    from boltzformer_monai.models.place import CARD, locate

    place = locate(options.model)
    if not place.is_folder:
        msg = f"{options.model} is a checkpoint; make a model folder of it first: boltzformer weights convert"
        raise ConfigError(msg)
    metrics = add_metrics(place.path, options.metrics)
    sys.stdout.write(f"{place.path / CARD}\n")
    if options.bundle is not None:
        sys.stdout.write(f"{write_bundle_metrics(metrics, options.bundle)}\n")
    return 0


def run_bundle(options: argparse.Namespace) -> int:
    """Write the bundle, and print folder and zip file."""
    from boltzformer_monai.models.zoo import LARGEST_FILE, write_bundle

    if options.url and not options.url.startswith("https://"):
        raise ConfigError(f"--url must begin with https://, got {options.url!r}")
    archive = write_bundle(options.model, options.output, url=options.url)
    size = (options.output / "models" / "model.pt").stat().st_size
    if size > LARGEST_FILE and not options.url:
        _log.warning(
            "models/model.pt has %d MB; the model zoo takes up to %d MB, and larger files by --url",
            size // 10**6,
            LARGEST_FILE // 10**6,
        )
    sys.stdout.write(f"{options.output}\n{archive}\n")
    return 0
