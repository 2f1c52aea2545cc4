"""Loads what a checkpoint sees with."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from trifocal.checkpoints import Checkpoint, Tower
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.vision.base import Vision
from trifocal.vision.llava import LlavaVision
from trifocal.vision.placing import placed, stored
from trifocal.vision.plugged import open_plugged
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.towers import VisionTransformer
from trifocal.weights.tensors import Weights, part_weights

__all__ = ["VISIONS", "load_vision", "open_vision"]

NEWLINE = "image_newline"
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


def open_vision(
    checkpoint: Checkpoint, tower: Placement, projector: Placement, *, allow_pickle: bool = False
) -> Vision:
    """What sees this checkpoint's pictures: one of the table of `VISIONS`, or another package's.

    Raises:
        CheckpointError: the vision half can't be made of the files.
        UnknownName: a vision that no installed package offers.
        UsageError: parts placed apart that are one.
        OutOfMemory: a device has no room for its part.
    """
    load = VISIONS.get(checkpoint.vision.name, _load_plugged)
    return load(checkpoint, tower, projector, allow_pickle)


def load_vision(
    checkpoint: Checkpoint,
    tower: Placement,
    projector: Placement,
    *,
    hidden: int | None = None,
    allow_pickle: bool = False,
) -> LlavaVision:
    """Loads tower and projector, each onto its placement; time and memory of each go to the log.

    ``hidden`` is the width of the rows that the language model takes, where that is known.

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
    for what, found, source in (
        ("vision tower", eyes, checkpoint.tower.source),
        ("projector", hands, checkpoint.projector.source),
    ):
        if not found:
            raise CheckpointError(f"{source}: there is no {what} in it")
    empty = _empty(checkpoint.tower, eyes)
    seeing = placed("vision tower", empty, eyes, tower)
    kind = checkpoint.projector.kind
    reading = placed("projector", PROJECTORS[kind](hands, checkpoint.projector.act, kind), hands, projector)
    over = sorted(set(hands) - set(reading.state_dict()) - {NEWLINE})
    if over:
        raise CheckpointError(
            f"{hands.where(over[0])}: the projector is said to be {kind}, which has no {', '.join(over)}: "
            "its configuration belongs to another file"
        )
    linears = [module for module in reading.modules() if isinstance(module, nn.Linear)]
    if linears[0].in_features != checkpoint.tower.width:
        layers = checkpoint.tower.feature_layer
        several = "" if isinstance(layers, int) else f", of the layers {list(layers)} that config.json names"
        raise CheckpointError(
            f"{_home(hands)}: the projector takes features of {linears[0].in_features}, the tower makes "
            f"{checkpoint.tower.width}{several}: they belong to different models"
        )
    for first, second in itertools.pairwise(linears):
        if first.out_features != second.in_features:
            raise CheckpointError(
                f"{_home(hands)}: a layer of the projector makes {first.out_features}, the next one takes "
                f"{second.in_features}"
            )
    made = linears[-1].out_features
    if hidden is not None and made != hidden:
        raise CheckpointError(
            f"{_home(hands)}: the projector makes rows of {made}, the language model takes rows of {hidden}: "
            "they belong to different models"
        )
    newline = _newline(checkpoint, made, hands, projector)
    return LlavaVision(
        seeing,
        reading,
        checkpoint.preprocessing,
        hidden=made,
        identity=_identity(checkpoint, seeing.state_dict(), reading.state_dict(), newline),
        newline=newline.get(NEWLINE),
    )


def _load_own(checkpoint: Checkpoint, tower: Placement, projector: Placement, allow_pickle: bool) -> Vision:
    return load_vision(checkpoint, tower, projector, hidden=checkpoint.language.hidden, allow_pickle=allow_pickle)


def _load_transformers(checkpoint: Checkpoint, tower: Placement, projector: Placement, _: bool) -> Vision:
    from trifocal.vision.transformers import load_transformers  # transformers' models are not imported for our own

    return load_transformers(checkpoint, tower, projector)


def _load_plugged(checkpoint: Checkpoint, tower: Placement, _: Placement, __: bool) -> Vision:
    return open_plugged(checkpoint, tower)


# the name of a checkpoint's vision -> what loads it
VISIONS: dict[str, Callable[[Checkpoint, Placement, Placement, bool], Vision]] = {
    "llava": _load_own,
    "transformers": _load_transformers,
}


def _empty(tower: Tower, weights: Weights) -> VisionTransformer:
    """The tower without weights, which has no more blocks than there are."""
    found = len({match[1] for name in weights if (match := _BLOCK.match(name))})
    if tower.blocks > found:
        raise CheckpointError(f"{_home(weights)}: the vision tower has {found} blocks, {tower.blocks} were expected")
    try:
        with torch.device("meta"):
            return VisionTransformer(tower).eval()
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{tower.source}: no vision tower can have these sizes ({error})") from error


def _home(weights: Weights) -> str:
    """The files that hold these weights, for messages."""
    return ", ".join(sorted(map(str, weights.files)))


def _newline(checkpoint: Checkpoint, hidden: int, weights: Weights, placement: Placement) -> dict[str, torch.Tensor]:
    """The learned row that ends rows of patches, by its name, where the checkpoint's pictures have one."""
    if not checkpoint.preprocessing.has_newline:
        return {}
    device, dtype = placement.resolve()
    row = stored("projector", NEWLINE, torch.Size([hidden]), weights)
    return {NEWLINE: row.to(device=device, dtype=dtype, copy=True)}


def _identity(checkpoint: Checkpoint, *parts: Mapping[str, torch.Tensor]) -> str:
    """A digest of weights, precision and preprocessing: what makes two visions see the same."""
    facts = (checkpoint.preprocessing, _shape(checkpoint.tower), checkpoint.projector.act)
    digest = hashlib.sha256(repr(facts).encode())
    for part in parts:
        for name, tensor in part.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
            digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shape(tower: Tower) -> tuple[object, ...]:
    sizes = (tower.layers, tower.heads, tower.patch_size)
    return (tower.kind, *sizes, tower.act, tower.eps, tower.feature_layer, tower.keep_first)
