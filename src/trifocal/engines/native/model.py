"""A language model of the LLaMA family over one pool of keys and values: input rows become hidden states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from trifocal import cuda
from trifocal.engines.native.linear import Dense, Linear
from trifocal.engines.native.memory import FEW, Piece, Pool, Step
from trifocal.engines.shape import Shape

__all__ = ["Blocks", "Layer", "Model", "Plain"]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One block's weights; ``qkv`` and ``gate_up`` hold their projections one below the other."""

    before_attention: torch.Tensor
    qkv: Linear
    output: Linear
    before_mlp: torch.Tensor
    gate_up: Linear
    down: Linear
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None


class Plain:
    """Norm, rotation and attention in torch's own operations, for every device; the reference of the kernels."""

    def __init__(self, shape: Shape, pool: Pool, table: torch.Tensor) -> None:
        self.shape, self.pool, self.table = shape, pool, table
        self._by_shape = pool.keys.device.type == "cuda"  # whether attention knows some masks by their shape alone

    def begin(self, step: Step) -> None:
        """Called once a step, before the first layer."""
        cosines, sines = self.table[step.positions].to(self.pool.dtype)[:, None].chunk(2, -1)
        self._cosines, self._sines = torch.cat([cosines, cosines], -1), torch.cat([-sines, sines], -1)
        self.look(step)

    def look(self, step: Step) -> None:
        """Finds once a step who sees what: it is the same in all layers."""
        self._masks = [self._mask(piece) for piece in step.pieces]
        self._views = [self._view(piece) for piece in step.pieces]

    def norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Root mean square norm of rows, rounded before the weight is applied, as the reference does."""
        if x.dtype == torch.float32:
            return functional.rms_norm(x, weight.shape, weight, self.shape.epsilon)
        return functional.rms_norm(x.float(), weight.shape, None, self.shape.epsilon).to(x.dtype) * weight

    def attend(self, qkv: torch.Tensor, layer: Layer, index: int, step: Step) -> torch.Tensor:
        """Rows ``[rows, heads * dim]`` of what each looks at; its keys and values are kept."""
        shape = self.shape
        parts = qkv.view(len(qkv), -1, shape.dim)
        turning = parts[:, : shape.heads + shape.kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            queries, keys = turning[:, : shape.heads], turning[:, shape.heads :]
            turning = torch.cat([self.norm(queries, layer.q_norm), self.norm(keys, layer.k_norm)], 1)
        turned = self._turned(turning)
        queries, keys, values = turned[:, : shape.heads], turned[:, shape.heads :], parts[:, -shape.kv_heads :]
        self.pool.write(index, step.slots, keys, values)
        return torch.cat(self._seen(queries, keys, values, index, step))

    def _seen(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, index: int, step: Step
    ) -> list[torch.Tensor]:
        """What the rows of each piece see, ``[rows, heads * dim]``, from heads of all rows ``[rows, ..., dim]``.

        A piece that begins its sequence sees itself, and what was before it is read from the pool for the others.
        """
        seen = []
        for piece, view, mask in zip(step.pieces, self._views, self._masks, strict=True):
            rows = slice(piece.first, piece.first + piece.rows)
            own = keys[rows], values[rows]
            if piece.start:
                known = view[index] if view is not None else self._lined_up(piece, *own, index)
            else:
                known = own[0].transpose(0, 1)[None], own[1].transpose(0, 1)[None]
            seen.append(self._piece(queries[rows], *known, piece, mask, index))
        return seen

    def _view(self, piece: Piece) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
        """The keys and values that a piece sees, of every layer, where they lie together as they are."""
        if not piece.start or not isinstance(piece.slots, slice) or self.pool.scales is not None:
            return None
        keys, values = (
            all_of[:, None, piece.slots].transpose(2, 3).unbind() for all_of in (self.pool.keys, self.pool.values)
        )
        return list(zip(keys, values, strict=True))

    def _lined_up(
        self, piece: Piece, keys: torch.Tensor, values: torch.Tensor, index: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The keys and values ``[1, kv_heads, positions, dim]`` that a piece sees in a layer.

        Its own are ``[rows, kv_heads, dim]``, which a prompt's rows see as they are where they are kept as bytes.
        """
        if self.pool.scales is None or not piece.exact:
            keys, values = self.pool.read(index, piece.slots)
        else:
            known_keys, known_values = self.pool.read(index, piece.kept)
            keys, values = torch.cat([known_keys, keys]), torch.cat([known_values, values])
        return keys.transpose(0, 1)[None], values.transpose(0, 1)[None]

    def _turned(self, x: torch.Tensor) -> torch.Tensor:
        """Heads ``[rows, heads, dim]`` rotated by their positions."""
        width = self._cosines.shape[-1]
        own = x[..., :width]
        turned, other = own * self._cosines, own.roll(width // 2, -1)
        # in 16 bits both products are rounded before they are added, as the reference does
        fused, sines = x.dtype == torch.float32, self._sines
        turned = torch.addcmul(turned, other, sines) if fused else turned + other * sines
        return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)

    def _piece(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        piece: Piece,
        mask: torch.Tensor | None,
        index: int,
    ) -> torch.Tensor:
        """What the rows of a piece see, ``[rows, heads * dim]``, of keys and values ``[1, kv_heads, seen, dim]``."""
        if piece.rows == 1 and mask is None:  # the queries of a group are rows over one key head
            own = queries.view(1, self.shape.kv_heads, -1, self.shape.dim)
            return functional.scaled_dot_product_attention(own, keys, values).reshape(1, -1)
        seen = self._mixed(queries.transpose(0, 1)[None], keys, values, mask)
        return seen[0].transpose(0, 1).flatten(1)

    def _mixed(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What heads ``[1, heads, rows, dim]`` see by the mask; without one, each row those up to its own."""
        return functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )

    def _mask(self, piece: Piece) -> torch.Tensor | None:
        """What a piece adds to its scores, ``[rows, positions]``; None where one row sees all, or all is causal."""
        window = self.shape.window
        near = not window or piece.start + piece.rows - piece.begins <= window  # nobody is out of the window
        if near and (piece.rows == 1 or not piece.start):
            return None
        device = self.pool.keys.device
        if near and self._by_shape:
            return self._near(piece.rows, piece.start + piece.rows - piece.begins)
        rows = torch.arange(piece.start, piece.start + piece.rows, device=device)[:, None]
        columns = torch.arange(piece.begins, piece.start + piece.rows, device=device)
        hidden = columns > rows
        if window:
            hidden |= columns <= rows - window
        # as attention wants it: of who sees whom it would make this anew in every layer
        return torch.zeros(hidden.shape, dtype=self.pool.dtype, device=device).masked_fill_(hidden, -torch.inf)

    def _near(self, rows: int, columns: int) -> torch.Tensor | None:
        """The mask of ``rows``, of which the last sees all of ``columns``, that attention kernels need not read."""
        from torch.nn.attention.bias import causal_lower_right  # brings torch's compiler along: almost a second

        return causal_lower_right(rows, columns)


class Blocks(Protocol):
    """All blocks of a model, computed in another way."""

    nbytes: int

    def forward(self, x: torch.Tensor, step: Step, operations: Plain) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` of input rows ``[rows, hidden]``, which are overwritten."""
        ...


class Model:
    """All layers, the table of embeddings ``[vocabulary, hidden]``, the last norm and the head.

    The table may be of a narrower type than the rest, and in the main memory where the rest is on a card. ``prompts``
    compute steps of more than `FEW` rows where they are there.
    """

    def __init__(self, layers: list[Layer], embedding: torch.Tensor, norm: torch.Tensor, head: Linear) -> None:
        self.layers, self.embedding, self.norm, self.head = layers, embedding, norm, head
        self.prompts: Blocks | None = None

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return self.norm.dtype

    @property
    def device(self) -> torch.device:
        """On which it computes."""
        return self.norm.device

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        return self.embedding[ids.to(self.embedding.device)].to(self.device, self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights on the device."""
        linears = [one for layer in self.layers for one in (layer.qkv, layer.output, layer.gate_up, layer.down)]
        tied = isinstance(self.head, Dense) and self.head.weight.data_ptr() == self.embedding.data_ptr()
        table = self.embedding.nbytes if self.embedding.device == self.device else 0
        own = sum(one.nbytes for one in linears) + table + (0 if tied else self.head.nbytes)
        return own + (self.prompts.nbytes if self.prompts else 0)

    def variants(self) -> list[cuda.Source]:
        """What has to be compiled for the products of every number of rows."""
        return [
            variant
            for layer in self.layers[:1]
            for linear, then in ((layer.qkv, 0), (layer.output, 1), (layer.gate_up, 2), (layer.down, 1))
            for variant in linear.variants(then)
        ]

    def forward(self, x: torch.Tensor, step: Step, operations: Plain) -> torch.Tensor:
        """Hidden states ``[rows, hidden]`` of input rows ``[rows, hidden]``, which are overwritten."""
        operations.begin(step)
        if self.prompts is not None and len(x) > FEW:
            return self.prompts.forward(x, step, operations)
        for index, layer in enumerate(self.layers):
            seen = operations.attend(layer.qkv(operations.norm(x, layer.before_attention)), layer, index, step)
            x = layer.output(seen, onto=x)
            x = layer.down(layer.gate_up.swiglu(operations.norm(x, layer.before_mlp)), onto=x)
        return x

    def logits(self, hidden: torch.Tensor, operations: Plain) -> torch.Tensor:
        """``[rows, vocabulary]``."""
        return self.head(operations.norm(hidden, self.norm))
