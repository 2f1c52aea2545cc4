"""A tower's kernels on a card against float64 and torch's operations. Without an NVIDIA card from sm_80 on: not run."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from towers_made import CLIP, SIGLIP, made

from trifocal import cuda
from trifocal.checkpoints import Tower
from trifocal.vision.beside import Beside
from trifocal.vision.fused import Fused, Plain, Rows
from trifocal.vision.graphed import Graphed
from trifocal.vision.kernels import ByCudnn, Kernels, at_its_best, attention_on
from waiting import PATIENCE

CARD = torch.device("cuda:0")
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not cuda.supported(CARD), reason="there is no NVIDIA card from sm_80 on here"
)
HAS_CUDNN = torch.cuda.is_available() and cuda.supported(CARD) and isinstance(attention_on(CARD), ByCudnn)
BOUNDS = {torch.float16: 6e-4, torch.bfloat16: 5e-3}  # of one rounding
REAL = {
    "clip": replace(CLIP, hidden=1024, layers=4, heads=16, mlp=4096, image_size=336),
    "siglip": replace(SIGLIP, hidden=1152, layers=4, heads=16, mlp=4304, image_size=384),
}
SMALL = {
    "clip": CLIP,
    "siglip": SIGLIP,
    "several": replace(CLIP, feature_layer=(0, 1, -2)),
    "none": replace(CLIP, feature_layer=0),
}


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


def normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(*shape, device=CARD).to(dtype)


def norm_of(hidden: int, dtype: torch.dtype) -> nn.LayerNorm:
    norm = nn.LayerNorm(hidden, eps=1e-5, device=CARD, dtype=dtype).requires_grad_(False)
    norm.weight.copy_(1 + 0.2 * torch.randn(hidden))
    norm.bias.copy_(0.2 * torch.randn(hidden))
    return norm


def exactly(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x.double(), x.shape[-1:], norm.weight.double(), norm.bias.double(), norm.eps)


def kernels(dtype: torch.dtype, **values: Any) -> Kernels:
    return Kernels(replace(CLIP, **values), dtype, CARD)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("rows", "hidden"), [(577, 1024), (1, 1024), (729, 1152), (13, 64), (5, 8), (3, 8192)])
def test_rows_are_added_and_normed(rows: int, hidden: int, dtype: torch.dtype) -> None:
    x, norm = 3 * normal(rows, hidden, dtype=dtype) + 2, norm_of(hidden, dtype)
    taken = normal(rows, 64, dtype=dtype)
    linear = nn.Linear(64, hidden, device=CARD, dtype=dtype).requires_grad_(False)
    steps, before = kernels(dtype, hidden=hidden, heads=1), x.clone()
    found = steps.onto(x, taken, linear, norm)
    assert torch.equal(x, before)
    assert torch.equal(found.hidden, x + linear(taken))
    assert distance(found.normed, exactly(norm, found.hidden)) < BOUNDS[dtype]
    assert torch.equal(steps.onto(x, taken, linear, None).hidden, found.hidden)
    assert distance(steps.norm(x, norm), exactly(norm, x)) < BOUNDS[dtype]


def test_a_row_far_from_zero_is_normed() -> None:
    x, norm = normal(7, 1024) + 1000, norm_of(1024, torch.float16)
    assert distance(kernels(torch.float16, hidden=1024).norm(x, norm), exactly(norm, x)) < BOUNDS[torch.float16]


ACTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "quick_gelu": lambda x: x * (1.702 * x).sigmoid(),
    "gelu": functional.gelu,
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("act", ACTS)
def test_activations_are_those_of_float64(act: str, dtype: torch.dtype) -> None:
    ends = torch.tensor([0.0, -0.0, 60000.0, -60000.0, -8.0, 8.0, 1e-4, -1e-4], device=CARD)
    for rows in (1, 3, 577):
        x = torch.cat([4 * torch.randn(rows, 1016, device=CARD), ends.expand(rows, -1)], 1).to(dtype)
        wanted = ACTS[act](x.double())
        found = kernels(dtype, act=act).activate(x)
        assert found is x
        torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=2 * BOUNDS[dtype])


@pytest.mark.parametrize("config", [CLIP, SIGLIP, REAL["clip"], REAL["siglip"], replace(CLIP, patch_size=8)])
@pytest.mark.parametrize("images", [1, 3])
def test_patches_are_taken_as_a_convolution_takes_them(config: Tower, images: int) -> None:
    values = normal(images, 3, config.image_size, config.image_size)
    found, wanted = Kernels(config, torch.float16, CARD).patches(values), Plain(config).patches(values)
    assert torch.equal(found[:, : wanted.shape[1]], wanted)
    assert not found[:, wanted.shape[1] :].any()
    assert found.shape[1] % 8 == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_towers_begin_as_torch_begins_them(first: bool, normed: bool) -> None:
    patches, places, norm = normal(3 * 16, 1024), normal(16 + first, 1024), norm_of(1024, torch.float16)
    given = (patches, normal(1024) if first else None, places, norm if normed else None)
    plain: Rows = Plain(CLIP).begin(*given)
    found = kernels(torch.float16, hidden=1024).begin(*given)
    assert torch.equal(found.hidden, plain.hidden)
    assert distance(found.normed, exactly(norm, plain.hidden) if normed else plain.hidden) < BOUNDS[torch.float16]


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("config", [CLIP, SIGLIP, *REAL.values()])
@pytest.mark.parametrize("images", [1, 3])
def test_attention_is_that_of_float64(config: Tower, images: int, dtype: torch.dtype) -> None:
    qkv = normal(images * rows_of(config), 3 * config.hidden, dtype=dtype)
    wanted = Plain(config, as_float64).attend(qkv, images)
    found = Kernels(config, dtype, CARD).attend(qkv, images)
    assert found.is_contiguous()
    assert distance(found, wanted) < BOUNDS[dtype]


def rows_of(config: Tower) -> int:
    return config.side**2 + (config.kind == "clip")


def as_float64(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    queries, keys, values = queries.double(), keys.double(), values.double()
    weights = (queries @ keys.mT / float(queries.shape[-1]) ** 0.5).softmax(-1)
    seen: torch.Tensor = weights @ values
    return seen


@pytest.mark.skipif(not HAS_CUDNN, reason="no card, torch and cuDNN for its attention")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("config", REAL.values(), ids=REAL)
def test_cudnn_has_the_attention_of_real_towers(config: Tower, dtype: torch.dtype) -> None:
    attention = ByCudnn()
    heads = normal(3, 2, config.heads, rows_of(config), config.hidden // config.heads, dtype=dtype)
    assert distance(attention(*heads), as_float64(*heads)) < BOUNDS[dtype]
    assert attention.found


@torch.inference_mode()
def test_a_graph_outlives_the_thread_that_captured_it() -> None:
    tower = at_its_best(made(REAL["clip"]).to(CARD, torch.float16))
    graphed, values = Graphed(tower), normal(2, 3, 336, 336)
    found: list[torch.Tensor] = []

    def captures() -> None:
        with torch.inference_mode():
            found.append(graphed(values))

    thread = threading.Thread(target=captures)
    thread.start()
    thread.join(PATIENCE)
    gc.collect()
    torch.cuda.empty_cache()
    for _ in range(3):  # by the graph for more of them at first, then what plans anew, in this thread
        assert distance(graphed(values[:1]), tower(values[:1])) < BOUNDS[torch.float16]
    assert torch.equal(graphed(values), found[0])
    other = normal(*values.shape)
    assert torch.equal(graphed(other), tower(other))


def test_graphs_are_captured_by_several_threads() -> None:
    """Each begins by waiting for the whole card, which was an error while another was under way."""
    failed: list[BaseException] = []

    def captures() -> None:
        part = Graphed(nn.Sequential(*(nn.Linear(64, 64) for _ in range(50))).to(CARD, torch.float16))
        try:
            with torch.inference_mode():
                for many in range(1, 13):
                    values = normal(8 * many, 64, dtype=torch.float16)
                    assert distance(part(values), part._part(values)) < BOUNDS[torch.float16]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=captures) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not failed


@torch.inference_mode()
def test_a_tower_does_not_wait_for_what_others_do_on_its_card() -> None:
    tower = at_its_best(made(REAL["clip"]).to(CARD, torch.float16))
    graphed, beside, values = Graphed(tower), Beside(tower), normal(1, 3, 336, 336).cpu()
    with beside():
        wanted = graphed(values)
    torch.cuda.synchronize()
    torch.cuda._sleep(4_000_000_000)  # two seconds of a step
    step = torch.cuda.Event()
    step.record()
    with beside():
        found = graphed(values)
    assert not step.query()  # what is there already was not waited for
    assert torch.equal(found.to("cpu", copy=True), wanted.cpu())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(
    ("config", "images"),
    [*((one, images) for one in SMALL.values() for images in (1, 3)), *((REAL["clip"], n) for n in (1, 2, 3, 8, 32))]
    + [(REAL["siglip"], n) for n in (1, 8)],
)
@torch.inference_mode()
def test_a_tower_sees_what_it_sees_in_float32(config: Tower, images: int, dtype: torch.dtype) -> None:
    """As near to float32 as the tower itself is in 16 bits; as a graph it is the same bit by bit."""
    tower = made(config).to(CARD)
    values = normal(images, 3, config.image_size, config.image_size, dtype=dtype)
    wanted = torch.cat([tower(one[None].float()) for one in values])
    plain = tower.to(dtype)(values)
    fused = at_its_best(tower)
    assert isinstance(fused, Fused)
    found = fused(values)
    assert found.shape == wanted.shape
    assert distance(found, wanted) < 1.2 * distance(plain, wanted) + BOUNDS[dtype] / 10
    graphed = Graphed(fused)
    assert torch.equal(graphed(values), found)
    assert torch.equal(graphed(values.float()), found)  # as pixels come
    other = normal(*values.shape, dtype=dtype)
    assert torch.equal(graphed(other), fused(other))


@pytest.mark.parametrize("config", [replace(CLIP, act="linear"), replace(CLIP, hidden=60), replace(CLIP, mlp=100)])
def test_what_the_kernels_do_not_take_goes_its_own_way(config: Tower) -> None:
    tower = made(config).to(CARD, torch.float16)
    assert at_its_best(tower) is tower
    assert at_its_best(made(CLIP).to(CARD)) is not None
