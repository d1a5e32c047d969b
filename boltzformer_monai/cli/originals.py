"""Options that name the original scans of a slice dataset, for commands that read them again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boltzformer_monai.cli.command_line import whole_number
from boltzformer_monai.data.slices.format import scan_of
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.modality import stated_modality

if TYPE_CHECKING:
    from boltzformer_monai.slicing.originals import Reading

# NumPy and the readers are imported late: Ctrl-C must end quietly meanwhile.

__all__ = ["add_original_options", "find_scans"]


def add_original_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = parser.add_argument_group("original scans, as they were given to boltzformer slice (default: its slices)")
    add = group.add_argument
    add("--recipe", metavar="NAME", help="which dataset, or folder for scans of your own")
    add("--scans", type=Path, metavar="DIR", help="its folder")
    add("--channel", type=whole_number(0), metavar="N", help="which channel of scans with several, from 0")
    add("--option", action="append", default=[], metavar="NAME=VALUE", help="setting of the recipe")
    add("--modality", metavar="CT|MR", help="where neither header nor recipe states it")
    add("--site", help="body site, where the recipe needs it")
    add("--key-file", type=Path, metavar="FILE", help="its text is the secret key of the pseudonyms")
    add("--key", default="", help="the key itself; other users of the machine can see it")


def find_scans(options: argparse.Namespace, reader: Any) -> dict[str, Reading] | None:
    """Scan → what reads the original; None without ``--recipe``.

    Args:
        options: of :func:`add_original_options`.
        reader: of the slice dataset.

    Raises:
        BoltzFormerError: an option is missing or wrong, or the scans are not those of the dataset.
    """
    if (options.recipe is None) != (options.scans is None):
        raise ConfigError("--recipe and --scans go together: which dataset, and its folder")
    if options.recipe is None:
        return None
    from boltzformer_monai.cli.slice_options import read_key
    from boltzformer_monai.slicing.originals import find_originals
    from boltzformer_monai.slicing.recipes import load_recipe

    extra = dict(text.partition("=")[::2] for text in options.option)
    modality = None if options.modality is None else stated_modality(options.modality)
    cases = load_recipe(options.recipe)(
        options.scans.absolute(), modality=modality, site=options.site, channel=options.channel, **extra
    )
    key = options.key if options.key_file is None else read_key(options)
    return find_originals(cases, {scan_of(name, entry) for name, entry in reader.volumes.items()}, key=key)
