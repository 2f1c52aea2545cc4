"""What a machine reaches with a checkpoint, part by part, and the limit of its memory beside it."""

from __future__ import annotations

import io
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

__all__ = ["Bench", "Figure", "measure", "read_rate"]

SIZE = (1024, 768)
ROUNDS = 5  # of each figure; the median is told
WORDS = (
    "Please describe in detail what can be seen in this picture, which objects are near to each other and what they "
    "might be used for by the people who live there"
)
OTHERS = "Now something else altogether: what is missing here, and why may that be"
_READ_BYTES = 256 << 20

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured: its value, its unit, and the limit where one is known."""

    name: str
    value: float
    unit: str
    limit: float | None = None


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


def measure(llava: Llava, *, streams: Sequence[int] = (1, 8), tokens: int = 64, tell: Tell = lambda _: None) -> Bench:
    """Takes every figure once the first answer has warmed all up; ``tell`` hears what is being measured.

    Every picture and every prompt is new, so that no cache has met it and each answer goes through lengths that the
    process has not seen; what is asked of a cache is asked as a second turn or of a picture that was seen.
    """
    part = next(part for part in llava.parts if part.name == "language")
    bench = Bench(llava.engine_name, part.device)
    pictures = _Pictures()
    _answer(llava, _prompt(llava, pictures.new(), WORDS), 8)
    tell("pictures and first tokens")
    _first_tokens(llava, bench, pictures)
    for count in streams:
        tell(f"{count} at once")
        _streams(llava, bench, pictures, count, tokens, part.nbytes)
    for one in llava.parts:
        bench.add(f"memory of the {one.name}", one.nbytes / 2**20, "MiB")
    return bench


def read_rate(device: str) -> float:
    """Bytes a second that a device reads of its memory: a sum over what no cache holds, the best of several."""
    import torch

    values = torch.ones(_READ_BYTES // 4, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(ROUNDS):
        started = time.perf_counter()
        float(values.sum())  # the value is waited for
        best = max(best, values.nbytes / (time.perf_counter() - started))
    return best


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


def _first_tokens(llava: Llava, bench: Bench, pictures: _Pictures) -> None:
    taken: dict[str, list[float]] = {}

    def timed(name: str, started: float) -> float:
        taken.setdefault(name, []).append(time.perf_counter() - started)
        return time.perf_counter()

    for turn in range(ROUNDS):
        encoded = pictures.new()
        started = time.perf_counter()
        picture = open_image(encoded)
        began = timed("picture decoded", started)
        prompt = _prompt(llava, picture, f"{WORDS}, number {turn}")
        timed("picture seen, text written", began)
        _, _, ids = _answer(llava, prompt, 1)
        timed("first token, new picture", started)
        started = time.perf_counter()
        _answer(llava, _prompt(llava, picture, f"{OTHERS}, number {turn}"), 1)
        began = timed("first token, same picture, other words", started)
        said = Message("assistant", llava.engine.tokenizer.decode(ids) or "Yes.")
        asked = llava.question(f"{WORDS}, number {turn}", [picture])
        _answer(llava, _prompt(llava, picture, "And what stands behind it?", asked, said), 1)
        timed("first token, second turn", began)
    for name, seconds in taken.items():
        bench.add(name, statistics.median(seconds) * 1e3, "ms")


def _streams(llava: Llava, bench: Bench, pictures: _Pictures, count: int, tokens: int, weights: int) -> None:
    """So many answers at once, each to a picture of its own that was seen before; one alone is held to the limit."""
    prompts = [_prompt(llava, pictures.new(), f"{WORDS}, of {count}") for _ in range(count)]
    if count == 1:
        rates = []
        for _ in range(ROUNDS):
            _, rest, _ = _answer(llava, prompts[0], tokens)
            rates.append((tokens - 1) / rest)
            prompts = [_prompt(llava, pictures.new(), WORDS)]
        limit = read_rate(bench.device) / weights
        bench.add("tokens, one stream", statistics.median(rates), "a second", limit)
        return
    threads = [threading.Thread(target=_answer, args=(llava, prompt, tokens)) for prompt in prompts]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.add(f"tokens, {count} at once", count * tokens / (time.perf_counter() - started), "a second")
