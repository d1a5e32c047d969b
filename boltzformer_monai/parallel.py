"""The same work in this process, in several, or on a Dask cluster; results come as they are ready.

Never more jobs are under way than there are workers, and a worker has one job at a time, so memory is bounded by one
volume per worker.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, TypeVar

from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import MEMORY_VARIABLE, memory_budget, set_memory_gb

__all__ = ["ask_workers", "collected_messages", "end_with_parent", "processor_count", "processor_pool", "run_jobs"]

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
    left = list(reversed(jobs))
    suspects: list[_Job] = []  # were under way when a process died
    while left or suspects:
        alone = bool(suspects)
        with _pool(min(workers, len(left) + len(suspects))) as pool:
            pending: dict[Future[_Result], _Job] = {}
            try:
                while left or suspects or pending:
                    jobs_left, most = (suspects, 1) if suspects else (left, workers)
                    while jobs_left and len(pending) < most:
                        # Off the list only when it is submitted: a worker may have died meanwhile.
                        pending[pool.submit(function, jobs_left[-1])] = jobs_left[-1]
                        jobs_left.pop()
                    for done in wait(pending, return_when=FIRST_COMPLETED).done:
                        result = done.result()
                        del pending[done]
                        alone = False
                        yield result
            except BrokenProcessPool:  # one of the pending jobs killed its process, and the pool with it
                if not alone:
                    suspects += pending.values()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if alone:  # in a new process: now it is known whose fault it was
            yield from map(crashed, pending.values())


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork copies locks that threads of image libraries may hold.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_set_up_worker, initargs=(workers,))


def _set_up_worker(workers: int) -> None:
    """Leave Ctrl-C to the parent, never outlive it, and share the memory with the others."""
    if MEMORY_VARIABLE not in os.environ:
        set_memory_gb(memory_budget() / workers / 1e9)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """End this process, which :mod:`multiprocessing` started, at once when its parent ends, however it ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_follow, args=(parent.sentinel,), daemon=True).start()


def _follow(parent: int) -> None:
    multiprocessing.connection.wait([parent])
    os._exit(1)  # the parent was killed; nobody waits for a result


def ask_workers(question: Callable[[], _Result], scheduler: str) -> dict[str, _Result]:
    """Address of each worker of a cluster → its answer.

    Args:
        question: importable by name on the workers; its answers are picklable.
        scheduler: address of the Dask scheduler.

    Raises:
        ConfigError: as :func:`run_jobs`.
    """
    with _cluster(scheduler) as client:
        _check_workers(scheduler, client.nthreads())
        return _answers(client, question)


def _on_cluster(
    function: Callable[[_Job], _Result],
    jobs: Sequence[_Job],
    address: str,
    crashed: Callable[[_Job], _Result],
    problem: Callable[[], str],
) -> Iterator[_Result]:
    with _cluster(address) as client:
        from distributed import KilledWorker, as_completed

        checked: dict[str, str] = {}  # worker → what it shares processors and memory with
        waiting = iter(jobs)
        under_way: dict[Any, _Job] = {}
        running = as_completed(loop=client.loop)

        def submit_more() -> None:
            """Give every worker a job: those that joined meanwhile, too."""
            workers = client.nthreads()
            if new := {worker: threads for worker, threads in workers.items() if worker not in checked}:
                _check_workers(address, new)
                for worker, said in _answers(client, problem, list(new)).items():
                    if said:
                        raise ConfigError(f"{worker}: this worker {said}")
                checked.update(_answers(client, processor_pool, list(new)))
            sharing = Counter(pool for worker, pool in checked.items() if worker in workers)
            # One at least: where all workers are lost, it waits for another.
            for job in islice(waiting, max(0, max(1, len(workers)) - len(under_way))):
                # pure=False: the same job twice is done twice; Dask's cache must not answer for files that have
                # changed.
                future = client.submit(
                    _within_memory, function, job, os.environ.get(MEMORY_VARIABLE, ""), sharing, pure=False
                )
                under_way[future] = job
                running.add(future)

        _check_workers(address, client.nthreads())
        submit_more()
        for future in running:
            job = under_way.pop(future)
            try:
                yield future.result()
            except KilledWorker:
                yield crashed(job)
            submit_more()


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        from distributed import Client
    except ImportError:
        msg = "--scheduler needs Dask: pip install 'boltzformer-monai[cluster]', here and on the workers"
        raise ConfigError(msg) from None
    try:
        client = Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        msg = f"{address}: no Dask scheduler answers ({error or type(error).__name__}); is the address right?"
        raise ConfigError(msg) from None
    with client:
        try:
            yield client
        except (CancelledError, asyncio.CancelledError, OSError) as error:
            msg = f"{address}: the cluster was lost ({type(error).__name__}); the same command goes on where it was"
            raise ConfigError(msg) from None


def _check_workers(address: str, workers: Mapping[str, int]) -> None:
    """Raise unless there are workers, and every one does one job at a time."""
    if not workers:
        msg = f"{address}: the scheduler has no workers; start some with 'dask worker {address} --nthreads 1'"
        raise ConfigError(msg)
    for worker, threads in workers.items():
        if threads != 1:  # two volumes at a time would share the memory, and their warnings
            msg = f"{worker}: this worker has {threads} threads; start it with --nthreads 1, and --nworkers for more"
            raise ConfigError(msg)


def _answers(client: Any, question: Callable[[], _Result], workers: list[str] | None = None) -> dict[str, _Result]:
    answers: dict[str, _Result] = {}
    for worker, answer in client.run(question, workers=workers, on_error="return").items():
        if isinstance(answer, OSError):  # it was lost meanwhile
            continue
        if isinstance(answer, Exception):
            msg = f"{worker}: cannot import the package; start it in the repository's folder, in the same environment"
            raise ConfigError(msg)
        answers[worker] = answer
    return answers


def _within_memory(function: Callable[[_Job], _Result], job: _Job, memory: str, sharing: Mapping[str, int]) -> _Result:
    """Do a job on a worker of a cluster, within the memory that ``--memory-gb`` says there, or its share of it.

    The worker stays: what is set in its environment is set back.
    """
    own = os.environ.get(MEMORY_VARIABLE)
    share = sharing.get(processor_pool(), 1)
    if memory or (own is None and share > 1):
        set_memory_gb(memory or memory_budget() / share / 1e9)
    try:
        return function(job)
    finally:
        os.environ.pop(MEMORY_VARIABLE, None)
        if own is not None:
            os.environ[MEMORY_VARIABLE] = own


def processor_pool() -> str:
    """Name what this process shares processors and memory with: machine, processors and control group."""
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    group = ""
    with suppress(OSError):
        group = Path("/proc/self/cgroup").read_text(encoding="ascii", errors="replace")
    return f"{platform.node()} {processors} {group}"


def processor_count() -> int:
    """Processors of the :func:`processor_pool`, within the limits of a control group."""
    from dask.system import cpu_count

    return int(cpu_count())


@contextmanager
def collected_messages(level: int = logging.WARNING) -> Iterator[list[logging.LogRecord]]:
    """Collect the package's messages, which in another process nobody would see in order, and hush pydicom.

    pydicom's own warnings quote header values, names among them.
    """
    log, handler = logging.getLogger("boltzformer_monai"), BufferingHandler(sys.maxsize)
    handler.setLevel(level)
    before, propagate = log.level, log.propagate
    log.propagate = False
    log.setLevel(level)
    log.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")
            yield handler.buffer
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
        log.propagate = propagate
