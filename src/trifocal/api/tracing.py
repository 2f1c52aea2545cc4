"""OpenTelemetry spans, where its SDK is installed and set up; nothing otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trifocal.messages import End

__all__ = ["describe", "span"]


@contextmanager
def span(name: str, **attributes: str | int) -> Iterator[Any]:
    """A span around the body; None where OpenTelemetry is not installed."""
    try:
        from opentelemetry import trace
    except ModuleNotFoundError:
        yield None
        return
    # not the current span: the body is an async generator, whose context is its reader's
    current = trace.get_tracer("trifocal").start_span(name, attributes=attributes)
    try:
        yield current
    finally:
        current.end()


def describe(current: Any, end: End) -> None:
    """Writes an answer's counts and the seconds of its steps on its span."""
    if current is None:
        return
    current.set_attribute("trifocal.prompt_tokens", end.prompt_tokens)
    current.set_attribute("trifocal.image_tokens", end.image_tokens)
    current.set_attribute("trifocal.completion_tokens", end.completion_tokens)
    current.set_attribute("trifocal.images", end.images)
    current.set_attribute("trifocal.cached_images", end.cached_images)
    for step, seconds in end.timings.items():
        current.set_attribute(f"trifocal.seconds.{step}", seconds)
