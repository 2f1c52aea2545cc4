"""A checkpoint's language half as a `Model`: tensors are checked, fused and packed as they are read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress

import torch

from trifocal import cuda
from trifocal.engines.int4 import Int4Linear
from trifocal.engines.language import HEAD, TABLE, Language, check_blocks, check_finite, file_of, stored_twice
from trifocal.engines.native.linear import Dense, Linear, Packed, Stored, dense
from trifocal.engines.native.model import Layer, Model
from trifocal.engines.native.packing import packed
from trifocal.engines.shape import FAMILIES, Shape
from trifocal.errors import CheckpointError
from trifocal.weights.packed import PackedLinear, PackedWeights

__all__ = ["read"]


def read(
    language: Language, shape: Shape, dtype: torch.dtype, device: torch.device, *, four_bit: bool, apart: bool = False
) -> Model:
    """The model, tensor by tensor onto its device; with ``four_bit`` packed layers stay so where they can.

    With ``apart`` the table stays in the main memory, unless it is the head as well.

    Raises:
        CheckpointError: a tensor that is missing, unknown, of another shape or not finite.
    """
    check_blocks(shape.layers, language)
    source = _Source(language, dtype, device, four_bit)
    tied = stored_twice(language, tied=shape.tied)
    table = source.table(HEAD if tied == TABLE else TABLE, shape.hidden, apart=apart, only_looked_up=not tied)
    if not len(table):
        raise CheckpointError(f"{file_of(language, TABLE)}: {TABLE} has no rows, one a token was expected")
    # the largest tensor of many, which is there twice while it is laid out, before memory holds the others
    head: Linear = Dense(table) if tied else source.linear([HEAD], [len(table)], shape.hidden)
    layers = []
    for index in range(shape.layers):
        layers.append(_layer(source, shape, index))
        _give_back()
    norm = source.tensor("model.norm.weight", (shape.hidden,))
    source.done(tied)
    return Model(layers, table, norm, head)


def _layer(source: _Source, shape: Shape, index: int) -> Layer:
    family, at = FAMILIES[source.family], f"model.layers.{index}"
    queries, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim

    def norm(name: str, width: int) -> torch.Tensor:
        return source.tensor(f"{at}.{name}.weight", (width,))

    def linear(names: Sequence[str], outputs: Sequence[int], inputs: int, *, by_turns: bool = False) -> Linear:
        outputs = outputs if len(names) == len(outputs) else [sum(outputs)]
        return source.linear([f"{at}.{name}.weight" for name in names], outputs, inputs, by_turns=by_turns)

    return Layer(
        before_attention=norm("input_layernorm", shape.hidden),
        qkv=linear([f"self_attn.{name}" for name in family.qkv], [queries, keys, keys], shape.hidden),
        output=linear(["self_attn.o_proj"], [shape.hidden], queries),
        before_mlp=norm("post_attention_layernorm", shape.hidden),
        gate_up=linear([f"mlp.{name}" for name in family.gate_up], [shape.inner] * 2, shape.hidden, by_turns=True),
        down=linear(["mlp.down_proj"], [shape.hidden], shape.inner),
        q_norm=norm("self_attn.q_norm", shape.dim) if family.qk_norm else None,
        k_norm=norm("self_attn.k_norm", shape.dim) if family.qk_norm else None,
    )


# of which families which key says that a part has biases; what is promised and not in the files is missing
_BIASED = {
    (".self_attn.", "attention_bias"): ("llama", "qwen3", "granite"),
    (".mlp.", "mlp_bias"): ("llama", "granite"),
}


class _Source:
    """Tensors of the language half by name, each asked for once."""

    def __init__(self, language: Language, dtype: torch.dtype, device: torch.device, four_bit: bool) -> None:
        self._language, self._dtype, self._device = language, dtype, device
        self._four_bit, self._left = four_bit, set(language.weights)
        self.family = str(language.config.get("model_type", "llama"))

    def table(self, name: str, hidden: int, *, apart: bool, only_looked_up: bool) -> torch.Tensor:
        """The table of embeddings; in the main memory one that is ``only_looked_up`` stays as narrow as it is stored.

        What a row is in the model's type, which holds all that the narrower one does, is said when it is looked up.
        """
        device = torch.device("cpu") if apart and only_looked_up else self._device
        stored = self._language.weights[name].dtype if name in self._language.weights else self._dtype
        halves = (torch.float16, torch.bfloat16)
        narrow = only_looked_up and device.type == "cpu" and stored in halves and self._dtype == torch.float32
        return self.tensor(name, (None, hidden), stored if narrow else None, device)

    def tensor(
        self,
        name: str,
        shape: tuple[int | None, ...],
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> torch.Tensor:
        """A tensor in the model's type on its device if no others are said; None in ``shape`` is any size."""
        if name not in self._language.weights:
            raise CheckpointError(f"{self._language.folder}: missing from the language model: the tensor {name!r}")
        self._left.discard(name)
        stored, file = self._language.weights[name], file_of(self._language, name)
        if len(shape) != stored.ndim or any(
            size not in (None, found) for size, found in zip(shape, stored.shape, strict=True)
        ):
            raise CheckpointError(f"{file}: {name} is {list(stored.shape)}, {list(shape)} was expected")
        if not stored.is_floating_point():
            raise CheckpointError(f"{file}: {name} holds {stored.dtype}, floating point numbers were expected")
        values = stored.to(device=device or self._device, dtype=dtype or self._dtype, copy=True)
        check_finite(values, stored, f"{file}: {name}")
        return values

    def linear(self, names: Sequence[str], outputs: Sequence[int], inputs: int, *, by_turns: bool = False) -> Linear:
        """Projections of one input as one layer; ``by_turns`` as `packed` says."""
        bias = self._bias([name.removesuffix("weight") + "bias" for name in names], outputs)
        layer = self._packed(names, outputs, inputs, bias, by_turns=by_turns and len(names) == 2)
        if layer is not None:
            return layer
        weights = [self.tensor(name, (rows, inputs)) for name, rows in zip(names, outputs, strict=True)]
        return dense(weights[0] if len(weights) == 1 else torch.cat(weights), bias)

    def done(self, twice: str) -> None:
        """Nothing is left that nobody asked for, but for a tensor that is stored ``twice``."""
        self._left.discard(twice)
        if self._left:
            raise CheckpointError(
                f"{self._language.folder}: {len(self._left)} tensors of the language model are unexpected, "
                f"first {min(self._left)!r}"
            )

    def _bias(self, names: Sequence[str], outputs: Sequence[int]) -> torch.Tensor | None:
        keys = [key for (part, key), families in _BIASED.items() if part in names[0] and self.family in families]
        promised = any(self._language.config.get(key) is True for key in keys)
        if not promised and not any(name in self._language.weights for name in names):
            return None
        pairs = zip(names, outputs, strict=True)
        return torch.cat([self.tensor(name, (rows,)) for name, rows in pairs])

    def _packed(
        self, names: Sequence[str], outputs: Sequence[int], inputs: int, bias: torch.Tensor | None, *, by_turns: bool
    ) -> Linear | None:
        weights = self._language.weights
        if not self._four_bit or not isinstance(weights, PackedWeights) or (bias is not None and by_turns):
            return None
        layers = [weights.packed(name, self._device) for name in names]
        found = [layer for layer in layers if layer is not None]
        if len(found) < len(names) or any(
            tuple(layer.levels.shape) != (rows, inputs) for layer, rows in zip(found, outputs, strict=True)
        ):
            return None
        layer = self._product(found, bias, by_turns=by_turns)
        if layer is not None:
            self._left -= set(names)
        return layer

    def _product(self, layers: list[PackedLinear], bias: torch.Tensor | None, *, by_turns: bool) -> Linear | None:
        """Packed layers of one input as one: by our own kernel, by torch's product, or not at all."""
        if cuda.supported(self._device):
            weight = packed(layers, self._dtype, self._device, by_turns=by_turns)
            return None if weight is None else Packed(weight, self._dtype, bias)
        joined = _joined(layers)
        fits = joined is not None and Int4Linear.fits(joined, self._device)
        return Stored(joined, self._device, bias) if joined is not None and fits else None


def _give_back() -> None:
    """Gives the system what was only needed to read a layer: glibc keeps pieces of up to 32 MB for itself."""
    with suppress(AttributeError, OSError, TypeError):  # other systems' libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _joined(layers: list[PackedLinear]) -> PackedLinear | None:
    """Layers of one input as one, their rows one below the other; None where their groups differ."""
    first = layers[0]
    if any(layer.bits != first.bits or not torch.equal(layer.group, first.group) for layer in layers[1:]):
        return None
    levels = torch.cat([layer.levels for layer in layers])
    scales, zeros = (torch.cat([getattr(layer, name) for layer in layers], 1) for name in ("scales", "zeros"))
    return PackedLinear(first.bits, levels, scales, zeros, first.group)
