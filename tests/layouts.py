"""One small random model of each LLaVA family, saved in every layout that can hold it.

A family is made once, as transformers' own class; a layout is a way of writing its tensors and configuration down.
"""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import packers
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    SiglipVisionConfig,
)

from checkpoint_maker import (
    TEXT,
    VISION,
    Spelling,
    bytes_tokenizer,
    llama_tokenizer,
    preprocessor,
    respelt,
    save_shards,
    save_tokenizer,
    shaken,
)

GROUP = 64
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
_AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True}
QUANTISATIONS: dict[str, dict[str, Any]] = {
    "GPTQ 4 bits": _GPTQ,
    "GPTQ 4 bits, old CUDA": _GPTQ,
    "GPTQ 4 bits, act-order": {**_GPTQ, "desc_act": True},
    "GPTQ 4 bits, v2 zeros": {**_GPTQ, "checkpoint_format": "gptq_v2"},
    "GPTQ 8 bits": {**_GPTQ, "bits": 8},
    "GPTQ 3 bits": {**_GPTQ, "bits": 3},
    "GPTQ 2 bits": {**_GPTQ, "bits": 2},
    "AWQ GEMM": {**_AWQ, "version": "gemm"},
    "AWQ GEMV": {**_AWQ, "version": "gemv"},
    "AWQ GEMVFast": {**_AWQ, "version": "gemv_fast"},
    "FP8": {"quant_method": "compressed-tensors", "format": "float-quantized"},
    "bitsandbytes NF4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bitsandbytes 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
TILE = 56
PINPOINTS = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]
NEXT_PINPOINTS = [[TILE * first, TILE * second] for first, second in PINPOINTS]
ONEVISION_PINPOINTS = [[TILE * first, TILE * second] for first in range(1, 7) for second in range(1, 7)]
CLIP = CLIPVisionConfig(**VISION)
SIGLIP = SiglipVisionConfig(
    **{key: value for key, value in VISION.items() if key != "projection_dim"}, vision_use_head=False
)
QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LLAMA_3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_BYTES = {  # byte-level tokenizers: what is added to their words
    "1.6-qwen": [*QWEN_TOKENS, "<image>"],
    "1.6-llama-3": [*LLAMA_3, "<image>", "<pad>"],
    **{name: [*QWEN_TOKENS, "<image>", "<video>"] for name in ("onevision", "onevision-tied", "interleave")},
}
_PIECES = {"1.6-34b": ["<|startoftext|>", "<|im_start|>", "<|im_end|>"], "1.6-video": ["<video>"]}


@dataclass(frozen=True)
class Family:
    """A model of a family with its tokenizer; ``original`` are the keys of its original configuration."""

    name: str
    model: Any
    tokenizer: Tokenizer
    original: dict[str, Any]
    packed: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)
    quantisation: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> dict[str, Any]:
        return dict(self.model.config.text_config.to_dict())


def family(name: str, seed: int = 0, dtype: torch.dtype = torch.float32, **dims: int) -> Family:
    """The model of that name with random weights.

    ``1.5``, ``bakllava``, ``1.6-vicuna``, ``1.6-mistral``, ``1.6-34b``, ``1.6-qwen``, ``1.6-llama-3``, ``1.6-video``,
    ``onevision``, ``onevision-tied``, ``interleave``, ``tiny``, and those with a linear projector: ``v0-13b``,
    ``v0-7b``, ``v1``, ``llama-2``, ``mpt``.
    ``dims`` are the language model's own. It is drawn once; each caller has a copy to change.
    """
    made = _drawn(name, seed, dtype, **dims)
    return replace(made, model=copy.deepcopy(made.model))


@cache
def _drawn(name: str, seed: int, dtype: torch.dtype, **dims: int) -> Family:
    if name in LINEAR:
        return _early(name, seed, dtype, **dims)
    siglip = name.startswith(("onevision", "interleave", "tiny"))
    tokenizer = _tokenizer(name)
    size = tokenizer.get_vocab_size()
    text = {**TEXT, "vocab_size": size + (-size) % 64, "max_position_embeddings": 4096, **dims}
    fewer = {"num_key_value_heads": dims.get("num_key_value_heads", 2)}
    config: Any
    shared = {"image_token_index": tokenizer.token_to_id("<image>"), "vision_config": SIGLIP if siglip else CLIP}
    if name in _BYTES:
        first, last = (LLAMA_3[0], LLAMA_3[-1]) if name == "1.6-llama-3" else (QWEN_TOKENS[0], QWEN_TOKENS[-1])
        text |= {"bos_token_id": tokenizer.token_to_id(first), "eos_token_id": tokenizer.token_to_id(last)}
    if name == "tiny":
        shared["text_config"] = LlamaConfig(**{**text, **fewer})
    elif siglip:
        tied = name in ("interleave", "onevision-tied")
        shared["text_config"] = Qwen2Config(**{**text, **fewer}, tie_word_embeddings=tied)
        shared["tie_word_embeddings"] = tied
    elif name == "1.6-qwen":
        shared["text_config"] = Qwen2Config(**{**text, **fewer})
    elif name in ("1.6-mistral", "bakllava"):
        shared["text_config"] = MistralConfig(**{**text, **fewer}, sliding_window=None)
    else:
        shared["text_config"] = LlamaConfig(**text)
    torch.manual_seed(seed)
    model: PreTrainedModel
    if name in ("1.5", "bakllava"):
        model = LlavaForConditionalGeneration(LlavaConfig(**shared, image_seq_length=16))
    elif name == "1.6-video":
        ids = {"video_token_index": tokenizer.token_to_id("<video>"), "image_grid_pinpoints": NEXT_PINPOINTS}
        model = LlavaNextVideoForConditionalGeneration(LlavaNextVideoConfig(**shared, **ids))
    elif name.startswith("1.6"):
        model = LlavaNextForConditionalGeneration(LlavaNextConfig(**shared, image_grid_pinpoints=NEXT_PINPOINTS))
    elif name in ("interleave", "tiny"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(**shared, vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=16)
        )
    else:
        config = LlavaOnevisionConfig(
            **shared,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=ONEVISION_PINPOINTS,
            video_token_index=tokenizer.token_to_id("<video>"),
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    return Family(name, shaken(model, seed).to(dtype), tokenizer, _original_keys(name))


def _tokenizer(name: str) -> Tokenizer:
    if name not in _BYTES:
        return llama_tokenizer([*_PIECES.get(name, []), "<image>", "<pad>"])
    tokenizer = bytes_tokenizer(_BYTES[name])
    if name == "1.6-llama-3":
        start = (LLAMA_3[0], tokenizer.token_to_id(LLAMA_3[0]))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start[0]} $A", pair=f"{start[0]} $A $B", special_tokens=[start]
        )
    return tokenizer


LINEAR = {
    "v0-13b": ["<im_patch>", "<im_start>", "<im_end>"],
    "v0-7b": ["[PAD]", "<im_patch>", "<im_start>", "<im_end>"],
    "v1": [],
    "llama-2": [],
    "mpt": ["<|im_start|>", "<|im_end|>"],
}
SENTINEL = -200  # where a picture stands among ids, as LLaVA 1.0 and later write it


def _early(name: str, seed: int, dtype: torch.dtype, **dims: int) -> Family:
    tokenizer = bytes_tokenizer(["<|endoftext|>", *LINEAR[name]]) if name == "mpt" else llama_tokenizer(LINEAR[name])
    size = tokenizer.get_vocab_size()
    context = 4096 if name == "llama-2" else 2048
    torch.manual_seed(seed)
    if name == "mpt":
        text: Any = MptConfig(
            d_model=64, n_heads=4, n_layers=2, expansion_ratio=2, max_seq_len=context, vocab_size=size, eos_token_id=2
        )
        language: Any = MptForCausalLM(text)
    else:
        text = LlamaConfig(**{**TEXT, "vocab_size": size, "max_position_embeddings": context, **dims})
        language = LlamaForCausalLM(text)
    model = shaken(ByHand(CLIPVisionModel(CLIP), language), seed).to(dtype)
    framed = name.startswith("v0")
    original = {
        "architectures": ["LlavaMPTForCausalLM" if name == "mpt" else "LlavaLlamaForCausalLM"],
        "model_type": "llava_mpt" if name == "mpt" else "llava",
        "mm_hidden_size": VISION["hidden_size"],
        "mm_use_im_start_end": framed,
        "mm_vision_select_layer": -2,
        "use_mm_proj": True,
    }
    return Family(name, model, tokenizer, original)


class ByHand(torch.nn.Module):
    """The reference where transformers has no class: its CLIP tower, a linear layer and its language model."""

    def __init__(self, tower: CLIPVisionModel, language: Any) -> None:
        super().__init__()
        self.tower, self.language = tower, language
        width = language.get_input_embeddings().weight.shape[1]
        self.projector = torch.nn.Linear(tower.config.hidden_size, width)
        self.config = SimpleNamespace(image_token_id=SENTINEL, vision_config=tower.config, text_config=language.config)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states[-2]
        return self.projector(hidden[:, 1:])

    def spliced(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Input embeddings: text pieces are looked up, a picture's rows stand where its run of sentinels does."""
        pictures = self.get_image_features(pixel_values).flatten(0, 1)
        ids = input_ids[0]
        rows = self.language.get_input_embeddings()(ids.clamp(min=0))
        rows[ids == SENTINEL] = pictures
        return rows[None]

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None, **options: Any) -> Any:
        if pixel_values is None:
            return self.language(input_ids=input_ids, **options)
        return self.language(inputs_embeds=self.spliced(input_ids, pixel_values), **options)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Under the names that transformers' own classes give them."""
        found = {f"model.vision_tower.{name}": each for name, each in self.tower.state_dict().items()}
        found |= {f"model.multi_modal_projector.{name}": each for name, each in self.projector.state_dict().items()}
        for name, each in self.language.state_dict().items():
            inner = name.startswith("model.")
            found[f"model.language_model.{name.removeprefix('model.')}" if inner else name] = each
        return found


@torch.no_grad()
def save_lora(
    made: Family, folder: Path, base: Path, *, rank: int = 4, rslora: bool = False, pickle: bool = False
) -> Path:
    """The family as a LoRA over its present language half, which goes to ``base``; its model gets the sums."""
    tensors = {original_name(k): v.clone() for k, v in _tensors(made).items()}
    language = {k: v for k, v in tensors.items() if "mm_projector" not in k and "vision_tower" not in k}
    save_tokenizer(made.tokenizer, base)
    save_shards(language, base, 2)
    (base / "config.json").write_text(json.dumps({**made.text, "architectures": ["LlamaForCausalLM"]}))
    random, changes, alpha = torch.Generator().manual_seed(1), {}, 2 * rank
    scale = alpha / (rank**0.5 if rslora else rank)
    for name, parameter in made.model.named_parameters():
        layer = original_name(name.replace("language.", "", 1) if isinstance(made.model, ByHand) else name)
        if layer.endswith(tuple(f"{linear}.weight" for linear in LINEARS)) and layer in language:
            down = torch.randn(rank, parameter.shape[1], generator=random) * 0.1
            up = torch.randn(parameter.shape[0], rank, generator=random) * 0.1
            stem = f"base_model.model.{layer.removesuffix('.weight')}"
            changes |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
            parameter += scale * (up @ down)
    trained = {f"base_model.model.{k}": v for k, v in tensors.items() if "mm_projector" in k}
    home = folder / "clip"
    save_original(made, folder / "unused", tower=home)
    shutil.rmtree(folder / "unused")
    for stem, held in (("adapter_model", changes), ("non_lora_trainables", trained)):
        if pickle:
            torch.save(held, folder / f"{stem}.bin")
        else:
            save_file(held, folder / f"{stem}.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "bias": "none", "use_rslora": rslora}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    (folder / "config.json").write_text(json.dumps({**made.text, **made.original, "mm_vision_tower": str(home)}))
    return folder


@torch.no_grad()
def quantised(made: Family, kind: str) -> Family:
    """The family with its language half packed; its model gets just the weights that the packed ones stand for."""
    random, packed = np.random.default_rng(0), {}
    for name, parameter in made.model.named_parameters():
        layer = name.removesuffix(".weight").replace("language.model.", "model.language_model.", 1)
        if layer.startswith("model.language_model.") and layer.endswith(LINEARS):
            packed[layer], dense = _release(parameter, kind, random)
            parameter.copy_(dense)
    return replace(made, packed=packed, quantisation={"quantization_config": QUANTISATIONS[kind]})


def _release(weight: torch.Tensor, kind: str, random: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A layer's tensors as such a release has them, and the weight that they stand for."""
    if kind == "FP8":
        scale = weight.abs().amax(1, keepdim=True) / 448
        stored = (weight / scale).to(torch.float8_e4m3fn)
        return {"weight": stored, "weight_scale": scale}, stored.float() * scale
    if kind.startswith("bitsandbytes"):
        return packers.nf4(weight) if "NF4" in kind else packers.int8(weight)
    bits = int(QUANTISATIONS[kind]["bits"])
    order = "act-order" in kind
    levels, zeros, scales, group = packers.nearest(weight, random, bits=bits, size=GROUP, ordered=order)
    dense = packers.weight(levels, zeros, scales, group)
    if kind.startswith("AWQ"):
        make = {"AWQ GEMM": packers.awq_gemm, "AWQ GEMV": packers.awq_gemv}.get(kind, packers.awq_gemv_fast)
        return make(levels, zeros, scales), dense
    tensors = packers.gptq(levels, zeros, scales, bits, stored_zero="v2" in kind)
    if "old CUDA" in kind:
        tensors["bias"] = torch.zeros(len(weight))
    else:
        tensors |= {"scales": tensors["scales"].half(), "g_idx": torch.from_numpy(group).int()}
    return tensors, dense


def save_hf(made: Family, folder: Path, *, spelling: Spelling = "hub", shards: int = 1) -> Path:
    """The family as llava-hf writes it down."""
    save_tokenizer(made.tokenizer, folder)
    save_shards({respelt(k, spelling): v for k, v in _tensors(made).items()}, folder, shards)
    values = {**made.model.config.to_dict(), "architectures": [type(made.model).__name__], **made.quantisation}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(made)))
    return folder


def save_original(
    made: Family, folder: Path, *, tower: Path | None = None, shards: int = 1, pickle: bool = False
) -> Path:
    """The family as the original repositories write it down.

    With ``tower`` the tower goes there, into a repository of its own, as LLaVA 1.5 has it; else it is inside.
    """
    save_tokenizer(made.tokenizer, folder)
    tensors = {original_name(k): v for k, v in _tensors(made).items()}
    if made.name == "mpt":
        tensors = {k.replace("model.mm_projector.", "transformer.mm_projector."): v for k, v in tensors.items()}
    seeing = {k: v for k, v in tensors.items() if k.startswith("model.vision_tower.")}
    home = tower or folder / "tower"
    home.mkdir(parents=True, exist_ok=True)
    vision = made.model.config.vision_config.to_dict()
    if vision["model_type"].startswith("siglip"):
        vision["num_hidden_layers"] += 1  # Google's tower; LLaVA-NeXT takes its last block away
    (home / "config.json").write_text(json.dumps(vision))
    (home / "preprocessor_config.json").write_text(json.dumps(_tower_processor(made)))
    if tower is not None:
        tensors = {k: v for k, v in tensors.items() if k not in seeing}
        prefix = "model.vision_tower.vision_tower."
        save_file({k.removeprefix(prefix): v for k, v in seeing.items()}, home / "model.safetensors")
    if pickle:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_shards(tensors, folder, shards)
    values = {**made.text, **made.original, "mm_vision_tower": str(home), **made.quantisation}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def original_name(name: str) -> str:
    """A name of transformers 5's state dict as the original repositories spell it."""
    for ours, theirs in (
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.multi_modal_projector.", "model.mm_projector."),
        ("model.language_model.", "model."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def _tensors(made: Family) -> dict[str, torch.Tensor]:
    """The tensors that are saved: a tied head is not."""
    tied = made.model.config.text_config.tie_word_embeddings
    found: dict[str, torch.Tensor] = {}
    state = made.model.tensors() if isinstance(made.model, ByHand) else made.model.state_dict()
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if layer in made.packed:
            found |= {f"{layer}.{part}": each.contiguous() for part, each in made.packed[layer].items()}
        elif not (tied and name == "lm_head.weight"):
            found[name] = tensor.contiguous()
    return found


def _original_keys(name: str) -> dict[str, Any]:
    shared = {
        "mm_hidden_size": VISION["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "use_mm_proj": True,
    }
    if name in ("1.5", "bakllava"):
        kind = "LlavaMistralForCausalLM" if name == "bakllava" else "LlavaLlamaForCausalLM"
        return {**shared, "architectures": [kind], "model_type": "llava", "image_aspect_ratio": "pad"}
    if name == "tiny":
        kind = "TinyLlavaLlamaForCausalLM"
        return {**shared, "architectures": [kind], "model_type": "tiny_llava", "image_aspect_ratio": "pad"}
    if name.startswith("1.6"):
        kind = {"1.6-mistral": "Mistral", "1.6-qwen": "Qwen"}.get(name, "Llama")
        return {
            **shared,
            "architectures": [f"Llava{kind}ForCausalLM"],
            "model_type": "llava" if kind == "Llama" else f"llava_{kind.lower()}",
            "image_aspect_ratio": "anyres",
            "image_grid_pinpoints": NEXT_PINPOINTS,
            "mm_patch_merge_type": "spatial_unpad",
        }
    tiled = name.startswith("onevision")
    return {
        **shared,
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava" if tiled else "llava_qwen",
        "image_aspect_ratio": "anyres_max_9" if tiled else "anyres",
        "image_grid_pinpoints": "(1x1),...,(6x6)" if tiled else NEXT_PINPOINTS,
        **({"mm_patch_merge_type": "spatial_unpad", "mm_newline_position": "one_token"} if tiled else {}),
    }


def _tower_processor(made: Family) -> dict[str, object]:
    if made.model.config.vision_config.model_type.startswith("siglip"):
        half = [0.5, 0.5, 0.5]
        size = {"height": TILE, "width": TILE}
        return {"image_processor_type": "SiglipImageProcessor", "size": size, "image_mean": half, "image_std": half}
    return preprocessor(TILE)


def _processor(made: Family) -> dict[str, object]:
    """The image processor's configuration of a llava-hf repository."""
    if made.name.startswith("1.6"):
        more = {"image_processor_type": "LlavaNextImageProcessor", "do_pad": True}
        return {**preprocessor(TILE), **more, "image_grid_pinpoints": NEXT_PINPOINTS}
    if made.name.startswith("onevision"):
        more = {"image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True}
        return {**_tower_processor(made), **more, "image_grid_pinpoints": ONEVISION_PINPOINTS}
    return _tower_processor(made)
