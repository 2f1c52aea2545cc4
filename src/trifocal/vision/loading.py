"""Loads what a checkpoint sees with."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from trifocal.checkpoints import Checkpoint, Tower
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.vision.cache import FeatureCache
from trifocal.vision.llava import ClipVision
from trifocal.vision.placing import placed
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.towers import ClipTower
from trifocal.weights import part_weights

__all__ = ["load_vision"]


def load_vision(
    checkpoint: Checkpoint,
    tower: Placement,
    projector: Placement,
    *,
    allow_pickle: bool = False,
    cache_bytes: int = 256 << 20,
) -> ClipVision:
    """Loads tower and projector, each onto its placement; time and memory of each go to the log.

    Raises:
        CheckpointError: tensors missing, of another shape, or a projector that does not fit the tower.
        OutOfMemory: a device has no room for its part.
    """
    eyes = part_weights(checkpoint.tower.source, "tower", allow_pickle=allow_pickle)
    hands = part_weights(checkpoint.projector.source, "projector", allow_pickle=allow_pickle)
    if checkpoint.projector.kind not in PROJECTORS:
        raise CheckpointError(
            f"projector of type {checkpoint.projector.kind!r} is not known; known: {', '.join(PROJECTORS)}"
        )
    with torch.device("meta"):
        empty = ClipTower(checkpoint.tower).eval()
    seeing = placed("vision tower", empty, eyes, tower)
    kind = checkpoint.projector.kind
    reading = placed("projector", PROJECTORS[kind](hands, checkpoint.projector.act, kind), hands, projector)
    over = sorted(set(hands) - set(reading.state_dict()))
    if over:
        raise CheckpointError(
            f"{hands.where(over[0])}: the projector is said to be {kind}, which has no {', '.join(over)}: "
            "its configuration belongs to another file"
        )
    linears = [module for module in reading.modules() if isinstance(module, nn.Linear)]
    if linears[0].in_features != checkpoint.tower.hidden:
        raise CheckpointError(
            f"the projector takes features of {linears[0].in_features}, the tower makes {checkpoint.tower.hidden}: "
            "they belong to different models"
        )
    return ClipVision(
        seeing,
        reading,
        checkpoint.preprocessing,
        hidden=linears[-1].out_features,
        identity=_identity(checkpoint, seeing, reading),
        cache=FeatureCache(cache_bytes),
    )


def _identity(checkpoint: Checkpoint, *parts: nn.Module) -> str:
    """A digest of weights, precision and preprocessing: what makes two visions see the same."""
    facts = (checkpoint.preprocessing, _shape(checkpoint.tower), checkpoint.projector.act)
    digest = hashlib.sha256(repr(facts).encode())
    for part in parts:
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _shape(tower: Tower) -> tuple[object, ...]:
    return (tower.layers, tower.heads, tower.patch_size, tower.act, tower.eps, tower.feature_layer, tower.keep_class)
