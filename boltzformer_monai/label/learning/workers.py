"""Background processes (training, scoring, batches): run at low priority; terminate with the server."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from monailabel.utils.async_tasks import utils

from boltzformer_monai.errors import user_error, why
from boltzformer_monai.storage import disk_refusal

_log = logging.getLogger(__name__)

_NICENESS = 15  # interactive requests come first
FAILED = 2


@contextlib.contextmanager
def in_background(background: bool) -> Iterator[None]:
    """Run at low priority and log user errors in one line; unless ``background``, nothing changes.

    Raises:
        SystemExit: a user error, after it was logged.
    """
    if not background:
        yield
        return
    if hasattr(os, "nice"):
        try:
            os.nice(_NICENESS)
        except OSError as error:  # forbidden by a sandbox
            _log.warning("background work has the priority of requests: %s", why(error))
    try:
        yield
    except Exception as error:
        if (known := user_error(error) or disk_refusal(error)) is None:
            raise
        _log.error("error: %s", known)
        raise SystemExit(FAILED) from None


def stop_background_tasks() -> None:
    """Cancel waiting tasks and terminate running ones; a training resumes when it is started again."""
    for method, executor in utils.background_executors.items():
        executor.shutdown(wait=False, cancel_futures=True)
        while utils.processes(method):
            utils.stop_background_task(method)
