"""What a machine reaches with a checkpoint, part by part, and what its memory and its products allow beside it."""

from __future__ import annotations

import io
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from trifocal.images import Image
from trifocal.images import load as open_image
from trifocal.messages import Message, Sampling

if TYPE_CHECKING:
    from trifocal.model.llava import Llava
    from trifocal.prompt import Prompt

__all__ = ["Bench", "Device", "Figure", "measure"]

SIZE = (1024, 768)
ROUNDS, CROWDS = 5, 2  # of each figure and of those of many at once; the median is told
WORDS = (
    "Please describe in detail what can be seen in this picture, which objects are near to each other and what they "
    "might be used for by the people who live there"
)
OTHERS = "Now something else altogether: what is missing here, and why may that be"
_READ_BYTES = 256 << 20
_PRODUCT = {"cuda": (8192, 8192), "cpu": (512, 2048)}  # rows and width that keep a device busy, and not for long

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: its value, its unit, and what the device allows where that is known.

    A limit of milliseconds is the least that can be, one of tokens a second the most.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def reached(self) -> float | None:
        """How much of the limit was reached, from 0 up to 1."""
        if not self.limit or not self.value:
            return None
        return self.limit / self.value if self.unit == "ms" else self.value / self.limit


@dataclass(slots=True)
class Bench:
    """All figures of one engine, in the order in which they were taken."""

    engine: str
    device: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, name: str, value: float, unit: str, limit: float | None = None) -> None:
        """Notes a figure."""
        self.figures.append(Figure(name, value, unit, limit))

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Device:
    """What a device does at the most, as it was measured: bytes a second read, operations a second in products."""

    read: float
    products: float

    @classmethod
    def measured(cls, device: str, dtype: str) -> Device:
        """The best of several: a sum over what no cache holds, and a product in the language model's own type."""
        import torch

        values = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=device)
        rows, width = _PRODUCT["cuda" if device.startswith("cuda") else "cpu"]
        kind = getattr(torch, dtype)
        x, weight = (torch.ones(size, width, dtype=kind, device=device) for size in (rows, width))
        return cls(
            values.nbytes / _least(values.sum),
            2 * rows * width * width / _least(lambda: (x @ weight)[-1, -1]),
        )

    def prompt(self, weights: int, parameters: int, positions: int) -> float:
        """The least milliseconds for a prompt: its weights are read once and multiplied by every position."""
        return 1e3 * max(weights / self.read, 2 * parameters * positions / self.products)

    def rate(self, weights: int, parameters: int, streams: int) -> float:
        """The most tokens a second of so many answers; the reading of their keys and values is left out."""
        return streams / max(weights / self.read, 2 * parameters * streams / self.products)


def _least(act: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls that give one number each, which is waited for."""
    best = math.inf
    for _ in range(ROUNDS):
        started = time.perf_counter()
        float(act())
        best = min(best, time.perf_counter() - started)
    return best


def measure(
    llavas: Sequence[Llava],
    *,
    parameters: int | None = None,
    streams: Sequence[int] = (1, 8),
    tokens: int = 64,
    tell: Tell = lambda _: None,
) -> list[Bench]:
    """Takes every figure of every engine, by turns, once a first answer has warmed all up.

    So all engines meet the same machine: each round of a figure has each of them once, and begins with another one.
    ``parameters`` are the language model's, for the limits; ``tell`` hears what is being measured. Every picture and
    every prompt is new, so that no cache has met it and each answer goes through lengths that the process has not seen;
    what is asked of a cache is asked as a second turn or of a picture that was seen.
    """
    pictures = _Pictures()
    takings = [_Taking(llava, parameters, pictures, tokens) for llava in llavas]
    tell("pictures and first tokens")
    for turn in range(ROUNDS):
        for taking in _beginning(takings, turn):
            taking.first_tokens(turn)
    for count in streams:
        tell(f"{count} at once")
        for turn in range(ROUNDS if count == 1 else CROWDS):
            for taking in _beginning(takings, turn):
                taking.streams(count)
    return [taking.bench() for taking in takings]


def _beginning(takings: Sequence[_Taking], turn: int) -> list[_Taking]:
    at = turn % len(takings)
    return [*takings[at:], *takings[:at]]


class _Pictures:
    """Pictures of noise, as JPEG; each is another one."""

    def __init__(self) -> None:
        self._made = 0

    def new(self) -> bytes:
        """The bytes of a picture that was not there before."""
        import numpy as np
        from PIL import Image as Pictures

        self._made += 1
        coarse = np.random.default_rng(self._made).integers(0, 256, (SIZE[1] // 16, SIZE[0] // 16, 3), dtype=np.uint8)
        held = io.BytesIO()
        Pictures.fromarray(coarse).resize(SIZE, Pictures.Resampling.BICUBIC).save(held, "JPEG", quality=90)
        return held.getvalue()


def _prompt(llava: Llava, picture: bytes | Image, words: str, *before: Message) -> Prompt:
    """What the engine is given for a question about a picture; with ``before``, for one more turn without."""
    turns = [*before, llava.question(words, [] if before else [open_image(picture)])]
    return llava.composer.seen(llava.composer.outline(llava.template.render(turns)))


def _answer(llava: Llava, prompt: Prompt, tokens: int) -> tuple[float, float, list[int]]:
    """Seconds until the first token, seconds of the others, and the ids."""
    started, first, ids = time.perf_counter(), 0.0, []
    with closing(llava.engine.stream(prompt, Sampling(max_tokens=tokens, ignore_end=True))) as stream:
        for token in stream:
            first = first or time.perf_counter() - started
            ids.append(token.id)
    return first, time.perf_counter() - started - first, ids


class _Taking:
    """One engine's figures as they are taken."""

    def __init__(self, llava: Llava, parameters: int | None, pictures: _Pictures, tokens: int) -> None:
        self._llava, self._pictures, self._tokens = llava, pictures, tokens
        self._part = next(part for part in llava.parts if part.name == "language")
        self._device = Device.measured(self._part.device, self._part.dtype)
        self._parameters = parameters
        self._taken: dict[str, list[float]] = {}  # ms, or tokens a second
        self._limits: dict[str, float] = {}
        _answer(llava, _prompt(llava, pictures.new(), WORDS), 8)

    def first_tokens(self, turn: int) -> None:
        """One round of a picture's way and of the first tokens."""
        llava, encoded = self._llava, self._pictures.new()
        started = time.perf_counter()
        picture = open_image(encoded)
        began = self._timed("picture decoded", started)
        prompt = _prompt(llava, picture, f"{WORDS}, number {turn}")
        self._timed("picture seen, text written", began)
        _, _, ids = _answer(llava, prompt, 1)
        self._timed("first token, new picture", started, len(prompt))
        started = time.perf_counter()
        _answer(llava, _prompt(llava, picture, f"{OTHERS}, number {turn}"), 1)
        self._timed("first token, same picture, other words", started)
        said = Message("assistant", llava.engine.tokenizer.decode(ids) or "Yes.")
        asked = llava.question(f"{WORDS}, number {turn}", [picture])
        began = time.perf_counter()
        _answer(llava, _prompt(llava, picture, "And what stands behind it?", asked, said), 1)
        self._timed("first token, second turn", began)

    def streams(self, count: int) -> None:
        """One round of so many answers at once, each to a picture of its own that was seen before."""
        prompts = [_prompt(self._llava, self._pictures.new(), f"{WORDS}, of {count}") for _ in range(count)]
        if count == 1:
            _, rest, _ = _answer(self._llava, prompts[0], self._tokens)
            self._note("tokens, one stream", (self._tokens - 1) / rest)
            self._allow("tokens, one stream", 1)
            return
        threads = [threading.Thread(target=_answer, args=(self._llava, prompt, self._tokens)) for prompt in prompts]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._note(f"tokens, {count} at once", count * self._tokens / (time.perf_counter() - started))
        self._allow(f"tokens, {count} at once", count)

    def bench(self) -> Bench:
        """The medians, and the memory of each part."""
        found = Bench(self._llava.engine_name, self._part.device)
        for name, values in self._taken.items():
            unit = "a second" if name.startswith("tokens") else "ms"
            found.add(name, statistics.median(values), unit, self._limits.get(name))
        for one in self._llava.parts:
            found.add(f"memory of the {one.name}", one.nbytes / 2**20, "MiB")
        found.add("memory read", self._device.read / 1e9, "GB a second")
        found.add(f"products in {self._part.dtype}", self._device.products / 1e9, "Gflop a second")
        return found

    def _timed(self, name: str, started: float, positions: int = 0) -> float:
        now = time.perf_counter()
        self._note(name, (now - started) * 1e3)
        if positions and self._parameters:
            self._limits[name] = self._device.prompt(self._part.nbytes, self._parameters, positions)
        return time.perf_counter()

    def _allow(self, name: str, streams: int) -> None:
        """One stream is held to the reading of the weights, whatever they are; more of them to the products, too."""
        if streams == 1 or self._parameters:
            self._limits[name] = self._device.rate(self._part.nbytes, self._parameters or 0, streams)

    def _note(self, name: str, value: float) -> None:
        self._taken.setdefault(name, []).append(value)
