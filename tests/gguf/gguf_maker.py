"""Small GGUF files, written with gguf-py: the writer of the format's own project."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

import gguf

HEADS, KEYS, SIZE, HIDDEN, INNER, LAYERS = 4, 2, 64, 256, 512, 2
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
LANGUAGE = {
    "general.architecture": "llama",
    "llama.block_count": LAYERS,
    "llama.context_length": 512,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KEYS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<im_patch>"]
LETTERS = [SPACE, "c", "a", "t", "at", "cat", f"{SPACE}c", f"{SPACE}cat", "\u00e9"]
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": PIECES + LETTERS,
    "tokenizer.ggml.scores": [0.0] * len(PIECES)
    + [-float(at) for at in range(20, 24)]
    + [-1.0, -3.0, -9.0, -4.0, -30.0],
    "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 4, *[1] * len(LETTERS)],
    "tokenizer.ggml.unknown_token_id": 0,
}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, tuple[np.ndarray, str]]) -> Path:
    """``tensors``: name -> values in torch's order and the type's name (``F16``, ``Q4_K``, ...)."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, (values, kind) in tensors.items():
        code = gguf.GGMLQuantizationType[kind]
        if kind in ("F32", "F16"):
            writer.add_tensor(name, values.astype(np.float32 if kind == "F32" else np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(values.astype(np.float32), code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def language_tensors(
    vocabulary: int, *, tied: bool = False, bias: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random canonical tensors of a LLaMA-shaped model, float32 that float16 holds exactly."""
    from trifocal.gguf.language import _shapes

    config = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": SIZE,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "model_type": "qwen2" if bias else "llama",
    }
    random = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(shape, generator=random) / 8).half().float() for name, shape in _shapes(config).items()}


def stored(
    tensors: Mapping[str, torch.Tensor], kind: str, *, turned: bool = True, heads: Mapping[str, int] | None = None
) -> dict[str, tuple[np.ndarray, str]]:
    """Under GGUF's names, matrices as ``kind``; ``turned`` interleaves the query and key rows of the ``heads``."""
    each = heads or {"attn_q": HEADS, "attn_k": KEYS}
    top = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    top["lm_head.weight"] = "output.weight"
    found: dict[str, tuple[np.ndarray, str]] = {}
    for name, tensor in tensors.items():
        count = 0
        if name in top:
            target = top[name]
        else:
            _, _, layer, *stem, ending = name.split(".")
            short = NAMES[".".join(stem)]
            target = f"blk.{layer}.{short}.{ending}"
            count = each.get(short, 0) if turned else 0
        values = permuted(tensor, count) if count else tensor
        found[target] = (values.numpy(), kind if values.ndim > 1 else "F32")
    return found


def permuted(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Row by row, as the format says: stored row r of a head holds row [0, half, 1, half + 1, ...][r]."""
    size = len(weight) // heads
    order = [row for pair in range(size // 2) for row in (pair, size // 2 + pair)]
    return torch.cat([weight[head * size : (head + 1) * size][order] for head in range(heads)])


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def tables(made_by: Tokenizer) -> dict[str, Any]:
    """A tokenizer's tables as a converter writes them: pieces, scores that give its order of merges, types."""
    made = json.loads(made_by.to_str())
    pieces = sorted(made_by.get_vocab(), key=made_by.get_vocab().get)  # type: ignore[arg-type]
    rank = {left + right: -float(at + 1) for at, (left, right) in reversed(list(enumerate(made["model"]["merges"])))}
    special = {token["content"] for token in made["added_tokens"]}
    kinds = [
        2 if piece == "<unk>" else 3 if piece in special else 6 if piece.startswith("<0x") else 1 for piece in pieces
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [rank.get(piece, -1e6) for piece in pieces],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
