"""An engine that fails as its prompt says, as nothing else can be made to: in its own process, in the middle of a step.

``fault:kill:3`` is killed at the step of its fourth token. With ``:once=FILE`` it fails only while there is no such
file, and makes it; with ``:slow`` every step of an answer takes a while.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trifocal.engines.base import Abilities
from trifocal.engines.batching import Batching, Model
from trifocal.engines.echo import END, ROWS, Bytes, Echo
from trifocal.engines.scheduler import Run

SLOW = 0.02  # seconds


class Words(Bytes):
    """A tokenizer that nobody but this engine has."""


class Faulty(Batching):
    """An echo of prompts that name no fault."""


class Runner:
    """Echoes, and fails as it is told."""

    def __init__(self) -> None:
        self._echo, self._sick = Echo()._runner, False
        self.positions = self._echo.positions

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        if self._sick:
            raise RuntimeError("CUDA error: device-side assert triggered")
        for run in runs:
            self._fail(self._echo.say(run.prompt), run.start + run.count - len(run.prompt))
        return self._echo.forward(runs)

    def _fail(self, said: str, at: int) -> None:
        if not said.startswith("fault:"):
            return
        _, fault, when, *more = said.split(":")
        marks = [Path(each.removeprefix("once=")) for each in more if each.startswith("once=")]
        if "slow" in more:
            time.sleep(SLOW)
        if at != int(when) or any(mark.exists() for mark in marks):
            return
        for mark in marks:
            mark.touch()
        getattr(self, f"_{fault}")()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _stop(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _segv(self) -> None:
        ctypes.string_at(1)

    def _exit(self) -> None:
        os._exit(3)

    def _panic(self) -> None:
        raise SystemExit("a library that ends the process")

    def _sicken(self) -> None:
        self._sick = True
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def _oops(self) -> None:
        raise RuntimeError("this step alone")

    def _hang(self) -> None:
        time.sleep(10_000)

    def _deaf(self) -> None:
        ctypes.PyDLL(None).sleep(10_000)  # holds the interpreter

    def _memory(self) -> None:
        raise MemoryError

    def _none(self) -> None:
        """Never comes."""

    def _print(self) -> None:
        os.write(1, b"what libraries print\n" * 1000)


def load(recipe, placement, *, once="", dies=False):  # type: ignore[no-untyped-def]
    """Dies while it loads, where it is told to, but for the first time."""
    if dies and Path(once).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    if once:
        Path(once).touch()
    model = Model(
        runner=Runner(),
        tokenizer=Words(),
        hidden=8,
        context=4096,
        end_ids=frozenset({END}),
        able=Abilities(logprobs=True),
        rows=ROWS,
    )
    return Faulty(lambda: model)
