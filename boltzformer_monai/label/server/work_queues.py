"""Bounded thread pools for slow requests, which do not hold up fast ones.

The web server shares 40 threads among all routes: 200 waiting segmentations would block every other request.
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

_RETRY_AFTER_S = 10
_POLL_S = 1.0

_R = TypeVar("_R")


class WorkQueue:
    """A thread pool with a bounded queue.

    Args:
        what: plural of the requests, for messages.
        threads: requests that run at the same time.
        waiting: requests that may wait; further ones get status 429.
    """

    def __init__(self, what: str, *, threads: int, waiting: int) -> None:
        self.what = what
        self.waiting = waiting
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=what)
        self._jobs: list[Future[Any]] = []
        self._lock = threading.Lock()  # several web servers of one process may share a queue

    async def run(self, function: Callable[..., _R], *arguments: Any) -> _R:
        """Call a function in one of the threads.

        Raises:
            HTTPException: 429, the queue is full.
            CancelledError: the client disconnected while its request waited.
        """
        disconnected = client_disconnected()
        with self._lock:
            waiting, _ = self._count()
            if waiting >= self.waiting:
                msg = f"{waiting} {self.what} wait already; try again later"
                raise HTTPException(429, msg, headers={"Retry-After": str(_RETRY_AFTER_S)})
            job = self._pool.submit(contextvars.copy_context().run, function, *arguments)
            self._jobs.append(job)
        result = asyncio.wrap_future(job)
        while not result.done():
            await asyncio.wait({result}, timeout=_POLL_S)
            if disconnected() and job.cancel():
                raise CancelledError("not started: the client disconnected while its request waited")
        return result.result()

    def count(self) -> tuple[int, int]:
        """How many requests wait, and how many run."""
        with self._lock:
            return self._count()

    def _count(self) -> tuple[int, int]:
        self._jobs = [job for job in self._jobs if not job.done()]
        running = sum(job.running() for job in self._jobs)
        return len(self._jobs) - running, running


class WorkQueues:
    """The queues of a server; ``length`` requests may wait in each queue of slow ones."""

    def __init__(self, length: int) -> None:
        # One is computed at a time; the results of others are written meanwhile.
        self.segment = WorkQueue("segmentations", threads=4, waiting=length)
        # One at a time: each may take as much memory as a scan may.
        self.uploads = WorkQueue("uploads", threads=1, waiting=length)
        self.scans = WorkQueue("scans", threads=2, waiting=length)
        self.fast = WorkQueue("requests", threads=16, waiting=16 * length)
        # A viewer requests many slices at once.
        self.dicomweb = WorkQueue("requests to the DICOMweb server", threads=16, waiting=16 * length)
