"""Keys and values of all positions, in one pool, and what one step reads and writes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from trifocal.engines.native.shape import Shape
from trifocal.engines.scheduler import Run

__all__ = ["BLOCK", "Piece", "Pool", "Step", "alone", "step_of"]

BLOCK = 16  # positions


class Pool:
    """Keys and values ``[layers, slots, kv_heads, dim]`` each; a block is `BLOCK` slots."""

    def __init__(self, shape: Shape, blocks: int, dtype: torch.dtype, device: torch.device) -> None:
        size = (shape.layers, blocks * BLOCK, shape.kv_heads, shape.dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.blocks = blocks

    @staticmethod
    def bytes_a_block(shape: Shape, dtype: torch.dtype) -> int:
        """What a block of all layers takes."""
        return 2 * shape.layers * BLOCK * shape.kv_heads * shape.dim * dtype.itemsize


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Neighbouring rows of one step that continue one sequence: ``rows`` of them from ``first`` on.

    ``slots`` int64 ``[positions]`` are those of all its positions up to the last row; ``start`` of them were there.
    """

    first: int
    rows: int
    start: int
    slots: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What is computed at once: rows of one or several sequences.

    ``positions`` and ``slots`` int64 ``[rows]`` say where each stands and where its keys and values go. ``singles`` are
    rows that are each the only one of their sequence, int64, and ``seen`` ``[singles, longest]`` the slots of all their
    positions, ``hidden`` the places there that are none, as a mask ``[singles, 1, 1, longest]`` or None. ``pieces`` are
    the others. ``last`` are the rows whose logits are wanted.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    singles: torch.Tensor
    seen: torch.Tensor
    mask: torch.Tensor | None
    pieces: tuple[Piece, ...]
    last: torch.Tensor


def step_of(runs: Sequence[Run[Any]], window: int, device: torch.device, *, seen: bool = True) -> Step:
    """The step that computes these runs; without ``seen`` it does not say where single rows find their positions."""
    own = [_slots(run.blocks, run.start + run.count) for run in runs]
    ends = list(accumulate(run.count for run in runs))
    firsts = [end - run.count for end, run in zip(ends, runs, strict=True)]
    single = [at for at, run in enumerate(runs) if run.count == 1]
    pieces = [
        Piece(first, run.count, run.start, slots.to(device))
        for first, run, slots in zip(firsts, runs, own, strict=True)
        if run.count > 1
    ]
    near = [own[at][max(0, len(own[at]) - window) if window else 0 :] for at in single] if seen else []
    lengths = torch.tensor([len(one) for one in near])
    places = pad_sequence(near, batch_first=True) if near else torch.zeros(0, 0, dtype=torch.long)
    mask = torch.arange(places.shape[1]) < lengths[:, None] if near and int(lengths.min()) < places.shape[1] else None
    return Step(
        positions=torch.cat([torch.arange(run.start, run.start + run.count) for run in runs]).to(device),
        slots=torch.cat([slots[run.start :] for run, slots in zip(runs, own, strict=True)]).to(device),
        singles=torch.tensor([firsts[at] for at in single], dtype=torch.long, device=device),
        seen=places.to(device),
        mask=None if mask is None else mask[:, None, None].to(device),
        pieces=tuple(pieces),
        last=torch.tensor(
            [end - 1 for end, run in zip(ends, runs, strict=True) if run.logits], dtype=torch.long, device=device
        ),
    )


def alone(start: int, rows: int, device: torch.device) -> Step:
    """The step of ``rows`` of one sequence behind the first ``start``, whose slots are its positions."""
    none = torch.zeros(0, dtype=torch.long, device=device)
    slots = torch.arange(start + rows, device=device)
    piece = Piece(0, rows, start, slots)
    return Step(slots[start:], slots[start:], none, none, None, (piece,), none)


def _slots(blocks: Sequence[int], positions: int) -> torch.Tensor:
    """The slots of a sequence's first positions, int64 ``[positions]``."""
    used = torch.tensor(blocks[: -(-positions // BLOCK)])
    return (used[:, None] * BLOCK + torch.arange(BLOCK)).flatten()[:positions]
