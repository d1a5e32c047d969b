"""Work that takes long holds up nothing else, and only so much of it waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from starlette.exceptions import HTTPException  # noqa: E402

from boltzformer_monai.errors import CancelledError  # noqa: E402
from boltzformer_monai.label import disconnect  # noqa: E402
from boltzformer_monai.label.server.work_queues import WorkQueue  # noqa: E402

_PATIENCE_S = 60
_WAITING = 200


@pytest.fixture
def held(client: Any) -> Iterator[threading.Event]:
    """The network is busy until this is set."""
    end = threading.Event()
    busy = client.app.state.boltzformer.service._worker.submit(end.wait, _PATIENCE_S)
    yield end
    end.set()
    busy.result()


def test_waiting_segmentations_hold_up_nothing_else(client: Any, held: threading.Event) -> None:
    def segment(number: int) -> Any:
        return client.post("/boltzformer/api/segment", json={"image": f"scan_{number % 3}", "prompts": ["liver"]})

    with ThreadPoolExecutor(_WAITING) as threads:
        asked = [threads.submit(segment, number) for number in range(_WAITING)]
        end = time.monotonic() + _PATIENCE_S / 2
        try:
            while sum(each.done() for each in asked) < _WAITING - 36 and time.monotonic() < end:
                time.sleep(0.05)
            for path in ("/info/", "/boltzformer/api/config", "/datastore/?output=all"):
                before = time.monotonic()
                assert client.get(path).status_code == 200
                assert time.monotonic() < before + 2, path
        finally:
            held.set()
        replies = [each.result() for each in asked]
    refused = [reply for reply in replies if reply.status_code != 200]
    assert len(refused) == _WAITING - 36  # 32 wait and 4 have begun
    for reply in refused:
        assert (reply.status_code, reply.headers["retry-after"]) == (429, "10")
        assert reply.json()["detail"] == "32 segmentations wait already; try again later"


def test_names_do_not_wait_for_a_new_checkpoint_behind_a_segmentation(client: Any, held: threading.Event) -> None:
    service = client.app.state.boltzformer.service
    waiting = service._worker.submit(time.sleep, 0)
    service._segmentations.add(waiting)
    known = service._model
    service._model = type(known)(known.segmenter, ("another", 0, 0))
    try:
        before = time.monotonic()
        assert service.model() is service._model
        assert time.monotonic() < before + 2
    finally:
        held.set()
        waiting.result()
        service._segmentations.discard(waiting)
    assert service.model().sha256 == known.sha256


def test_a_lane_is_left_by_clients_that_go() -> None:
    lane, held, left = WorkQueue("things", threads=1, waiting=1), threading.Event(), threading.Event()
    begun: list[int] = []

    async def all_of_it() -> None:
        first = asyncio.create_task(lane.run(held.wait, _PATIENCE_S))
        await asyncio.sleep(0.1)
        token = disconnect._DISCONNECTED.set(left)
        second = asyncio.create_task(lane.run(begun.append, 2))
        disconnect._DISCONNECTED.reset(token)
        await asyncio.sleep(0.1)
        with pytest.raises(HTTPException) as full:
            await lane.run(begun.append, 3)
        assert full.value.status_code == 429
        left.set()
        with pytest.raises(CancelledError):
            await second
        third = asyncio.create_task(lane.run(begun.append, 3))
        await asyncio.sleep(0.1)
        held.set()
        assert await first
        await third

    asyncio.run(all_of_it())
    assert begun == [3]


def test_what_goes_wrong_in_a_lane_is_told() -> None:
    lane = WorkQueue("things", threads=1, waiting=1)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(lane.run(lambda: 1 // 0))
