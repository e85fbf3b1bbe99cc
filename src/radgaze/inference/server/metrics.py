"""What the server tells Prometheus: counts and times by route, never a name, an id or an address."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector

__all__ = ["CONTENT_TYPE", "METHODS", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Metrics:
    """The measurements of one app, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "radgaze_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "radgaze_request_seconds",
            "From a request's header to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.predictions = Counter("radgaze_predictions", "Images predicted.", ("model",), registry=self.registry)
        self.batches = Histogram(
            "radgaze_batch_size",
            "Images in a pass of the network.",
            ("model",),
            buckets=BATCHES,
            registry=self.registry,
        )
        self.held = Gauge("radgaze_requests_held", "Requests read, queued or run just now.", registry=self.registry)
        self.waiting = Gauge("radgaze_queue_length", "Images that wait for the network.", registry=self.registry)
        ProcessCollector(registry=self.registry)  # process_resident_memory_bytes and its like, where /proc exists

    def watch(self, held: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Read these two whenever the metrics are asked for."""
        self.held.set_function(held)
        self.waiting.set_function(waiting)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def ran(self, model: str, count: int) -> None:
        self.batches.labels(model).observe(count)
        self.predictions.labels(model).inc(count)

    def text(self) -> bytes:
        return generate_latest(self.registry)
