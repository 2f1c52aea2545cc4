"""The product of a packed weight and many rows on Hopper cards, without making the weight dense on its way."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from trifocal import cuda
from trifocal.engines.native.packing import FourBit

__all__ = ["HEIGHT", "product", "supported", "variants"]

HEIGHT = 128  # rows of the weight a block computes
_THREADS = 288  # two warpgroups that multiply and a warp that fetches
_MEMORY = 224 << 10  # bytes of shared memory a processor
# rows of x a block computes; more, or the last of them with several scales a chunk, would not fit the registers
_COLUMNS = (32, 48, 64, 96, 128, 160, 192, 208, 224)
_TWO, _SUMS = 64, 48  # columns up to which two blocks share a processor, and up to which scales are applied to the sums
_MOST_SPLITS = 6


def supported(weight: FourBit, device: torch.device) -> bool:
    """Whether the kernel runs there and the weight has whole blocks for it."""
    return cuda.hopper(device) and weight.outputs % HEIGHT == 0


def variants(weight: FourBit, dtype: torch.dtype, then: int) -> list[cuda.Source]:
    """What `cuda.prepare` is told for every number of rows."""
    return [("wide", _macros(weight.group, weight.offset, dtype, columns, then)) for columns in _fitting(weight.group)]


def product(weight: FourBit, x: torch.Tensor, out: torch.Tensor, then: int) -> None:
    """``x [rows, inputs]`` times the weight into ``out [rows, width]``; ``then`` as ``kernels/product.cu`` says."""
    rows, inputs = len(x), weight.inputs
    way = _way(rows, weight.outputs, inputs, weight.group, weight.offset, x.dtype, then, x.device)
    laid = x.new_empty(way.tiles * way.columns, inputs)
    way.tile((inputs // 32, way.tiles, 1), x, weight.order, laid, inputs, rows)
    parts = x.new_empty(way.parts, dtype=torch.float32) if way.parts else None
    way.product(way.grid, laid, weight.words, out, parts, _arrived(x.device), inputs, rows, out.shape[1])


class _Way(NamedTuple):
    """How a product of so many rows is computed: two kernels, ``tiles`` of ``columns`` rows, ``parts`` floats aside."""

    tile: cuda.Kernel
    product: cuda.Kernel
    columns: int
    tiles: int
    grid: tuple[int, int, int]
    parts: int


@functools.lru_cache(4096)
def _way(
    rows: int, outputs: int, inputs: int, group: int, offset: bool, dtype: torch.dtype, then: int, device: torch.device
) -> _Way:
    processors, high = torch.cuda.get_device_properties(device).multi_processor_count, outputs // HEIGHT
    columns, splits = _plan(rows, high, inputs // 128, processors, _fitting(group))
    tiles = -(-rows // columns)
    macros = _macros(group, offset, dtype, columns, then)
    shared = int(dict(macros)["STAGES"]) * (_stage(columns, group) + 16)
    return _Way(
        cuda.compiled("wide", macros, "tile", 256, 0, device),
        cuda.compiled("wide", macros, "product", _THREADS, shared, device),
        columns,
        tiles,
        (tiles, high, splits),
        tiles * high * splits * HEIGHT * columns if splits > 1 else 0,
    )


def _fitting(group: int) -> Sequence[int]:
    return _COLUMNS if group == 128 else _COLUMNS[:-1]


def _plan(rows: int, high: int, chunks: int, processors: int, fitting: Sequence[int]) -> tuple[int, int]:
    """Rows of x a block computes, and over how many blocks each output's columns are split: what takes least.

    Times in microseconds as they were measured on an H100: how long a block is at a chunk, what a block costs besides,
    and what the parts of a split output cost.
    """

    def cost(columns: int, splits: int) -> float:
        shared = 2 if columns <= _TWO else 1
        waves = -(-(-(-rows // columns) * high * splits) // (shared * processors))
        return waves * (chunks / splits * shared * (0.35 + 0.0038 * columns) + 3) + (6 if splits > 1 else 0)

    most = max(1, min(_MOST_SPLITS, chunks // 4))
    return min(((c, s) for c in fitting for s in range(1, most + 1)), key=lambda plan: cost(*plan))


def _stage(columns: int, group: int) -> int:
    """Bytes of a chunk of 128 columns of x and of the weight."""
    return columns * 256 + 4 * (2048 + 128 // group * 128)


def _macros(group: int, offset: bool, dtype: torch.dtype, columns: int, then: int) -> cuda.Macros:
    blocks = 2 if columns <= _TWO else 1
    return (
        ("BF", int(dtype == torch.bfloat16)),
        ("COLUMNS", columns),
        ("STAGES", min(8, _MEMORY // blocks // (_stage(columns, group) + 16))),
        ("GROUP", group),
        ("OFFSET", int(offset)),
        ("THEN", then),
        ("BLOCKS", blocks),
        ("SUMS", int(columns <= _SUMS and not offset)),
        *_instruction(columns, "bf16" if dtype == torch.bfloat16 else "f16"),
    )


@functools.cache
def _instruction(columns: int, kind: str) -> tuple[tuple[str, str], ...]:
    """The warpgroup product as text: it names its accumulators one by one."""
    own = columns // 2
    sums, a = (",".join(f"%{i}" for i in range(first, end)) for first, end in ((0, own), (own, own + 4)))
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{kind}.{kind}"
    text = f"{{.reg .pred p; setp.ne.b32 p,%{own + 5},0; {name} {{{sums}}},{{{a}}},%{own + 4},p,1,1,0;}}"
    return ("WGMMA", f'"{text}"'), ("ACCUMULATORS", ",".join(f'"+f"(d[{i}])' for i in range(own)))


@functools.cache
def _arrived(device: torch.device) -> torch.Tensor:
    """How many blocks of a split output have come; each kernel leaves zeros."""
    return torch.zeros(1 << 16, dtype=torch.int32, device=device)
