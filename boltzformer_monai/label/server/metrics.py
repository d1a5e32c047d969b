"""Counts and times for Prometheus; no value or label names a patient, a scan or a user."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from boltzformer_monai import __version__
from boltzformer_monai.label.server.work_queues import WorkQueues
from boltzformer_monai.label.service import SegmentService

_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, queues: WorkQueues, service: SegmentService) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("boltzformer_requests", "Requests by route and status", labels, registry=self.registry)
        self._seconds = Histogram(
            "boltzformer_request_seconds", "Time from a request's header to the end of its response, waiting included",
            ("route",), buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.audit_failures = Counter(
            "boltzformer_audit_failures", "Lines that the audit log did not take", registry=self.registry
        )
        self.registry.register(_Now(queues, service))
        ProcessCollector(registry=self.registry)  # memory, CPU time, file descriptors; nothing but on Linux

    def note_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(method if method in _METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What is measured when it is asked for."""

    def __init__(self, queues: WorkQueues, service: SegmentService) -> None:
        self.queues = queues
        self.service = service

    def collect(self) -> Iterable[Metric]:
        waiting = GaugeMetricFamily("boltzformer_queue_waiting", "Requests that wait for a thread", labels=["queue"])
        running = GaugeMetricFamily("boltzformer_queue_running", "Requests that a thread works for", labels=["queue"])
        limit = GaugeMetricFamily("boltzformer_queue_limit", "Requests that may wait", labels=["queue"])
        for name, queue in vars(self.queues).items():
            count_waiting, count_running = queue.count()
            waiting.add_metric([name], count_waiting)
            running.add_metric([name], count_running)
            limit.add_metric([name], queue.waiting)
        yield from (waiting, running, limit)
        cached = GaugeMetricFamily("boltzformer_cache_bytes", "Memory of caches", labels=["cache"])
        for name, size in self.service.cache_bytes().items():
            cached.add_metric([name], size)
        yield cached
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            yield GaugeMetricFamily(
                "boltzformer_gpu_memory_bytes", "GPU memory of tensors", value=torch.cuda.memory_allocated()
            )
        info = GaugeMetricFamily("boltzformer_info", "Always 1; what runs here", labels=["version", "model"])
        info.add_metric([__version__, self.service.loaded_sha256() or ""], 1)
        yield info
