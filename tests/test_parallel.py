"""Jobs on a Dask cluster whose workers come and go, and what each may take. For crashes see the commands' tests."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest

from boltzformer_monai import limits, parallel
from boltzformer_monai.errors import ConfigError
from boltzformer_monai.limits import MEMORY_VARIABLE, memory_budget
from boltzformer_monai.parallel import ask_workers, collected_messages, processor_count, processor_pool, run_jobs
from tests.needs import need_module


@pytest.fixture
def cluster() -> Iterator[Any]:
    distributed = need_module("distributed")
    settings = {
        "processes": False,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "silence_logs": logging.CRITICAL,
    }
    with distributed.LocalCluster(n_workers=1, **settings) as made:
        yield made


def _where(job: int) -> str:
    from distributed import get_worker

    return str(get_worker().address)


def _run(cluster: Any, jobs: int) -> Iterator[str]:
    return run_jobs(_where, range(jobs), scheduler=cluster.scheduler_address, crashed=str)


def test_a_worker_that_joins_later_gets_jobs_too(cluster: Any) -> None:
    results = _run(cluster, 8)
    first = [next(results)]
    cluster.scale(2)
    with cluster.get_client() as client:
        client.wait_for_workers(2, timeout=30)
    assert len(set(rest := list(results))) == 2
    assert len(first + rest) == 8


def test_a_worker_that_joins_later_is_checked_too(cluster: Any) -> None:
    results = _run(cluster, 4)
    next(results)
    cluster.new_spec["options"]["nthreads"] = 2
    cluster.scale(2)
    with cluster.get_client() as client:
        client.wait_for_workers(2, timeout=30)
    with pytest.raises(ConfigError, match="this worker has 2 threads; start it with --nthreads 1"):
        list(results)


def test_no_job_is_lost_where_all_workers_are(cluster: Any) -> None:
    results = _run(cluster, 4)
    next(results)
    cluster.scale(0)
    cluster.sync(cluster._correct_state)
    cluster.scale(1)
    assert len(list(results)) == 3


def test_every_worker_answers(cluster: Any) -> None:
    answers = ask_workers(processor_count, cluster.scheduler_address)
    assert list(answers.values()) == [processor_count()]


def _budget(job: int) -> int:
    return memory_budget()


def test_a_worker_of_a_cluster_takes_its_share_of_the_memory_and_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MEMORY_VARIABLE, raising=False)
    monkeypatch.setattr(limits, "machine_memory", lambda: 8_000_000_000)
    here = processor_pool()
    assert parallel._within_memory(_budget, 0, "", {"elsewhere": 5}) == 4_000_000_000
    assert parallel._within_memory(_budget, 0, "", {here: 4, "elsewhere": 5}) == 1_000_000_000
    assert parallel._within_memory(_budget, 0, "3", {here: 4}) == 3_000_000_000
    assert MEMORY_VARIABLE not in os.environ
    monkeypatch.setenv(MEMORY_VARIABLE, "2")
    assert parallel._within_memory(_budget, 0, "", {here: 4}) == 2_000_000_000
    assert parallel._within_memory(_budget, 0, "3", {here: 4}) == 3_000_000_000
    assert os.environ[MEMORY_VARIABLE] == "2"


def test_messages_are_collected_and_not_written(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("boltzformer_monai.anything")
    with collected_messages(logging.INFO) as records:
        log.debug("too little")
        log.info("told %d", 1)
        log.warning("warned")
    log.warning("after")
    assert [record.getMessage() for record in records] == ["told 1", "warned"]
    assert caplog.messages == ["after"]
