"""Language models of transformers, filled tensor by tensor from a checkpoint and checked against it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch

from trifocal.engines import int4 as packing
from trifocal.engines.base import Attention
from trifocal.engines.grammar import Grammars, constraints
from trifocal.engines.language import (
    HEAD,
    Language,
    check_blocks,
    check_finite,
    end_ids,
    file_of,
    tokenizer_of,
)
from trifocal.engines.shape import odd_value
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError, OutOfMemory
from trifocal.placement import Part, Placement
from trifocal.quiet import quiet

__all__ = ["Loaded", "read", "size_of"]

_TABLES = ("model.embed_tokens.weight", "transformer.wte.weight")
# kinds of layers whose state is keys and values of the positions: what a prefix of a prompt can be cut out of
_KEYS_AND_VALUES = {"full_attention", "sliding_attention", "chunked_attention"}
# how it is packed, kept and computed is the loader's affair; code that a repository brings along is nobody's
_NOT_ITS_OWN = (
    "model_type",
    "quantization_config",
    "torch_dtype",
    "auto_map",
    "attn_implementation",
    "attn_implementation_internal",
    "experts_implementation",
)
LARGE = 4 << 30  # bytes of a dense model from which on four-bit layers stay packed by themselves

log = logging.getLogger("trifocal")


@dataclass(eq=False)
class Loaded:
    """A causal language model of transformers on its device, and what an answer of it needs.

    ``attention`` is that of `trifocal.engines.recipe.Recipe`; ``constraint`` makes what holds an answer to a schema.
    """

    model: Any
    tokenizer: FileTokenizer
    context: int
    end_ids: frozenset[int]
    attention: Attention

    def __post_init__(self) -> None:
        self.constraint = constraints(self._grammars)

    @property
    def hidden(self) -> int:
        """The width of its embedding rows."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    def keeping(self, cache: Any) -> dict[str, Any]:
        """The cache by the name that the model has for it: transformers calls it another from 5.24 on."""
        taken = signature(self.model.forward).parameters
        return {next(name for name in ("cache", "past_key_values") if name in taken): cache}

    @property
    def part(self) -> Part:
        """What it is and where it lies."""
        config, table = self.model.config, self.model.get_input_embeddings().weight
        what = f"{config.model_type}, width {self.hidden}, {config.num_hidden_layers} blocks"
        size = size_of(self.model)
        return Part("language", what, str(table.device), str(table.dtype).removeprefix("torch."), size)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Embedding rows ``[n, hidden]`` of ids ``[n]``, on the model's device."""
        table = self.model.get_input_embeddings()
        rows: torch.Tensor = table(ids.to(table.weight.device))
        return rows

    def _grammars(self) -> Grammars:
        return Grammars(
            self.tokenizer.definition, int(self.model.get_output_embeddings().weight.shape[0]), self.end_ids
        )


def read(language: Language, placement: Placement, *, context: int | None = None, int4: bool | None = None) -> Loaded:
    """Loads a language model tensor by tensor onto its device; the options are those of the engine's ``load``."""
    started = time.perf_counter()
    device, dtype = placement.resolve()
    config = _config(language)
    try:
        model = _empty(config, dtype, language)
        large = sum(tensor.nbytes for tensor in model.state_dict().values()) >= LARGE
        packed = packing.bind(model, language.weights, device) if int4 or (int4 is None and large) else frozenset()
        model = _filled(model, config, language, device, dtype, packed)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"language model: {device} has no room for it; choose another placement") from error
    seconds = time.perf_counter() - started
    log.info("language model: %.1f MB on %s in %s, %.2f s", size_of(model) / 1e6, device, dtype, seconds)
    length = int(getattr(config, "max_position_embeddings", 0) or getattr(config, "max_seq_len", 0) or 2048)
    rows = int(model.get_input_embeddings().weight.shape[0])
    ends = end_ids(language, rows)
    return Loaded(model, tokenizer_of(language, rows), min(length, context or length), ends, language.attention)


def _config(language: Language) -> Any:
    from transformers import AutoConfig

    values = {key: value for key, value in language.config.items() if key.lstrip("_") not in _NOT_ITS_OWN}
    kind = str(language.config.get("model_type", "llama"))
    if odd := odd_value(language.config):
        raise CheckpointError(f"{language.config_file}: {odd}")
    try:
        with quiet():
            config = AutoConfig.for_model(kind, **values)
    except Exception as error:
        raise CheckpointError(
            f"{language.config_file}: transformers has no use for model_type {kind!r} as configured "
            f"({_first_line(error)})"
        ) from error
    name = next((name for name in (*_TABLES, HEAD) if name in language.weights), None)
    if name is not None:
        table = language.weights[name]
        if table.ndim != 2 or not len(table):
            file = file_of(language, name)
            raise CheckpointError(f"{file}: {name} is {list(table.shape)}, a row a token was expected")
        config.vocab_size = len(table)  # configurations are wrong about it, tensors are not
        padding = getattr(config, "pad_token_id", None)
        if isinstance(padding, int) and not 0 <= padding < len(table):
            config.pad_token_id = None  # nothing is padded here, and its class refuses what is beyond the table
    check_blocks(getattr(config, "num_hidden_layers", None), language)
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _KEYS_AND_VALUES)
    if other:
        raise CheckpointError(
            f"{language.config_file}: {kind!r} keeps other states than keys and values: {', '.join(map(str, other))}"
        )
    return config


def _empty(config: Any, dtype: torch.dtype, language: Language) -> Any:
    """The model without weights: nothing is allocated."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"), quiet():
            make: Any = AutoModelForCausalLM.from_config
            return make(config, dtype=dtype, trust_remote_code=False).eval()
    except Exception as error:  # whatever wrong values make of the code that computes with them
        raise CheckpointError(
            f"{language.config_file}: {config.model_type!r} is no causal language model as configured "
            f"({_first_line(error)})"
        ) from error


def _filled(
    model: Any, config: Any, language: Language, device: torch.device, dtype: torch.dtype, packed: frozenset[str]
) -> Any:
    """The model with its weights, each cast and moved as it is read, but for those that are ``packed`` in it already.

    Raises:
        CheckpointError: a tensor that is missing, unknown or of another shape.
    """
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tied = _tied(model, config, language)
    wanted.pop(tied, None)
    missing = sorted(set(wanted) - set(language.weights))
    unknown = sorted(set(language.weights) - set(wanted) - packed - {tied})
    if missing or unknown:
        named, what = (missing, "missing") if missing else (unknown, "unexpected")
        raise CheckpointError(
            f"{language.folder}: {len(named)} tensors of the language model are {what}, first {named[0]!r}"
        )
    state = {}
    for name, shape in wanted.items():
        tensor = language.weights[name]
        file = file_of(language, name)
        if tensor.shape != shape:
            raise CheckpointError(f"{file}: {name} is {list(tensor.shape)}, {list(shape)} was expected")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{file}: {name} holds {tensor.dtype}, floating point numbers were expected")
        state[name] = tensor.to(device=device, dtype=dtype, copy=True)
        check_finite(state[name], tensor, f"{file}: {name}")
    model.load_state_dict(state, assign=True, strict=False)
    if tied == HEAD:
        model.lm_head.weight = model.get_input_embeddings().weight
    elif tied:
        model.get_input_embeddings().weight = model.lm_head.weight
    _fill_buffers(model, config)
    return model.to(device)


def _tied(model: Any, config: Any, language: Language) -> str:
    """Which of head and table is the other one again; nothing where both are the checkpoint's own.

    As transformers has it: a configuration that ties them counts where one of the two is not stored, or both are
    the same; a head of its own is used, whatever the configuration says.
    """
    table = next((name for name in _TABLES if name in model.state_dict()), "")
    if not getattr(config, "tie_word_embeddings", False) or not table or HEAD not in model.state_dict():
        return ""
    stored = [name for name in (table, HEAD) if name in language.weights]
    if len(stored) == 2:
        return HEAD if torch.equal(language.weights[table], language.weights[HEAD]) else ""
    return HEAD if stored == [table] else table


def _fill_buffers(model: Any, config: Any) -> None:
    """Rotary frequencies are computed, not stored; on the meta device they were not."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "scalar_embed_scale"):  # Gemma's table, whose rows are scaled
                child.embed_scale = torch.tensor(child.scalar_embed_scale)
            elif any(buffer.is_meta for buffer in child.buffers(recurse=False)):
                try:
                    setattr(parent, name, type(child)(config))
                except Exception as error:  # whatever wrong values make of the code that computes with them
                    raise CheckpointError(
                        f"language model: {config.model_type!r} computes values in {name!r} that we can't fill in"
                    ) from error


def size_of(model: Any) -> int:
    """Bytes of a model's weights."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
