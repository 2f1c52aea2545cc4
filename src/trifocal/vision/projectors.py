"""Projectors: from patches of the tower's width to rows of the language model's."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from trifocal.errors import CheckpointError
from trifocal.vision.activations import Activation
from trifocal.weights.tensors import Weights

__all__ = ["PROJECTORS"]


def _linear(weights: Weights, act: str, kind: str) -> nn.Module:
    """One linear layer; its shape is that of its weights."""
    return _layer(weights, "")


def _mlp(weights: Weights, act: str, kind: str) -> nn.Module:
    """n linear layers with an activation between them: ``0``, ``2``, ... ``2(n-1)`` in the weights."""
    count = int(kind.removeprefix("mlp").removesuffix("x"))
    layers: list[nn.Module] = []
    for at in range(count):
        layers += [_layer(weights, f"{2 * at}."), Activation(act)]
    return nn.Sequential(*layers[:-1])


def _layer(weights: Weights, prefix: str) -> nn.Linear:
    name = f"{prefix}weight"
    if name not in weights:
        home, held = ", ".join(sorted(map(str, weights.files))), ", ".join(sorted(weights)) or "nothing"
        raise CheckpointError(
            f"{home}: the projector has no {name}; it has {held}: mm_projector_type in a config.json, the checkpoint's "
            "or one beside the projector, says which layers it has (linear where it says nothing, mlp2x_gelu, ...)"
        )
    _, shape = weights.spec(name)
    if len(shape) != 2:
        raise CheckpointError(f"{weights.where(name)}: {name} is {list(shape)}, [rows, columns] was expected")
    rows, columns = shape
    return nn.Linear(columns, rows, bias=f"{prefix}bias" in weights, device="meta")


# how a configuration names a projector -> what builds it, empty, from its weights
PROJECTORS: dict[str, Callable[[Weights, str, str], nn.Module]] = {
    "linear": _linear,
    **{f"mlp{count}x": _mlp for count in range(1, 9)},
}
