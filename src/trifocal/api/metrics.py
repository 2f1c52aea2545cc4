"""What can be counted from outside: requests, queue, pictures, tokens and seconds of every step."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from trifocal.api.admission import Admission
from trifocal.messages import End

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server, in a registry of its own. Every label is one of a few known words."""

    def __init__(self, *admissions: Admission) -> None:
        self.admissions = [*admissions]  # of each model's answers
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("trifocal_requests", "Requests by route and status.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "trifocal_step_seconds",
            "Seconds per step: decode (of picture files), preprocess, tower, projector, prefill, generate.",
            ["step"],
            buckets=_SECONDS,
            registry=own,
        )
        self.token_seconds = Histogram("trifocal_token_seconds", "Seconds a token.", buckets=_SECONDS, registry=own)
        self.tokens = Counter("trifocal_tokens", "Positions by what they are.", ["kind"], registry=own)
        self.images = Counter("trifocal_images", "Pictures by cache hit.", ["cache"], registry=own)
        running = Gauge("trifocal_running", "Answers being made.", registry=own)
        waiting = Gauge("trifocal_waiting", "Requests in the queue.", registry=own)
        slots = Gauge("trifocal_slots", "Answers that can be made at once.", registry=own)
        running.set_function(lambda: sum(each.running for each in self.admissions))
        waiting.set_function(lambda: sum(each.waiting for each in self.admissions))
        slots.set_function(lambda: sum(each.slots for each in self.admissions))

    def answered(self, end: End) -> None:
        """Counts an answer that came to its end."""
        for step, seconds in end.timings.items():
            self.seconds.labels(step).observe(seconds)
        if end.completion_tokens > 1:
            self.token_seconds.observe(end.timings.get("generate", 0.0) / (end.completion_tokens - 1))
        self.tokens.labels("text").inc(end.prompt_tokens - end.image_tokens)
        self.tokens.labels("image").inc(end.image_tokens)
        self.tokens.labels("completion").inc(end.completion_tokens)
        self.tokens.labels("guessed").inc(end.guessed)
        self.images.labels("hit").inc(end.cached_images)
        self.images.labels("miss").inc(end.images - end.cached_images)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)
