"""Loads what a checkpoint sees with."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping

import torch
from torch import nn

from trifocal.checkpoints import Checkpoint, Projector, Tower
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.vision.base import Vision
from trifocal.vision.llava import LlavaVision
from trifocal.vision.placing import placed, stored
from trifocal.vision.plugged import open_plugged
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.towers import VisionTransformer
from trifocal.weights.lora import changed_weights
from trifocal.weights.tensors import Weights
from trifocal.weights.unpacked import unpacked

__all__ = ["VISIONS", "load_vision", "open_vision"]

NEWLINE = "image_newline"
_BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")
_BEHIND = re.compile(r"(?:post_layernorm|head|visual_projection)\.|logit_(?:scale|bias)$")


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
    kind = checkpoint.projector.kind
    if kind not in PROJECTORS:
        raise CheckpointError(
            f"{checkpoint.name}: mm_projector_type is {kind!r} in its config.json, a projector that is not known; "
            f"known: {', '.join(name for name in PROJECTORS if '_' not in name)}, of several layers with an activation "
            "behind it (mlp2x_gelu), or with up to eight residual blocks, too (mlp2x_res2x_gelu)"
        )
    tower_weights = _weights(checkpoint.tower, "tower", allow_pickle)
    projector_weights = _weights(checkpoint.projector, "projector", allow_pickle)
    tower_module = placed("vision tower", _empty(checkpoint.tower, tower_weights), tower_weights, tower)
    empty = PROJECTORS[kind](projector_weights, checkpoint.projector.act, kind)
    projector_module = placed("projector", empty, projector_weights, projector)
    made = _check_widths(checkpoint, projector_module, projector_weights, hidden)
    newline = _newline(checkpoint, made, projector_weights, projector)
    return LlavaVision(
        tower_module,
        projector_module,
        checkpoint.preprocessing,
        hidden=made,
        identity=_identity(checkpoint, tower_module.state_dict(), projector_module.state_dict(), newline),
        newline=newline.get(NEWLINE),
    )


def _weights(part: Tower | Projector, name: str, allow_pickle: bool) -> Weights:
    """The tensors of the tower or the projector, of which there must be some."""
    found = unpacked(changed_weights(part.source, name, part.adapter, allow_pickle=allow_pickle), part.source)
    if not found:
        raise CheckpointError(f"{part.source}: there is no {'vision ' * (name == 'tower')}{name} in it")
    return found


def _check_widths(checkpoint: Checkpoint, projector: nn.Module, weights: Weights, hidden: int | None) -> int:
    """Holds the projector against the tower and the language model; the width of the rows that it makes.

    Raises:
        CheckpointError: tensors that this projector has no place for, or widths that don't fit.
    """
    over = sorted(set(weights) - set(projector.state_dict()) - {NEWLINE})
    if over:
        raise CheckpointError(
            f"{weights.where(over[0])}: the projector is said to be {checkpoint.projector.kind}, which has no "
            f"{', '.join(over)}: its configuration belongs to another file"
        )
    home, linears = _home(weights), [module for module in projector.modules() if isinstance(module, nn.Linear)]
    taken, made = linears[0].in_features, linears[-1].out_features
    if taken != checkpoint.tower.width:
        layers = checkpoint.tower.feature_layer
        several = "" if isinstance(layers, int) else f", of the layers {list(layers)} that config.json names"
        raise CheckpointError(
            f"{home}: the projector takes features of {taken}, the tower makes "
            f"{checkpoint.tower.width}{several}: they belong to different models"
        )
    for first, second in itertools.pairwise(linears):
        if first.out_features != second.in_features:
            raise CheckpointError(
                f"{home}: a layer of the projector makes {first.out_features}, the next one takes {second.in_features}"
            )
    if hidden is not None and made != hidden:
        raise CheckpointError(
            f"{home}: the projector makes rows of {made}, the language model takes rows of {hidden}: "
            "they belong to different models"
        )
    return made


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
            empty = VisionTransformer(tower).eval()
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{tower.source}: no vision tower can have these sizes ({error})") from error
    left = {name for name in set(weights) - set(empty.state_dict()) if not _behind(name, tower.blocks)}
    if left:
        raise CheckpointError(
            f"{weights.where(min(left))}: {len(left)} tensors of the vision tower are unexpected, first {min(left)!r}: "
            f"a tower of type {tower.kind} has no place for them, so it is one of another kind"
        )
    return empty


def _behind(name: str, blocks: int) -> bool:
    """Whether a tensor is of what comes behind the last block that is computed: features don't depend on it."""
    if block := _BLOCK.match(name):
        return int(block[1]) >= blocks
    return _BEHIND.match(name) is not None


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
