"""WorkQueues of work that takes long: each has few threads of its own and a short queue, so that all else goes on beside it.

The web server's own threads are 40 for everything. Two hundred segmentations that wait for their turn in them would
leave none for a question that is answered at once.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.exceptions import HTTPException

from boltzformer_monai.errors import CancelledError
from boltzformer_monai.label.disconnect import client_disconnected

__all__ = ["WorkQueue", "WorkQueues"]

_RETRY_S = 10
_LOOK_S = 1.0

_R = TypeVar("_R")


class WorkQueue:
    """Work of one kind.

    Args:
        what: the kind, for a message: "segmentations".
        at_once: calls that are under way at the same time.
        waiting: calls that may wait for their turn; what comes then is refused.
    """

    def __init__(self, what: str, *, at_once: int, waiting: int) -> None:
        self.what = what
        self.waiting = waiting
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix=what)
        self._jobs: list[Future[Any]] = []
        self._lock = threading.Lock()  # several web servers of one process may share a queue

    async def run(self, function: Callable[..., _R], *arguments: Any) -> _R:
        """Call a function in one of the queue's threads, in turn.

        Raises:
            HTTPException: 429, too many wait already.
            CancelledError: the client went away while it waited.
        """
        gone = client_disconnected()
        with self._lock:
            self._jobs = [job for job in self._jobs if not (job.running() or job.done())]
            if len(self._jobs) >= self.waiting:
                msg = f"{len(self._jobs)} {self.what} wait already; try again in a while"
                raise HTTPException(429, msg, headers={"Retry-After": str(_RETRY_S)})
            job = self._threads.submit(contextvars.copy_context().run, function, *arguments)
            self._jobs.append(job)
        answer = asyncio.wrap_future(job)
        while not answer.done():
            await asyncio.wait({answer}, timeout=_LOOK_S)
            if gone() and job.cancel():
                msg = "not begun: the client went away while others were served"
                raise CancelledError(msg)
        return answer.result()


class WorkQueues:
    """The work queues of a server.

    Args:
        queue: requests of a kind that may wait.
    """

    def __init__(self, queue: int) -> None:
        # One is computed at a time; the results of others are written meanwhile.
        self.segment = WorkQueue("segmentations", at_once=4, waiting=queue)
        # One at a time: each may take as much memory as a scan may.
        self.uploads = WorkQueue("uploads", at_once=1, waiting=queue)
        self.scans = WorkQueue("scans", at_once=2, waiting=queue)
        self.light = WorkQueue("requests", at_once=16, waiting=16 * queue)
        # A viewer asks for many slices together.
        self.archive = WorkQueue("requests to the DICOMweb server", at_once=16, waiting=16 * queue)
