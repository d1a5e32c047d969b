"""Check the outputs of ``boltzformer segment`` before the work: no file of the user may be lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.inferers.result_manifest import leftovers
from boltzformer_monai.inferers.run_settings import RunSettings, written_paths
from boltzformer_monai.io.scan_list import Scan, scan_files
from boltzformer_monai.storage import require_writable

__all__ = ["Job", "check_targets", "prepare_folders"]


@dataclass(frozen=True)
class Job:
    """A scan and its outputs; ``stem`` is their path without ending."""

    scan: Scan
    stem: Path
    preview: Path | None = None
    report: Path | None = None


def check_targets(jobs: Sequence[Job], settings: RunSettings, *, image: Path, inputs: Iterable[Path]) -> None:
    """Refuse to overwrite inputs and other files among the scans, or to write a file twice.

    Args:
        jobs: all scans.
        settings: of all scans.
        image: the input file or folder.
        inputs: other input files.

    Raises:
        ConfigError: one line that names the file.
    """
    protected: dict[str, list[Path]] = {}
    for path in (*inputs, *(path for job in jobs for path in _files(job.scan))):
        protected.setdefault(path.resolve().name.casefold(), []).append(path.resolve())
    folder = image.resolve() if image.is_dir() else None
    written: dict[Path, Path] = {}
    for job in jobs:
        if settings.masks and job.stem.is_file():
            raise _refused(job.stem, "it is a file, and a folder is needed")
        paths = written_paths(job.stem, settings, job.preview)
        for path in paths:
            _refuse_input(path, protected)
            if path.is_dir():
                raise _refused(path, "it is a folder")
            if written.setdefault(path.resolve(), path) is not path:
                raise _refused(path, "two results would have this name; give another name")
        earlier = leftovers(job.stem)
        for path in earlier:
            _refuse_input(path, protected)
        ours = {path.resolve() for path in (*earlier, paths[-1])}  # leftovers() raises if the manifest is not ours
        for path in paths:
            inside = folder is not None and path.resolve().is_relative_to(folder)
            if inside and path.exists() and path.resolve() not in ours:
                raise _refused(path, f"it is there already, among the scans in {image}, and no result of this command")
    folders = {parent for place in written for parent in place.parents}
    for place, path in written.items():
        if place in folders:
            raise _refused(path, "another result needs a folder of this name; give another name")


def prepare_folders(jobs: Sequence[Job], settings: RunSettings) -> None:
    """Create the output folders, and check that they are writable.

    Raises:
        StorageError: a folder cannot be created or written.
    """
    places = [job.preview.parent for job in jobs if job.preview is not None]
    for job in jobs:
        places.append(job.stem if settings.masks and job.stem.is_dir() else job.stem.parent)
    for folder in dict.fromkeys(places):
        require_writable(folder)


def _files(scan: Scan) -> Sequence[Path]:
    if scan.files or scan.place.is_dir():
        return scan.files  # a folder may hold our results too: its files are checked one by one
    try:
        return scan_files(scan.place)
    except OSError:
        return (scan.place,)  # reading it will raise the error


def _refuse_input(path: Path, protected: Mapping[str, Sequence[Path]]) -> None:
    place = path.resolve()
    for other in protected.get(place.name.casefold(), ()):
        # On case-insensitive file systems two spellings are one file.
        if other == place or (place.exists() and other.exists() and other.samefile(place)):
            raise _refused(path, "it is an input, which would be lost; give another name")


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(f"cannot write {path}: {why}")
