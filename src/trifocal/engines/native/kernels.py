"""Norm, rotation and attention of a step by our own kernels on NVIDIA cards."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trifocal import cuda
from trifocal.engines.native.memory import BLOCK, Piece, Pool, Step
from trifocal.engines.native.model import Layer, Plain
from trifocal.engines.shape import Shape

__all__ = ["LEAST", "Kernels", "Places", "Prompted", "plan"]

LEAST = 8  # neighbouring rows of one sequence that attend together

_SPLITS = (4, 64)  # blocks that a row's attention is split over, at the least and at the most
_LEAST_OF_BYTES = 1  # of bytes, whose parts take as long to merge and half as long to read
_BUSY = 4  # blocks a processor that keep the memory busy
_STRETCHES = 8  # over which the positions of a run are split, at the most: the last block merges them alone
_RESERVED = 1024  # bytes of shared memory a block that CUDA keeps
_DIMS = (64, 80, 96, 112, 128)  # of a head, for which there is room in registers
_TOGETHER = 16  # rows of a step from which on the kernel for runs is worth its launch


@dataclass(frozen=True, slots=True, eq=False)
class Prompted:
    """The rows of one prompt, which are all of a step, and how many there are only the device knows; all int32.

    ``before`` ``[positions]`` are the slots of those in front of the rows, of which the last ones are there. ``own``
    ``[2]`` says where the prompt's rows begin and end, ``seen`` ``[2]`` where what they see does, the ones in front and
    the rows laid end to end.
    """

    before: torch.Tensor
    own: torch.Tensor
    seen: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where rows stand, all int32: ``positions``, ``slots``, ``lengths`` and ``known`` ``[rows]``, and ``tables``.

    ``lengths`` is how many positions a row sees, of which ``known`` were there before the step; ``tables``
    ``[rows, columns]`` says in which blocks. A row that only fills the batch has slot -1 and length 0. ``runs``
    ``[runs, 4]``, if there are any, are neighbouring rows of one sequence that attend together, whose lengths are -1:
    the first of them, how many, and the first one's position; the list ends before the first run of no rows.
    Where there is a ``prompt`` all rows are its own, and only their positions and slots are looked at.
    """

    positions: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    known: torch.Tensor
    tables: torch.Tensor
    runs: torch.Tensor | None = None
    prompt: Prompted | None = None


class _Runs:
    """The kernel for runs of neighbouring rows, whose keys and values are read once for all, and one for the ``rest``.

    Of the first, a block has eight warps where its processor has the shared memory for them, else four. All blocks run
    at once: with one more wave of them it took half as long again.
    """

    def __init__(self, shape: Shape, macros: cuda.Macros, device: torch.device, *, in_bytes: bool) -> None:
        self._shape, self._per_key = shape, shape.heads // shape.kv_heads
        warps, stages, shared, fit = plan(shape.dim, cuda.shared_memory(device), in_bytes=in_bytes)
        self._at_once = fit * torch.cuda.get_device_properties(device).multi_processor_count
        sized = (*macros, ("WARPS", warps), ("STAGES", stages))
        self._kernel = cuda.compiled("runs", sized, "attend_runs", 32 * warps, shared, device)
        self.rest = cuda.compiled("attend", (*macros, ("SEVERAL", 1)), "attend", 128, 0, device)

    def floats(self, rows: int) -> int:
        """How many the results of a step's stretches are."""
        return rows * self._shape.heads * self._grid(rows)[0] * (self._shape.dim + 4)

    def __call__(self, rows: int, *arguments: torch.Tensor | int | float | None) -> None:
        self._kernel(self._grid(rows), *arguments)

    def _grid(self, rows: int) -> tuple[int, int, int]:
        tiles = -(-rows * self._per_key // 64) * self._shape.kv_heads  # of 64 queries
        return max(1, min(_STRETCHES, self._at_once // tiles)), tiles, 1


def plan(dim: int, memory: int, *, in_bytes: bool) -> tuple[int, int, int, int]:
    """How the kernel for runs fits a processor with so many bytes of shared memory.

    Warps a block, stages of positions in its shared memory (of bytes, the next one waits in registers), the bytes of
    it, and how many blocks a processor takes.
    """
    stages = 1 if in_bytes else 2
    eight, four = (stages * 16 * warps * (2 * (2 * dim + 16) + 4 * in_bytes) for warps in (8, 4))
    if eight + _RESERVED <= memory:
        return 8, stages, eight, 1
    return 4, stages, four, min(2, memory // (four + _RESERVED))


class Kernels(Plain):
    """`Plain` with kernels: rows that are the only ones of their step are split over the card, pieces stay torch's."""

    def __init__(self, shape: Shape, pool: Pool, table: torch.Tensor, *, rows: int) -> None:
        super().__init__(shape, pool, table)
        device = pool.keys.device
        self._device = device
        self._processors = torch.cuda.get_device_properties(device).multi_processor_count
        self._macros = (("BF", int(pool.dtype == torch.bfloat16)),)
        in_bytes = pool.scales is not None
        kept = (*self._macros, ("BYTES", int(in_bytes)))
        per_key = shape.heads // shape.kv_heads
        attend = (*kept, ("DIM", shape.dim), ("HEADS", per_key), ("BLOCK", BLOCK))
        self._attend_kernel = cuda.compiled("attend", attend, "attend", 128, 0, device)
        self._runs = _Runs(shape, attend, device, in_bytes=in_bytes) if shape.dim in _DIMS else None
        self._norm_kernel = cuda.compiled("small", self._macros, "rms_norm", 256, 0, device)
        self._rotate_kernel = cuda.compiled("small", kept, "rotate", 128, 0, device)
        self._line_up_kernel = cuda.compiled("small", kept, "line_up", 128, 0, device)
        most = max(self.splits(count) * count for count in range(1, rows + 1))
        parts = most * shape.kv_heads * per_key * (shape.dim + 2)
        if self._runs is not None:
            parts = max(parts, *(self._runs.floats(count) for count in range(1, rows + 1)))
        self._parts = torch.empty(parts, dtype=torch.float32, device=device)
        self._arrived = torch.zeros(rows * shape.kv_heads, dtype=torch.int32, device=device)
        self._places: Places | None = None

    def splits(self, rows: int) -> int:
        """Over how many blocks each row's attention is split."""
        low, high = _SPLITS
        low = low if self.pool.scales is None or rows < _TOGETHER else _LEAST_OF_BYTES
        return max(low, min(high, -(-_BUSY * self._processors // (self.shape.kv_heads * rows))))

    def runs(self, rows: int) -> int:
        """How many runs of at least `LEAST` neighbouring rows may attend together in a step of so many rows."""
        return rows // LEAST if self._runs is not None and rows >= _TOGETHER else 0

    @property
    def prompted(self) -> bool:
        """Whether rows of a prompt may attend whose number only the device knows."""
        return not self.shape.window

    def use(self, places: Places) -> None:
        """Where the rows of the next step stand; its `Step` then needs no places of single rows."""
        self._places = places

    def begin(self, step: Step) -> None:
        self.look(step)
        if self.pool.scales is not None:
            self._kept = {piece: self._numbers(piece.kept) for piece in step.pieces if piece.start}

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(x)
        self._norm_kernel((len(x), 1, 1), x, weight, out, x.shape[1], self.shape.epsilon)
        return out

    def attend(self, qkv: torch.Tensor, layer: Layer, index: int, step: Step) -> torch.Tensor:
        shape, places = self.shape, self._places
        assert places is not None, "`use` comes first"
        heads = shape.heads + 2 * shape.kv_heads
        rotated = int(shape.rope["rotated"])
        self._rotate_kernel(
            ((heads + 3) // 4, len(qkv), 1),
            *(qkv, *self._memory(index), places.positions, places.slots, self.table, layer.q_norm, layer.k_norm),
            *(shape.heads, shape.kv_heads, shape.dim, rotated, shape.epsilon),
        )
        if places.prompt is not None:
            return self._prompted(qkv, index, places.prompt)
        if not step.pieces:
            return self._split(qkv, index, places)
        parts, own = qkv.view(len(qkv), heads, shape.dim), shape.heads + shape.kv_heads
        pieces = self._seen(parts[:, : shape.heads], parts[:, shape.heads : own], parts[:, own:], index, step)
        if len(pieces) == 1 and step.pieces[0].rows == len(qkv):
            return pieces[0]
        out = qkv.new_empty(len(qkv), shape.heads * shape.dim)
        if len(step.singles):
            out[step.singles] = self._split(qkv[step.singles], index, places)
        for piece, seen in zip(step.pieces, pieces, strict=True):
            out[piece.first : piece.first + piece.rows] = seen
        return out

    def _mixed(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """As `Plain` has it; what is causal without a window goes to flash attention itself, past torch's choosing."""
        if mask is not None:
            return super()._mixed(queries, keys, values, mask)
        seen: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention(queries, keys, values, 0.0, True)[0]
        return seen

    def _prompted(self, qkv: torch.Tensor, index: int, prompt: Prompted) -> torch.Tensor:
        """What a prompt's rows see, ``[rows, heads * dim]``."""
        shape, rows = self.shape, len(qkv)
        queries, own, _ = qkv.view(rows, -1, shape.dim).tensor_split([shape.heads, shape.heads + shape.kv_heads], 1)
        keys, values = self._together(own, prompt.before, index)
        seen: torch.Tensor = torch.ops.aten._flash_attention_forward(
            queries, keys, values, prompt.own, prompt.seen, rows, len(keys), 0.0, True, False
        )[0]
        return seen.flatten(1)

    def _lined_up(
        self, piece: Piece, keys: torch.Tensor, values: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Plain` has it, in one kernel for a dozen."""
        if self.pool.scales is None:
            return super()._lined_up(piece, keys, values, index)
        own = keys if piece.exact else keys[:0]
        all_keys, all_values = self._together(own, self._kept[piece], index)
        return all_keys.transpose(0, 1)[None], all_values.transpose(0, 1)[None]

    def _together(self, own: torch.Tensor, before: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[front + rows, kv_heads, dim]`` of the slots ``before`` and of rows behind each other.

        ``own`` ``[rows, kv_heads, dim]`` are the rows' keys, where they stand in front of their values.
        """
        front, (rows, kv_heads, dim) = len(before), own.shape
        keys, values = own.new_empty(2, front + rows, kv_heads, dim)
        self._line_up_kernel(
            (front + rows, -(-2 * kv_heads * dim // 1024), 1),
            *(own, *self._memory(index), before, keys, values, front, own.stride(0), kv_heads, dim),
        )
        return keys, values

    def _near(self, rows: int, columns: int) -> torch.Tensor | None:
        """None: flash attention lets the last row see all, so that no mask tells what was there before."""
        return None

    def _numbers(self, slots: torch.Tensor | slice) -> torch.Tensor:
        """Slots as int32."""
        if isinstance(slots, torch.Tensor):
            return slots.int()
        return torch.arange(slots.start, slots.stop, dtype=torch.int32, device=self._device)

    def _memory(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Keys, values and scales of a layer."""
        pool = self.pool
        return pool.keys[index], pool.values[index], None if pool.scales is None else pool.scales[index]

    def _split(self, qkv: torch.Tensor, index: int, places: Places) -> torch.Tensor:
        shape, rows = self.shape, len(qkv)
        out = qkv.new_empty(rows, shape.heads * shape.dim)
        memory, (tables, columns) = self._memory(index), (places.tables, places.tables.shape[1])
        room = out, self._parts, self._arrived, shape.kv_heads, columns, shape.window, shape.dim**-0.5
        splits, kernel, deep = self.splits(rows), self._attend_kernel, rows
        if places.runs is not None:
            assert self._runs is not None, "`runs` says that there are none"
            self._runs(rows, qkv, *memory, tables, places.runs, *room)
            kernel, deep = self._runs.rest, self._deep(rows)
        kernel((splits, shape.kv_heads, deep), qkv, *memory, tables, places.lengths, places.known, *room, rows)
        return out

    def _deep(self, rows: int) -> int:
        """How many rows are attended at once where most of them are of runs: as keep the card busy."""
        return max(1, min(rows, 2 * _BUSY * self._processors // (self.splits(rows) * self.shape.kv_heads)))
