"""Projectors: from patches of the tower's width to rows of the language model's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trifocal.checkpoints import layers_of
from trifocal.errors import CheckpointError
from trifocal.vision.activations import Activation
from trifocal.weights.tensors import Weights

__all__ = ["PROJECTORS"]


def _linear(weights: Weights, act: str, kind: str) -> nn.Module:
    """One linear layer; its shape is that of its weights."""
    return _layer(weights, "")


def _mlp(weights: Weights, act: str, kind: str) -> nn.Module:
    """n linear layers with an activation between them: ``0``, ``2``, ... ``2(n-1)`` in the weights.

    Of ``mlp2x_res3x`` the last three, counted on from there, are residual blocks.
    """
    linears, blocks = layers_of(kind)
    layers: list[nn.Module] = []
    for at in range(linears):
        layers += [_layer(weights, f"{2 * at}."), Activation(act)]
    layers.pop()
    for at in range(len(layers), len(layers) + blocks):
        layers.append(_Residual(weights, f"{at}.", act))
    return nn.Sequential(*layers)


class _Residual(nn.Module):
    """LLaVA-NeXT's block behind the layers: the rows normalised, and two more layers of these added to them."""

    def __init__(self, weights: Weights, prefix: str, act: str) -> None:
        super().__init__()
        first, second = _layer(weights, f"{prefix}proj.0."), _layer(weights, f"{prefix}proj.2.")
        self.pre_norm = nn.LayerNorm(first.in_features, device="meta")
        self.proj = nn.Sequential(first, Activation(act), second)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        normal: torch.Tensor = self.pre_norm(rows)
        added: torch.Tensor = self.proj(normal)
        return normal + added  # not to the rows themselves


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
    # llava-hf's may have none at all; where others have one, one that is missing is told when it is read
    biased = any(name.rpartition(".")[2] == "bias" for name in weights)
    return nn.Linear(columns, rows, bias=biased, device="meta")


# how a configuration names a projector -> what builds it, empty, from its weights
PROJECTORS: dict[str, Callable[[Weights, str, str], nn.Module]] = {
    "linear": _linear,
    **{f"mlp{count}x": _mlp for count in range(1, 9)},
    **{f"mlp{count}x_res{blocks}x": _mlp for count in range(1, 9) for blocks in range(1, 9)},
}
