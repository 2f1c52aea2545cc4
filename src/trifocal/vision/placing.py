"""Parts with their weights on their devices, and what happens when a device is full."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

from trifocal.errors import CheckpointError, OutOfMemory
from trifocal.placement import Placement
from trifocal.weights.tensors import Weights

__all__ = ["on_part", "placed", "room", "stored"]

log = logging.getLogger("trifocal")
_NO_ROOM = re.compile(r"can't allocate memory|out of memory")
PartT = TypeVar("PartT", bound=nn.Module)


def placed(what: str, empty: PartT, weights: Weights, placement: Placement) -> PartT:
    """A part with its weights, each cast and moved as it is read; the tower's last blocks stay on disk."""
    device, dtype = placement.resolve()
    started = time.perf_counter()
    with room(what):
        state = {
            name: stored(what, name, wanted.shape, weights).to(device=device, dtype=dtype, copy=True)
            for name, wanted in empty.state_dict().items()
        }
    empty.load_state_dict(state, assign=True)
    empty.requires_grad_(False)
    size = sum(tensor.nbytes for tensor in state.values())
    log.info("%s: %.1f MB on %s in %s, %.2f s", what, size / 1e6, device, dtype, time.perf_counter() - started)
    return empty


def stored(what: str, name: str, shape: torch.Size, weights: Weights) -> torch.Tensor:
    """A tensor as it is stored; its shape is looked at before it is read.

    Raises:
        CheckpointError: it is missing, of another shape, or holds what are no numbers.
    """
    if name not in weights:
        raise CheckpointError(f"{what}: the tensor {name} is missing")
    found, file = weights.spec(name)[1], weights.where(name)
    if found != tuple(shape):
        raise CheckpointError(f"{what}: {file}: {name} is {list(found)}, {list(shape)} was expected")
    tensor = weights[name]
    if not tensor.is_floating_point():
        raise CheckpointError(f"{what}: {file}: {name} holds {tensor.dtype}, floating point numbers were expected")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{what}: {file}: {name} holds numbers that are not finite")
    return tensor


def on_part(values: torch.Tensor, part: nn.Module) -> torch.Tensor:
    """The values on a part's device and in its dtype."""
    first = next(part.parameters())
    return values.to(device=first.device, dtype=first.dtype)


@contextmanager
def room(what: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the CPU and of mps torch says it in words alone
        if isinstance(error, torch.OutOfMemoryError) or _NO_ROOM.search(str(error)):
            raise OutOfMemory(f"{what}: its device has no room; place it elsewhere (cpu) or in float16") from error
        raise
