"""Runs of several trainings in one folder: the settings that began them, and who works there."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from boltzformer_monai.cli.bundle_command import check_options
from boltzformer_monai.errors import ConfigError, why
from boltzformer_monai.limits import read_json, read_text
from boltzformer_monai.storage import write_json, writing

__all__ = ["require_same_settings", "run_settings", "working_alone"]


def run_settings(options: argparse.Namespace, keys: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the trainings of a run, as JSON values: options given, and the dataset's content and split.

    Args:
        options: of :func:`~boltzformer_monai.cli.bundle_command.add_options`.
        keys: of the command's own options; None means the default.

    Raises:
        BoltzFormerError: an option, the dataset or a configuration cannot be used.
    """
    check_options(options)
    from boltzformer_monai.data.slices.reader import SliceReader
    from boltzformer_monai.data.slices.summary import data_digest

    content = {
        "data": data_digest(SliceReader(options.data)),
        "seed": options.seed,
        "set": dict(options.settings),
        "config": [read_text(file) for file in options.config],
        "plugin": options.plugins,
        **keys,
    }
    text = json.dumps({key: value for key, value in content.items() if value not in (None, [], {})}, default=str)
    return dict(json.loads(text))


def require_same_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings where there are none; compare them where an earlier run wrote its own.

    Args:
        path: the record, in the output folder.
        settings: of :func:`run_settings`.

    Raises:
        ConfigError: the earlier run had other settings, which are named, or its record is damaged.
        StorageError: the record cannot be written.
    """
    if path.exists():
        try:
            earlier = read_json(path)
            differing = [
                name for name in dict.fromkeys([*earlier, *settings]) if earlier.get(name) != settings.get(name)
            ]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read ({why(error)}); choose another --output") from None
        if differing:
            what = ", ".join("the dataset" if name == "data" else f"--{name}" for name in differing)
            msg = f"{path.parent} was begun with other settings: {what}; repeat them, or choose another --output"
            raise ConfigError(msg)
    write_json(path, settings)


@contextmanager
def working_alone(folder: Path, *, timeout: float = 0) -> Iterator[None]:
    """Hold the lock of an output folder; a killed process loses it.

    Args:
        folder: made if it is not there.
        timeout: seconds to wait for it; -1: as long as it takes.

    Raises:
        ConfigError: another process works there.
        StorageError: the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            msg = f"{folder}: another process works here; wait for it, or choose another --output"
            raise ConfigError(msg) from None
    try:
        yield
    finally:
        lock.release()
