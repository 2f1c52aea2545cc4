"""llama.cpp by its C interface: a model, its memory of sequences, and its errors as ours. Only here is it imported."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trifocal.errors import CheckpointError, EngineError, OutOfMemory

__all__ = ["Context", "Wishes", "offloads"]

PHYSICAL = 512  # positions that are computed at once; more go one after the other
KEYS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}  # ggml's numbers
_ERROR, _WARNING, _CONTINUED = 4, 3, 5  # of its log

log = logging.getLogger("trifocal.llamacpp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How a model is run: ``positions`` of keys and values of the type ``keys`` for ``sequences`` sequences together.

    ``batch`` is how many positions one call takes at most. ``gpu_layers`` is how many layers lie on a GPU (-1: all) and
    ``gpu`` on which (None: on all there are).
    """

    positions: int
    sequences: int
    batch: int
    threads: int
    keys: torch.dtype
    gpu_layers: int = 0
    gpu: int | None = None


def offloads() -> bool:
    """Whether this build of llama.cpp has a GPU to compute on."""
    return bool(_library().llama_supports_gpu_offload())


class _Log:
    """What the library says goes to our log; the last errors are kept for our own messages."""

    def __init__(self) -> None:
        self._errors: list[str] = []
        self._level = _WARNING

    def said(self, level: int, text: bytes, _: Any = None) -> None:
        """Takes a line, or the rest of one."""
        self._level = self._level if level == _CONTINUED else level
        line = text.decode("utf-8", "replace").strip()
        if not line or line == ".":
            return
        if self._level == _ERROR:
            self._errors = [*self._errors[-3:], line]
        log.log(logging.INFO if self._level >= _WARNING else logging.DEBUG, "%s", line)

    def take(self) -> str:
        """The errors since the last time, on one line, without the names of functions in front."""
        said = "; ".join(re.sub(r"^[\w:~]+: ", "", line) for line in self._errors)
        self._errors = []
        return said


_SAID = _Log()


@cache
def _library() -> Any:
    """llama.cpp, imported and made ready."""
    import llama_cpp

    library: Any = llama_cpp
    library.llama_backend_init()
    library.llama_log_set(_callback(library), ctypes.c_void_p(0))
    return library


@cache
def _callback(library: Any) -> Any:
    """The log's own function, which must live as long as the process."""
    return library.llama_log_callback(_SAID.said)


class Context:
    """A model of a GGUF file and its memory. Belongs to one thread.

    Raises:
        CheckpointError: the library can't read the file, or not this architecture.
        OutOfMemory: there was no room for the model or for its keys and values.
    """

    def __init__(self, file: Path, wishes: Wishes) -> None:
        self._c, self.file = _library(), file
        c = self._c
        self._model = _model(file, wishes)
        self._context = _context(self._model, file, wishes)
        self._free = weakref.finalize(self, _freed, self._context, self._model)
        self._free.atexit = False  # the engine's thread may be computing still
        self._memory = c.llama_get_memory(self._context)
        self.hidden = int(c.llama_model_n_embd(self._model))
        self.trained = int(c.llama_model_n_ctx_train(self._model))
        self.vocabulary = int(c.llama_vocab_n_tokens(c.llama_model_get_vocab(self._model)))
        self.nbytes = int(c.llama_model_size(self._model))
        self._batch = _Batch(wishes.batch)

    @property
    def described(self) -> str:
        """What llama.cpp calls the model: ``llama 1B Q4_0``."""
        words = ctypes.create_string_buffer(128)
        self._c.llama_model_desc(self._model, words, len(words))
        return words.value.decode("utf-8", "replace")

    def decode(
        self,
        rows: Sequence[int] | torch.Tensor,
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[int],
    ) -> torch.Tensor:
        """Computes ids, or rows of embeddings ``[n, hidden]``, and keeps their keys and values.

        Row ``i`` stands at ``positions[i]`` of the sequence ``sequences[i]``. The logits of the rows ``wanted``, in
        ascending order: ``[wanted, vocabulary]`` in float32, in the library's own memory, until the next call.

        Raises:
            EngineError: the library refused or failed; `OutOfMemory` where it had no room.
        """
        batch = self._batch.filled(rows, positions, sequences, wanted)
        status = int(self._c.llama_decode(self._context, batch))
        if status:
            raise _failure(status, _SAID.take())
        if not wanted:
            return torch.empty(0, self.vocabulary)
        told = self._c.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(told, (len(wanted), self.vocabulary)))

    def copy(self, source: int, target: int, begin: int, end: int) -> None:
        """Lets a sequence share the positions from ``begin`` up to ``end`` of another."""
        self._c.llama_memory_seq_cp(self._memory, source, target, begin, end)

    def remove(self, sequence: int, begin: int, end: int) -> None:
        """Takes positions out of a sequence; what no sequence has any more is free."""
        self._c.llama_memory_seq_rm(self._memory, sequence, begin, end)

    def save(self, sequence: int) -> np.ndarray[Any, Any]:
        """All that a sequence has, in memory of our own.

        Raises:
            EngineError: the library failed.
        """
        saved = np.empty(self._c.llama_state_seq_get_size(self._context, sequence), np.uint8)
        written = self._c.llama_state_seq_get_data(self._context, _bytes(saved), saved.nbytes, sequence)
        if written != saved.nbytes:
            raise EngineError(f"llama.cpp failed to save what it computed ({_SAID.take() or 'it does not say why'})")
        return saved

    def restore(self, sequence: int, saved: np.ndarray[Any, Any]) -> None:
        """Gives an empty sequence what was saved.

        Raises:
            EngineError: the library failed; `OutOfMemory` where it had no room.
        """
        if not self._c.llama_state_seq_set_data(self._context, _bytes(saved), saved.nbytes, sequence):
            raise _failure(1, _SAID.take())

    def clear(self) -> None:
        """Empties the memory."""
        self._c.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Frees memory and model."""
        self._free()


class _Batch:
    """The arrays of one call, filled anew for each: made once, since a step is short."""

    def __init__(self, size: int) -> None:
        self._ids = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._ones = np.ones(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        # for every row a pointer to its sequences, of which it has one
        self._pointers = self._sequences.ctypes.data + 4 * np.arange(size, dtype=np.uint64)
        self._rows: Any = None  # must live until the call is over
        c = _library()
        self._given = c.llama_batch()
        self._token = self._ids.ctypes.data_as(ctypes.POINTER(c.llama_token))
        self._given.pos = self._positions.ctypes.data_as(ctypes.POINTER(c.llama_pos))
        self._given.n_seq_id = self._ones.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        self._given.seq_id = self._pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(c.llama_seq_id)))
        self._given.logits = self._wanted.ctypes.data_as(ctypes.POINTER(ctypes.c_int8))

    def filled(
        self,
        rows: Sequence[int] | torch.Tensor,
        positions: Sequence[int],
        sequences: Sequence[int],
        wanted: Sequence[int],
    ) -> Any:
        """The library's structure over the arrays."""
        count, batch = len(positions), self._given
        if isinstance(rows, torch.Tensor):
            self._rows = np.ascontiguousarray(rows.detach().to("cpu", torch.float32).numpy())
            batch.embd, batch.token = self._rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), None
        else:
            self._ids[:count] = rows
            batch.token, batch.embd = self._token, None
        self._positions[:count] = positions
        self._sequences[:count] = sequences
        self._wanted[:count] = 0
        self._wanted[list(wanted)] = 1
        batch.n_tokens = count
        return batch


def _bytes(array: np.ndarray[Any, Any]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


def _model(file: Path, wishes: Wishes) -> Any:
    c = _library()
    params = c.llama_model_default_params()
    params.n_gpu_layers = wishes.gpu_layers
    if wishes.gpu is not None:
        params.split_mode, params.main_gpu = c.LLAMA_SPLIT_MODE_NONE, wishes.gpu
    _SAID.take()
    model = c.llama_model_load_from_file(os.fsencode(file), params)
    if not model:
        reason = _SAID.take() or "it does not say why"
        if _no_room(reason):
            raise OutOfMemory(f"language model: no room for {file} ({reason})")
        raise CheckpointError(f"{file}: llama.cpp can't load it: {reason}")
    return model


def _context(model: Any, file: Path, wishes: Wishes) -> Any:
    c = _library()
    params = c.llama_context_default_params()
    # it takes no batch larger than the memory, and aborts where that is smaller than the number of sequences
    params.n_ctx, params.n_seq_max = max(wishes.positions, wishes.batch), wishes.sequences
    params.n_batch, params.n_ubatch = wishes.batch, min(wishes.batch, PHYSICAL)
    params.n_threads = params.n_threads_batch = wishes.threads
    params.type_k = params.type_v = KEYS[wishes.keys]
    # passes over the positions of other sequences, but is off by 1e-3 where float32 is off by 1e-6 without it
    flash = wishes.keys != torch.float32
    params.flash_attn_type = c.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else c.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.kv_unified, params.swa_full = True, True  # one memory for all sequences, from which nothing falls out
    params.no_perf = True
    context = c.llama_init_from_model(model, params)
    if not context:
        c.llama_model_free(model)
        raise OutOfMemory(
            f"language model: llama.cpp has no room for {wishes.positions} positions of {file} "
            f"({_SAID.take() or 'it does not say why'}); -e positions=N says fewer"
        )
    return context


def _freed(context: Any, model: Any) -> None:
    c = _library()
    c.llama_free(context)
    c.llama_model_free(model)


def _failure(status: int, reason: str) -> EngineError | OutOfMemory:
    """A call's failure: 1 and -2 are no room, all else is a fault."""
    told = reason or f"status {status}"
    if status in (1, -2) or _no_room(reason):
        return OutOfMemory(f"llama.cpp has no room for what is asked ({told}); shorten it")
    return EngineError(f"llama.cpp failed ({told})")


def _no_room(reason: str) -> bool:
    return "alloc" in reason and ("fail" in reason or "unable" in reason)
