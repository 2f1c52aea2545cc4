"""What all tests share: one thread, drawn pictures, small checkpoints made once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRIFOCAL_LOG"] = "no"  # nothing is written into the log of whoever runs the tests

import gc
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image as Pictures

from long_files import LONG, TESTS
from nursery import Forked, Nursery
from trifocal.images import Image, from_pil

if TYPE_CHECKING:
    from checkpoint_maker import V0

# torch and transformers are imported in what needs them: who only hands out the tests to the workers needs neither
logging.getLogger("transformers").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test has an id of its own: of those that share one, workers beside each other run a single one.

    Workers take files in this order (``--no-loadscope-reorder``): first the long ones, then those with most tests.
    """
    if shared := {name for name, count in Counter(item.nodeid for item in items).items() if count > 1}:
        raise pytest.UsageError(f"several tests are called {', '.join(sorted(shared))}")
    turns, tests = {TESTS / name: turn for turn, name in enumerate(LONG)}, Counter(item.path for item in items)
    items.sort(key=lambda item: (turns.get(item.path, len(LONG)), -tests[item.path]))


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through a million objects of torch again and again."""
    import torch

    for name in ("CI", "BUILD_NUMBER"):  # either makes pytest explain a failed comparison whole: hours for two pictures
        os.environ.pop(name, None)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def nursery() -> Iterator[type[Forked]]:
    """What starts the processes of those that have few of their own: see `nursery`."""
    made = Nursery()

    class Ours(Forked):
        nursery = made

    yield Ours
    made.close()


@pytest.fixture(scope="module")
def forked(request: pytest.FixtureRequest) -> Iterator[None]:
    """The processes that a file's tests start are forked, not started anew."""
    with pytest.MonkeyPatch.context() as patch:
        if sys.platform == "linux":
            patch.setattr(subprocess, "Popen", request.getfixturevalue("nursery"))
        yield


@pytest.fixture(scope="session")
def hf15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llava-hf 1.5 checkpoint."""
    from checkpoint_maker import make_hf15

    return make_hf15(tmp_path_factory.mktemp("hf15"))


@pytest.fixture(scope="session")
def v0(tmp_path_factory: pytest.TempPathFactory) -> V0:
    """A small LLaVA v0 in the seed's three places."""
    from checkpoint_maker import make_v0

    return make_v0(tmp_path_factory.mktemp("v0"))


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Image]:
    """A picture of noise, another for every seed."""
    import torch

    def draw(seed: int, width: int = 80, height: int = 60) -> Image:
        noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
        return from_pil(Pictures.fromarray(noise.to(torch.uint8).numpy()), name=f"noise {seed}")

    return draw
