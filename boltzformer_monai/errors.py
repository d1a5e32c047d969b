"""The errors that users of this package can meet, each with one clear line: what, where, what to do.

Command-line entry points turn a :class:`BoltzFormerError` into ``error: …`` and exit code 2; every other exception is
a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping

REASONS: Mapping[str, str] = {
    "missing": "there is nothing at the path, or no permission to read it",
    "damaged": "the file contradicts its own format; its voxels may be anything",
    "truncated": "the file holds fewer bytes than its header claims; the rest of the scan is lost",
    "unsupported format": "no reader is known for it, or what it holds is no scan or annotation",
    "codec": "no installed decoder reads its compression",
    "not an image": "a DICOM object without pixels of a scan: a report, a plan, a directory",
    "several series": "more than one scan, and nothing says which is meant",
    "several patients": "slices of different patients in one series",
    "several frames of reference": "slices measured in different coordinates have no place relative to each other",
    "mixed modalities": "slices of different modalities in one series",
    "localizer": "overview images among the slices",
    "orientation": "slices that are turned against each other are no volume",
    "sizes": "slices of different numbers of pixels",
    "pixel spacing": "pixels of different sizes, or of sizes that no scanner has",
    "no geometry": "the place in the patient is not stated, so left may be right",
    "same position": "two images at one place: which one counts is unknown",
    "uneven spacing": "gaps between the slices differ; a volume of even slices would measure wrong",
    "off the line": "a slice lies beside the line of the others",
    "gantry tilt": "slices stacked at an angle fit no right-angled grid without resampling",
    "colour": "colour values are no intensities of a scan",
    "mosaic": "many slices packed into one image",
    "lookup table": "voxels mapped by a table whose values are not read",
    "display": "some slices are shown inverted and some not, or the header says both",
    "no rescale": "CT without a rescale to Hounsfield units",
    "not finite": "NaN or infinite voxels",
    "dimensions": "not three dimensions",
    "singular affine": "the voxel axes do not span space",
    "no orientation": "the file does not say where the patient's left is",
    "conflicting orientation": "the file says it twice, and differently",
    "units": "voxel sizes in another unit than millimetres",
    "grid": "an annotation on another grid than its scan's, or drawn on another scan",
    "labels": "label values or names that contradict the annotation",
    "header": "the header lacks what an object that refers to the scan must repeat",
    "layout": "nothing says whether the file is a scan or an annotation, and of what",
    "modality": "the scan says that it is neither CT nor MR, or not what was asked for; no option overrules it",
    "too large": "reading it would take more memory than it may",
    "write": "the output cannot be written; no scan is to blame",
}
"""Why a scan or label is refused: ``VolumeError.reason``, in words that name no file and no patient, → what is wrong
with it. ``docs/reference/refusals.md`` shows this table."""


_LONGEST = 160  # letters of a foreign message
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# A data loader's worker process hands over the text of its error only.
_IN_WORKER = re.compile(r"boltzformer_monai\.errors\.\w+: (.+)")
# PyTorch's words where an allocation fails, and the size in them and in NumPy's.
_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|not enough memory")
_ALLOCATED = re.compile(r"allocate ([\d.]+ \w+)")
# MONAI's own words for a wrong run id, and for a section that an override replaced by something else.
_OF_MONAI = ("run ID ", "the referring item ")


class BoltzFormerError(Exception):
    """Base of all errors that a user's input can cause.

    Attributes:
        reason: the kind of mistake in a word or two, without paths, names or UIDs: it may go into shared reports.
    """

    reason = "settings"


class VolumeError(BoltzFormerError):
    """A scan or label cannot be read, or its geometry cannot be trusted.

    Args:
        message: one line: what, where, what to do. Control characters, of a damaged header or an odd name, become "?".
        reason: one of :data:`REASONS`.
    """

    def __init__(self, message: str, *, reason: str = "damaged") -> None:
        super().__init__(_CONTROL.sub("?", message))
        self.reason = reason


class DatasetError(BoltzFormerError):
    """A slice dataset, label map or data list is missing, incomplete or contradicts itself."""

    reason = "labels"


class StorageError(DatasetError):
    """The output cannot be written: a full disk, a missing permission. No scan is to blame."""

    reason = "write"


class ConfigError(BoltzFormerError):
    """A setting, preset or override key is unknown or out of range."""


class DivergenceError(ConfigError):
    """A training led to nothing with its settings: the loss became infinite, or no validation had a value."""


class CheckpointError(BoltzFormerError):
    """A checkpoint is missing, unreadable or belongs to another network."""


class PromptError(BoltzFormerError):
    """A text prompt is empty or cannot be tokenised."""


class RankLostError(BoltzFormerError):
    """Another process of a training ended."""


class CancelledError(BoltzFormerError):
    """The work was stopped from outside before it was done; no input is to blame."""

    reason = "cancelled"


def why(error: BaseException) -> str:
    """Return what an error says, on one line; of one of the operating system the reason, without its number or path.

    What only Python says of itself, such as the names of its types, is put into words.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = " ".join(str(error).split())
    if isinstance(error, BoltzFormerError):
        return said
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, KeyError) and error.args:
        return f"it lacks {str(error.args[0])[:_LONGEST]}"
    if isinstance(error, (TypeError, AttributeError, LookupError)):
        return "it has not the form that is expected"
    if isinstance(error, ArithmeticError) or said.startswith(("could not convert", "invalid literal")):
        return "a number in it is none"
    return said[:_LONGEST] or "it contradicts itself"


def cannot_open(path: object, error: BaseException) -> VolumeError | None:
    """Return the error about a file that the operating system does not give; None where something else is wrong.

    A missing permission is no damage: nobody should export a scan again for it.
    """
    # What libraries raise as OSError about the content of a file has no number.
    if not isinstance(error, OSError) or error.errno is None:
        return None
    return not_opened(path, error)


def not_opened(path: object, error: OSError, advice: str = "check that it may be read") -> VolumeError:
    """Return the error about a file or folder whose opening failed with ``error``; ``advice``: what to do."""
    return VolumeError(f"{path}: cannot be opened ({why(error)}); {advice}", reason="missing")


def user_error(error: BaseException | None) -> BoltzFormerError | None:
    """The user error in a chain of causes (MONAI wraps what its expressions and transforms raise), or ``None``."""
    while error is not None and not isinstance(error, BoltzFormerError):
        error = error.__cause__ or error.__context__
    return error


def user_line(error: BaseException) -> str | None:
    """The line for an error that the user can mend, or ``None`` for a bug, which keeps its traceback."""
    if not isinstance(error, OSError) and (known := user_error(error)) is not None:
        return str(known)
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    root = chain[-1]
    if in_worker := _IN_WORKER.search(f"{error}\n{root}"):
        return in_worker[1]
    # What libraries raise as OSError about the content of a file has no number.
    if isinstance(root, OSError) and root.errno is not None:
        return f"{root.filename}: {why(root)}" if root.filename else why(root)
    if (line := memory_line(error)) is not None:
        return line
    of_monai = (each for each in chain if isinstance(each, ValueError) and str(each).startswith(_OF_MONAI))
    return next((str(each).splitlines()[0] for each in of_monai), None)


def memory_line(error: BaseException) -> str | None:
    """The line for an error whose cause is that there was not enough memory; None where it is not."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, MemoryError) or (isinstance(each, RuntimeError) and _NO_MEMORY.search(str(each))):
            size = _ALLOCATED.search(str(each))
            tried = f" (tried to allocate {size[1]})" if size else ""
            return f"not enough memory{tried}; choose smaller sizes, a smaller batch or fewer workers"
        each = each.__cause__
    return None


def did_you_mean(
    name: str,
    known: Iterable[str],
    *,
    show: Callable[[str], str] = repr,
    otherwise: str | None = None,
    cutoff: float = 0.5,
) -> str:
    """Return ``did you mean 'liver'?``, or all known names where none is near.

    Args:
        name: what is not known.
        known: the names that are.
        show: writes a known name as the user types it.
        otherwise: returned instead of the list of all known names.
        cutoff: similarity from 0 to 1 that a suggestion needs.
    """
    choices = list(known)
    if near := difflib.get_close_matches(name, choices, n=1, cutoff=cutoff):
        return f"did you mean {show(near[0])}?"
    return otherwise if otherwise is not None else f"known: {', '.join(choices) or 'none'}"


def reject_unknown(names: Iterable[str], known: Iterable[str], *, what: str) -> None:
    """Raise a :class:`ConfigError` for the first of ``names`` that is not known, suggesting the nearest known one."""
    choices = sorted(known)
    for name in names:
        if name not in choices:
            raise ConfigError(f"unknown {what} {name!r}; {did_you_mean(str(name), choices)}")
