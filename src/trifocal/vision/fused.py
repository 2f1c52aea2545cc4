"""A tower in few large steps: the parameters of a `VisionTransformer`, and but for rounding its features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from trifocal.checkpoints import Tower
from trifocal.vision.activations import activation
from trifocal.vision.towers import Block, VisionTransformer

__all__ = ["Attention", "Fused", "Plain", "Rows"]

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # [images, heads, rows, head] each


class Rows(NamedTuple):
    """Hidden states ``[images * rows, hidden]``, and their norm as the next product takes it."""

    hidden: torch.Tensor
    normed: torch.Tensor


class Plain:
    """What a tower does beside its large products, in torch's operations; all rows ``[images * rows, width]``."""

    def __init__(self, config: Tower, attention: Attention = functional.scaled_dot_product_attention) -> None:
        self.config = config
        self._attention = attention
        self._act = activation(config.act)

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels ``[images * side * side, 3 * patch * patch]`` of each patch, as a convolution's weights lie."""
        unfolded = functional.unfold(pixel_values, self.config.patch_size, stride=self.config.patch_size)
        return unfolded.transpose(1, 2).flatten(0, 1)

    def begin(
        self, patches: torch.Tensor, first: torch.Tensor | None, places: torch.Tensor, norm: nn.LayerNorm | None
    ) -> Rows:
        """Patches behind the class token ``[hidden]``, if there is one, at their places ``[rows, hidden]``."""
        rows = patches.view(-1, len(places) - (first is not None), patches.shape[1])
        if first is not None:
            rows = torch.cat([first.expand(len(rows), 1, -1), rows], 1)
        return self._normed((rows + places).flatten(0, 1), norm)

    def onto(self, x: torch.Tensor, taken: torch.Tensor, linear: nn.Linear, norm: nn.LayerNorm | None) -> Rows:
        """Hidden states with a product added to them."""
        return self._normed(x + linear(taken), norm)

    def norm(self, x: torch.Tensor, norm: nn.LayerNorm) -> torch.Tensor:
        """Rows normed."""
        return self._normed(x, norm).normed

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """The activation of a product, which is overwritten."""
        return self._act(x)

    def attend(self, qkv: torch.Tensor, images: int) -> torch.Tensor:
        """What the rows of each image see of each other, of queries, keys and values side by side."""
        parts = qkv.view(images, -1, 3, self.config.heads, qkv.shape[1] // 3 // self.config.heads)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # [images, heads, rows, head] each, and none is copied
        seen = self._attention(queries, keys, values)
        return seen.transpose(1, 2).reshape(len(qkv), -1)

    def _normed(self, x: torch.Tensor, norm: nn.LayerNorm | None) -> Rows:
        return Rows(x, x if norm is None else norm(x))


class Fused(nn.Module):
    """A tower by its `Plain` steps or other ones; it is called as the tower is.

    Queries, keys and values are one product: the three weights become views of one, so that nothing lies there twice
    but the weight of the patches, whose rows are filled up with zeros to a multiple of 8. A graph that was captured
    of the tower before reads where its weights were.
    """

    def __init__(self, tower: VisionTransformer, steps: Plain) -> None:
        super().__init__()
        self.tower, self.steps = tower, steps
        self._qkv = [_joined(block) for block in tower.encoder.blocks]
        weight = tower.embeddings.patch_embedding.weight.detach().flatten(1)
        self._patches = functional.pad(weight, (0, -weight.shape[1] % 8))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[images, 3, side, side]`` to ``[images, patches, width]``, as the tower does."""
        config, images = self.tower.config, len(pixel_values)
        blocks = self.tower.encoder.blocks
        rows = self._begin(pixel_values)
        states = {0: rows.hidden}
        norms = [*(block.layer_norm1 for block in blocks), None][1:]  # a block's rows are normed for the next
        for done, (block, qkv, after) in enumerate(zip(blocks, self._qkv, norms, strict=True), 1):
            seen = self.steps.attend(functional.linear(rows.normed, *qkv), images)
            rows = self.steps.onto(rows.hidden, seen, block.self_attn.out_proj, block.layer_norm2)
            inner = self.steps.activate(block.mlp.fc1(rows.normed))
            rows = self.steps.onto(rows.hidden, inner, block.mlp.fc2, after)
            if done in config.taken:
                states[done] = rows.hidden
        taken = [states[at].view(images, -1, config.hidden) for at in config.taken]
        features = taken[0] if len(taken) == 1 else torch.cat(taken, -1)
        return features if config.keep_first else features[:, 1:]

    def _begin(self, pixel_values: torch.Tensor) -> Rows:
        """The states before the first block, with its norm."""
        tower, embeddings = self.tower, self.tower.embeddings
        patches = self.steps.patches(pixel_values)
        weight = self._patches[:, : patches.shape[1]]  # the steps fill up with zeros, or they don't
        patches = functional.linear(patches, weight, embeddings.patch_embedding.bias)
        first = next((block.layer_norm1 for block in tower.encoder.blocks), None)
        places, clip = embeddings.position_embedding.weight, tower.config.kind == "clip"
        rows = self.steps.begin(patches, embeddings.class_embedding, places, tower.pre_layrnorm if clip else first)
        if not clip:
            return rows
        hidden = rows.normed
        return Rows(hidden, hidden if first is None else self.steps.norm(hidden, first))


def _joined(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a block's queries, keys and values, of which their own become views."""
    attention = block.self_attn
    linears = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, bias = (torch.cat([getattr(linear, name).detach() for linear in linears]) for name in ("weight", "bias"))
    for linear, own, less in zip(linears, weight.chunk(3), bias.chunk(3), strict=True):
        linear.weight, linear.bias = (nn.Parameter(view, requires_grad=False) for view in (own, less))
    return weight, bias
