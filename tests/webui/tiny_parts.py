"""A tiny LLaVA v0 in its three parts, made by chance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HIDDEN, WIDTH, SIDE, PATCHES, ROWS = 64, 32, 56, 16, 32003
NAME = "tiny-llava-13b-v0"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token (3 + its place in the byte alphabet); the seed's three tokens stand at their ids."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {letter: 3 + at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary |= {"<im_patch>": 32000, "<im_start>": 32001, "<im_end>": 32002}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    core.add_tokens([AddedToken(t, special=True) for t in ("<im_patch>", "<im_start>", "<im_end>")])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@dataclass(frozen=True)
class Parts:
    """The three parts on disk and in memory."""

    clip: Path
    llava: Path
    models: Path
    tower: Any
    weight: torch.Tensor
    bias: torch.Tensor
    language: Any
    tokenizer: Any


def make_parts(root: Path) -> Parts:
    """The seed's arrangement: a tower's folder, a projector's file, and a folder of models with the language half."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    sight = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=14,
        projection_dim=16,
    )
    tower = CLIPVisionModel(sight).eval()
    tower.save_pretrained(root / "clip")
    (root / "clip" / "preprocessor_config.json").write_text(json.dumps({"size": SIDE, "crop_size": SIDE}))
    weight, bias = torch.randn(HIDDEN, WIDTH) * 0.1, torch.randn(HIDDEN) * 0.1
    llava = root / "llava"
    llava.mkdir()
    torch.save({"model.mm_projector.weight": weight, "model.mm_projector.bias": bias}, llava / "mm_projector.bin")
    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": ROWS,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    language = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-6)).eval()
    tokenizer = byte_tokenizer()
    models_folder = root / "models"
    bare = models_folder / NAME
    bare.mkdir(parents=True)
    (bare / "config.json").write_text(json.dumps({**shape, "model_type": "llama"}))
    tokenizer.save_pretrained(bare)
    return Parts(root / "clip", llava, models_folder, tower, weight, bias, language, tokenizer)
