"""Keys and values of all positions, in one pool, and what one step reads and writes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from trifocal.engines.scheduler import Run
from trifocal.engines.shape import Shape

__all__ = ["BLOCK", "FEW", "Piece", "Pool", "Step", "alone", "step_of"]

BLOCK = 16  # positions
FEW = 64  # rows: answers, and all that runs as a graph of rows


class Pool:
    """Keys and values ``[layers, slots, kv_heads, dim]`` each, in the model's ``dtype``; a block is `BLOCK` slots.

    With ``in_bytes`` they are kept as int8, each head of a position times one of the float16 ``scales``
    ``[layers, slots, kv_heads, 2]``, of keys and of values.
    """

    def __init__(
        self, shape: Shape, blocks: int, dtype: torch.dtype, device: torch.device, *, in_bytes: bool = False
    ) -> None:
        size, kept = (shape.layers, blocks * BLOCK, shape.kv_heads, shape.dim), torch.int8 if in_bytes else dtype
        # on a CPU nothing is read that was not written, and memory is taken as it is written
        made = torch.empty if device.type == "cpu" else torch.zeros
        self.keys, self.values = made(size, dtype=kept, device=device), made(size, dtype=kept, device=device)
        self.scales = made((*size[:3], 2), dtype=torch.float16, device=device) if in_bytes else None
        self.blocks, self.dtype = blocks, dtype

    @staticmethod
    def bytes_a_block(shape: Shape, dtype: torch.dtype, *, in_bytes: bool = False) -> int:
        """What a block of all layers takes."""
        head = shape.dim + 2 if in_bytes else shape.dim * dtype.itemsize
        return 2 * shape.layers * BLOCK * shape.kv_heads * head

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keeps keys and values ``[rows, kv_heads, dim]`` of a layer in ``slots`` ``[rows]``."""
        for at, (kept, given) in enumerate(((self.keys[layer], keys), (self.values[layer], values))):
            if self.scales is None:
                kept.index_copy_(0, slots, given)
                continue
            scales = (given.abs().amax(-1).float() / 127).half()
            over = torch.where(scales > 0, 1 / scales.float(), 0)
            kept.index_copy_(0, slots, (given.float() * over[..., None]).round().clamp(-127, 127).to(torch.int8))
            self.scales[layer, ..., at].index_copy_(0, slots, scales)

    def read(self, layer: int, slots: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[positions, kv_heads, dim]`` of a layer in ``slots``, in the model's type."""
        keys, values = _at(self.keys[layer], slots), _at(self.values[layer], slots)
        if self.scales is None:
            return keys, values
        scales = _at(self.scales[layer], slots).float()
        return (keys * scales[..., :1]).to(self.dtype), (values * scales[..., 1:]).to(self.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Neighbouring rows of one step that continue one sequence: ``rows`` of them from ``first`` on.

    ``slots`` are those of the positions that they see, up to the last row's own, the first of them at position
    ``begins``; a slice where they lie together. The first row stands at position ``start``.
    """

    first: int
    rows: int
    start: int
    slots: torch.Tensor | slice
    begins: int = 0

    @property
    def exact(self) -> bool:
        """Whether its rows see each other as they are, not as they are kept: a prompt's do.

        Few rows may be guessed ids, which see what they would see one by one.
        """
        return self.rows > FEW

    @property
    def kept(self) -> torch.Tensor | slice:
        """The slots of those of them that its rows see as they are kept."""
        many = self.start - self.begins + (0 if self.exact else self.rows)
        return slice(self.slots.start, self.slots.start + many) if isinstance(self.slots, slice) else self.slots[:many]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is computed at once: rows of one or several sequences.

    ``positions`` and ``slots`` int64 ``[rows]`` say where each stands and where its keys and values go. ``singles`` are
    the rows, int64, that attend by a kernel, each alone in its sequence; ``pieces`` are all others. ``last`` are the
    rows whose logits are wanted.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    singles: torch.Tensor
    pieces: tuple[Piece, ...]
    last: torch.Tensor


def step_of(runs: Sequence[Run[Any]], window: int, device: torch.device, *, kernels: bool = False) -> Step:
    """The step that computes these runs; with ``kernels`` single rows are no pieces."""
    ends = list(accumulate(run.count for run in runs))
    firsts = [end - run.count for end, run in zip(ends, runs, strict=True)]
    single = [first for first, run in zip(firsts, runs, strict=True) if run.count == 1] if kernels else []
    told = zip(firsts, runs, strict=True)
    pieces = tuple(_piece(run, first, window, device) for first, run in told if not (kernels and run.count == 1))
    wanted = [at for end, run in zip(ends, runs, strict=True) for at in range(end - run.wanted, end)]
    stands = [at for run in runs for at in range(run.start, run.start + run.count)]
    slots = [slot for run in runs for slot in _slots(run.blocks, run.start, run.start + run.count)]
    return Step(
        positions=torch.tensor(stands, device=device),
        slots=torch.tensor(slots, device=device),
        singles=torch.tensor(single, dtype=torch.long, device=device),
        pieces=pieces,
        last=torch.tensor(wanted, dtype=torch.long, device=device),
    )


def _piece(run: Run[Any], first: int, window: int, device: torch.device) -> Piece:
    begins, end = max(0, run.start + 1 - window) if window else 0, run.start + run.count
    used = run.blocks[begins // BLOCK : -(-end // BLOCK)]
    over = begins % BLOCK
    if used == list(range(used[0], used[0] + len(used))):  # they lie together
        at = used[0] * BLOCK + over
        return Piece(first, run.count, run.start, slice(at, at + end - begins), begins)
    slots = torch.tensor(used, device=device)[:, None] * BLOCK + torch.arange(BLOCK, device=device)
    return Piece(first, run.count, run.start, slots.flatten()[over : over + end - begins], begins)


def alone(start: int, rows: int, device: torch.device) -> Step:
    """The step of ``rows`` of one sequence behind the first ``start``, whose slots are its positions."""
    none = torch.zeros(0, dtype=torch.long, device=device)
    own = torch.arange(start, start + rows, device=device)
    return Step(own, own, none, (Piece(0, rows, start, slice(0, start + rows)),), none)


def _at(kept: torch.Tensor, slots: torch.Tensor | slice) -> torch.Tensor:
    # whole positions are copied; brackets would copy number by number on a CPU, in twice the time of attention itself
    return kept[slots] if isinstance(slots, slice) else kept.index_select(0, slots)


def _slots(blocks: Sequence[int], begin: int, end: int) -> list[int]:
    """The slots of a sequence's positions from ``begin`` up to ``end``."""
    return [blocks[at // BLOCK] * BLOCK + at % BLOCK for at in range(begin, end)]
