"""What this machine's CPU reaches, as one table after the other, within six minutes on two quiet cores.

    python benchmarks/cpu.py [--rounds 5] [--only PART]

Parts, each in a process of its own: ``thimble`` (one and eight at once, by turns, so that both meet the same machine),
``others`` (``llamacpp.py llava-1.1b --threads 2 --others``: 4 bits natively, in bfloat16 and, where llama-cpp-python is
installed, by it), ``narrow`` (random weights of SmolLM2's shape in bfloat16) and ``memory`` (a 1.1B in 4 bits at its
peak). Medians. As many threads as the engines take by themselves; the CPU time of the process stands beside the clock,
for foreign load changes it less.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any

AT_ONCE, DECODED, SAID = 8, 100, 128
QUESTION = "What is in the picture? Please say where everything is."
BEGUN_BY = 300  # seconds after which no further part is begun
Taken = tuple[float, float]  # seconds of the clock, and of CPU


def main() -> None:
    parts = {"thimble": thimble, "others": others, "narrow": narrow, "memory": memory}
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=parts)
    asked = parser.parse_args()
    if asked.only:
        parts[asked.only](asked.rounds)
        return
    began = time.monotonic()
    for part in parts:
        if time.monotonic() - began > BEGUN_BY:
            print(f"\n{part}: not run, {BEGUN_BY} s are over")
            continue
        print(f"\n{part} (load {os.getloadavg()[0]:.1f}, {time.monotonic() - began:.0f} s)", flush=True)
        subprocess.run([sys.executable, __file__, "--only", part, "--rounds", str(asked.rounds)], check=False)


def thimble(rounds: int) -> None:
    """Decoding alone and eight at once; whole answers to new pictures; the first token of a second turn."""
    import trifocal

    taken: dict[str, list[Taken]] = {}
    with trifocal.load() as llava:
        for turn in range(rounds + 1):
            told = {"a step of one": decoding(llava, 1, turn), "a step of eight": decoding(llava, AT_ONCE, turn)}
            new, others = ([noise(100 * turn + at + n * AT_ONCE) for at in range(AT_ONCE)] for n in range(2))
            told["eight with a picture each, by turns"] = clocked(lambda new=new: [answer(llava, one) for one in new])
            told["eight with a picture each, at once"] = clocked(
                lambda others=others: each(lambda one: answer(llava, one), others)
            )
            told |= turns(llava, noise(100 * turn + 99))
            if turn:  # the first warms
                for name, seconds in told.items():
                    taken.setdefault(name, []).append(seconds)
    print("| thimble | ms by the clock | ms of CPU |\n|---|---|---|")
    for name, pairs in taken.items():
        clock, cpu = (statistics.median(seconds) * 1e3 for seconds in zip(*pairs, strict=True))
        print(f"| {name} | {clock:.2f} | {cpu:.2f} |")
    one, eight, by_turns, at_once, first, second = taken.values()
    ratio("eight at once over one, tokens a second (wanted: 4)", one, eight, AT_ONCE)
    ratio("the same with a picture each, whole answers (wanted: 2.5)", by_turns, at_once)
    ratio("second turn over first, first token (wanted: at most 0.2)", second, first)


def others(_: int) -> None:
    script = Path(__file__).with_name("llamacpp.py")
    command = [sys.executable, str(script), "llava-1.1b", "--threads", "2", "--others", "--rounds", "3"]
    subprocess.run(command, check=False)


def narrow(rounds: int) -> None:
    """SmolLM2-135M's shape."""
    from trifocal.engines import load_engine

    with closing(load_engine(recipe("llava-135m", "none", "bfloat16"))) as engine:
        rates: dict[int, list[float]] = {1: [], AT_ONCE: []}
        for turn in range(rounds + 1):
            for count, told in rates.items():
                given = [words(engine, f"{turn} {count} {at}") for at in range(count)]
                began = time.perf_counter()
                each(lambda prompt: list(engine.stream(prompt, exactly(SAID))), given)
                told.append(count * SAID / (time.perf_counter() - began))
    one, eight = (statistics.median(told[1:]) for told in rates.values())
    print(f"SmolLM2's shape, bfloat16: {one:.1f} tokens a second, {eight:.1f} of eight at once (wanted: 80 and 200)")


def memory(_: int) -> None:
    """Of a process that loads a 1.1B in 4 bits by the engine's own choice and answers once."""
    from trifocal.engines import load_engine

    with closing(load_engine(recipe("llava-1.1b", "gptq", "auto"))) as engine:
        list(engine.stream(words(engine, "memory"), exactly(SAID)))
        print(f"engine {type(engine).__name__}: ", end="")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB at the peak (wanted: at most 1,250)")


def decoding(llava: Any, count: int, turn: int) -> Taken:
    """Seconds a step of so many answers behind 290 positions, 256 of them a picture's, computed beforehand."""
    import torch

    from trifocal.prompt import ImageSpan, Prompt, TokenSpan

    text = TokenSpan((1, 5, 6, 7)), TokenSpan(tuple(range(20, 50)))
    rows = [ImageSpan(torch.randn(256, llava.engine.hidden) * 0.3, f"{turn} {count} {at}") for at in range(count)]
    prompts = [Prompt([text[0], row, text[1]]) for row in rows]
    each(lambda prompt: list(llava.engine.stream(prompt, exactly(1))), prompts)
    clock, cpu = clocked(lambda: each(lambda prompt: list(llava.engine.stream(prompt, exactly(DECODED))), prompts))
    return clock / DECODED, cpu / DECODED


def turns(llava: Any, picture: bytes) -> dict[str, Taken]:
    """The first token of a new picture, and of one more turn about it."""
    from trifocal.images import load as open_image
    from trifocal.messages import Message, Sampling

    def first(*messages: Message) -> Taken:
        def begin() -> None:
            stream = llava.stream(list(messages), Sampling(max_tokens=1, ignore_end=True))
            next(stream)
            stream.close()

        return clocked(begin)

    asked = llava.question(QUESTION, [open_image(picture)])
    told = {"first token, new picture": first(asked)}
    return told | {"first token, second turn": first(asked, Message("assistant", "A cube."), Message("user", "Where?"))}


def answer(llava: Any, picture: bytes) -> None:
    from trifocal.images import load as open_image

    for _ in llava.stream([llava.question(QUESTION, [open_image(picture)])], exactly(SAID)):
        pass


def clocked(act: Callable[[], Any]) -> Taken:
    clock, cpu = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - clock, time.process_time() - cpu


def each(act: Callable[[Any], Any], given: Sequence[Any]) -> None:
    """In a thread each."""
    threads = [threading.Thread(target=act, args=(one,)) for one in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def ratio(name: str, above: Sequence[Taken], below: Sequence[Taken], times: int = 1) -> None:
    """Of the rounds: the median and the span, by the clock and by CPU time."""
    told = []
    for at, kind in enumerate(("by the clock", "of CPU")):
        ratios = sorted(times * one[at] / other[at] for one, other in zip(above, below, strict=True))
        told.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}) {kind}")
    print(f"{name}: {', '.join(told)}")


def noise(seed: int) -> bytes:
    """A JPEG that was not there before."""
    import numpy as np
    from PIL import Image as Pictures

    coarse = np.random.default_rng(seed).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    file = BytesIO()
    Pictures.fromarray(coarse).resize((640, 480), Pictures.Resampling.BICUBIC).save(file, "JPEG", quality=85)
    return file.getvalue()


def words(engine: Any, said: str) -> Any:
    from trifocal.prompt import Prompt, TokenSpan

    ids = engine.tokenizer.encode(f"{said}: once upon a time there was a machine", start=True)
    return Prompt([TokenSpan(tuple(ids))])


def exactly(tokens: int) -> Any:
    """The likeliest ids; none are guessed as long as nothing repeats itself."""
    from trifocal.messages import Sampling

    return Sampling(max_tokens=tokens, temperature=0, ignore_end=True)


def recipe(shape: str, quantisation: Any, dtype: str) -> Any:
    import tempfile

    from trifocal.checkpoints import find_checkpoint
    from trifocal.engines import Recipe

    folder = Path(tempfile.gettempdir()) / f"trifocal-{shape}-{quantisation}"
    if not (folder / "tokenizer.json").is_file():  # in a process of its own, whose memory is not this one's
        call = f"from trifocal.tools import shapes; shapes.write({shape!r}, {quantisation!r}, {folder!r})"
        subprocess.run([sys.executable, "-c", f"from pathlib import PosixPath, WindowsPath; {call}"], check=True)
    found = find_checkpoint(str(folder)).language
    source, options = str(found.source), {"context": 1024}
    return Recipe(source=source, config=found.config, original=True, device="cpu", dtype=dtype, options=options)


if __name__ == "__main__":
    main()
