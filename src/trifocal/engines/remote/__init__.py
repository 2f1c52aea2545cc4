"""An engine whose work is done by processes of its own: they may crash, hang and come again, the front stays."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from trifocal.engines.base import STEP_LIMIT, Token, Tokenizer
from trifocal.engines.front import Front
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.crew import Crew
from trifocal.engines.remote.wire import Kind, prompt_to
from trifocal.engines.remote.worker import Call, Given, Worker
from trifocal.engines.roster import Wanted
from trifocal.errors import EngineError, UsageError
from trifocal.prompt import Prompt

__all__ = ["Remote", "load_remote"]


class Remote(Front[Worker]):
    """An `Engine` in processes of its own, ``crew``; what it is said to be is what theirs is.

    What dies with a process, see `trifocal.engines.remote.worker.Worker`.
    """

    def __init__(self, recipe: Recipe, crew: Crew) -> None:
        self._crew = crew
        weakref.finalize(self, crew.abandon)  # when nobody has it any more, and at exit
        crew.load()
        super().__init__(recipe, crew.workers[0].facts, crew.roster)

    @property
    def context(self) -> int:
        """How many positions prompt and answer may take together, wherever they go."""
        return min(int(worker.facts["context"]) for worker in self._crew.workers)

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that there are now."""
        return [pid for worker in self._crew.workers if (pid := worker.pid) is not None]

    def close(self) -> None:
        """Ends all streams with an error, and the processes."""
        self._crew.stop()

    def text(self, does: str, *given: Any, **options: Any) -> Any:
        """What its own tokenizer, which is there alone, gives for this."""
        call = Call(self._crew.number(), Kind.TEXT, {"does": does, "given": given, "options": options})
        with closing(self._crew.ask(call, Wanted(0))) as said:
            return next(said, None)

    def _answer(self, prompt: Prompt, asked: Mapping[str, Any]) -> Generator[Token, None, None]:
        with closing(self._said(Kind.STREAM, prompt, asked)) as said:
            for token in said:
                assert isinstance(token, Token)
                yield token

    def _attention(self, prompt: Prompt, asked: Mapping[str, Any]) -> torch.Tensor:
        with closing(self._said(Kind.ATTEND, prompt, asked)) as said:
            told = next(said)
        assert isinstance(told, torch.Tensor)
        return told

    def _said(self, kind: Kind, prompt: Prompt, asked: Mapping[str, Any]) -> Generator[Given, None, None]:
        told, parts = prompt_to(prompt)
        call = Call(self._crew.number(), kind, {**told, **asked}, parts)
        return self._crew.ask(call, self.roster.wanted(prompt))

    def _asked(self) -> Tokenizer:
        return _Asked(self)


class _Asked:
    """The tokenizer of an engine that is nobody's but its own: its process is asked."""

    def __init__(self, remote: Remote) -> None:
        self._ask = weakref.WeakMethod(remote.text)
        self.token = lru_cache(1024)(self._token)

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        """Ids of plain text; see `trifocal.engines.base.Tokenizer.encode`."""
        ids: list[int] = self._said("encode", text, start=start, after=after, before=before)
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids."""
        return str(self._said("decode", ids))

    def _token(self, name: str) -> int | None:
        """The id of a control token."""
        told: int | None = self._said("token", name)
        return told

    def _said(self, does: str, *given: Any, **options: Any) -> Any:
        ask = self._ask()
        if ask is None:
            raise EngineError("the engine is closed")
        return ask(does, *given, **options)


def load_remote(recipe: Recipe, replicas: int = 1, step_limit: float = STEP_LIMIT) -> Remote:
    """Loads an engine in so many processes, each with its own share of the machine.

    Where the recipe's device has commas, they are the processes' devices in turn; ``auto`` is one GPU a process where
    there are any. A process that makes no step for ``step_limit`` seconds though it has work is killed and started
    again.

    Raises:
        UsageError: more processes than GPUs, or an option that is no plain value.
        TrifocalError: whatever `trifocal.engines.load_engine` raises there.
    """
    recipe.to_json()
    devices = _devices(recipe.device, replicas)
    cores = max(1, (os.cpu_count() or 1) // replicas)
    spare = {"OMP_NUM_THREADS": str(cores)} if replicas > 1 and "OMP_NUM_THREADS" not in os.environ else {}
    recipes = [(replace(recipe, device=device), {**spare, **told}) for device, told in devices]
    return Remote(recipes[0][0], Crew(recipes, step_limit))


def _devices(device: str, replicas: int) -> list[tuple[str, dict[str, str]]]:
    """The device of each process, and what its environment says of it."""
    if "," in device:
        each = [name.strip() for name in device.split(",") if name.strip()]
        return [(each[index % len(each)], {}) for index in range(replicas)]
    cards = torch.cuda.device_count() if device in ("auto", "cuda") and replicas > 1 else 0
    if not cards:
        return [(device, {})] * replicas
    if replicas > cards:
        raise UsageError(
            f"replicas: {replicas} processes and {cards} GPUs; give fewer, or name their devices: "
            "--language cuda:0,cuda:0"
        )
    seen = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = seen if len(seen) == cards else [str(index) for index in range(cards)]
    return [("cuda:0", {"CUDA_VISIBLE_DEVICES": names[index]}) for index in range(replicas)]
