"""The processes that MONAI Label starts for trainings, scorings and batches: they step back and end with the server."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from monailabel.utils.async_tasks import utils

from boltzformer_monai.errors import user_error
from boltzformer_monai.storage import disk_refusal

__all__ = ["in_background", "stop_background_tasks"]

_log = logging.getLogger(__name__)

_NICER = 15  # requests of people, who wait, get nearly all of a busy machine
FAILED = 2


@contextlib.contextmanager
def in_background(background: bool) -> Iterator[None]:
    """For the work of such a process: it lets others go first, and says its users' mistakes in one line.

    Args:
        background: whether this is one; in the server itself nothing changes.

    Raises:
        SystemExit: the work cannot be done; the line is in the log.
    """
    if not background:
        yield
        return
    if hasattr(os, "nice"):
        os.nice(_NICER)
    try:
        yield
    except Exception as error:
        if (known := user_error(error) or disk_refusal(error)) is None:
            raise
        _log.error("error: %s", known)
        raise SystemExit(FAILED) from None


def stop_background_tasks() -> None:
    """Forget what waits, stop what runs; a training that is stopped goes on when it is asked for again."""
    for method, executor in utils.background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        while utils.processes(method):
            utils.stop_background_task(method)
