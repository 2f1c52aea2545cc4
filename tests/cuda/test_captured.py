"""How a capture leaves what it found, with torch's streams and graphs in name only; captures need a card."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trifocal import cuda
from waiting import PATIENCE


class Streams:
    """The current stream of a card, and torch's contexts: that of a graph stays on its stream where it can't end."""

    def __init__(self) -> None:
        self.own = self.now = SimpleNamespace(name="own", synchronize=lambda: None)
        self.ends = True

    @contextmanager
    def stream(self, one: Any) -> Iterator[None]:
        before, self.now = self.now, one
        try:
            yield
        finally:
            self.now = before

    @contextmanager
    def graph(self, _: Any, *, stream: Any, **others: Any) -> Iterator[None]:
        before, self.now = self.now, stream
        try:
            yield
        finally:
            if not self.ends:
                raise RuntimeError("CUDA error: out of memory")
            self.now = before


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    made, capturing = Streams(), SimpleNamespace(name="capturing")
    monkeypatch.setattr(cuda, "_capturing_stream", lambda _: capturing)
    for name, value in {
        "current_device": lambda: 0,
        "current_stream": lambda: made.now,
        "default_stream": lambda: made.own,
        "stream": made.stream,
        "graph": made.graph,
        "CUDAGraph": object,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return made


def test_it_is_run_where_one_stands_and_captured_elsewhere(streams: Streams) -> None:
    seen = []

    def run() -> torch.Tensor:
        seen.append(streams.now.name)
        return torch.zeros(1)

    cuda.captured(run, None)
    assert seen == ["own", "capturing"]
    assert streams.now is streams.own


@pytest.mark.parametrize("ends", [False, True])
def test_a_capture_that_fails_leaves_the_stream_and_lets_others_capture(streams: Streams, ends: bool) -> None:
    streams.ends = ends

    def run() -> torch.Tensor:
        if streams.now is not streams.own:
            raise torch.OutOfMemoryError("no room")
        return torch.zeros(1)

    with pytest.raises(RuntimeError):
        cuda.captured(run, None)
    assert streams.now is streams.own
    streams.ends = True
    cuda.captured(lambda: torch.zeros(1), None)


def test_memory_goes_back_when_nobody_captures(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, given = threading.Event(), []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(len(captured)))
    captured: list[int] = []
    other = threading.Thread(target=lambda: (begun.wait(), cuda.give_back()), daemon=True)

    def run() -> torch.Tensor:
        begun.set()
        other.join(0.05)  # it has begun and can't end
        captured.append(len(given))
        return torch.zeros(1)

    other.start()
    cuda.captured(run, None)
    other.join(PATIENCE)
    assert captured == [0, 0]
    assert given == [2]
