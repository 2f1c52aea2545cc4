"""llama.cpp through Trifocal against llama.cpp by itself, and against our other engines: the same weights, one run.

    python benchmarks/llamacpp.py CHECKPOINT [--threads 1] [--rounds 7] [--others] [--only decode] [-e NAME=VALUE ...]

CHECKPOINT is a GGUF file, a folder, or the name of a shape with random weights (``llava-1.1b``), as GPTQ. Bursts of
every way by turns, medians; the clock is the CPU time of the process with one thread (other work on the machine does
not count then), and the wall's with more. The share of the machine's time that others took is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DECODED, PROMPT, AT_ONCE, BEGINNING = 32, 300, 8, 64


def main() -> None:
    asked = arguments()
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    import torch

    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.threads == 1 else time.perf_counter
    ways: dict[str, Any] = {}
    if importlib.util.find_spec("llama_cpp"):
        ours = Ours(asked, "llamacpp", asked.option)
        ways = {"llama.cpp itself": Bare(ours, asked.threads), "llamacpp through Trifocal": ours}
    else:
        print("llama-cpp-python is not installed: native alone")
    if asked.others or not ways:
        ways |= {"native": Ours(asked, "native", []), "native, bfloat16": Ours(asked, "native", [], dtype="bfloat16")}
    figures = {
        "decode": (Ours.decode.__name__, DECODED),
        f"prompt of {PROMPT}": (Ours.prompt.__name__, PROMPT),
        f"{AT_ONCE} at once": (Ours.together.__name__, AT_ONCE * DECODED),
    }
    figures = {name: told for name, told in figures.items() if asked.only in (None, told[0])}
    rates: dict[tuple[str, str], list[float]] = {(way, name): [] for way in ways for name in figures}
    foreign = Foreign()
    for burst in range(asked.rounds + 1):
        for name, (act, count) in figures.items():
            for way, engine in ways.items():
                seconds = getattr(engine, act)(clock, 1000 * burst + 7)
                if burst:  # the first warms
                    rates[way, name].append(count / seconds)
    kind = "CPU time of one thread" if asked.threads == 1 else f"{asked.threads} threads, wall clock"
    print(f"tokens a second, {kind}, {asked.rounds} rounds; others took {foreign.share():.0%} of the machine")
    print("| | " + " | ".join(figures) + " |\n|---|" + "---|" * len(figures))
    for way in ways:
        print(f"| {way} | " + " | ".join(f"{statistics.median(rates[way, name]):.1f}" for name in figures) + " |")
    if "llama.cpp itself" not in ways:
        return
    bare, ours = list(ways)[:2]
    told = []
    for name in figures:
        pairs = sorted(one / other for one, other in zip(rates[ours, name], rates[bare, name], strict=True))
        told.append(f"{statistics.median(pairs):.3f} ({pairs[0]:.3f}-{pairs[-1]:.3f})")
    print(f"| {ours} over {bare} | " + " | ".join(told) + " |")


def arguments() -> Any:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--others", action="store_true")
    parser.add_argument("--only", help="a figure: decode, prompt or together")
    parser.add_argument("-e", "--option", action="append", default=[])
    return parser.parse_args()


class Ours:
    """An engine of Trifocal."""

    def __init__(self, asked: Any, name: str, options: list[str], dtype: str = "auto") -> None:
        from trifocal.engines import Recipe, load_engine

        told: dict[str, Any] = {"context": 1024, "speculate": False}
        told |= {"threads": asked.threads, "positions": 4096} if name == "llamacpp" else {}
        told |= dict(option.split("=", 1) for option in options)
        source, config = checkpoint(asked.checkpoint)
        recipe = Recipe(source=str(source), config=config, original=True, device="cpu", dtype=dtype)
        self.engine = load_engine(replaced(recipe, engine=name, options=told))
        self.vocabulary = int(config["vocab_size"])

    def decode(self, clock: Callable[[], float], seed: int) -> float:
        stream = self._stream(ids(seed, BEGINNING, self.vocabulary), DECODED + 1)
        next(stream)
        began = clock()
        for _ in stream:
            pass
        return clock() - began

    def prompt(self, clock: Callable[[], float], seed: int) -> float:
        began = clock()
        list(self._stream(ids(seed, PROMPT, self.vocabulary), 1))
        return clock() - began

    def together(self, clock: Callable[[], float], seed: int) -> float:
        prompts = [ids(seed + at, 4, self.vocabulary) for at in range(AT_ONCE)]
        threads = [threading.Thread(target=lambda given=given: list(self._stream(given, DECODED))) for given in prompts]
        began = clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return clock() - began

    def _stream(self, given: list[int], count: int) -> Any:
        from trifocal.messages import Sampling
        from trifocal.prompt import Prompt, TokenSpan

        prompt = Prompt([TokenSpan(tuple(given))])
        return self.engine.stream(prompt, Sampling(max_tokens=count, temperature=0, ignore_end=True))


class Bare:
    """The library's own calls on the same file, the likeliest id each time."""

    def __init__(self, ours: Ours, threads: int) -> None:
        import llama_cpp as c

        self._c, self.vocabulary = c, ours.vocabulary
        model = c.llama_model_default_params()
        model.n_gpu_layers = 0
        self._model = c.llama_model_load_from_file(os.fsencode(ours.engine.facts.runner.context.file), model)
        params = c.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 4096, 512, 512, AT_ONCE
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.no_perf = True, True
        params.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_ENABLED
        self._context = c.llama_init_from_model(self._model, params)
        self._memory = c.llama_get_memory(self._context)
        self._batch = c.llama_batch_init(512, 0, 1)

    def decode(self, clock: Callable[[], float], seed: int) -> float:
        self._c.llama_memory_clear(self._memory, False)
        [token] = self._step([ids(seed, BEGINNING, self.vocabulary)], 0)
        began = clock()
        for at in range(DECODED):
            [token] = self._step([[token]], BEGINNING + at)
        return clock() - began

    def prompt(self, clock: Callable[[], float], seed: int) -> float:
        self._c.llama_memory_clear(self._memory, False)
        began = clock()
        self._step([ids(seed, PROMPT, self.vocabulary)], 0)
        return clock() - began

    def together(self, clock: Callable[[], float], seed: int) -> float:
        self._c.llama_memory_clear(self._memory, False)
        prompts = [ids(seed + at, 4, self.vocabulary) for at in range(AT_ONCE)]
        began = clock()
        tokens = self._step(prompts, 0)
        for at in range(DECODED - 1):
            tokens = self._step([[token] for token in tokens], 4 + at)
        return clock() - began

    def _step(self, given: list[list[int]], start: int) -> list[int]:
        import numpy as np

        batch, at = self._batch, 0
        for sequence, row in enumerate(given):
            for place, token in enumerate(row):
                batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, start + place, 1
                batch.seq_id[at][0], batch.logits[at] = sequence, place == len(row) - 1
                at += 1
        batch.n_tokens = at
        assert self._c.llama_decode(self._context, batch) == 0
        logits = np.ctypeslib.as_array(self._c.llama_get_logits(self._context), (len(given), self.vocabulary))
        return [int(token) for token in logits.argmax(1)]


class Foreign:
    """How much of the machine's time others take."""

    def __init__(self) -> None:
        self._began, self._own = self._busy(), time.process_time()

    def share(self) -> float:
        """Since it was made."""
        busy, total = self._busy()
        passed = total - self._began[1]
        return (busy - self._began[0] - (time.process_time() - self._own)) / passed

    @staticmethod
    def _busy() -> tuple[float, float]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        each = os.sysconf("SC_CLK_TCK")
        return (sum(ticks) - ticks[3] - ticks[4]) / each, sum(ticks) / each


def ids(seed: int, count: int, vocabulary: int) -> list[int]:
    """Ids that no burst had before."""
    return [3 + (seed * 131 + 7919 * at + at * at) % (vocabulary - 3) for at in range(count)]


def checkpoint(name: str) -> tuple[Path, Any]:
    from trifocal.checkpoints import find_checkpoint
    from trifocal.source import source_of
    from trifocal.tools import shapes

    if name in shapes.SHAPES:
        folder = Path(tempfile.gettempdir()) / f"trifocal-{name}-gptq"
        if not (folder / "tokenizer.json").is_file():
            shapes.write(name, "gptq", folder)
        found = find_checkpoint(str(folder))
        return found.language.source, found.language.config
    path = Path(name)
    return path, source_of(path).config()


def replaced(recipe: Any, **values: Any) -> Any:
    from dataclasses import replace

    return replace(recipe, **values)


if __name__ == "__main__":
    main()
