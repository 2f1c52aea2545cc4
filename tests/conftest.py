"""What all tests share: one thread, drawn pictures, small checkpoints made once."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRIFOCAL_LOG"] = "no"  # nothing is written into the log of whoever runs the tests

import gc
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image as Pictures

from checkpoint_maker import V0, make_hf15, make_v0
from trifocal.images import Image, from_pil

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test has an id of its own: of those that share one, workers beside each other run a single one."""
    if shared := {name for name, count in Counter(item.nodeid for item in items).items() if count > 1}:
        raise pytest.UsageError(f"several tests are called {', '.join(sorted(shared))}")


def pytest_collection_finish() -> None:
    """What was imported stays: the collector need not look through a million objects of torch again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def hf15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small llava-hf 1.5 checkpoint."""
    return make_hf15(tmp_path_factory.mktemp("hf15"))


@pytest.fixture(scope="session")
def v0(tmp_path_factory: pytest.TempPathFactory) -> V0:
    """A small LLaVA v0 in the seed's three places."""
    return make_v0(tmp_path_factory.mktemp("v0"))


@pytest.fixture(scope="session")
def drawn() -> Callable[..., Image]:
    """A picture of noise, another for every seed."""

    def draw(seed: int, width: int = 80, height: int = 60) -> Image:
        noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
        return from_pil(Pictures.fromarray(noise.to(torch.uint8).numpy()), name=f"noise {seed}")

    return draw
