"""The errors that users of this package can meet, each with one clear line: what, where, what to do.

Command-line entry points turn a :class:`BoltzFormerError` into ``error: …`` and exit code 2; every other exception is
a bug of ours and keeps its traceback.
"""

from __future__ import annotations

REASONS = (
    "missing", "damaged", "truncated", "unsupported format", "codec", "not an image", "several series",
    "several patients", "several frames of reference", "mixed modalities", "localizer", "orientation", "sizes",
    "pixel spacing", "no geometry", "same position", "uneven spacing", "off the line", "gantry tilt", "colour",
    "mosaic", "lookup table", "no rescale", "not finite", "dimensions", "singular affine", "no orientation",
    "conflicting orientation", "units", "grid", "labels", "modality", "write",
)  # fmt: skip
"""Why a scan or label is refused, in words that name no file and no patient; what ``VolumeError.reason`` can be."""


class BoltzFormerError(Exception):
    """Base of all errors that a user's input can cause.

    Attributes:
        reason: the kind of mistake in a word or two, without paths, names or UIDs: it may go into shared reports.
    """

    reason = "settings"


class VolumeError(BoltzFormerError):
    """A scan or label cannot be read, or its geometry cannot be trusted.

    Args:
        message: one line: what, where, what to do.
        reason: one of :data:`REASONS`.
    """

    def __init__(self, message: str, *, reason: str = "damaged") -> None:
        super().__init__(message)
        self.reason = reason


class DatasetError(BoltzFormerError):
    """A slice dataset, label map or data list is missing, incomplete or contradicts itself."""

    reason = "labels"


class StorageError(DatasetError):
    """The output cannot be written: a full disk, a missing permission. No scan is to blame."""

    reason = "write"


class ConfigError(BoltzFormerError):
    """A setting, preset or override key is unknown or out of range."""


class CheckpointError(BoltzFormerError):
    """A checkpoint is missing, unreadable or belongs to another network."""


class PromptError(BoltzFormerError):
    """A text prompt is empty or cannot be tokenised."""


class CancelledError(BoltzFormerError):
    """The work was stopped from outside before it was done; no input is to blame."""

    reason = "cancelled"


def user_error(error: BaseException | None) -> BoltzFormerError | None:
    """The user error in a chain of causes (MONAI wraps what its expressions and transforms raise), or ``None``."""
    while error is not None and not isinstance(error, BoltzFormerError):
        error = error.__cause__ or error.__context__
    return error
