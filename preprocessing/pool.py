"""The same work in this process, in several, or on a Dask cluster; results come as they are ready.

Never more jobs are under way than there are workers, and a worker has one job at a time, so memory is bounded by one
volume per worker.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from boltzformer_monai.errors import BoltzFormerError, ConfigError

__all__ = ["run_jobs"]

_Job = TypeVar("_Job")
_Result = TypeVar("_Result")


def run_jobs(
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    crashed: Callable[[_Job], _Result],
) -> Iterator[_Result]:
    """Yield ``function(job)`` for every job, in the order in which they finish.

    Args:
        function: importable by name in another process, as its arguments and results are picklable.
        jobs: what to do.
        workers: processes; 1 does everything in this one.
        scheduler: address of a Dask scheduler, whose workers do it instead.
        crashed: the result for a job that killed its process (a fault in a codec, no memory left).

    Raises:
        ConfigError: ``distributed`` is not installed, or the cluster cannot be reached or used.
    """
    if scheduler is not None:
        yield from _on_cluster(function, jobs, scheduler, crashed)
    elif workers > 1 and len(jobs) > 1:
        yield from _in_processes(function, jobs, workers, crashed)
    else:
        yield from map(function, jobs)


def _in_processes(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], workers: int, crashed: Callable[[_Job], _Result]
) -> Iterator[_Result]:
    suspects: list[_Job] = []
    left = list(reversed(jobs))
    while left:
        with _pool(min(workers, len(left))) as pool:
            pending: dict[Future[_Result], _Job] = {}
            try:
                while left or pending:
                    while left and len(pending) < workers:
                        job = left.pop()
                        pending[pool.submit(function, job)] = job
                    for done in wait(pending, return_when=FIRST_COMPLETED).done:
                        result = done.result()
                        del pending[done]
                        yield result
            except BrokenProcessPool:  # one of the pending jobs killed its process, and the pool with it
                suspects += pending.values()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    for job in suspects:  # each in a process of its own: now it is known whose fault it was
        with _pool(1) as pool:
            try:
                yield pool.submit(function, job).result()
            except BrokenProcessPool:
                yield crashed(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork copies locks that threads of image libraries may hold.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up_worker)


def _set_up_worker() -> None:
    """Leave Ctrl-C to the parent, and never outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)  # the parent was killed; nobody waits for a result


def _on_cluster(
    function: Callable[[_Job], _Result], jobs: Sequence[_Job], address: str, crashed: Callable[[_Job], _Result]
) -> Iterator[_Result]:
    try:
        from distributed import Client, KilledWorker, as_completed
    except ImportError:
        msg = "--scheduler needs Dask: pip install 'boltzformer-monai[cluster]', here and on the workers"
        raise ConfigError(msg) from None
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        msg = f"{address}: no Dask scheduler answers ({error or type(error).__name__}); is the address right?"
        raise ConfigError(msg) from None
    with client:
        count = _usable_workers(client, address)
        waiting = iter(jobs)
        under_way: dict[Any, _Job] = {}
        running = as_completed(loop=client.loop)

        def submit(job: _Job) -> None:
            # pure=False: the same job twice is done twice; Dask's cache must not answer for files that have changed.
            future = client.submit(function, job, pure=False)
            under_way[future] = job
            running.add(future)

        for job in islice(waiting, count):
            submit(job)
        for future in running:
            job = under_way.pop(future)
            try:
                yield future.result()
            except KilledWorker:
                yield crashed(job)
            for following in islice(waiting, 1):
                submit(following)


def _usable_workers(client: Any, address: str) -> int:
    """Return the number of workers; raise unless there are some, and every one can import this package."""
    workers = client.nthreads()
    if not workers:
        msg = f"{address}: the scheduler has no workers; start some with 'dask worker {address} --nthreads 1'"
        raise ConfigError(msg)
    answers = client.run(_importable, on_error="return")
    bad = [worker for worker, answer in answers.items() if answer is not True]
    if bad:
        msg = f"{bad[0]}: this worker cannot import the package; start it in the repository's folder, same environment"
        raise ConfigError(msg)
    return len(workers)


def _importable() -> bool:
    import preprocessing.slicing

    return issubclass(preprocessing.slicing.StorageError, BoltzFormerError)
