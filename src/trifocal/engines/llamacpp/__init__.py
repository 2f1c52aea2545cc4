"""The engine over llama.cpp: its kernels and quantised weights, our scheduler, sampler, tokenizer and pictures."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from trifocal.engines.base import Abilities
from trifocal.engines.batching import Batching, Model
from trifocal.engines.grammar import Grammars, constraints
from trifocal.engines.language import Language, end_ids, open_language, tokenizer_of, unrunnable
from trifocal.engines.llamacpp.conversion import ROUNDINGS
from trifocal.engines.llamacpp.kept import made_of
from trifocal.engines.llamacpp.library import Context, Wishes, offloads
from trifocal.engines.llamacpp.runner import LlamaRunner
from trifocal.engines.recipe import Recipe
from trifocal.engines.shape import shape_of, unfit_for_gguf
from trifocal.engines.speculation import LONGEST
from trifocal.errors import UnknownName, UsageError
from trifocal.placement import Part, Placement
from trifocal.source import source_of

__all__ = ["LlamaCpp", "load"]

AT_ONCE = 2  # full contexts that the memory holds where nothing else is said
BLOCK = 16  # positions
LEAST, MOST_POSITIONS = 4096, 8192  # positions of the memory where nothing else is said
POOL_BYTES = 1 << 30  # of keys and values where nothing else is said: llama.cpp takes them when it starts
ROWS = 32  # requests in one step
SEQUENCES = 2 * ROWS + 1  # one leaves as one comes, and one saves and restores
PIECE = 128  # positions of prompts in a step beside streams
ABLE = Abilities(logprobs=True, grammar=True, speculates=True)

log = logging.getLogger("trifocal")


@dataclass(frozen=True, slots=True)
class _Options:
    context: int | None
    positions: int | None
    threads: int | None
    gpu_layers: int | None
    speculate: bool


class LlamaCpp(Batching):
    """A language model computed by llama.cpp, all of whose requests go on together."""

    parts: tuple[Part, ...] = ()


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    context: int | None = None,
    positions: int | None = None,
    threads: int | None = None,
    gpu_layers: Literal[-1] | int | None = None,
    quantise: str | None = None,
    speculate: bool = True,
) -> LlamaCpp:
    """Loads a GGUF file's language half, or that of a folder, which becomes a GGUF file once.

    ``context`` caps the positions of prompt and answer, ``positions`` is how many the memory of keys and values holds
    for all requests together (left out: two contexts, as far as `MOST_POSITIONS` and `POOL_BYTES` allow). ``threads``
    are the CPU threads of its own (left out: torch's, and no more than cores that this process may use).
    ``gpu_layers`` says how many layers lie on a GPU (left out or -1: all, where this build of llama.cpp has one and the
    placement is not the CPU). The placement's precision is that of keys and values: float16, but float32 where that is
    asked for. ``quantise`` makes another type of the matrices that are floats (``F32``, ``F16``, ``Q8_0`` or ``Q4_0``);
    left out, they stay as they are. ``speculate`` lets it guess what an answer says next from what stands before it,
    while that is measured to pay.

    Raises:
        CheckpointError: the file can't be loaded, or the folder can't become one.
        UnknownName: there is no such rounding.
        OutOfMemory: there is no room.
        UsageError: a device that this build of llama.cpp has not.
    """
    gpu = _gpu(placement, gpu_layers)
    rounding = _rounding(recipe, quantise)
    options = _Options(context, positions, threads, gpu_layers, speculate)
    engine = LlamaCpp(lambda: _started(recipe, rounding, placement, gpu, options))
    runner = engine.facts.runner
    assert isinstance(runner, LlamaRunner)
    own = runner.context
    engine.parts = (Part("language", own.described, "gpu" if gpu is not None else "cpu", "as stored", own.nbytes),)
    return engine


def _is_ready(recipe: Recipe, quantise: str | None) -> bool:
    """Whether the checkpoint's own file is what llama.cpp computes from."""
    return bool(source_of(recipe.path).container) and recipe.adapter is None and quantise is None


def _rounding(recipe: Recipe, quantise: str | None) -> str | None:
    """How a folder's matrices are rounded; refuses what can't be loaded here."""
    reason = "its pictures see each other" if recipe.attention != "causal" else None
    if reason := reason or (None if _is_ready(recipe, quantise) else unfit_for_gguf(recipe.config)):
        raise unrunnable(recipe, "llamacpp", reason)
    rounding = None if quantise is None else quantise.upper()
    if rounding is not None and rounding not in ROUNDINGS:
        raise UnknownName("value of quantise", str(quantise), list(ROUNDINGS))
    return rounding


def _gpu(placement: Placement, layers: int | None) -> int | None:
    """Which GPU is meant: its number, -1 for all there are, None for the CPU."""
    kind, _, number = placement.device.partition(":")
    if not layers and (kind == "cpu" or layers == 0 or (kind == "auto" and not offloads())):
        return None
    if not offloads():
        raise UsageError(
            "this build of llama-cpp-python computes on the CPU alone: install one for your GPU "
            "(CMAKE_ARGS=-DGGML_CUDA=on, -DGGML_METAL=on or -DGGML_VULKAN=on), or say --language cpu"
        )
    return int(number) if number.isdigit() else -1


@torch.inference_mode()
def _started(recipe: Recipe, rounding: str | None, placement: Placement, gpu: int | None, options: _Options) -> Model:
    language = open_language(recipe)
    file = recipe.path if _is_ready(recipe, rounding) else made_of(language, rounding)
    began = time.perf_counter()
    keys = getattr(torch, placement.dtype) if placement.dtype != "auto" else torch.float16
    most, positions = _room(language, options, keys)
    positions = -(-positions // BLOCK) * BLOCK
    own = Context(
        file,
        Wishes(
            positions=positions,
            sequences=SEQUENCES,
            batch=ROWS + 4 * PIECE,
            threads=options.threads or min(_cores(), torch.get_num_threads()),
            keys=keys,
            gpu_layers=0 if gpu is None else -1 if options.gpu_layers is None else options.gpu_layers,
            gpu=gpu if gpu is not None and gpu >= 0 else None,
        ),
    )
    seconds = time.perf_counter() - began
    log.info("language model: %.1f MB in llama.cpp (%s), %.2f s", own.nbytes / 1e6, own.described, seconds)
    ends, tokenizer = end_ids(language, own.vocabulary), tokenizer_of(language, own.vocabulary)
    return Model(
        runner=LlamaRunner(own, positions, BLOCK, SEQUENCES),
        tokenizer=tokenizer,
        hidden=own.hidden,
        context=most,
        end_ids=ends,
        able=ABLE,
        block=BLOCK,
        rows=ROWS,
        piece=PIECE,
        ahead=LONGEST if options.speculate else 0,
        constraint=constraints(lambda: Grammars(tokenizer.definition, own.vocabulary, ends)),
    )


def _trained(language: Language) -> int:
    """The positions that the model was made for; no more than each of them sees."""
    context = int(language.config.get("max_position_embeddings") or 2048)
    window = 0 if source_of(language.folder).container else shape_of(language.config).window
    if 0 < window < context:
        log.warning("language model: each position sees %d before it, which is all of the context here", window)
    return min(context, window or context)


def _room(language: Language, options: _Options, keys: torch.dtype) -> tuple[int, int]:
    """The positions of prompt and answer, and of the memory for all requests."""
    context = _trained(language)
    if options.context is not None:
        context = min(context, options.context)
        return context, max(context, options.positions or 0)
    config = language.config
    heads = int(config.get("num_attention_heads") or 32)
    dim = int(config.get("head_dim") or config["hidden_size"] // heads)
    wide = 2 * int(config.get("num_hidden_layers") or 32) * int(config.get("num_key_value_heads") or heads) * dim
    fits = max(LEAST, POOL_BYTES // (wide * keys.itemsize))
    positions = options.positions or min(AT_ONCE * context, MOST_POSITIONS, fits)
    if positions < context:
        log.warning("language model: a context of %d positions, not %d; -e context=N says another", positions, context)
    return min(context, positions), positions


def _cores() -> int:
    """How many cores this process may use; more threads than that only wait for each other."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    pairs = [Path(f"/sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list") for number in usable]
    cores = len({file.read_text() for file in pairs if file.is_file()}) or len(usable)
    return max(1, min(cores, _granted()))


def _granted() -> int:
    """How many CPUs the control group grants; many where it does not say."""
    file = Path("/sys/fs/cgroup/cpu.max")
    quota, _, period = file.read_text().partition(" ") if file.is_file() else ("max", "", "")
    return max(1, int(quota) // int(period)) if quota.isdigit() else 1 << 16
