"""Figures of the service for Prometheus: images, seconds, the queue, the model."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from dcmpl.scoring.results import Score
from dcmpl.serve.queue import ScoringQueue

__all__ = ["Figures"]

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Figures:
    """Figures of one service, in a registry of their own."""

    def __init__(self, queue: ScoringQueue) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        self.images = Counter("dcmpl_images", "images by status", ["status"], registry=registry)
        self.requests = Counter(
            "dcmpl_requests", "requests by path and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "dcmpl_request_seconds",
            "seconds from a request to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        requests = Gauge("dcmpl_queue_requests", "requests in the queue", registry=registry)
        images = Gauge("dcmpl_queue_images", "images that wait", registry=registry)
        requests.set_function(lambda: queue.waiting[0])
        images.set_function(lambda: queue.waiting[1])
        about = {name: str(value) for name, value in queue.scorer.about.items()}
        Info("dcmpl_model", "the model that scores", registry=registry).info(about)

    def count(self, score: Score) -> None:
        """Count one image."""
        self.images.labels(score.status).inc()

    def note(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def answer(self) -> Response:
        """All figures, in Prometheus' text form."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
