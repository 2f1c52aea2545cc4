"""Where the model looked while it chose each id of an answer."""

from __future__ import annotations

import torch

from trifocal.engines.native.memory import BLOCK, Piece, Pool, alone
from trifocal.engines.native.model import Model, Plain
from trifocal.engines.shape import Shape

__all__ = ["attention_of"]

_HELD_BYTES = 256 << 20  # attention weights that are looked at together


def attention_of(
    model: Model, shape: Shape, table: torch.Tensor, prompt: torch.Tensor, answer: torch.Tensor
) -> torch.Tensor:
    """The attention to each position of a prompt while each id of its answer was chosen, ``[answer, prompt]``.

    ``prompt`` and ``answer`` are input rows ``[n, hidden]``; told in float32 on the CPU, the mean over the heads of the
    upper half of the layers. All is computed anew in a memory of its own: what requests under way have is not touched.
    """
    positions, before = len(prompt) + len(answer), len(prompt) - 1
    pool = Pool(shape, -(-positions // BLOCK), prompt.dtype, prompt.device)
    looking = _Looking(shape, pool, table, len(prompt))
    if before:
        model.forward(prompt[:-1].clone(), alone(0, before, prompt.device), Plain(shape, pool, table))
    asked = torch.cat([prompt[-1:], answer[:-1]])  # an id is told at the position before its own
    at_once = max(1, _HELD_BYTES // (shape.heads * positions * 4))
    told = []
    for at in range(0, len(asked), at_once):
        rows = asked[at : at + at_once]
        looking.seen = torch.zeros(len(rows), len(prompt), device=prompt.device)
        model.forward(rows.clone(), alone(before + at, len(rows), prompt.device), looking)
        told.append(looking.seen.cpu() / (shape.layers - shape.layers // 2))
    return torch.cat(told)


class _Looking(Plain):
    """`Plain`, which sums up the attention of the upper layers to the first positions."""

    def __init__(self, shape: Shape, pool: Pool, table: torch.Tensor, positions: int) -> None:
        super().__init__(shape, pool, table)
        self._positions = positions
        self._by_shape = False  # a mask that can be read: scores are summed up here
        self.seen = torch.empty(0)  # [rows, positions]

    def _piece(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        piece: Piece,
        mask: torch.Tensor | None,
        index: int,
    ) -> torch.Tensor:
        if index >= self.shape.layers // 2:
            groups = self.shape.heads // self.shape.kv_heads
            told = keys[0].repeat_interleave(groups, 0)  # [heads, positions, dim]
            scores = torch.einsum("qhd,hkd->hqk", queries.float(), told.float()) * self.shape.dim**-0.5
            if mask is None and piece.rows > 1:  # the beginning
                mask = torch.full((piece.rows, keys.shape[2]), -torch.inf, device=keys.device).triu(1)
            if mask is not None:
                scores = scores + mask
            self.seen += scores.softmax(-1)[..., : self._positions].mean(0)
        return super()._piece(queries, keys, values, piece, mask, index)
