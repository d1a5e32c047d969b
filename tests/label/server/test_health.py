"""What watches the server gets true answers at once."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from tests.needs import need_module

need_module("monailabel")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from boltzformer_monai import __version__  # noqa: E402


def _samples(client: Any) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    reply = client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(reply.text)
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value for family in families for each in family.samples
    }


def test_health_and_version(client: Any) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    said = client.get("/version").json()
    assert said["version"] == __version__
    assert said["model"] == client.get("/info/").json()["models"]["boltzformer"]["weights"]["sha256"]


def test_ready_says_what_is_missing(client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (client.get("/ready").status_code, client.get("/ready").json()) == (200, {"status": "ready"})
    service = client.app.state.boltzformer.service
    (tmp_path / "file").touch()
    settings = service.settings.model_copy(update={"workspace": tmp_path / "file"})
    monkeypatch.setattr(service, "settings", settings)
    monkeypatch.setattr(service, "_model", None)
    reply = client.get("/ready")
    assert reply.status_code == 503
    assert reply.json() == {
        "status": "not ready", "reasons": ["no model is loaded", "the workspace cannot be written"],
    }  # fmt: skip
    assert client.get("/health").status_code == 200


def test_metrics_count_requests_by_route_and_name_nobody(client: Any) -> None:
    key = ("boltzformer_requests_total", (("method", "GET"), ("route", "/datastore/image/info"), ("status", "404")))
    before = _samples(client).get(key, 0)
    for _ in range(3):
        assert client.get("/datastore/image/info?image=Mustermann_Erika").status_code == 404
    client.request("MUSTERMANN", "/Mustermann")
    found = _samples(client)
    assert found[key] == before + 3
    text = client.get("/metrics").text
    assert "mustermann" not in text.lower()
    assert "scan_0" not in text
    assert found["boltzformer_request_seconds_count", (("route", "/datastore/image/info"),)] >= 3
    assert found["boltzformer_queue_limit", (("queue", "segment"),)] == 32
    assert found["process_resident_memory_bytes", ()] > 1e7


def test_metrics_tell_what_waits(client: Any) -> None:
    held = threading.Event()
    service = client.app.state.boltzformer.service
    busy = service._worker.submit(held.wait, 60)
    asked = threading.Thread(
        target=client.post,
        args=("/boltzformer/api/segment",),
        kwargs={"json": {"image": "scan_0", "prompts": ["liver"]}},
    )
    asked.start()
    running = ("boltzformer_queue_running", (("queue", "segment"),))
    try:
        for _ in range(500):
            if _samples(client)[running] == 1:
                break
        else:
            pytest.fail("the running request is not counted")
    finally:
        held.set()
        asked.join()
        busy.result()
    assert _samples(client)[running] == 0
    assert _samples(client)["boltzformer_cache_bytes", (("cache", "scans"),)] > 0
