"""What a deployment of many machines would do: a simulation whose figures were measured (benchmarks/RESULTS.md).

    python benchmarks/scaling.py                      the table of docs/scaling.md, and its two pictures
    python benchmarks/scaling.py --here 0.2 0.15 14     replicas that share two cores, as in benchmarks/deployed.py

Users come in a closed loop: each shows a new picture, asks about it some times, and thinks in between. Fronts, towers
and language replicas are served in turn; a replica begins one prompt a step and makes one token of each answer a step.
"""

from __future__ import annotations

import argparse
import heapq
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

Curve = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Figures:
    """Seconds, positions and bytes. The defaults are one H100's with LLaVA-1.5-13B in 4 bits; see docs/scaling.md."""

    step: Curve = ((1, 0.0036), (2, 0.0038), (4, 0.0041), (8, 0.0051), (16, 0.0071), (32, 0.011), (64, 0.0183))
    prefill: Curve = ((1, 0.004), (20, 0.0069), (150, 0.0097), (300, 0.0181), (611, 0.0253), (1200, 0.0515))
    see: Curve = ((1, 0.0027), (8, 0.0104))  # pictures in one pass
    front: float = 0.0192  # of a core for a request: a JPEG decoded, resized, and HTTP
    token: float = 0.0004  # of a core for a token that goes through a front
    ping: float = 0.0005  # of a core for one question how a replica is
    route: float = 2.0e-6  # of a core for a request and a replica that it may go to
    first: int = 668  # positions of a first turn, with its picture
    later: int = 190  # positions that a later turn adds: the last answer and a question
    answer: int = 128  # tokens
    turns: int = 3
    think: float = 4.0  # seconds between turns
    rows: int = 576 * 5120 * 2  # bytes of a picture's rows
    png: int = 1_100_000  # bytes of its pixels without loss
    rowed: int = 64  # answers at once in a replica
    cores: int = 0  # that all replicas and fronts share; 0: each its own


@dataclass(slots=True)
class Served:
    """One thing after another: a front's core, a tower (as many pictures at once as wait, up to eight)."""

    free: float = 0.0
    busy: float = 0.0

    def take(self, now: float, seconds: float) -> float:
        """When work that comes now is done."""
        self.free = max(now, self.free) + seconds
        self.busy += seconds
        return self.free


@dataclass(slots=True)
class Replica:
    """A language replica: prompts that wait, and the steps at which its answers end."""

    waiting: deque[tuple[int, User]] = field(default_factory=deque)
    ends: list[tuple[int, int, User]] = field(default_factory=list)
    steps: int = 0
    positions: int = 0
    running: bool = False
    busy: float = 0.0


@dataclass(slots=True)
class User:
    """Who asks: at which turn, since when, and where his conversation is."""

    front: int
    home: int = -1
    turn: int = 0
    asked: float = 0.0


@dataclass(slots=True)
class Result:
    """What came of the measured seconds."""

    tokens: float = 0.0
    pictures: float = 0.0
    firsts: list[float] = field(default_factory=list)
    moved: int = 0
    requests: int = 0
    fronts: float = 0.0
    towers: float = 0.0
    languages: float = 0.0
    wire: float = 0.0


def value(curve: Curve, x: float) -> float:
    """A curve's value: on a line between what was measured, and on the last line beyond."""
    at = min(max(bisect_left(curve, (x,)), 1), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[at - 1], curve[at]
    return max(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 0.0) if x >= curve[0][0] else curve[0][1]


class Simulation:
    """So many GPUs and users for so many seconds, the first third of which is not counted."""

    def __init__(self, figures: Figures, languages: int, towers: int, fronts: int, users: int, seed: int = 1) -> None:
        self.figures, self.random, self.number = figures, random.Random(seed), count()
        self.languages = [Replica() for _ in range(languages)]
        self.towers, self.fronts = [Served() for _ in range(towers)], [Served() for _ in range(fronts)]
        self.shared = [Served() for _ in range(figures.cores)]
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.now, self.from_, self.result = 0.0, 0.0, Result()
        for _ in range(users):
            user = User(*map(self.random.randrange, (fronts, languages, figures.turns)))  # in mid-conversation
            self.at(self.random.uniform(0, figures.think + 1), self.asking(user))

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.number), what))

    def run(self, seconds: float) -> Result:
        """What is done a second."""
        self.from_, pinged = seconds / 3, self.figures.ping * len(self.languages)
        while self.events and self.events[0][0] < seconds:
            self.now, _, what = heapq.heappop(self.events)
            what()
        told, span = self.result, seconds - self.from_
        told.tokens, told.pictures, told.wire = told.tokens / span, told.pictures / span, told.wire / span
        spared = max(0.05, 1 - pinged)
        told.fronts = spared * sum(each.busy for each in self.fronts) / seconds / len(self.fronts) + pinged
        told.towers = sum(each.busy for each in self.towers) / seconds / len(self.towers)
        told.languages = sum(each.busy for each in self.languages) / seconds / len(self.languages)
        return told

    def asking(self, user: User) -> Callable[[], None]:
        """A user asks: the front reads and sends on; a new picture is seen first."""

        def ask() -> None:
            figures, front = self.figures, self.fronts[user.front]
            user.asked = self.now
            route = figures.route * len(self.languages)
            own = figures.front * (1.0 if user.turn == 0 else 0.3) + route + figures.answer * figures.token
            spared = max(0.05, 1 - figures.ping * len(self.languages))  # of its core, by what the front does beside
            done = self.take(front, own / spared)
            if user.turn == 0:
                tower = min(self.towers, key=lambda each: each.free)
                waiting = max(0.0, tower.free - self.now) / figures.see[0][1]
                together = min(8.0, 1.0 + waiting)
                done = max(done, self.take(tower, value(figures.see, together) / together))
                self.count(pictures=1, wire=figures.png + figures.rows)
            self.at(done, lambda: self.place(user))

        return ask

    def take(self, served: Served, seconds: float) -> float:
        """Work of something, on a core of its own or on the next one that is free."""
        if not self.shared:
            return served.take(self.now, seconds)
        core = min(self.shared, key=lambda each: each.free)
        served.busy += seconds
        return core.take(self.now, seconds)

    def place(self, user: User) -> None:
        """A prompt goes where its beginning is, or where much less waits."""
        figures, new = self.figures, user.turn == 0
        if new:
            user.home = self.random.randrange(len(self.languages))
        home = self.languages[user.home]
        others = self.random.sample(range(len(self.languages)), min(8, len(self.languages)))
        best = min(others, key=lambda each: self.weight(self.languages[each]))
        whole = figures.first + user.turn * figures.later
        missing = whole if new else figures.later
        if (
            self.weight(home) - self.weight(self.languages[best]) > min(4096, whole)
            if new
            else (self.weight(home) + missing > self.weight(self.languages[best]) + whole)
        ):
            user.home, missing = best, whole
            self.count(moved=0 if new else 1)
        replica = self.languages[user.home]
        replica.waiting.append((missing, user))
        replica.positions += missing
        self.count(requests=1, wire=figures.rows if missing == whole else 8 * missing)
        if not replica.running:
            replica.running = True
            self.step(replica)

    def weight(self, replica: Replica) -> int:
        return replica.positions + 64 * len(replica.ends)

    def step(self, replica: Replica) -> None:
        """One step: a prompt that waits, and a token of each answer."""
        figures = self.figures
        while replica.ends and replica.ends[0][0] <= replica.steps:
            *_, user = heapq.heappop(replica.ends)
            user.turn = (user.turn + 1) % figures.turns
            self.at(self.now + self.random.expovariate(1 / figures.think), self.asking(user))
        seconds = value(figures.step, len(replica.ends)) if replica.ends else 0.0
        begun = None
        if replica.waiting and len(replica.ends) < figures.rowed:
            missing, begun = replica.waiting.popleft()
            replica.positions -= missing
            seconds += value(figures.prefill, missing)
        if not seconds:
            replica.running = False
            return
        made = len(replica.ends) + (begun is not None)
        replica.steps += 1
        served = Served(busy=replica.busy)
        done = self.take(served, seconds) if self.shared else self.now + seconds
        replica.busy += seconds
        if begun is not None:
            heapq.heappush(replica.ends, (replica.steps + figures.answer - 1, next(self.number), begun))
            self.count(firsts=done - begun.asked)
        self.count(tokens=made, wire=120 * made)
        self.at(done, lambda: self.step(replica))

    def count(self, firsts: float | None = None, **more: float) -> None:
        """Counts what comes after the beginning."""
        if self.now < self.from_:
            return
        if firsts is not None:
            self.result.firsts.append(firsts)
        for name, each in more.items():
            setattr(self.result, name, getattr(self.result, name) + each)


def chart(title: str, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> str:
    """Lines over a doubly logarithmic grid, as SVG."""
    import math

    points = [point for _, each in lines for point in each]
    x0, x1 = (f(math.log10(x) for x, _ in points) for f in (min, max))
    y0, y1 = math.floor(min(math.log10(y) for _, y in points)), math.ceil(max(math.log10(y) for _, y in points))

    def put(x: float, y: float) -> tuple[float, float]:
        return 70 + 560 * (math.log10(x) - x0) / (x1 - x0), 350 - 300 * (math.log10(y) - y0) / (y1 - y0)

    parts = [f'<text x="70" y="25" font-size="14">{title}</text>']
    for power in range(y0, y1 + 1):
        y = put(1, 10**power)[1]
        parts.append(f'<path stroke="#ddd" d="M70 {y:.0f}H630"/><text x="10" y="{y + 4:.0f}">{10.0**power:g}</text>')
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{put(x, 1)[0] - 8:.0f}" y="370">{x:g}</text>')
    for (name, each), colour in zip(lines, ("#36c", "#c63", "#393", "#939"), strict=False):
        drawn = " ".join("{:.0f},{:.0f}".format(*put(x, y)) for x, y in each)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{drawn}"/>')
        x, y = put(*each[-1])
        parts.append(f'<text x="{x + 6:.0f}" y="{y + 4:.0f}" fill="{colour}">{name}</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 390" font-family="sans-serif" font-size="12">'
    return f'{head}<rect width="780" height="390" fill="#fff"/>{"".join(parts)}</svg>\n'


def grown(figures: Figures, sizes: Sequence[int], users: int, seconds: float) -> list[tuple[int, Result]]:
    """Deployments of these many GPUs: one in forty sees, one front for each; ``users`` for each language replica."""
    found = []
    for size in sizes:
        towers = max(1, size // 40)
        simulation = Simulation(figures, max(1, size - towers), towers, max(1, size), users * max(1, size - towers))
        found.append((size, simulation.run(seconds)))
        print(row(*found[-1]), flush=True)
    return found


def row(size: int, told: Result) -> str:
    """A row of the table."""
    firsts = sorted(told.firsts)
    p50, p99 = (firsts[int(len(firsts) * share)] for share in (0.5, 0.99))
    busy = " / ".join(f"{100 * each:.0f}" for each in (told.languages, told.towers, told.fronts))
    moved = 100 * told.moved / max(1, told.requests)
    return (
        f"| {size} | {told.pictures:,.1f} | {told.tokens:,.0f} | {1000 * p50:.0f} / {1000 * p99:.0f} | {busy} "
        f"| {moved:.1f} | {told.wire / 1e6:,.0f} |"
    )


def main() -> None:
    """Simulates, prints a table, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--users", type=int, default=48, help="for each language replica")
    parser.add_argument("--svg", type=Path, default=Path("docs"))
    parser.add_argument("--here", type=float, nargs=3, metavar=("ELSE", "PROMPT", "TOKENS"))
    options = parser.parse_args()
    if options.here:
        here(*options.here)
        return
    found = grown(Figures(), (1, 4, 16, 64, 256, 1000), options.users, options.seconds)
    tokens = curve(found, lambda told: told.tokens)
    ideal = [(size, tokens[0][1] * size) for size, _ in tokens]
    pictures = curve(found, lambda told: told.pictures)
    lines = [("as one GPU does", ideal), ("tokens a second", tokens), ("pictures", pictures)]
    (options.svg / "scaling.svg").write_text(chart("tokens and pictures a second by GPUs", lines))
    fronts, languages = curve(found, lambda told: 100 * told.fronts), curve(found, lambda told: 100 * told.languages)
    busy = chart("how busy, in percent of a core or a GPU", [("fronts", fronts), ("language", languages)])
    (options.svg / "scaling-busy.svg").write_text(busy)
    print("the last one without questions how a replica is, and a route at no cost:")
    grown(replace(Figures(), ping=0.0, route=0.0), (1000,), options.users, options.seconds)


def curve(found: Sequence[tuple[int, Result]], of: Callable[[Result], float]) -> list[tuple[float, float]]:
    """Something of each result, by its size."""
    return [(float(size), of(told)) for size, told in found]


def here(other: float, prompt: float, tokens: float) -> None:
    """Two cores that all share: seconds of CPU for a request beside the language model, and for its prompt."""
    steps: Curve = ((1, 0.0049), (8, 0.0137))  # thimble's, "One at a time and together"
    thimble = Figures(step=steps, prefill=((1, prompt), (359, prompt)), see=((1, 1e-9), (8, 1e-9)), front=other)
    thimble = replace(thimble, token=0.0, ping=0.0, route=0.0, first=359, turns=1, think=1e-3, cores=2)
    for size in (1, 2, 4):
        print(row(size, Simulation(replace(thimble, answer=round(tokens)), size, 1, 1, 8).run(60.0)))


if __name__ == "__main__":
    main()
