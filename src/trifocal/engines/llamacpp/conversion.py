"""A checkpoint's language half as the GGUF file that llama.cpp computes from: its numbers as they are, where it can.

Levels of four bits and fewer keep their grid (a group of 128 is four blocks of 32), floats their type. The file has no
vocabulary: texts are turned into ids here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from trifocal.engines.language import HEAD, TABLE, Language, check_blocks, check_finite, file_of, stored_twice
from trifocal.engines.shape import FAMILIES, Shape, rotary_factors, shape_of
from trifocal.errors import CheckpointError
from trifocal.gguf import language as names
from trifocal.gguf.encoding import BLOCK, encode, on_grid
from trifocal.gguf.writing import Entry, Tell, write
from trifocal.weights.packed import PackedLinear, PackedWeights

__all__ = ["ROUNDINGS", "convert"]

ROUNDINGS = ("F32", "F16", "Q8_0", "Q4_0")
# model type -> the architecture that computes it; LLaMA's has the rows of queries and keys interleaved
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "phi3": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_GGUF = {**{theirs: ours for ours, theirs in names.BLOCK.items()}, "self_attn.q_norm": "attn_q_norm"}
_GGUF |= {"self_attn.k_norm": "attn_k_norm"}
_TOP = {theirs: ours for ours, theirs in names.TOP.items()}

log = logging.getLogger("trifocal")


def convert(language: Language, file: Path, *, rounding: str | None = None, tell: Tell | None = None) -> None:
    """Writes the file; ``rounding`` is one of `ROUNDINGS` for the matrices that are floats, None leaves them.

    The head is never rounded to fewer than 8 bits, and the table, whose rows are only looked up, not at all.

    Raises:
        CheckpointError: a tensor that is missing, unknown, of another shape or not finite.
        UsageError: the disk has no room.
    """
    shape = shape_of(language.config)
    check_blocks(shape.layers, language)
    half = _Half(language, shape, rounding)
    entries = list(half.entries())
    half.check_all_used()
    sizes = [_product(entry.shape) for entry in entries]
    packed = isinstance(language.weights, PackedWeights)
    bits = 5 if packed or rounding == "Q4_0" else 9 if rounding else 8 * half.stored_bytes
    write(file, half.metadata(), entries, room=sum(sizes) * bits // 8, tell=tell)
    if half.rounded:
        log.warning(
            "language model: %d layers of %s are on a grid that GGUF has not (act-order, or groups of other sizes) and "
            "are rounded; -e quantise=F16 keeps more, the engine transformers all",
            *(len(half.rounded), language.folder),
        )


@dataclass
class _Half:
    """A language half on its way into a file."""

    language: Language
    shape: Shape
    rounding: str | None
    rounded: list[str] = field(default_factory=list)
    stored_bytes: int = 2
    _used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.kind = str(self.language.config.get("model_type", "llama"))
        self.architecture = _ARCHITECTURES[self.kind]
        self._twice = stored_twice(self.language, tied=self.shape.tied)
        table = HEAD if self._twice == TABLE else TABLE
        if table not in self.language.weights:
            raise self._missing(table)
        stored = self.language.weights[table]
        self._table, self.vocabulary, self.stored_bytes = table, len(stored), stored.element_size()

    def metadata(self) -> dict[str, str | int | float | bool]:
        """What the file says of the model."""
        shape, rope = self.shape, self.shape.rope
        own: dict[str, str | int | float | bool] = {
            "vocab_size": self.vocabulary,
            "context_length": shape.context,
            "embedding_length": shape.hidden,
            "block_count": shape.layers,
            "feed_forward_length": shape.inner,
            "attention.head_count": shape.heads,
            "attention.head_count_kv": shape.kv_heads,
            "attention.key_length": shape.dim,
            "attention.value_length": shape.dim,
            "attention.layer_norm_rms_epsilon": shape.epsilon,
            "rope.freq_base": float(rope["rope_theta"]),
            "rope.dimension_count": shape.dim,
        }
        if rope["rope_type"] == "linear":
            own |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
        general = {"general.architecture": self.architecture, "general.name": self.language.folder.name}
        return {**general, **{f"{self.architecture}.{key}": value for key, value in own.items()}, **_NO_WORDS}

    def entries(self) -> Iterator[Entry]:
        """All tensors in the order in which they are written."""
        shape = self.shape
        yield self._entry("token_embd.weight", self._table, (self.vocabulary, shape.hidden), self._plain)
        if not self._twice:
            yield self._entry("output.weight", HEAD, (self.vocabulary, shape.hidden), self._head)
        yield self._entry("output_norm.weight", "model.norm.weight", (shape.hidden,), self._vector)
        factors = rotary_factors(shape)
        if factors is not None:
            yield Entry("rope_freqs.weight", (len(factors),), lambda: ("F32", encode(factors, "F32")))
        for layer in range(shape.layers):
            yield from self._block(layer)

    def check_all_used(self) -> None:
        """Nothing is left that nobody asked for, but for what is stored twice."""
        left = set(self.language.weights) - self._used - {self._twice}
        if left:
            raise CheckpointError(
                f"{self.language.folder}: {len(left)} tensors of the language model are unexpected, first {min(left)!r}"
            )

    def _block(self, layer: int) -> Iterator[Entry]:
        shape, family = self.shape, FAMILIES[self.kind]
        queries, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim
        norms = {"input_layernorm": shape.hidden, "post_attention_layernorm": shape.hidden}
        norms |= {"self_attn.q_norm": shape.dim, "self_attn.k_norm": shape.dim} if family.qk_norm else {}
        for name, width in norms.items():
            at = f"model.layers.{layer}.{name}.weight"
            yield self._entry(f"blk.{layer}.{_GGUF[name]}.weight", at, (width,), self._vector)
        attention = {"self_attn.q_proj": queries, "self_attn.k_proj": keys, "self_attn.v_proj": keys}
        yield from self._linears(layer, family.qkv, attention, shape.hidden)
        yield from self._linears(layer, ("self_attn.o_proj",), {"self_attn.o_proj": shape.hidden}, queries)
        widening = {"mlp.gate_proj": shape.inner, "mlp.up_proj": shape.inner}
        yield from self._linears(layer, family.gate_up, widening, shape.hidden)
        yield from self._linears(layer, ("mlp.down_proj",), {"mlp.down_proj": shape.hidden}, shape.inner)

    def _linears(self, layer: int, stored: tuple[str, ...], parts: Mapping[str, int], inputs: int) -> Iterator[Entry]:
        """Layers that a family stores apart, or as one with their rows one below the other."""
        first, total = 0, sum(parts.values())
        for part, outputs in parts.items():
            fused = len(stored) < len(parts)
            own = part if not fused else f"{part.split('.')[0]}.{stored[0].split('.')[-1]}"
            at = f"model.layers.{layer}.{own}"
            rows = self._rows(part, outputs) + first
            for ending, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
                name = f"{at}.{ending}"
                if ending == "bias" and name not in self.language.weights:
                    continue
                found = (total if fused else outputs, *shape[1:])
                make = self._matrix if ending == "weight" else self._vector
                yield self._entry(f"blk.{layer}.{_GGUF[part]}.{ending}", name, shape, make, rows, found)
            first += outputs if fused else 0

    def _rows(self, part: str, outputs: int) -> torch.Tensor:
        """Which of the stored rows the written ones are."""
        heads = {"self_attn.q_proj": self.shape.heads, "self_attn.k_proj": self.shape.kv_heads}.get(part)
        if heads is None or self.architecture != "llama":
            return torch.arange(outputs)
        return names.interleaved(outputs, heads)

    def _entry(
        self,
        target: str,
        name: str,
        shape: tuple[int, ...],
        make: Callable[[str, torch.Tensor | None, tuple[int, ...]], tuple[str, torch.Tensor]],
        rows: torch.Tensor | None = None,
        found: tuple[int, ...] | None = None,
    ) -> Entry:
        if name not in self.language.weights:
            raise self._missing(name)
        self._used.add(name)
        return Entry(target, shape, lambda: make(name, rows, found or shape))

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.language.config_file}: missing from the language model: the tensor {name!r}")

    def _read(self, name: str, shape: tuple[int, ...], rows: torch.Tensor | None) -> torch.Tensor:
        """A dense tensor, checked."""
        stored, file = self.language.weights[name], file_of(self.language, name)
        if tuple(stored.shape) != shape:
            raise CheckpointError(f"{file}: {name} is {list(stored.shape)}, {list(shape)} was expected")
        if stored.dtype not in _STORED:
            raise CheckpointError(f"{file}: {name} holds {stored.dtype}, floating point numbers were expected")
        check_finite(stored, stored, f"{file}: {name}")
        return stored if rows is None else stored[rows]

    def _plain(self, name: str, rows: torch.Tensor | None, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        if self._twice:
            return self._head(name, rows, shape)
        values = self._read(name, shape, rows)
        return _STORED[values.dtype], encode(values, _STORED[values.dtype])

    def _head(self, name: str, rows: torch.Tensor | None, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        values = self._read(name, shape, rows)
        kind = _fitting("Q8_0" if self.rounding == "Q4_0" else self.rounding or _STORED[values.dtype], values)
        return kind, encode(values, kind)

    def _vector(self, name: str, rows: torch.Tensor | None, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        return "F32", encode(self._read(name, shape, rows), "F32")

    def _matrix(self, name: str, rows: torch.Tensor | None, shape: tuple[int, ...]) -> tuple[str, torch.Tensor]:
        weights = self.language.weights
        layer = weights.packed(name) if isinstance(weights, PackedWeights) else None
        if layer is not None and tuple(layer.levels.shape) == shape and (made := _levels(layer, rows)) is not None:
            return made
        values = self._read(name, shape, rows)
        kind = self.rounding or _STORED[values.dtype]
        if layer is not None:  # dequantised: its numbers are on a grid that no kind has
            kind = self.rounding or "Q8_0"
            self.rounded.append(name)
        kind = _fitting(kind, values)
        return kind, encode(values, kind)


# ids come from the folder's own tokenizer
_NO_WORDS = {"tokenizer.ggml.model": "no_vocab"}


def _fitting(kind: str, values: torch.Tensor) -> str:
    """The kind itself where its blocks fill the columns, else float16."""
    return "F16" if kind.startswith("Q") and values.shape[-1] % BLOCK else kind


def _levels(layer: PackedLinear, rows: torch.Tensor | None) -> tuple[str, torch.Tensor] | None:
    """Kind and bytes of a packed layer whose blocks of columns have one scale each; None where they have not."""
    if len(layer.group) % BLOCK:
        return None
    group = layer.group.reshape(-1, BLOCK)
    if not bool((group == group[:, :1]).all()):
        return None
    scales, zeros = layer.scales[group[:, 0]].T, layer.zeros[group[:, 0]].T  # [out, in / 32]
    levels = layer.levels
    if rows is not None:
        levels, scales, zeros = levels[rows], scales[rows], zeros[rows]
    return on_grid(levels, scales, zeros)


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
