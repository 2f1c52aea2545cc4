"""Our own fast engine for the LLaMA family: one pool of keys and values, few launches, four-bit layers as they are."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trifocal import cuda
from trifocal.engines.base import Abilities
from trifocal.engines.batching import Batching, Model
from trifocal.engines.grammar import Grammars, constraints
from trifocal.engines.language import end_ids, open_language, tokenizer_of, unrunnable
from trifocal.engines.native.eight import Prompts
from trifocal.engines.native.kernels import Kernels
from trifocal.engines.native.loading import read
from trifocal.engines.native.looking import attention_of
from trifocal.engines.native.memory import BLOCK, Pool
from trifocal.engines.native.model import Plain
from trifocal.engines.native.runner import NativeRunner
from trifocal.engines.recipe import Recipe
from trifocal.engines.shape import Shape, rotary_table, shape_of, unfit
from trifocal.engines.speculation import LONGEST
from trifocal.errors import OutOfMemory, UsageError
from trifocal.placement import Part, Placement
from trifocal.prompt import Prompt

__all__ = ["Native", "load", "unfit"]

AT_ONCE = 8  # full contexts that the pool holds where there is room and nothing else is said
LARGE_BYTES = 1 << 30  # of a dense model, from which on four-bit layers stay packed on a CPU too
PIECE, CPU_PIECE = 2048, 128  # positions of prompts in a step beside streams
WHOLE, CPU_WHOLE = 4096, 512  # and where nothing streams
LEAST = 2048  # positions that the pool holds however little room there is
POOL_BYTES = 4 << 30  # of keys and values where no system tells how much memory there is
SPARE_BYTES = 2 << 30  # of a card, left for the other parts and for prompts under way
ABLE = Abilities(logprobs=True, grammar=True, explains=True, speculates=True)

log = logging.getLogger("trifocal")


@dataclass(frozen=True, slots=True)
class _Options:
    context: int | None
    positions: int | None
    int4: bool | None
    kernels: bool
    graphs: bool
    speculate: bool
    overlap: bool | None
    threads: int | None
    kv: str
    table: str
    prompts: str


class Native(Batching):
    """A language model of the LLaMA family, all of whose requests go on together."""

    @property
    def runner(self) -> NativeRunner:
        """The runner, with the model.

        Raises:
            EngineError: the engine is closed.
        """
        runner = self.facts.runner
        assert isinstance(runner, NativeRunner)
        return runner

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        return self.runner.embed(ids)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The language model, as it is loaded."""
        return (self.runner.part,)


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    context: int | None = None,
    positions: int | None = None,
    threads: int | None = None,
    int4: bool | None = None,
    kernels: bool = True,
    graphs: bool = True,
    speculate: bool = True,
    overlap: bool | None = None,
    kv: Literal["exact", "int8"] = "exact",
    table: Literal["device", "cpu"] = "device",
    prompts: Literal["exact", "fp8"] = "exact",
) -> Native:
    """Loads a language model of the LLaMA family onto its device.

    ``context`` caps the positions of prompt and answer, ``positions`` is how many the pool of keys and values holds for
    all requests together (left out: eight contexts, or what there is room for). ``threads`` sets torch's CPU
    threads (of the whole process). ``int4`` says whether the layers of four-bit checkpoints stay packed or are made
    dense; left out, they stay packed on cards, and where the dense model would be large. ``kernels`` and ``graphs``
    switch off our own kernels and CUDA graphs, each to find out what it does, and ``speculate`` the guessing of what an
    answer says next from what stands before it, which changes no answer and is done only while it is measured to pay.
    ``overlap`` says whether the next step is begun before the tokens of this one are read; left out, it is on cards.
    ``kv`` is "exact", or "int8": keys and values are kept as bytes, each head of a position with a scale, which takes
    half the memory and the time to read it, and is no longer within the model's own rounding (docs/performance.md).
    ``table`` is "device", or "cpu": the table of embeddings stays in the main memory, where a token's row is looked up;
    then no step is begun ahead. ``prompts`` is "exact", or "fp8": steps of more than 64 positions are multiplied in
    eight bits, which Hopper cards do in half the time; each layer's weight is there a second time, a byte a number,
    and prompts are no longer within the model's own rounding (docs/performance.md).

    Raises:
        UsageError: ``prompts="fp8"`` where nothing can be multiplied so.
        CheckpointError: no model of the family, or tensors missing, unknown, damaged or of another shape.
        OutOfMemory: the device has no room.
    """
    reason = "its pictures see each other" if recipe.attention != "causal" else unfit(recipe.config)
    if reason:
        raise unrunnable(recipe, "native", reason)
    if threads:
        torch.set_num_threads(threads)
    device, dtype = placement.resolve()
    if prompts == "fp8" and not (kernels and dtype != torch.float32 and cuda.hopper(device)):
        found = f"{device} in {str(dtype).removeprefix('torch.')}"
        raise UsageError(f"prompts=fp8 wants a Hopper card, with kernels and 16 bits; this is {found}; leave it out")
    if device.type == "cuda":
        # cuDNN's attention builds a kernel for every new length of a prompt, up to a second each
        torch.backends.cuda.enable_cudnn_sdp(False)
    options = _Options(context, positions, int4, kernels, graphs, speculate, overlap, threads, kv, table, prompts)

    def start() -> Model:
        try:
            return _started(recipe, placement, options)
        except RuntimeError as error:  # of the CPU torch says it in words alone
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            raise OutOfMemory(f"language model: no room for it on {placement}; choose another placement") from error

    return Native(start)


@torch.inference_mode()
def _started(recipe: Recipe, placement: Placement, options: _Options) -> Model:
    began = time.perf_counter()
    device, dtype = placement.resolve()
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # this thread's: kernels, events and graphs are made on the current one
    language = open_language(recipe)
    shape = shape_of(language.config)
    fast = options.kernels and cuda.supported(device) and dtype != torch.float32
    four_bit = fast or shape.parameters * dtype.itemsize >= LARGE_BYTES if options.int4 is None else options.int4
    apart = options.table == "cpu" and device.type != "cpu"
    model = read(language, shape, dtype, device, four_bit=four_bit and (fast or device.type == "cpu"), apart=apart)
    if options.prompts == "fp8":
        model.prompts = Prompts(model.layers, shape.epsilon)
    context = min(shape.context, options.context or shape.context)
    blocks = _blocks(shape, context, options, dtype, device)
    pool = Pool(shape, blocks, dtype, device, in_bytes=options.kv == "int8")
    context = min(context, pool.blocks * BLOCK)
    turns = rotary_table(shape, context).to(device)
    operations = Kernels(shape, pool, turns, rows=64) if fast else Plain(shape, pool, turns)
    if isinstance(operations, Kernels):
        threading.Thread(target=cuda.prepare, args=(model.variants(), device), daemon=True).start()
    kind = str(language.config.get("model_type", "llama"))
    runner = NativeRunner(model, operations, context=context, graphs=options.graphs, kind=kind)
    # a step begun ahead has ids that only the device knows
    overlap = not apart and (device.type == "cuda" if options.overlap is None else options.overlap)
    if device.type == "cuda":
        cuda.give_back()  # a gigabyte of what reading needed, which other programs of the card may want
    seconds = time.perf_counter() - began
    log.info("language model: %.1f MB on %s in %s, %.2f s", runner.part.nbytes / 1e6, device, dtype, seconds)
    rows = len(model.embedding)
    ends, tokenizer = end_ids(language, rows), tokenizer_of(language, rows)

    def attention(prompt: Prompt, ids: Sequence[int], _: list[int]) -> torch.Tensor:
        asked = runner.embed(torch.tensor(ids))
        return attention_of(model, shape, turns, prompt.splice(runner.embed), asked)

    return Model(
        runner=runner,
        tokenizer=tokenizer,
        hidden=shape.hidden,
        context=context,
        end_ids=ends,
        able=ABLE,
        block=BLOCK,
        piece=PIECE if device.type == "cuda" else CPU_PIECE,
        whole=WHOLE if device.type == "cuda" else CPU_WHOLE,
        follow=runner.follow if overlap else None,
        prepare=runner.prepare,
        ahead=LONGEST if options.speculate else 0,
        constraint=constraints(lambda: Grammars(tokenizer.definition, rows, ends)),
        attention=attention,
    )


def _blocks(shape: Shape, context: int, options: _Options, dtype: torch.dtype, device: torch.device) -> int:
    """How many blocks the pool has: what was asked for, or `AT_ONCE` contexts as far as there is room for them.

    Where there is no room for one, the context is as long as the pool, but of `LEAST` positions it is never less.
    """
    one, asked = -(-context // BLOCK), options.positions
    if asked is not None or options.context is not None:
        return max(one, -(-asked // BLOCK) if asked is not None else one)
    fits = _room(device) // Pool.bytes_a_block(shape, dtype, in_bytes=options.kv == "int8")
    blocks = max(min(one, LEAST // BLOCK), min(AT_ONCE * one, fits))
    if blocks < one:
        log.warning(
            "language model: keys and values of %d positions fit on %s, not a context of %d; -e context=N says another",
            *(blocks * BLOCK, device, context),
        )
    return blocks


def _room(device: torch.device) -> int:
    """Bytes for keys and values: what a card has left, or half of a machine's memory, which is taken as it is used."""
    if device.type == "cuda":
        return max(0, torch.cuda.mem_get_info(device)[0] - SPARE_BYTES)
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return POOL_BYTES
