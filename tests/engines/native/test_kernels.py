"""The kernels on a card against float64 and torch's own operations. Without an NVIDIA card from sm_80 on: not run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_packing import dense, layer
from torch.nn.functional import silu

from trifocal import cuda
from trifocal.engines.native.eight import Eight
from trifocal.engines.native.eight import Prompts as InEight
from trifocal.engines.native.graphs import SIZES, fill
from trifocal.engines.native.kernels import Kernels, Places
from trifocal.engines.native.linear import Dense, Packed
from trifocal.engines.native.memory import BLOCK, Pool, Step
from trifocal.engines.native.model import Layer, Model, Plain
from trifocal.engines.native.packing import packed
from trifocal.engines.native.prompt_graphs import BEFORE
from trifocal.engines.native.runner import NativeRunner
from trifocal.engines.shape import Shape, rotary_table
from trifocal.prompt import Prompt, TokenSpan
from trifocal.weights.packed import PackedLinear

CARD = torch.device("cuda:0")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not cuda.supported(CARD), reason="there is no NVIDIA card from sm_80 on here"
)
BOUNDS = {torch.bfloat16: 4e-3, torch.float16: 6e-4}
CONTEXT = 400


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("group", "whole"), [(128, True), (64, True), (32, True), (32, False)])
@pytest.mark.parametrize("rows", [1, 5, 8, 11, 16, 17, 32, 45, 64, 100, 130, 209, 220, 660, 1600])
def test_packed_products_are_those_of_float64(rows: int, group: int, whole: bool, dtype: torch.dtype) -> None:
    one, two = (layer(320, 1408, group, whole=whole, seed=seed) for seed in (1, 2))
    x = (torch.randn(rows, 1408, device=CARD) / 50).to(dtype)  # no product leaves the range of float16
    weight = packed([one, two], dtype, CARD)
    assert weight is not None
    exact = torch.cat([dense(one), dense(two)]).to(CARD).double()
    wanted = x.double() @ exact.T
    assert distance(Packed(weight, dtype)(x), wanted) < BOUNDS[dtype]
    onto = torch.randn(rows, 640, device=CARD).to(dtype)
    before = onto.double()
    assert distance(Packed(weight, dtype)(x, onto=onto), before + wanted) < 2 * BOUNDS[dtype]
    turns = packed([one, two], dtype, CARD, by_turns=True)
    assert turns is not None
    gate, up = wanted.chunk(2, -1)
    assert distance(Packed(turns, dtype).swiglu(x), silu(gate) * up) < 3 * BOUNDS[dtype]


@pytest.mark.parametrize("rows", [5, 40, 300, 1600])
def test_columns_in_another_order_meet_their_own_weights(rows: int) -> None:
    one = layer(320, 1408, 128)
    mixed = PackedLinear(4, one.levels, one.scales, one.zeros, one.group[torch.randperm(1408)])
    weight = packed([mixed, mixed], torch.bfloat16, CARD)
    assert weight is not None
    assert weight.order is not None
    x = torch.randn(rows, 1408, device=CARD).bfloat16()
    wanted = x.double() @ dense(mixed).to(CARD).double().T
    assert distance(Packed(weight, torch.bfloat16)(x), torch.cat([wanted, wanted], 1)) < BOUNDS[torch.bfloat16]


def test_a_product_is_the_same_at_every_call() -> None:
    weight = packed([layer(640, 4096, 128)], torch.bfloat16, CARD)
    assert weight is not None
    product = Packed(weight, torch.bfloat16)
    for rows in (24, 60, 300):
        x = torch.randn(rows, 4096, device=CARD).bfloat16()
        first = product(x)
        assert all(torch.equal(product(x), first) for _ in range(20))


hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or not cuda.hopper(CARD), reason="there is no Hopper card here"
)


def eighth(values: torch.Tensor, steps: torch.Tensor | float) -> torch.Tensor:
    """Values rounded to e4m3 after they were divided."""
    return (values.float() / steps).to(torch.float8_e4m3fn).double() * steps


@hopper
@pytest.mark.parametrize("bound", [None, 0.2])
@pytest.mark.parametrize("rows", [65, 668, 2048])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_products_in_eight_bits_are_those_of_what_was_rounded(
    rows: int, dtype: torch.dtype, bound: float | None
) -> None:
    one = layer(640, 1408, 128)
    mixed = PackedLinear(4, one.levels, one.scales, one.zeros, one.group[torch.randperm(1408)])
    for kind in (one, mixed):
        four = packed([kind], dtype, CARD)
        assert four is not None
        exact = dense(kind).to(CARD, dtype)
        largest = exact.abs().amax(1, keepdim=True) if bound is None else exact.abs().max()
        x = (torch.randn(rows, 1408, device=CARD) / 50).to(dtype)
        x[3] *= 1e-3  # a small row beside large ones
        steps = x.abs().amax(1, keepdim=True).float() / 448 if bound is None else torch.tensor(bound / 448, device=CARD)
        given = (x.float() / steps).to(torch.float8_e4m3fn)
        wanted = given.double() * steps @ eighth(exact, largest.float() / 448).T
        for weight in (Dense(exact), Packed(four, dtype)):
            found = Eight(weight, bound)(given, steps if bound is None else None)
            assert distance(found, wanted) < 8e-3
            if bound is None:  # told in docs/performance.md
                assert 2e-2 < distance(found, x.double() @ exact.double().T) < 4.5e-2


def test_unpacked_weights_are_the_rounded_ones() -> None:
    one = layer(320, 1408, 128)
    weight = packed([one], torch.bfloat16, CARD)
    assert weight is not None
    assert torch.equal(Packed(weight, torch.bfloat16).unpacked(), dense(one).to(CARD, torch.bfloat16))


@dataclass
class Part:
    """A run as the runner is given it."""

    start: int
    count: int
    ids: tuple[int, ...]
    blocks: list[int]
    logits: bool = True
    prompt: Any = None

    @property
    def wanted(self) -> int:
        return int(self.logits)

    @property
    def part(self) -> Prompt:
        return Prompt([TokenSpan(self.ids)])


def model(shape: Shape, dtype: torch.dtype, *, exact: bool) -> Model:
    """Random weights of a shape: packed ones, or the same as dense ones."""
    torch.manual_seed(0)

    def linear(outputs: list[int], inputs: int, *, by_turns: bool = False) -> Any:
        made = [layer(rows, inputs, 128, seed=rows + inputs + at) for at, rows in enumerate(outputs)]
        calm = [PackedLinear(4, one.levels, one.scales * 0.02, one.zeros.clamp(7, 9), one.group) for one in made]
        if exact:
            return Dense(torch.cat([dense(one) for one in calm]).to(CARD, dtype))
        weight = packed(calm, dtype, CARD, by_turns=by_turns)
        assert weight is not None
        return Packed(weight, dtype)

    def ones(width: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(width)).bfloat16().to(CARD, dtype)

    heads, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim
    layers = [
        Layer(
            before_attention=ones(shape.hidden),
            qkv=linear([heads, keys, keys], shape.hidden),
            output=linear([shape.hidden], heads),
            before_mlp=ones(shape.hidden),
            gate_up=linear([shape.inner] * 2, shape.hidden, by_turns=True),
            down=linear([shape.hidden], shape.inner),
            q_norm=ones(shape.dim),
            k_norm=ones(shape.dim),
        )
        for _ in range(shape.layers)
    ]
    table = torch.randn(1000, shape.hidden).bfloat16().to(CARD, dtype)
    head = Dense((torch.randn(1000, shape.hidden) * 0.05).bfloat16().to(CARD, dtype))
    return Model(layers, table, ones(shape.hidden), head)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window"),
    [(4, 4, 128, 0), (4, 2, 128, 0), (4, 1, 128, 0), (8, 1, 64, 0), (4, 2, 96, 0), (2, 1, 256, 0), (4, 2, 128, 50)],
)
@pytest.mark.parametrize("in_bytes", [False, True])
def test_steps_of_every_kind_are_those_of_float32(
    heads: int, kv_heads: int, dim: int, window: int, in_bytes: bool
) -> None:
    shape = Shape(2, 512, heads, kv_heads, dim, 1024, 1e-5, window, CONTEXT, False, ROPE | {"rotated": dim})
    table = rotary_table(shape, CONTEXT).to(CARD)
    runners = {}
    half = torch.bfloat16
    for name, dtype in (("exact", torch.float32), ("plain", half), ("kernels", half), ("graphs", half)):
        pool = Pool(shape, 64, dtype, CARD, in_bytes=in_bytes)
        made = model(shape, dtype, exact=name == "exact")
        plain = name in ("exact", "plain")
        operations = Plain(shape, pool, table) if plain else Kernels(shape, pool, table, rows=64)
        runners[name] = NativeRunner(made, operations, context=CONTEXT, graphs=name == "graphs")
    with torch.inference_mode():
        for step in STEPS:
            told = {name: runner.forward(step).float() for name, runner in runners.items()}
            bound = 3 * distance(told["plain"], told["exact"]) + 5e-3  # as far as bfloat16 itself is
            assert distance(told["kernels"], told["exact"]) < bound
            assert distance(told["graphs"], told["exact"]) < bound


@hopper
@pytest.mark.parametrize("four_bit", [True, False])
def test_prompts_in_eight_bits_are_near_and_all_else_is_the_same(*, four_bit: bool) -> None:
    shape = Shape(3, 512, 4, 2, 128, 1024, 1e-5, 0, CONTEXT, False, ROPE | {"rotated": 128})
    table = rotary_table(shape, CONTEXT).to(CARD)
    told: dict[str, list[torch.Tensor]] = {}
    for name in ("exact", "half", "eight"):
        dtype = torch.float32 if name == "exact" else torch.bfloat16
        made = model(shape, dtype, exact=name == "exact" or not four_bit)
        if name == "eight":
            made.prompts = InEight(made.layers, shape.epsilon)
            assert made.nbytes > model(shape, dtype, exact=not four_bit).nbytes + 3 * 512 * 1024 * 3
        pool = Pool(shape, 64, dtype, CARD)
        operations = Plain(shape, pool, table) if name == "exact" else Kernels(shape, pool, table, rows=64)
        runner = NativeRunner(made, operations, context=CONTEXT)
        few, many = (Part(0, count, tuple(range(7, 7 + count)), TABLES[0]) for count in (64, 150))
        told[name] = [runner.forward([few]).float(), runner.forward([many]).float()]
    assert torch.equal(told["eight"][0], told["half"][0])
    assert distance(told["half"][1], told["exact"][1]) < 2e-2
    assert 1e-2 < distance(told["eight"][1], told["exact"][1]) < 1e-1


def test_the_kernel_keeps_the_bytes_that_are_told() -> None:
    """Scales are those of `Pool.write` to the bit, and bytes but for those that stand between two."""
    shape = Shape(2, 512, 4, 2, 128, 1024, 1e-5, 0, CONTEXT, False, ROPE | {"rotated": 64})
    table, pools = rotary_table(shape, CONTEXT).to(CARD), []
    for kind in (Plain, Kernels):
        pool = Pool(shape, 64, torch.bfloat16, CARD, in_bytes=True)
        operations = Plain(shape, pool, table) if kind is Plain else Kernels(shape, pool, table, rows=64)
        with torch.inference_mode():
            NativeRunner(model(shape, torch.bfloat16, exact=False), operations, context=CONTEXT).forward(STEPS[0])
        pools.append(pool)
    slots = torch.tensor([block * BLOCK + at for block in TABLES[0][:12] for at in range(BLOCK)], device=CARD)
    one, two = ((pool.keys[0][slots].int(), pool.values[0][slots].int()) for pool in pools)
    assert torch.equal(one[1], two[1])  # values come as they are: nothing turns them
    assert int((one[0] - two[0]).abs().max()) <= 2
    assert float((one[0] != two[0]).float().mean()) < 0.1  # the kernel turns without rounding in between


class Rows:
    """Rows of several sequences in one step of `Kernels`, as a graph is told of them."""

    def __init__(self, shape: Shape, runs: Sequence[tuple[int, int]], dtype: torch.dtype, *, in_bytes: bool) -> None:
        torch.manual_seed(0)
        self.shape, self.per_key, self.count = shape, shape.heads // shape.kv_heads, sum(count for _, count in runs)
        self.pool = Pool(shape, 208, dtype, CARD, in_bytes=in_bytes)
        earlier = [torch.randn_like(self.pool.keys[0], dtype=dtype) for _ in range(2)]
        self.pool.write(0, torch.arange(208 * BLOCK, device=CARD), earlier[0], earlier[1])
        self.operations = Kernels(shape, self.pool, rotary_table(shape, CONTEXT).to(CARD), rows=64)
        order = torch.randperm(208).tolist()
        columns = CONTEXT // BLOCK
        self.parts: list[Any] = [
            Part(start, count, (0,) * count, [order.pop() for _ in range(columns)]) for start, count in runs
        ]
        size = next(size for size in SIZES if size >= self.count)
        numbers = np.zeros(6 * 64 + 64 * columns, dtype=np.int32)
        joined = fill(numbers, columns, self.parts, size, together=self.operations.runs(size))
        told = torch.from_numpy(numbers).to(CARD)
        sections, tables = told[: 6 * 64].view(6, 64), told[6 * 64 :].view(64, columns)[:size]
        listed = sections[-1].view(-1, 4) if joined else None
        self.together = 0 if listed is None else int((listed[:, 1] > 0).sum())
        _, positions, slots, lengths, known, _ = sections[:, :size]
        self.places = Places(positions, slots, lengths, known, tables, listed)
        heads = shape.heads + 2 * shape.kv_heads
        self.qkv = torch.randn(size, heads * shape.dim, device=CARD).to(dtype)

    def attend(self) -> torch.Tensor:
        """What the rows see."""
        none = torch.zeros(0, dtype=torch.long, device=CARD)
        layer: Any = SimpleNamespace(q_norm=None, k_norm=None)
        self.operations.use(self.places)
        self.turned = self.qkv.clone()
        return self.operations.attend(self.turned, layer, 0, Step(none, none, none, (), none))

    def exact(self) -> torch.Tensor:
        """The same of float64, from the turned queries and the pool as `attend` left them."""
        shape, at, told = self.shape, 0, []
        queries = self.turned[:, : shape.heads * shape.dim].double().view(-1, shape.kv_heads, self.per_key, shape.dim)
        for part in self.parts:
            blocks = torch.tensor(part.blocks, device=CARD)
            for length in range(part.start + 1, part.start + part.count + 1):
                seen = torch.arange(max(0, length - shape.window) if shape.window else 0, length, device=CARD)
                slots = blocks[seen // BLOCK] * BLOCK + seen % BLOCK
                keys, values = self.pool.keys[0][slots].double(), self.pool.values[0][slots].double()
                if self.pool.scales is not None:
                    scales = self.pool.scales[0][slots].double()
                    keys, values = keys * scales[..., :1], values * scales[..., 1:]
                products = torch.einsum("khd,nkd->khn", queries[at], keys) * shape.dim**-0.5
                told.append(torch.einsum("khn,nkd->khd", products.softmax(-1), values).flatten())
                at += 1
        return torch.stack(told)


RUNS = [
    [(0, 16)],
    [(300, 8), (20, 8)],
    [(257, 20)],
    [(10, 1), (399, 1), (55, 1), (330, 40)],  # behind single rows
    [(100, 33), (3, 2), (200, 9), (0, 12), (77, 1)],
    [(311, 64)],
    [(15, 8)] * 8,
]
HEADS = [(2, 2, 128, 0), (4, 1, 128, 0), (7, 1, 64, 0), (6, 2, 96, 0), (2, 2, 80, 0), (2, 2, 128, 50), (8, 2, 64, 100)]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("heads", "kv_heads", "dim", "window"), [*HEADS, (2, 1, 256, 0)])
@pytest.mark.parametrize("in_bytes", [False, True])
def test_rows_of_every_kind_see_what_they_see_in_float64(
    heads: int, kv_heads: int, dim: int, window: int, in_bytes: bool, dtype: torch.dtype
) -> None:
    """Weights are rounded to the model's type before they meet the values: 2e-3 of bfloat16, 3e-4 of float16.

    So are weights times the values' scales, where the pool has bytes, which are whole numbers of either type.
    """
    shape = Shape(1, 512, heads, kv_heads, dim, 1024, 1e-5, window, CONTEXT, False, ROPE | {"rotated": dim})
    for runs in RUNS:
        rows = Rows(shape, runs, dtype, in_bytes=in_bytes)
        assert rows.together == (0 if dim == 256 else sum(count >= 8 for _, count in runs))
        found = rows.attend()
        assert distance(found[: rows.count], rows.exact()) < BOUNDS[dtype]
        assert not found[rows.count :].any()


@pytest.mark.parametrize("in_bytes", [False, True])
def test_rows_see_the_same_in_a_graph_and_at_every_call(in_bytes: bool) -> None:
    shape = Shape(1, 512, 4, 2, 128, 1024, 1e-5, 0, CONTEXT, False, ROPE | {"rotated": 128})
    for runs in RUNS:
        rows = Rows(shape, runs, torch.bfloat16, in_bytes=in_bytes)
        first = rows.attend().clone()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = rows.attend()
        for _ in range(20):
            captured.zero_()
            graph.replay()
            assert torch.equal(captured, first)
            assert torch.equal(rows.attend(), first)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_table_in_the_main_memory_changes_nothing(graphs: bool) -> None:
    shape = Shape(2, 512, 4, 2, 128, 1024, 1e-5, 0, CONTEXT, False, ROPE | {"rotated": 128})
    table, told = rotary_table(shape, CONTEXT).to(CARD), []
    for apart in (False, True):
        made = model(shape, torch.bfloat16, exact=False)
        whole = made.nbytes
        if apart:
            made.embedding = made.embedding.cpu()
            assert made.nbytes == whole - made.embedding.nbytes
        operations = Kernels(shape, Pool(shape, 64, torch.bfloat16, CARD), table, rows=64)
        runner = NativeRunner(made, operations, context=CONTEXT, graphs=graphs)
        with torch.inference_mode():
            told.append(torch.cat([runner.forward(step).clone() for step in STEPS]))
    assert torch.equal(*told)


PROMPTS = [(0, 70), (0, 128), (33, 97), (BEFORE, 193), (16, 600), (1, 1023), (BEFORE, 1024)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 128), (4, 2, 128), (8, 1, 64), (4, 2, 96)])
@pytest.mark.parametrize("kind", ["exact", "bytes", pytest.param("eight", marks=hopper)])
def test_a_prompt_alone_is_the_same_in_a_graph_and_without(kind: str, heads: int, kv_heads: int, dim: int) -> None:
    """Its keys and values are, too: what comes behind it sees them. No other position's are touched."""
    context, bound = 1200, {"exact": 2e-2, "bytes": 5e-2, "eight": 6e-2}[kind]
    shape = Shape(2, 512, heads, kv_heads, dim, 1024, 1e-5, 0, context, False, ROPE | {"rotated": dim})
    table, runners, pools = rotary_table(shape, context).to(CARD), [], []
    for graphs in (False, True):
        made = model(shape, torch.bfloat16, exact=False)
        if kind == "eight":
            made.prompts = InEight(made.layers, shape.epsilon)
        pools.append(Pool(shape, 160, torch.bfloat16, CARD, in_bytes=kind == "bytes"))
        pools[-1].keys.fill_(7), pools[-1].values.fill_(7)
        runners.append(NativeRunner(made, Kernels(shape, pools[-1], table, rows=64), context=context, graphs=graphs))
    with torch.inference_mode():
        while runners[1].prepare():
            pass
        assert runners[1]._prompts is not None
        ids = torch.randint(0, 1000, (1100,), generator=torch.Generator().manual_seed(2)).tolist()
        blocks = torch.randperm(160, generator=torch.Generator().manual_seed(3))[:70].tolist()
        for start, count in PROMPTS:
            steps: list[Any] = [Part(start, count, tuple(ids[start : start + count]), blocks)]
            assert runners[1]._prompts.takes(steps)
            if start:
                steps.insert(0, Part(0, start, tuple(ids[:start]), blocks))
            steps.append(Part(start + count, 1, (5,), blocks))
            for step in steps:
                plain, captured = (runner.forward([step]).float().clone() for runner in runners)
                assert captured.shape == plain.shape == (1, 1000)
                assert distance(captured, plain) < bound
            for before, after in zip((pools[0].keys, pools[0].values), (pools[1].keys, pools[1].values), strict=True):
                assert distance(after, before) < bound
    untouched = torch.tensor([at for at in range(160) if at not in blocks], device=CARD)
    assert bool((pools[1].keys.view(2, 160, -1)[:, untouched] == 7).all())


def test_prompts_of_which_there_is_no_graph_go_step_by_step() -> None:
    shape = Shape(1, 512, 4, 4, 128, 1024, 1e-5, 0, 1200, False, ROPE | {"rotated": 128})
    operations = Kernels(shape, Pool(shape, 80, torch.bfloat16, CARD), rotary_table(shape, 1200).to(CARD), rows=64)
    graphs = NativeRunner(model(shape, torch.bfloat16, exact=False), operations, context=1200)._prompts
    assert graphs is not None
    with torch.inference_mode():
        assert not graphs.takes([Part(0, 100, (), [])])  # not captured so far
        while graphs.prepare():
            pass
    taken: list[Any] = [Part(0, 100, (), []), Part(64, 100, (), []), Part(0, 100, (), [], logits=False)]
    assert [graphs.takes([each]) for each in taken] == [True] * 3
    refused: list[Any] = [Part(0, 1025, (), []), Part(65, 100, (), [])]
    assert [graphs.takes([each]) for each in refused] == [False] * 2
    assert not graphs.takes(taken[:2])


ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
IDS = torch.randint(0, 1000, (3, 300), generator=torch.Generator().manual_seed(1)).tolist()
TABLES = [list(range(20, 0, -1)), list(range(21, 41)), [63, 50, 41, 62, 45, 44, 60, 61, 42, 43, *range(46, 50), 51, 52]]


def part(sequence: int, start: int, end: int) -> Part:
    return Part(start, end - start, tuple(IDS[sequence][start:end]), TABLES[sequence])


STEPS: list[Any] = [
    [part(0, 0, 200), part(1, 0, 70)],
    [part(0, 200, 201), part(1, 70, 71), part(2, 0, 90)],
    [part(0, 201, 202), part(1, 71, 72), part(2, 90, 91)],
    [part(0, 202, 240)],
    [part(0, 240, 241)],
    [part(1, 72, 75), part(2, 91, 120), part(0, 241, 242)],
    [part(0, 242, 300), part(1, 75, 76)],
    # as many rows, with a run that attends together and without one, by turns
    [part(1, 76, 92)],
    [part(1, 92, 99), part(2, 120, 127)],
    [part(1, 99, 115)],
]
