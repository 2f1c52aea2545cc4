"""An engine whose work is done by processes of its own: they may crash, hang and come again, the front stays."""

from __future__ import annotations

import os
import weakref
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

import torch

from trifocal.engines.base import STEP_LIMIT, State, Token, Tokenizer
from trifocal.engines.blocks import names_of
from trifocal.engines.echo import Bytes
from trifocal.engines.language import open_language, tokenizer_of
from trifocal.engines.prefixes import position_keys
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote.answering import able_of, check_prompt, check_sampling
from trifocal.engines.remote.crew import BLOCK, Crew
from trifocal.engines.remote.wire import Kind, prompt_to
from trifocal.engines.remote.worker import Call
from trifocal.errors import EngineError, TrifocalError, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Part
from trifocal.prompt import Prompt

__all__ = ["Remote", "load_remote"]


class Remote:
    """An `Engine` in processes of its own, ``crew``; what it is said to be is what theirs is.

    What dies with a process, see `trifocal.engines.remote.worker.Worker`.
    """

    def __init__(self, recipe: Recipe, crew: Crew) -> None:
        self._crew = crew
        weakref.finalize(self, crew.abandon)  # when nobody has it any more, and at exit
        crew.load()
        facts = crew.workers[0].facts
        self.name: str = facts["name"]
        self.hidden: int = facts["hidden"]
        self.able = able_of(facts)
        self.tokenizer = self._tokenizer(recipe, facts["tokenizer"])

    @property
    def context(self) -> int:
        """How many positions prompt and answer may take together, wherever they go."""
        return min(int(worker.facts["context"]) for worker in self._crew.workers)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model as it is loaded, with the bytes of all its processes."""
        several = len(self._crew.workers)
        parts = (Part(**part) for part in self._crew.workers[0].facts["parts"])
        return tuple(replace(part, nbytes=part.nbytes * several) for part in parts)

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes that there are now."""
        return [pid for worker in self._crew.workers if (pid := worker.pid) is not None]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        self._check(prompt, 1)
        check_sampling(sampling, self.able, self.name)
        call = self._call(Kind.STREAM, prompt, {"sampling": asdict(sampling)})
        return self._answer(call)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked; see `trifocal.engines.base.Engine.attention`."""
        if not self.able.explains:
            raise UsageError(f"the engine {self.name} can't tell where it looks")
        self._check(prompt, len(ids))
        told = self._result(self._call(Kind.ATTEND, prompt, {"ids": list(ids)}))
        assert isinstance(told, torch.Tensor)
        return told

    def state(self) -> State:
        """How its processes are."""
        if self._crew.closed:
            return State("failed", reason="the engine is closed")
        return self._crew.state()

    def close(self) -> None:
        """Ends all streams with an error, and the processes."""
        self._crew.stop()

    def _check(self, prompt: Prompt, wanted: int) -> None:
        if self._crew.closed:
            raise EngineError("the engine is closed")
        check_prompt(prompt, wanted, self.context)

    def _call(self, kind: Kind, prompt: Prompt, head: Mapping[str, Any]) -> Call:
        told, parts = prompt_to(prompt)
        names: Sequence[bytes] = ()
        if len(self._crew.workers) > 1 and prompt.scope is not None:
            names = names_of(position_keys(prompt), BLOCK, scope=prompt.scope)
        return Call(self._crew.number(), kind, {**told, **head}, parts, len(prompt), names)

    def _answer(self, call: Call) -> Generator[Token, None, None]:
        self._crew.ask(call)  # here and not above: a generator that is never begun never ends either
        try:
            while (token := call.said.get()) is not None:
                if isinstance(token, TrifocalError):
                    raise token
                assert isinstance(token, Token)
                yield token
        finally:
            self._crew.leave(call)

    def _result(self, call: Call) -> object:
        self._crew.ask(call)
        try:
            result = call.said.get()
            if isinstance(result, TrifocalError):
                raise result
            return result
        finally:
            self._crew.leave(call)

    def _tokenizer(self, recipe: Recipe, told: Mapping[str, Any]) -> Tokenizer:
        """The same tokenizer as the process has: made here of the same files, or one that asks the process."""
        if told["kind"] == "files":
            return tokenizer_of(open_language(recipe), told["rows"])
        return Bytes() if told["kind"] == "bytes" else _Asked(self)

    def _text(self, does: str, *given: Any, **options: Any) -> Any:
        head = {"does": does, "given": given, "options": options}
        return self._result(Call(self._crew.number(), Kind.TEXT, head))


class _Asked:
    """The tokenizer of an engine that is nobody's but its own: its process is asked."""

    def __init__(self, remote: Remote) -> None:
        self._ask = weakref.WeakMethod(remote._text)
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
