"""What a death of the engine's process costs: `kill -9` in mid-stream, beside what loading alone takes.

    python benchmarks/kills.py [--rounds 20] [--checkpoint thimble] [--engine auto]

Each round first starts another process of the same engine and times it until it is ready, then kills the one that has
three streams under way. How long until each stream had its error, and until the next process was ready; the difference
to the load of the same round is what the death itself cost. The answer behind it must be the one from before.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from apart import prompt

from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote import Remote, load_remote
from trifocal.errors import EngineLost
from trifocal.messages import Sampling

STREAMS, PATIENCE = 3, 120.0


class Stream(threading.Thread):
    """A stream that is read until it ends; ``error_at`` is when it was told that its process is gone."""

    def __init__(self, engine: Remote, number: int) -> None:
        super().__init__()
        self._engine, self._number = engine, number
        self.begun, self.error_at = threading.Event(), 0.0

    def run(self) -> None:
        try:
            for _ in self._engine.stream(prompt(self._engine, self._number, 64), Sampling(ignore_end=True)):
                self.begun.set()
        except EngineLost:
            self.error_at = time.perf_counter()


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--checkpoint", default="thimble")
    parser.add_argument("--engine", default="auto")
    given = parser.parse_args()
    recipe = language_recipe(find_checkpoint(given.checkpoint), engine=given.engine)
    engine = load_remote(recipe)
    golden = answer(engine)
    rounds = []
    for number in range(given.rounds):
        rounds.append((loaded(recipe), *killed(engine, STREAMS * number)))
        assert answer(engine) == golden
    load, error, next_one, ready = zip(*rounds, strict=True)
    print(f"{given.engine} of {given.checkpoint}, {given.rounds} kills, {STREAMS} streams each")
    print(f"load {os.getloadavg()[0]:.1f}")
    print("| seconds | least | median | most |\n|---|---|---|---|")
    more = [back - alone for back, alone in zip(ready, load, strict=True)]
    for name, values in (
        ("until the last stream had its error", error),
        ("load alone", load),
        ("until the next process was started", next_one),
        ("until ready again", ready),
        ("the same less the load of its round", more),
    ):
        print(f"| {name} | {min(values):.3f} | {statistics.median(values):.3f} | {max(values):.3f} |")
    print(f"zombies: {zombies()}")
    engine.close()


def loaded(recipe: Recipe) -> float:
    """Seconds until a process of its own is ready."""
    began = time.perf_counter()
    other = load_remote(recipe)
    seconds = time.perf_counter() - began
    other.close()
    return seconds


def killed(engine: Remote, number: int) -> tuple[float, float, float]:
    """Seconds until all streams had their error, until the next process was started, and until it was ready."""
    streams = [Stream(engine, number + at) for at in range(STREAMS)]
    for stream in streams:
        stream.start()
    assert all(stream.begun.wait(PATIENCE) for stream in streams)
    (pid,) = engine.pids
    at = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    while engine.pids in ([], [pid]):
        time.sleep(0.002)
    started = time.perf_counter()
    for stream in streams:
        stream.join(PATIENCE)
        assert stream.error_at, "a stream hung, or ended without being told"
    while engine.state().phase != "ready":
        time.sleep(0.002)
    return max(stream.error_at for stream in streams) - at, started - at, time.perf_counter() - at


def answer(engine: Remote) -> list[int]:
    """What it says about a picture of which nothing is kept."""
    asked = prompt(engine, 10**6, 64)
    return [token.id for token in engine.stream(asked, Sampling(max_tokens=16, temperature=0))]


def zombies() -> int:
    """Children of this process that nobody waited for."""
    stats = (file.read_text().rpartition(")")[2].split() for file in Path("/proc").glob("[0-9]*/stat"))
    return sum(state == "Z" and int(parent) == os.getpid() for state, parent, *_ in stats)


if __name__ == "__main__":
    main()
