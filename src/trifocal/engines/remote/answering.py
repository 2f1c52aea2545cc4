"""An engine in whatever process it works: what it tells of itself, and one request's stream that can be left."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict
from typing import Any

from trifocal.engines.base import Engine, Token
from trifocal.engines.batching import Batching
from trifocal.engines.echo import Bytes
from trifocal.engines.remote.wire import state_to
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import EngineError, TrifocalError
from trifocal.messages import Sampling
from trifocal.placement import Placed
from trifocal.prompt import Prompt

__all__ = ["BROKEN", "Answer", "Said", "facts_of", "ours"]

BROKEN = 70  # the exit status of who can do nothing more

Said = Token | TrifocalError | None


class Answer:
    """One request's stream, which can be left at any time."""

    def __init__(self, give: Callable[[Said], None]) -> None:
        self._give, self._left = give, False
        self._leave: Callable[[], None] = lambda: None

    def ask(self, engine: Batching, prompt: Prompt, sampling: Sampling, gather: Callable[[Said], None]) -> None:
        """Has the engine give each token itself."""
        try:
            self._leave = engine.ask(prompt, sampling, gather)
            if self._left:
                self._leave()
        except BaseException as error:  # a panic of Rust's too: somebody waits
            self._give(ours(error))

    def pull(self, engine: Engine, prompt: Prompt, sampling: Sampling) -> None:
        """Reads the engine's stream in this thread."""
        try:
            stream: Generator[Token, None, None]
            with closing(engine.stream(prompt, sampling)) as stream:
                for token in stream:
                    if self._left:
                        break
                    self._give(token)
            self._give(None)
        except Exception as error:
            self._give(ours(error))
        except BaseException:  # a panic, an exit: what it leaves behind is not to be trusted
            os._exit(BROKEN)

    def leave(self) -> None:
        """Ends it after the step that is under way."""
        self._left = True
        self._leave()


def facts_of(engine: Engine) -> dict[str, Any]:
    """What the front must know of the engine."""
    tokenizer = engine.tokenizer
    told: dict[str, Any] = {"kind": "asked"}
    if isinstance(tokenizer, FileTokenizer):
        told = {"kind": "files", "rows": tokenizer.rows}
    elif type(tokenizer) is Bytes:
        told = {"kind": "bytes"}
    return {
        "name": type(engine).__name__.lower(),
        "hidden": engine.hidden,
        "context": engine.context,
        "able": asdict(engine.able),
        "parts": [asdict(part) for part in engine.parts] if isinstance(engine, Placed) else [],
        "tokenizer": told,
        "state": state_to(engine.state()),
    }


def ours(error: BaseException) -> TrifocalError:
    """An error as one of ours, for whoever may know no more."""
    return error if isinstance(error, TrifocalError) else EngineError(f"the engine raised {type(error).__name__}")
