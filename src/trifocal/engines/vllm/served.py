"""A server of vLLM that takes prompts as embeddings: it becomes one that sees, and nothing of it is changed."""

from __future__ import annotations

import base64
import io
import json
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import torch

from trifocal.engines.base import Abilities, State, Token
from trifocal.engines.closing import held
from trifocal.engines.language import end_ids, open_language, tokenizer_of
from trifocal.engines.recipe import Recipe
from trifocal.engines.vllm.local import EMBEDDING, salt
from trifocal.errors import (
    BadSampling,
    CheckpointError,
    EngineError,
    PeerError,
    PeerRefused,
    PromptTooLong,
    UsageError,
)
from trifocal.messages import Sampling
from trifocal.peer import Peer, address, key_headers
from trifocal.placement import Part
from trifocal.prompt import Prompt

__all__ = ["KEY_VARIABLE", "Served"]

KEY_VARIABLE = "TRIFOCAL_ENGINE_KEY"
RESTS_SECONDS = 10.0  # for which a server that could not be reached counts as away
TRIAL = "The quick brown fox jumps over"
TRIAL_TOKENS = 4
# those that multiply a text's embeddings on their way in: vLLM takes ours as they are
SCALED = ("gemma", "gemma2", "gemma3_text", "granite", "granitemoe", "helium")
_PLAIN = Sampling()
_OPTIONS = {
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}


class Served:
    """A language model behind a server of vLLM that was started with ``--enable-prompt-embeds``.

    A prompt without pictures goes there as ids. One with pictures goes as embeddings: the text's are looked up here, in
    the checkpoint's own table, so the server has to have the same language model, and that is tried when it is opened.
    """

    able = Abilities(logprobs=True, grammar=True)

    def __init__(
        self,
        recipe: Recipe,
        url: str,
        *,
        key: str = "",
        model: str = "",
        context: int = 0,
        seconds: tuple[float, float] = (300.0, 60.0),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        kind = str(recipe.config["model_type"])
        if kind in SCALED:
            raise UsageError(f"a server of vLLM takes embeddings as they are, and {kind} multiplies those of text")
        base = address(url, "-e url=ADDRESS", f"-e key=... or {KEY_VARIABLE}")
        key = key or (os.environ if environ is None else environ).get(KEY_VARIABLE, "")
        self._peer = Peer(base.removesuffix("/v1"), key_headers(key, KEY_VARIABLE), *seconds)
        language = open_language(recipe)
        self._table = language.weights[EMBEDDING]  # [vocabulary, hidden]
        self.hidden = int(self._table.shape[1])
        self.tokenizer = tokenizer_of(language, self._table.shape[0])
        self._ends = end_ids(language, self._table.shape[0])
        self._model, longest = _served(self._peer, model)
        self.context = min(context or longest, longest)
        self._running, self._closed = 0, False
        self.parts = (Part("language", f"{self._model} in vLLM", base, "", 0),)
        self._try()

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        if self._closed:
            raise EngineError("the engine is closed")
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        return self._answer({**self._prompt(prompt), **self._wanted(sampling, self.context - len(prompt))}, sampling)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """vLLM does not tell."""
        raise UsageError("this engine can't tell where it looks")

    def state(self) -> State:
        """Ready, unless its server could not be reached a moment ago."""
        failed = self._peer.failed
        away = failed is not None and time.monotonic() - failed < RESTS_SECONDS
        reason = "the engine is closed" if self._closed else "vLLM's server can't be asked" if away else ""
        return State("failed" if reason else "ready", self._running, reason=reason, several=True)

    def close(self) -> None:
        """Forgets the server."""
        self._closed = True

    def _answer(self, body: Mapping[str, Any], sampling: Sampling) -> Generator[Token, None, None]:
        self._running += 1
        finish = None
        try:
            with closing(self._events(body)) as events:
                for event in events:
                    for choice in _choices(event):
                        yield from self._tokens(choice, sampling)
                        finish = choice.get("finish_reason") or finish
            if finish is None:
                raise PeerError(f"{self._peer.url} went away in the middle of its answer", "vLLM's server went away")
        finally:
            self._running -= 1

    def _events(self, body: Mapping[str, Any]) -> Generator[dict[str, Any], None, None]:
        """The server's answer. What it refuses of a request that we made is no fault of whoever asks us."""
        try:
            yield from self._peer.events("/v1/completions", body)
        except PeerRefused as error:
            if error.param in ("response_format", "structured_outputs"):
                raise BadSampling("schema", str(error)) from error
            raise PeerError(f"{self._peer.url} refused a prompt: {error}") from error

    def _tokens(self, choice: Mapping[str, Any], sampling: Sampling) -> Iterator[Token]:
        """The tokens of a piece of the answer, without the end token."""
        ids = choice.get("token_ids") or []
        rows = self._table.shape[0]
        if not isinstance(ids, list) or any(type(token) is not int or not 0 <= token < rows for token in ids):
            raise PeerError(f"{self._peer.url} tells no ids of this vocabulary: it takes a vLLM of 0.11 or later")
        if choice.get("text") and not ids:
            raise PeerError(f"{self._peer.url} tells no ids: it takes a vLLM of 0.11 or later")
        told = choice.get("logprobs") if sampling.top_logprobs is not None else None
        for at, token in enumerate(ids):
            if token in self._ends and not sampling.ignore_end:
                return
            yield _scored(token, told, at, sampling.top_logprobs or 0) if isinstance(told, dict) else Token(token)

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        if not prompt.images:
            return {"prompt": prompt.token_ids, **salt(prompt)}
        rows = prompt.splice(lambda ids: self._table[ids])  # [positions, hidden]
        return {"prompt_embeds": _packed(rows), **salt(prompt)}

    def _wanted(self, sampling: Sampling, room: int) -> dict[str, Any]:
        told: dict[str, Any] = {
            there: getattr(sampling, here)
            for here, there in _OPTIONS.items()
            if getattr(sampling, here) != getattr(_PLAIN, here)
        }
        if sampling.top_logprobs is not None:
            told |= {"logprobs": max(sampling.top_logprobs, 1), "return_tokens_as_token_ids": True}
        if sampling.schema is not None:
            told["structured_outputs"] = {"json": json.loads(held(sampling.schema)), "disable_any_whitespace": True}
        return {
            **told,
            "model": self._model,
            "max_tokens": min(sampling.max_tokens or room, room),
            "temperature": sampling.temperature,
            "ignore_eos": sampling.ignore_end,
            "stop_token_ids": [] if sampling.ignore_end else sorted(self._ends),
            "return_token_ids": True,
            "stream": True,
        }

    def _try(self) -> None:
        """Asks for a few words by ids and by embeddings: another model than the checkpoint's would tell two stories.

        Raises:
            UsageError: it takes no embeddings, or is another model.
        """
        ids = self.tokenizer.encode(TRIAL, start=True)
        wanted = self._wanted(Sampling(max_tokens=TRIAL_TOKENS), self.context)
        rows = self._table[torch.tensor(ids)]
        try:
            by_rows = self._whole({"prompt_embeds": _packed(rows), **wanted})
        except PeerRefused as error:
            raise UsageError(
                f"{self._peer.url} takes no embeddings of this model ({error}); start it with --enable-prompt-embeds"
            ) from error
        by_ids = self._whole({"prompt": ids, **wanted})
        if by_ids != by_rows:
            raise UsageError(f"{self._peer.url} serves another language model than the checkpoint's: {self._model}")

    def _whole(self, body: Mapping[str, Any]) -> list[int]:
        with closing(self._peer.events("/v1/completions", body)) as events:
            choices = [choice for event in events for choice in _choices(event)]
        return [token.id for choice in choices for token in self._tokens(choice, _PLAIN)]


def _served(peer: Peer, wanted: str) -> tuple[str, int]:
    """The name of the model that is served, and its context."""
    listed = peer.get("/v1/models").get("data")
    known = {str(each.get("id")): each for each in listed or () if isinstance(each, dict)}
    name = wanted or next(iter(known), "")
    length = known.get(name, {}).get("max_model_len")
    if not isinstance(length, int):
        raise UsageError(f"{peer.url} has no model {name!r} with a known context; it has: {', '.join(sorted(known))}")
    return name, length


def _choices(event: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    choices = event.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        raise PeerError("vLLM's server answers with what is no completion")
    yield from choices


def _scored(token: int, told: Mapping[str, Any], at: int, top: int) -> Token:
    """A token with what the server tells of its likelihood: names of tokens are ``token_id:17`` there."""
    try:
        likely = {_id(name): float(value) for name, value in (told["top_logprobs"][at] or {}).items()}
        ranked = sorted(likely.items(), key=lambda pair: -pair[1])
        return Token(token, float(told["token_logprobs"][at]), tuple(ranked[:top]))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise PeerError("vLLM's server tells log-probabilities in a way that is not known here") from error


def _id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _packed(rows: torch.Tensor) -> str:
    """Rows as vLLM takes them: base64 of what ``torch.save`` writes."""
    if rows.layout != torch.strided or not bool(torch.isfinite(rows).all()):
        raise CheckpointError("there are embeddings that are no finite numbers")
    buffer = io.BytesIO()
    torch.save(rows.contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()
