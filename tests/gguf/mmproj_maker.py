"""Small CLIP towers with a projector, and the mmproj files that converters old and new make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf_maker as maker
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from checkpoint_maker import llama_tokenizer
from trifocal.gguf.container import GgufFile
from trifocal.gguf.mmproj import Mmproj

WIDTH, INNER, BLOCKS, HIDDEN = 32, 64, 4, 48
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}
TOP = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
METADATA: dict[str, Any] = {
    "general.architecture": "clip",
    "clip.has_vision_encoder": True,
    "clip.has_llava_projector": True,
    "clip.projector_type": "mlp",
    "clip.use_gelu": False,
    "clip.vision.image_size": 28,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": WIDTH,
    "clip.vision.feed_forward_length": INNER,
    "clip.vision.attention.head_count": 2,
    "clip.vision.attention.layer_norm_epsilon": 1e-5,
    "clip.vision.block_count": BLOCKS - 1,
    "clip.vision.image_mean": [0.5, 0.25, 0.75],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
}


SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def model() -> CLIPVisionModel:
    torch.manual_seed(0)
    return filled(CLIPVisionModel(CLIPVisionConfig(**SIZES)))


def siglip() -> SiglipVisionModel:
    torch.manual_seed(0)
    return filled(SiglipVisionModel(SiglipVisionConfig(**SIZES)))


def filled(made: Any) -> Any:
    """With weights that float16 holds exactly."""
    made = made.eval()
    for parameter in made.parameters():
        parameter.data = torch.randn_like(parameter).mul(0.1).half().float()
    return made


def state(made: Any) -> dict[str, torch.Tensor]:
    return {name.removeprefix("vision_model."): tensor for name, tensor in made.state_dict().items()}


def stored(tensors: dict[str, torch.Tensor], blocks: int, *, swapped: bool) -> dict[str, tuple[np.ndarray, str]]:
    """Under mmproj's names; ``swapped`` as the first converters wrote the two layers of the MLP."""
    names = NAMES | {"mlp.fc1": "ffn_down" if swapped else "ffn_up", "mlp.fc2": "ffn_up" if swapped else "ffn_down"}
    found: dict[str, tuple[np.ndarray, str]] = {}
    for name, tensor in tensors.items():
        if name in TOP:
            target = TOP[name]
        elif name.startswith("encoder.layers.") and int(name.split(".")[2]) < blocks:
            _, _, layer, *stem, ending = name.split(".")
            target = f"v.blk.{layer}.{names['.'.join(stem)]}.{ending}"
        else:
            continue
        found[target] = (tensor.numpy(), "F16" if tensor.ndim > 1 else "F32")
    random = np.random.default_rng(0)
    found["mm.0.weight"] = (random.normal(size=(HIDDEN, WIDTH)), "F16")
    found["mm.0.bias"] = (random.normal(size=HIDDEN), "F32")
    found["mm.2.weight"] = (random.normal(size=(HIDDEN, HIDDEN)), "F16")
    found["mm.2.bias"] = (random.normal(size=HIDDEN), "F32")
    return found


def read(path: Path, tensors: dict[str, tuple[np.ndarray, str]], **change: Any) -> Mmproj:
    metadata = {key: value for key, value in {**METADATA, **change}.items() if value is not None}
    return Mmproj(GgufFile(maker.write(path / "mmproj.gguf", metadata, tensors)))


def make_pair(folder: Path) -> tuple[dict[str, torch.Tensor], Tokenizer]:
    """A language model's file and a mmproj file that belong together; the model's tensors and its tokenizer."""
    pieces = llama_tokenizer([])
    tensors = maker.language_tensors(pieces.get_vocab_size())
    metadata = {**maker.LANGUAGE, **maker.tables(pieces)}
    maker.write(folder / "tiny-f16.gguf", metadata, maker.stored(tensors, "F16"))
    sight = stored(state(model()), BLOCKS - 1, swapped=True)
    random = np.random.default_rng(1)
    for name, shape in {"mm.0": (maker.HIDDEN, WIDTH), "mm.2": (maker.HIDDEN, maker.HIDDEN)}.items():
        sight[f"{name}.weight"] = (random.normal(size=shape), "F16")
        sight[f"{name}.bias"] = (random.normal(size=shape[0]), "F32")
    maker.write(folder / "mmproj-tiny-f16.gguf", METADATA, sight)
    return tensors, pieces
