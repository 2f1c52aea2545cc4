"""A family as a pair of GGUF files: the language half as llama.cpp writes it, tower and projector as mmproj."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_maker as maker
import mmproj_maker as eyes
import numpy as np
import torch

import gguf
from layouts import Family
from trifocal.checkpoints.parts import CLIP_MEAN, CLIP_STD

KINDS = ("F32", "Q8_0", "Q4_0")


@torch.no_grad()
def save_gguf(made: Family, folder: Path, kind: str) -> Path:
    """Both files, the language half's matrices as ``kind``; its model gets the weights that they stand for."""
    text, code = made.text, gguf.GGMLQuantizationType[kind]
    state = made.model.state_dict()
    for name, tensor in state.items():
        if ("language_model" in name or name == "lm_head.weight") and tensor.ndim > 1 and kind != "F32":
            tensor.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), code), code)))
    speaking = {
        name.replace("model.language_model.", "model."): tensor
        for name, tensor in state.items()
        if name.startswith("model.language_model.") or name == "lm_head.weight"
    }
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": text["num_hidden_layers"],
        "llama.context_length": text["max_position_embeddings"],
        "llama.embedding_length": text["hidden_size"],
        "llama.feed_forward_length": text["intermediate_size"],
        "llama.attention.head_count": text["num_attention_heads"],
        "llama.attention.head_count_kv": text["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": text["rms_norm_eps"],
        "llama.rope.freq_base": 10000.0,
        **maker.tables(made.tokenizer),
    }
    heads = {"attn_q": text["num_attention_heads"], "attn_k": text["num_key_value_heads"]}
    folder.mkdir(parents=True, exist_ok=True)
    maker.write(folder / f"model-{kind}.gguf", metadata, maker.stored(speaking, kind, heads=heads))
    maker.write(folder / "mmproj-model.gguf", _mmproj_metadata(made), _mmproj(state, made.model.config))
    return folder


def _mmproj_metadata(made: Family) -> dict[str, Any]:
    vision = made.model.config.vision_config
    found = {
        **eyes.METADATA,
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.block_count": vision.num_hidden_layers - 1,  # the last one is not used
        "clip.vision.image_mean": list(CLIP_MEAN),
        "clip.vision.image_std": list(CLIP_STD),
    }
    if made.name.startswith("1.6"):
        found |= {
            "clip.vision.image_grid_pinpoints": [
                side for pair in made.model.config.image_grid_pinpoints for side in pair
            ],
            "clip.vision.image_aspect_ratio": "anyres",
            "clip.vision.mm_patch_merge_type": "spatial_unpad",
        }
    return found


def _mmproj(state: dict[str, torch.Tensor], config: Any) -> dict[str, tuple[np.ndarray, str]]:
    """Tower and projector in float32, the two layers of the MLP swapped as the first converters wrote them."""
    tower = "model.vision_tower."
    seeing = {
        name.removeprefix(tower).removeprefix("vision_model."): tensor
        for name, tensor in state.items()
        if name.startswith(tower)
    }
    stored = eyes.stored(seeing, config.vision_config.num_hidden_layers - 1, swapped=True)
    for layer, theirs in (("linear_1", "mm.0"), ("linear_2", "mm.2")):
        for ending in ("weight", "bias"):
            found = state[f"model.multi_modal_projector.{layer}.{ending}"]
            stored[f"{theirs}.{ending}"] = (found.numpy(), "F32")
    if "model.image_newline" in state:
        stored["model.image_newline"] = (state["model.image_newline"].numpy(), "F32")
    return {name: (values, "F32") for name, (values, _) in stored.items()}
