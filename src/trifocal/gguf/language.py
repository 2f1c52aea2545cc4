"""The language half of a GGUF file, under the names, in the row order and configuration of torch code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile, TensorInfo
from trifocal.gguf.ends import end_tokens

__all__ = ["BLOCK", "TOP", "GgufLanguage", "interleaved", "language_config", "unpermute"]

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "granite": "GraniteForCausalLM"}
_TURNED = ("llama", "granite")
# what Granite multiplies by, and in front of the head divides by
_SCALES = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}
_SCALED = "rope.scaling.type"
_FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class _Source:
    """A tensor's name in the file, and the heads whose rows are interleaved there (0: none)."""

    name: str
    heads: int = 0


class GgufLanguage(Mapping[str, torch.Tensor]):
    """Canonical names to tensors, dequantised one by one when they are asked for.

    ``llama`` files (Vicuna, Mistral and Yi among them) and ``granite`` files hold the rows of the query and key
    projections interleaved for another form of rotary embedding; here they are in the rotate-half order again. A file
    without ``output.weight`` has a tied head: then there is no ``lm_head.weight`` here, and the configuration says so.

    Raises:
        CheckpointError: an unknown architecture, tensors that are missing, too many, or of a wrong shape.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.config = language_config(file)
        self._sources = _sources(file, self.config)
        _check(file, self.config, self._sources)

    def __getitem__(self, name: str) -> torch.Tensor:
        source = self._sources[name]
        tensor = self._file[source.name]
        return unpermute(tensor, source.heads) if source.heads else tensor

    def info(self, name: str) -> TensorInfo:
        """Shape and type of a tensor, without reading it."""
        return self._file.info(self._sources[name].name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def unpermute(stored: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows from interleaved back to rotate-half order: ``[heads * head_dim, ...]`` to the same shape.

    Stored row r of a head is row ``[0, half, 1, half + 1, ...][r]`` of the original.
    """
    rows = stored.shape[0]
    return stored.reshape(heads, rows // heads // 2, 2, *stored.shape[1:]).transpose(1, 2).reshape(stored.shape)


def interleaved(rows: int, heads: int) -> torch.Tensor:
    """Which row of the original each stored row is, ``[rows]``: `unpermute` the other way round."""
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def language_config(file: GgufFile) -> dict[str, Any]:
    """The configuration in the words of ``config.json``, from the file's metadata.

    Raises:
        CheckpointError: the architecture, or a rule of its positions, is not one that we can build.
    """
    kind = file.need("general.architecture")
    if kind not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise CheckpointError(
            f"{file.path}: general.architecture is {kind!r}; language models that can be read: {known}"
        )
    heads, hidden = _whole(file, f"{kind}.attention.head_count"), _whole(file, f"{kind}.embedding_length")
    config = {
        "architectures": [_ARCHITECTURES[kind]],
        "model_type": kind,
        "hidden_size": hidden,
        "intermediate_size": _whole(file, f"{kind}.feed_forward_length"),
        "num_hidden_layers": _whole(file, f"{kind}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(file, f"{kind}.attention.head_count_kv", heads),
        "head_dim": _whole(file, f"{kind}.attention.key_length", hidden // heads),
        "max_position_embeddings": _whole(file, f"{kind}.context_length"),
        "rms_norm_eps": file.need(f"{kind}.attention.layer_norm_rms_epsilon"),
        "rope_theta": file.metadata.get(f"{kind}.rope.freq_base", 10000.0),
        "vocab_size": _vocabulary(file),
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in file,
        "torch_dtype": "float16",
    }
    if kind == "granite":
        config |= {ours: file.need(f"{kind}.{theirs}") for theirs, ours in _SCALES.items()}
    for name in ("bos", "padding"):
        if (token := file.metadata.get(f"tokenizer.ggml.{name}_token_id")) is not None:
            config[f"{'pad' if name == 'padding' else name}_token_id"] = token
    config["eos_token_id"] = end_tokens(file)
    _check_numbers(file, config)
    if (scaling := _scaling(file, kind, config)) is not None:
        config["rope_scaling"] = scaling
    return config


def _scaling(file: GgufFile, kind: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How positions are scaled, in transformers' words: by one factor, or each frequency by its own (Llama 3.1).

    A factor is linear where no type is said, as in llama.cpp. ``rope_freqs`` is what each frequency is divided by:
    transformers' longrope with the same factors at every length, and nothing else of it.
    """
    told = file.metadata.get(f"{kind}.{_SCALED}", "linear")
    factor = file.metadata.get(f"{kind}.rope.scaling.factor", file.metadata.get(f"{kind}.rope.scale_linear"))
    if told not in ("none", "linear"):
        raise CheckpointError(
            f"{file.path}: {kind}.{_SCALED} is {told!r}, positions that can't be read; known: none and linear. "
            "Take the checkpoint as safetensors instead"
        )
    if (turned := file.metadata.get(f"{kind}.rope.dimension_count", config["head_dim"])) != config["head_dim"]:
        raise CheckpointError(f"{file.path}: {kind}.rope.dimension_count is {turned}, heads have {config['head_dim']}")
    linear = {"type": "linear", "factor": factor} if told == "linear" and factor not in (None, 0, 1) else None
    if _FREQUENCIES not in file:
        return linear
    factors = file[_FREQUENCIES].float()
    if (
        linear
        or factors.shape != (config["head_dim"] // 2,)
        or not bool((factors > 0).all() & factors.isfinite().all())
    ):
        raise CheckpointError(
            f"{file.path}: {_FREQUENCIES} is {list(factors.shape)}; {config['head_dim'] // 2} numbers above 0 and no "
            f"other scaling ({kind}.rope.scaling.factor) were expected"
        )
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


def _vocabulary(file: GgufFile) -> int:
    """Rows of the embedding table: the tensor says it, the metadata may lag behind."""
    if "token_embd.weight" not in file:
        raise CheckpointError(f"{file.path}: the tensor 'token_embd.weight' is missing")
    return file.info("token_embd.weight").shape[0]


def _whole(file: GgufFile, key: str, default: int | None = None) -> int:
    """A number of things, at least one."""
    value = file.need(key) if default is None else file.metadata.get(key, default)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{file.path}: {key} is {value!r}, expected a whole number above 0")
    return value


def _check_numbers(file: GgufFile, config: Mapping[str, Any]) -> None:
    if config["num_hidden_layers"] > len(file):
        raise CheckpointError(
            f"{file.path}: {config['num_hidden_layers']} blocks are told, {len(file)} tensors are there"
        )
    if config["head_dim"] % 2 or config["num_attention_heads"] % config["num_key_value_heads"]:
        raise CheckpointError(
            f"{file.path}: {config['num_attention_heads']} heads of {config['head_dim']} with "
            f"{config['num_key_value_heads']} key-value heads don't go together"
        )


def _sources(file: GgufFile, config: Mapping[str, Any]) -> dict[str, _Source]:
    """Canonical name -> where it is; every tensor of the file has its place, or is told."""
    turned = config["model_type"] in _TURNED
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]} if turned else {}
    sources: dict[str, _Source] = {}
    for name in file:
        stem, _, ending = name.rpartition(".")
        parts = stem.split(".")
        if name == _FREQUENCIES:
            continue  # the configuration has them
        if stem in TOP:
            sources[f"{TOP[stem]}.{ending}"] = _Source(name)
        elif len(parts) == 3 and parts[0] == "blk" and parts[1].isdigit() and parts[2] in BLOCK:
            canonical = f"model.layers.{int(parts[1])}.{BLOCK[parts[2]]}.{ending}"
            sources[canonical] = _Source(name, heads.get(parts[2], 0))
        else:
            raise CheckpointError(f"{file.path}: the tensor {name!r} has no place in a {config['model_type']} model")
    return sources


def _check(file: GgufFile, config: Mapping[str, Any], sources: Mapping[str, _Source]) -> None:
    """Every tensor that the configuration asks for is there, and each has its shape."""
    expected = _shapes(config)
    for name, shape in expected.items():
        if name not in sources:
            raise CheckpointError(f"{file.path}: the tensor for {name!r} is missing")
        found = file.info(sources[name].name).shape
        if found != shape:
            raise CheckpointError(
                f"{file.path}: tensor {sources[name].name!r} has the shape {list(found)}, expected {list(shape)}"
            )
    for name in sources.keys() - expected.keys():
        raise CheckpointError(
            f"{file.path}: tensor {sources[name].name!r} has no place in a {config['model_type']} model "
            f"of {config['num_hidden_layers']} blocks"
        )


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Canonical names and shapes of a LLaMA-shaped model."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    if config["model_type"] == "qwen2":
        block |= {f"self_attn.{name}_proj.bias": (rows,) for name, rows in (("q", queries), ("k", keys), ("v", keys))}
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    return shapes
