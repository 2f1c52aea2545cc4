"""What an engine's own process costs: seconds to the first token and tokens a second, through it and in this process.

    python benchmarks/apart.py [--rounds 40] [--checkpoint thimble] [--engine auto]

Calls alternate between the two ways, so that both meet the same machine. Every prompt is new from its picture on, so
each first token pays for the prompt's computation and for its picture's rows on their way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines import load_engine
from trifocal.engines.base import Engine
from trifocal.engines.remote import load_remote
from trifocal.messages import Sampling
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

TOKENS, CROWD = 128, 8


def prompt(engine: Engine, number: int, rows: int) -> Prompt:
    """A question about a picture that nobody has asked before."""
    features = torch.randn(rows, engine.hidden, generator=torch.Generator().manual_seed(number))
    words = [engine.tokenizer.encode(text, start=start) for text, start in (("USER: ", True), ("What is it?", False))]
    return Prompt([TokenSpan(tuple(words[0])), ImageSpan(features, f"picture {number}"), TokenSpan(tuple(words[1]))])


def one(engine: Engine, asked: Prompt) -> tuple[float, float]:
    """Seconds to the first token, and tokens a second from there on."""
    began, stream = time.perf_counter(), engine.stream(asked, Sampling(max_tokens=TOKENS, ignore_end=True))
    next(stream)
    first = time.perf_counter()
    count = sum(1 for _ in stream)
    return first - began, count / (time.perf_counter() - first)


def crowd(engine: Engine, asked: list[Prompt]) -> float:
    """Tokens a second of several callers together, prompts included."""
    threads = [threading.Thread(target=one, args=(engine, each)) for each in asked]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(asked) * TOKENS / (time.perf_counter() - began)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--checkpoint", default="thimble")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--rows", type=int, default=64)
    given = parser.parse_args()
    recipe = language_recipe(find_checkpoint(given.checkpoint), engine=given.engine)
    engines: dict[str, Engine] = {"in this process": load_engine(recipe), "in its own": load_remote(recipe)}
    firsts: dict[str, list[float]] = {name: [] for name in engines}
    speeds: dict[str, list[float]] = {name: [] for name in engines}
    crowds: dict[str, list[float]] = {name: [] for name in engines}
    number = 0
    for turn in range(given.rounds + 2):
        for name, engine in engines.items():
            first, speed = one(engine, prompt(engine, number, given.rows))
            together = [prompt(engine, number + 1 + index, given.rows) for index in range(CROWD)]
            many = crowd(engine, together) if turn % 4 == 0 else 0.0
            number += 1 + CROWD
            if turn > 1:  # the first ones warm up
                firsts[name].append(first * 1000)
                speeds[name].append(speed)
                crowds[name] += [many] if many else []
    print(f"{given.engine} of {given.checkpoint}, {given.rounds} rounds, torch {torch.__version__}")
    print(f"load {os.getloadavg()[0]:.1f}")
    table("first token, ms", firsts, statistics.median)
    table("tokens/s alone", speeds, statistics.median)
    table(f"tokens/s, {CROWD} at once", crowds, statistics.median)
    table("first token, ms, the least", {name: [min(values)] for name, values in firsts.items()}, min)
    table("tokens/s alone, the most", {name: [max(values)] for name, values in speeds.items()}, max)
    for engine in engines.values():
        engine.close()


def table(what: str, told: dict[str, list[float]], middle: Callable[[list[float]], float]) -> None:
    """A row: both ways, and the median of the rounds' own ratios."""
    here, apart = told.values()
    ratio = statistics.median(b / a for a, b in zip(here, apart, strict=True))
    print(f"| {what} | {middle(here):.2f} | {middle(apart):.2f} | {ratio:.3f} |")


if __name__ == "__main__":
    main()
