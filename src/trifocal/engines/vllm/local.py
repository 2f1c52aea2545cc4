"""vLLM's engine, whose scheduler and memory serve our prompts: ids where text stands, rows where pictures do."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import tempfile
import threading
import uuid
import weakref
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import Future
from importlib.util import find_spec
from typing import Any

import torch

from trifocal.cancelling import woken_by
from trifocal.engines.base import Abilities, State, Token
from trifocal.engines.language import end_ids, open_language, tokenizer_of
from trifocal.engines.recipe import Recipe
from trifocal.engines.vllm.scopes import salt
from trifocal.errors import (
    BadSampling,
    CheckpointError,
    EngineError,
    MissingExtra,
    OutOfMemory,
    PromptTooLong,
    TrifocalError,
    UsageError,
)
from trifocal.messages import Sampling
from trifocal.placement import Part, Placement
from trifocal.prompt import ImageSpan, Prompt

__all__ = ["Local"]

# before vLLM is imported: it tells its makers what is run, talks on the terminal, and forks a process that has threads
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
Said = Token | TrifocalError | None


class Local:
    """A language model in vLLM's `AsyncLLM`, which has processes of its own.

    vLLM names what it keeps of a prompt by the ids and by a digest of the rows, block by block, and by our scope: two
    pictures are never taken for each other.
    """

    able = Abilities(logprobs=True)

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        *,
        context: int = 0,
        gpu_memory: float = 0.9,
        kv_gib: float = 0.0,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        eager: bool = False,
    ) -> None:
        if find_spec("vllm") is None:
            raise MissingExtra("the engine vllm", "vllm")
        language = open_language(recipe)
        rows = int(recipe.config["vocab_size"])
        self.tokenizer, self._ends = tokenizer_of(language, rows), end_ids(language, rows)
        self.hidden = recipe.hidden
        self.context = min(context or 1 << 40, int(recipe.config.get("max_position_embeddings", 2048)))
        self._running, self._failed = 0, ""
        self._folder = tempfile.TemporaryDirectory(prefix="trifocal-vllm-")
        _write_config(recipe, self._folder.name)
        options = {
            "model": self._folder.name,
            "skip_tokenizer_init": True,
            "enable_prompt_embeds": True,
            "dtype": _dtype(placement),
            "max_model_len": self.context,
            "load_format": "trifocal",
            "model_loader_extra_config": {"recipe": recipe.to_json()},
            "gpu_memory_utilization": gpu_memory,
            "tensor_parallel_size": tensor_parallel,
            "pipeline_parallel_size": pipeline_parallel,
            "enforce_eager": eager,
            "generation_config": "vllm",  # whose defaults are ours: none
            "disable_log_stats": True,
            "max_logprobs": 20,
        }
        if kv_gib:
            options["kv_cache_memory_bytes"] = int(kv_gib * (1 << 30))
        self._loop = _Loop()
        self._close = weakref.finalize(self, _end, self._loop, self._folder)
        self._loop.start(options)
        self.parts = (Part("language", f"{recipe.config['model_type']} in vLLM", str(placement), _dtype(placement), 0),)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        """The answer's tokens; see `trifocal.engines.base.Engine.stream`."""
        self._check(prompt, sampling)
        return self._answer(prompt, sampling)

    def attention(self, prompt: Prompt, ids: Sequence[int]) -> torch.Tensor:
        """vLLM does not tell."""
        raise UsageError("this engine can't tell where it looks")

    def state(self) -> State:
        """Ready until vLLM's processes end."""
        dead = self._failed or ("" if self._close.alive and not self._loop.engine.errored else "vLLM's engine is dead")
        return State("failed" if dead else "ready", self._running, reason=dead, several=True)

    def close(self) -> None:
        """Ends vLLM's processes."""
        self._close()

    def _check(self, prompt: Prompt, sampling: Sampling) -> None:
        if not self._close.alive:
            raise EngineError("the engine is closed")
        if not len(prompt):
            raise EngineError("the prompt is empty: there is nothing to continue")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        if sampling.schema is not None:
            raise BadSampling("schema", "this engine can't hold an answer to a schema")

    def _answer(self, prompt: Prompt, sampling: Sampling) -> Generator[Token, None, None]:
        said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        work = self._loop.submit(self._told(prompt, sampling, said))
        self._running += 1
        try:
            with woken_by(lambda: said.put(None)):
                while (item := said.get()) is not None:
                    if isinstance(item, TrifocalError):
                        raise item
                    yield item
        finally:
            self._running -= 1
            work.cancel()  # which aborts the request in vLLM

    async def _told(self, prompt: Prompt, sampling: Sampling, said: queue.SimpleQueue[Said]) -> None:
        """Asks vLLM, in its loop, and passes on what it says."""
        try:
            wanted = _wanted(sampling, self.context - len(prompt), self._ends)
            async for output in self._loop.engine.generate(_prompt(prompt, self.hidden), wanted, uuid.uuid4().hex):
                (answer,) = output.outputs
                for token in _tokens(answer, sampling, self._ends):
                    said.put(token)
            said.put(None)
        except Exception as error:
            said.put(_ours(error))
        finally:
            said.put(None)


class _Loop:
    """The event loop in which vLLM lives, in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self.engine: Any = None

    def start(self, options: dict[str, Any]) -> None:
        """Makes vLLM's engine with these options."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        async def made() -> Any:
            return AsyncLLM.from_engine_args(AsyncEngineArgs(**options))

        self._thread.start()
        try:
            self.engine = self.submit(made()).result()
        except Exception as error:
            self.stop()
            raise _unloaded(error) from error

    def submit(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Starts work in the loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def stop(self) -> None:
        """Ends vLLM's processes and the thread."""
        if self.engine is not None:
            self.engine.shutdown()
            self.engine = None  # it ends its processes again where it is forgotten, which must not be at exit
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
        if not self._loop.is_running():
            self._loop.close()


def _end(loop: _Loop, folder: tempfile.TemporaryDirectory[str]) -> None:
    loop.stop()
    folder.cleanup()


def _write_config(recipe: Recipe, folder: str) -> None:
    """The language model's configuration as vLLM reads one: with the class that it is of, without a quantisation.

    Quantised weights are unpacked on their way (`trifocal.engines.language.open_language`).
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(recipe.config["model_type"])
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if name is None:
        raise CheckpointError(f"a language model of the type {kind} is none that vLLM could have")
    config = {key: value for key, value in recipe.config.items() if key != "quantization_config"}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump({**config, "architectures": [name]}, file)


def _dtype(placement: Placement) -> str:
    if placement.dtype != "auto":
        return placement.dtype
    return "float32" if placement.device == "cpu" else "float16"


def _prompt(prompt: Prompt, hidden: int) -> dict[str, Any]:
    """A prompt as vLLM takes it: an id a position, which of them are ids, and rows for the others."""
    text = prompt.token_ids
    asked: dict[str, Any] = {"prompt_token_ids": prompt.ids(text[0] if text else 0)}
    if prompt.images:
        rows = torch.zeros(len(prompt), hidden, dtype=prompt.images[0].features.dtype)
        at, ids = 0, list[bool]()
        for span in prompt.spans:
            if isinstance(span, ImageSpan):
                rows[at : at + len(span)] = span.features.cpu()
            ids += [not isinstance(span, ImageSpan)] * len(span)
            at += len(span)
        asked |= {"prompt_embeds": rows, "prompt_is_token_ids": ids}
    return {**asked, **salt(prompt.scope)}


def _wanted(sampling: Sampling, room: int, ends: frozenset[int]) -> Any:
    """Sampling as vLLM takes it."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=min(sampling.max_tokens or room, room),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        ignore_eos=sampling.ignore_end,
        stop_token_ids=[] if sampling.ignore_end else sorted(ends),
        logprobs=sampling.top_logprobs,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def _tokens(answer: Any, sampling: Sampling, ends: frozenset[int]) -> Generator[Token, None, None]:
    """The tokens of a piece of vLLM's answer, without the end token."""
    for at, token in enumerate(answer.token_ids):
        if token in ends and not sampling.ignore_end:
            return
        if sampling.top_logprobs is None:
            yield Token(token)
            continue
        told = answer.logprobs[at]
        top = sorted(((other, each.logprob) for other, each in told.items()), key=lambda pair: -pair[1])
        yield Token(token, told[token].logprob, tuple(top[: sampling.top_logprobs]))


def _ours(error: Exception) -> TrifocalError:
    """vLLM's error as ours."""
    if isinstance(error, TrifocalError):
        return error
    words = f"vLLM failed ({type(error).__name__}: {str(error)[:200]})"
    made: TrifocalError = OutOfMemory(words) if "out of memory" in str(error).lower() else EngineError(words)
    made.__cause__ = error
    return made


def _unloaded(error: Exception) -> TrifocalError:
    """Why there is no engine."""
    if "memory" in str(error).lower():
        return OutOfMemory(f"vLLM has no room for this model ({str(error)[:300]}); say -e kv_gib= or -e context=")
    return CheckpointError(f"vLLM can't load this model ({type(error).__name__}: {str(error)[:300]})")
