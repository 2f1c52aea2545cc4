"""One at a time against together: CPU seconds of a step of thimble's language model, side by side in one run.

``python benchmarks/together.py [native|transformers]``: thread time of one thread, so that neighbours on the machine
change little; the median step of 100 greedy tokens behind 290 positions, 256 of them a picture's rows.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines import load_engine
from trifocal.engines.batching import Batching, Model
from trifocal.engines.blocks import Blocks
from trifocal.engines.language import open_language
from trifocal.engines.sampler import Drawing, pick
from trifocal.engines.scheduler import Request, Scheduler
from trifocal.engines.transformers import OneAtATime
from trifocal.engines.transformers.loading import Loaded, read
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

HUNDRED = Sampling(max_tokens=100, ignore_end=True)


def prompt(loaded: Loaded | Model, number: int) -> Prompt:
    """Another picture each time."""
    rows = torch.randn(256, loaded.hidden) * 0.3
    return Prompt([TokenSpan((1, 5, 6, 7)), ImageSpan(rows, f"{number}"), TokenSpan(tuple(range(20, 50)))])


def alone(loaded: Loaded, number: int) -> tuple[float, float]:
    """Milliseconds a step and seconds in all of one request, one at a time."""
    engine, steps, begun = OneAtATime(loaded, 0), [], time.thread_time()
    last = begun
    for _ in engine.stream(prompt(loaded, number), HUNDRED):
        steps.append(time.thread_time() - last)
        last = time.thread_time()
    return statistics.median(steps[1:]) * 1e3, last - begun


@torch.inference_mode()
def together(model: Model, count: int, number: int) -> tuple[float, float]:
    """The same of so many at once."""
    blocks = Blocks(model.runner.positions // model.block, model.block)
    scheduler: Scheduler[Any] = Scheduler(blocks, piece=model.piece)
    ends = model.end_ids
    for at in range(count):
        asked = prompt(model, number + at)
        scheduler.add(Request(asked, 100, ends, lambda _: None, Drawing(HUNDRED, (), ends)))
    steps, begun = [], time.thread_time()
    while scheduler.busy:
        before = time.thread_time()
        runs = scheduler.next()
        tokens = pick(model.runner.forward(runs), [run.request.row for run in runs if run.logits])
        scheduler.took([[token] for token in tokens])
        if len(runs) == count and all(run.count == 1 for run in runs):
            steps.append(time.thread_time() - before)
    return statistics.median(steps) * 1e3, time.thread_time() - begun


def main(engine: str) -> None:
    """Prints a line a round."""
    torch.set_num_threads(1)
    recipe = language_recipe(find_checkpoint("thimble"), Placement("cpu", "float32"), engine=engine)
    loaded, batching = read(open_language(recipe), recipe.placement), load_engine(recipe)
    assert isinstance(batching, Batching)
    for number in range(0, 400, 100):
        step, whole = alone(loaded, number)
        line = f"one at a time {step:.2f} ms a step, {whole:.2f} s"
        for at, count in enumerate((1, 8)):
            own, all_of = together(batching.facts, count, number + 10 * (at + 1))
            line += (
                f" | {count}: {own:.2f} ms, {all_of:.2f} s, x{count * step / own:.2f}, x{count * whole / all_of:.2f}"
            )
        print(line)


if __name__ == "__main__":
    main(*sys.argv[1:] or ["native"])
