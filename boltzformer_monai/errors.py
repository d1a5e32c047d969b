"""The errors that users of this package can meet, each with one clear line: what, where, what to do.

Command-line entry points turn a :class:`BoltzFormerError` into ``error: …`` and exit code 2; every other exception is
a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class BoltzFormerError(Exception):
    """Base of all errors that a user's input can cause."""


class VolumeError(BoltzFormerError):
    """A scan or label cannot be read, or its geometry cannot be trusted."""


class DatasetError(BoltzFormerError):
    """A slice dataset, label map or data list is missing, incomplete or contradicts itself."""


class ConfigError(BoltzFormerError):
    """A setting, preset or override key is unknown or out of range."""


class CheckpointError(BoltzFormerError):
    """A checkpoint is missing, unreadable or belongs to another network."""


class PromptError(BoltzFormerError):
    """A text prompt is empty or cannot be tokenised."""


def user_error(error: BaseException | None) -> BoltzFormerError | None:
    """The user error in a chain of causes (MONAI wraps what its expressions and transforms raise), or ``None``."""
    while error is not None and not isinstance(error, BoltzFormerError):
        error = error.__cause__ or error.__context__
    return error
