"""The engine for models of transformers whose attention no pool of blocks can hold: one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trifocal.engines.base import Abilities, State, Token
from trifocal.engines.grammar import Constraint
from trifocal.engines.prefixes import Prefixes, position_keys
from trifocal.engines.sampler import Drawing, pick
from trifocal.engines.transformers.loading import Loaded
from trifocal.engines.transformers.looking import attention_of
from trifocal.errors import EngineError, OutOfMemory, PromptTooLong, TrifocalError
from trifocal.messages import Sampling
from trifocal.placement import Part
from trifocal.prompt import ImageSpan, Prompt, Scope

__all__ = ["ABLE", "OneAtATime", "masks_of"]

ABLE = Abilities(logprobs=True, grammar=True, explains=True, sees=("causal", "images", "prompt"))


class OneAtATime:
    """A causal language model of transformers, continued from spliced embeddings.

    Many threads may call it: each request has its own key-value cache, and they take turns step by
    step. The caches of the latest prompts stay, up to ``prefix_cache`` bytes, so that the next turn
    of a conversation runs only over what is new.
    """

    able = ABLE

    def __init__(self, loaded: Loaded, prefix_cache: int) -> None:
        self.tokenizer, self.context, self.hidden = loaded.tokenizer, loaded.context, loaded.hidden
        self._loaded: Loaded | None = loaded
        self._turn = threading.Lock()
        self._prefixes: Prefixes[Any] = Prefixes(prefix_cache, _branched)

    @property
    def loaded(self) -> Loaded:
        """The transformers model and what belongs to it.

        Raises:
            EngineError: the engine is closed.
        """
        if self._loaded is None:
            raise EngineError("the engine is closed")
        return self._loaded

    @property
    def model(self) -> Any:
        """The transformers model itself."""
        return self.loaded.model

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        return self.loaded.embed(ids)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        loaded = self.loaded  # which says that a closed engine is closed, before the first step
        constraint = None if sampling.schema is None else loaded.constraint(sampling.schema, prompt.scope)
        return self._tokens(prompt, sampling, constraint)

    @torch.inference_mode()
    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """Where it looked while it chose each id; see `trifocal.engines.base.Engine.attention`.

        The answer is run once more behind the prompt, whose key-value rows are those of the prefix cache.
        """
        if not len(prompt) or not ids:
            raise EngineError("there is no prompt or no answer to look at")
        if len(prompt) + len(ids) > self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, len(ids), self.context)
        with self._guarded("the answer"), self._turn:
            cache, done = self._start(position_keys(prompt), prompt.scope, branch=True)
            rows = prompt.splice(self.loaded.embed)[done:]  # [positions not in the cache, hidden]
            return attention_of(self.loaded, cache, rows, ids, len(prompt), **masks_of(self.loaded, prompt, done))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model, as it is loaded."""
        return (self.loaded.part,)

    def state(self) -> State:
        """Ready until it is closed; requests take turns, so none is counted."""
        return State() if self._loaded is not None else State("failed", reason="the engine is closed")

    def close(self) -> None:
        """Frees the model and all caches."""
        self._loaded = None
        self._prefixes.clear()

    # inference_mode as a decorator wraps every step of the generator; as a with-block inside it would
    # stay switched on in the caller between two steps
    @torch.inference_mode()
    def _tokens(
        self, prompt: Prompt, sampling: Sampling, constraint: Constraint | None
    ) -> Generator[Token, None, None]:
        keys = position_keys(prompt)
        drawing = Drawing(sampling, prompt.token_ids, self.loaded.end_ids, constraint)
        left = min(sampling.max_tokens or self.context, self.context - len(prompt))
        with self._guarded("the prompt"):
            cache, done = self._start(keys, prompt.scope)
        sound = False  # a run that broke off has left rows in some of the layers: nobody may go on from there
        try:
            with self._guarded("the prompt"):
                rows = prompt.splice(self.loaded.embed)[done:]  # [positions not in the cache, hidden]
                logits = self._forward(cache, inputs_embeds=rows[None], **masks_of(self.loaded, prompt, done))
            while True:
                [token] = pick(logits[None], [drawing])
                if isinstance(token, TrifocalError):
                    raise token
                sound = True
                if token.id in self.loaded.end_ids:
                    return
                yield token
                left -= 1
                if not left:
                    return
                sound = False
                with self._guarded("the answer"):
                    logits = self._forward(cache, input_ids=torch.tensor([[token.id]], device=self.model.device))
                keys.append(token.id)
        finally:
            scope = prompt.scope if sound else None
            if scope is not None and self._loaded is not None and self.loaded.attention != "prompt":
                self._prefixes.put(keys, cache, _bytes(cache), scope=scope)

    def _start(self, keys: list[Hashable], scope: Scope, *, branch: bool = False) -> tuple[Any, int]:
        """A cache, and how many positions of the prompt it holds already; one is always left to run."""
        from transformers import DynamicCache

        if scope is None:
            return DynamicCache(), 0
        cache, done = self._prefixes.take(keys[:-1], branch=branch, scope=scope)
        return (DynamicCache(), 0) if cache is None else (cache, done)

    def _forward(self, cache: Any, **inputs: Any) -> torch.Tensor:
        """The logits of the last position, ``[vocabulary]``; the cache grows by the inputs."""
        with self._turn:
            out = self.model(**inputs, **self.loaded.keeping(cache), use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = out.logits[0, -1]
        return logits

    @contextmanager
    def _guarded(self, what: str) -> Iterator[None]:
        """Torch's errors as ours."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._prefixes.clear()
            raise OutOfMemory(f"the language model's device has no room for {what}; shorten it") from error
        except (RuntimeError, ValueError, IndexError) as error:
            raise EngineError(f"the language model failed on {what} ({type(error).__name__})") from error


def masks_of(loaded: Loaded, prompt: Prompt, done: int) -> dict[str, Any]:
    """Who sees whom, seen from the positions from ``done`` on, where some see each other; empty where all is causal."""
    if loaded.attention == "causal":
        return {}
    block = torch.full((len(prompt),), -1 if loaded.attention == "images" else 0)
    at = 0
    for number, span in enumerate(prompt.spans):
        if isinstance(span, ImageSpan) and loaded.attention == "images":
            block[at : at + len(span)] = number
        at += len(span)
    place = torch.arange(len(prompt))
    behind = place[:, None] - place[None]  # [queries, keys]
    same = (block[:, None] == block[None]) & (block[:, None] >= 0)
    full = ((behind >= 0) | same)[None, None, done:].to(loaded.model.device)
    window = getattr(loaded.model.config, "sliding_window", None)
    if not window:
        return {"attention_mask": full}
    near = (((behind >= 0) & (behind < window)) | same)[None, None, done:].to(loaded.model.device)
    return {"attention_mask": {"full_attention": full, "sliding_attention": near}}


def _bytes(cache: Any) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def _branched(cache: Any, positions: int) -> Any:
    """A cache of its own with the first ``positions`` of another, which stays as it is."""
    from transformers import DynamicCache

    branch = DynamicCache()
    for at, layer in enumerate(cache.layers):
        branch.update(layer.keys[..., :positions, :], layer.values[..., :positions, :], at)
    return branch
