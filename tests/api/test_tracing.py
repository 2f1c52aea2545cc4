from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import trace

from trifocal.api import tracing
from trifocal.messages import End


class Span:
    def __init__(self, name: str, attributes: dict[str, Any]) -> None:
        self.name, self.attributes, self.ended = name, dict(attributes), False

    def set_attribute(self, name: str, value: Any) -> None:
        self.attributes[name] = value

    def end(self) -> None:
        self.ended = True


class Tracer:
    def __init__(self) -> None:
        self.spans: list[Span] = []

    def start_span(self, name: str, attributes: dict[str, Any]) -> Span:
        self.spans.append(Span(name, attributes))
        return self.spans[-1]


def test_an_answer_is_a_span_with_its_counts_and_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = Tracer()
    monkeypatch.setattr(trace, "get_tracer", lambda name: tracer)
    end = End("stop", 10, 4, 3, positions=(4,), timings={"tower": 0.5})
    with tracing.span("answer", answers=2) as current:
        tracing.describe(current, end)
        assert not current.ended
    (span,) = tracer.spans
    assert span.ended
    assert span.attributes["answers"] == 2
    assert span.attributes["trifocal.image_tokens"] == 4
    assert span.attributes["trifocal.seconds.tower"] == 0.5


def test_nothing_is_described_where_nothing_is_traced() -> None:
    tracing.describe(None, End("stop", 1, 0, 1))
