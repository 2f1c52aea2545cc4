"""A language model behind a server of somebody else's that takes prompts as embeddings: it becomes one that sees."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trifocal.engines.base import Abilities, State, Token
from trifocal.engines.language import end_ids, open_language, tokenizer_of
from trifocal.engines.recipe import Recipe
from trifocal.errors import (
    BadSampling,
    EngineError,
    PeerError,
    PeerRefused,
    PromptTooLong,
    UsageError,
)
from trifocal.messages import Sampling
from trifocal.peer import KEY_VARIABLE, Peer, address, key_headers
from trifocal.placement import Part
from trifocal.prompt import Prompt

__all__ = ["EMBEDDING", "Dialect", "Heard", "Score", "Served", "asked_for"]

EMBEDDING = "model.embed_tokens.weight"
RESTS_SECONDS = 10.0  # for which a server that could not be reached counts as away
TRIAL = "The quick brown fox jumps over"
TRIAL_TOKENS = 4
# those that multiply a text's embeddings on their way in: servers take ours as they are
SCALED = ("gemma", "gemma2", "gemma3_text", "granite", "granitemoe", "helium")
_PLAIN = Sampling()
_NAMES = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")  # the same everywhere
Score = tuple[float, tuple[tuple[int, float], ...]]  # an id's log-probability, and the likeliest ids with theirs


@dataclass(frozen=True, slots=True)
class Heard:
    """What an event tells: ids, whether they are the last ones, and each one's log-probability and likeliest ids."""

    ids: Sequence[Any]
    finished: bool = False
    scores: Sequence[Score] = ()


class Dialect(Protocol):
    """How one kind of server is asked for the continuation of a prompt."""

    name: str
    path: str
    able: Abilities
    start: str  # the option with which such a server has to be started

    def prompt(self, given: list[int] | torch.Tensor, scope: str | None) -> dict[str, Any]:
        """A prompt of ids, or of finite rows ``[positions, hidden]``, as a part of a request's body."""
        ...

    def wanted(self, sampling: Sampling, most: int, ends: Sequence[int]) -> dict[str, Any]:
        """What is wanted of the answer, as the other part; ``most`` tokens, and none of ``ends`` beside the last."""
        ...

    def heard(self, event: Mapping[str, Any], so_far: int, sampling: Sampling) -> Heard:
        """What an event tells after ``so_far`` ids.

        Raises:
            PeerError: it is none of an answer.
        """
        ...


class Served:
    """A language model behind a server that speaks ``dialect``.

    A prompt without pictures goes there as ids. One with pictures goes as embeddings: the text's are looked up here, in
    the checkpoint's own table, so the server has to have the same language model, and that is tried when it is opened.
    """

    def __init__(
        self,
        recipe: Recipe,
        url: str,
        dialect: Dialect,
        *,
        key: str = "",
        model: str = "",
        context: int = 0,
        seconds: tuple[float, float] = (300.0, 60.0),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        kind = str(recipe.config["model_type"])
        if kind in SCALED:
            raise UsageError(f"such a server takes embeddings as they are, and {kind} multiplies those of text")
        base = address(url, "-e url=ADDRESS", f"-e key=... or {KEY_VARIABLE}")
        key = key or (os.environ if environ is None else environ).get(KEY_VARIABLE, "")
        self._peer = Peer(base.removesuffix("/v1"), key_headers(key, KEY_VARIABLE), *seconds)
        self._dialect, self.able = dialect, dialect.able
        language = open_language(recipe)
        self._table = language.weights[EMBEDDING]  # [vocabulary, hidden]
        self.hidden = int(self._table.shape[1])
        self.tokenizer = tokenizer_of(language, self._table.shape[0])
        self._ends = end_ids(language, self._table.shape[0])
        self._model, longest = _served(self._peer, model)
        self.context = min(context or longest, longest)
        self._running, self._closed = 0, False
        self.parts = (Part("language", f"{self._model} in {dialect.name}", "another server", "", 0),)
        self._try()

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        if self._closed:
            raise EngineError("the engine is closed")
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        if sampling.schema is not None and not self.able.grammar:
            raise BadSampling("schema", "this engine can't hold an answer to a schema")
        given = prompt.splice(lambda ids: self._table[ids]) if prompt.images else prompt.token_ids
        body = self._body(given, sampling, self.context - len(prompt), prompt.scope)
        return self._answer(body, sampling)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Such servers do not tell."""
        raise UsageError("this engine can't tell where it looks")

    def state(self) -> State:
        """Ready, unless its server could not be reached a moment ago."""
        failed = self._peer.failed
        away = failed is not None and time.monotonic() - failed < RESTS_SECONDS
        reason = "the engine is closed" if self._closed else "its server can't be asked" if away else ""
        return State("failed" if reason else "ready", self._running, reason=reason, several=True)

    def close(self) -> None:
        """Forgets the server."""
        self._closed = True

    def _body(
        self, given: list[int] | torch.Tensor, sampling: Sampling, room: int, scope: str | None = ""
    ) -> dict[str, Any]:
        if isinstance(given, torch.Tensor) and not bool(torch.isfinite(given).all()):
            raise EngineError("there are embeddings that are no finite numbers")
        ends = [] if sampling.ignore_end else sorted(self._ends)
        wanted = self._dialect.wanted(sampling, min(sampling.max_tokens or room, room), ends)
        return {"model": self._model, "stream": True, **self._dialect.prompt(given, scope), **wanted}

    def _answer(self, body: Mapping[str, Any], sampling: Sampling) -> Generator[Token, None, None]:
        """The server's answer. What it refuses of a request that we made is no fault of whoever asks us."""
        self._running += 1
        try:
            yield from self._tokens(body, sampling)
        except PeerRefused as error:
            if error.param in ("response_format", "structured_outputs"):
                raise BadSampling("schema", str(error)) from error
            raise PeerError(f"{self._peer.url} refused a prompt: {error}") from error
        finally:
            self._running -= 1

    def _tokens(self, body: Mapping[str, Any], sampling: Sampling) -> Generator[Token, None, None]:
        """The tokens of an answer, without the end token."""
        told, finished, ended = 0, False, False
        most = sampling.max_tokens or self.context
        with closing(self._peer.events(self._dialect.path, body)) as events:
            for event in events:
                heard = self._dialect.heard(event, told, sampling)
                self._check(heard)
                if told + len(heard.ids) > most:
                    raise PeerError(f"{self._peer.url} tells more than the {most} ids that were asked for")
                told, finished = told + len(heard.ids), finished or heard.finished
                for at, token in enumerate(heard.ids):
                    ended = ended or (token in self._ends and not sampling.ignore_end)
                    if not ended:
                        yield Token(token, *heard.scores[at]) if heard.scores else Token(token)
        if not finished:
            raise PeerError(f"{self._peer.url} went away in the middle of its answer", "its server went away")

    def _check(self, heard: Heard) -> None:
        rows = self._table.shape[0]
        others = (token for _, top in heard.scores for token, _ in top)
        if any(type(token) is not int or not 0 <= token < rows for token in (*heard.ids, *others)):
            raise PeerError(f"{self._peer.url} tells no ids of this vocabulary")

    def _try(self) -> None:
        """Asks for a few words by ids and by embeddings: another model than the checkpoint's would tell two stories.

        Raises:
            UsageError: it takes no embeddings, or is another model.
        """
        ids = self.tokenizer.encode(TRIAL, start=True)
        few = Sampling(max_tokens=TRIAL_TOKENS)
        try:
            body = self._body(self._table[torch.tensor(ids)], few, self.context)
            by_rows = [token.id for token in self._tokens(body, few)]
        except PeerRefused as error:
            raise UsageError(
                f"{self._peer.url} takes no embeddings of this model ({error}); start it with {self._dialect.start}"
            ) from error
        by_ids = [token.id for token in self._tokens(self._body(ids, few, self.context), few)]
        if by_ids != by_rows:
            raise UsageError(f"{self._peer.url} serves another language model than the checkpoint's: {self._model}")


def asked_for(sampling: Sampling, **names: str) -> dict[str, Any]:
    """The options that are not as they are by themselves; ``names`` are further ones and what the server calls them."""
    return {
        there: getattr(sampling, here)
        for here, there in {**dict(zip(_NAMES, _NAMES, strict=True)), **names}.items()
        if getattr(sampling, here) != getattr(_PLAIN, here)
    }


def _served(peer: Peer, wanted: str) -> tuple[str, int]:
    """The name of the model that is served, and its context."""
    listed = peer.get("/v1/models").get("data")
    entries = listed if isinstance(listed, list) else []
    known = {str(each.get("id")): each for each in entries if isinstance(each, dict)}
    name = wanted or next(iter(known), "")
    length = known.get(name, {}).get("max_model_len")
    if type(length) is not int or length < 1:
        raise UsageError(f"{peer.url} has no model {name!r} with a known context; it has: {', '.join(sorted(known))}")
    return name, length
