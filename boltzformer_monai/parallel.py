"""The same work in this process, in several, or on a Dask cluster; results come as they are ready.

Never more jobs are under way than there are workers, and a worker has one job at a time, so memory is bounded by one
volume per worker.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import MEMORY_VARIABLE, memory_budget, set_memory_gb

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
    problem: Callable[[], str] = str,
) -> Iterator[_Result]:
    """Yield ``function(job)`` for every job, in the order in which they finish.

    Args:
        function: importable by name in another process, as its arguments and results are picklable.
        jobs: what to do.
        workers: processes; 1 does everything in this one.
        scheduler: address of a Dask scheduler, whose workers do it instead.
        crashed: the result for a job that killed its process (a fault in a codec, no memory left).
        problem: called on every worker of a cluster; says what keeps it from doing the jobs, "" for nothing.

    Raises:
        ConfigError: ``distributed`` is not installed, or the cluster cannot be reached or used, or is lost.
    """
    if scheduler is not None:
        yield from _on_cluster(function, jobs, scheduler, crashed, problem)
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
                        # Off the list only when it is submitted: a worker may have died meanwhile.
                        pending[pool.submit(function, left[-1])] = left[-1]
                        left.pop()
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
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up_worker, initargs=(workers,))


def _set_up_worker(workers: int) -> None:
    """Leave Ctrl-C to the parent, never outlive it, and share the memory with the others."""
    if MEMORY_VARIABLE not in os.environ:
        set_memory_gb(memory_budget() / workers / 1e9)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)  # the parent was killed; nobody waits for a result


def _on_cluster(
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    address: str,
    crashed: Callable[[_Job], _Result],
    problem: Callable[[], str],
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
        count = _usable_workers(client, address, problem)
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
            except (CancelledError, asyncio.CancelledError, OSError) as error:
                msg = f"{address}: the cluster was lost ({type(error).__name__}); the same command goes on where it was"
                raise ConfigError(msg) from None
            for following in islice(waiting, 1):
                submit(following)


def _usable_workers(client: Any, address: str, problem: Callable[[], str]) -> int:
    """Return the number of workers; raise unless there are some, and every one can do the jobs, one at a time."""
    workers = client.nthreads()
    if not workers:
        msg = f"{address}: the scheduler has no workers; start some with 'dask worker {address} --nthreads 1'"
        raise ConfigError(msg)
    for worker, threads in workers.items():
        if threads != 1:  # two volumes at a time would share the memory, and their warnings
            msg = f"{worker}: this worker has {threads} threads; start it with --nthreads 1, and --nworkers for more"
            raise ConfigError(msg)
    for worker, answer in client.run(problem, on_error="return").items():
        if isinstance(answer, Exception):
            msg = f"{worker}: cannot import the package; start it in the repository's folder, in the same environment"
            raise ConfigError(msg)
        if answer:
            raise ConfigError(f"{worker}: this worker {answer}")
    return len(workers)
