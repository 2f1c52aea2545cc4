"""Small random checkpoints in the exact layouts of the real ones, for tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

Spelling = Literal["hub", "nested", "fresh", "raw"]

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "projection_dim": 16,
}
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CORPUS = [
    "USER: What is shown in this image? ASSISTANT: The picture shows a red square above a blue circle.",
    "A chat between a curious human and an artificial intelligence assistant.",
    "### Human: \nWhat is unusual about this image?\n### Assistant: \n",
    "The assistant gives helpful, detailed, and polite answers to the human's questions.",
]


@dataclass(frozen=True)
class V0:
    """The seed's three places: a CLIP folder, a projector file, a language model's folder."""

    tower: Path
    projector: Path
    language: Path


def llama_tokenizer(added: list[str], vocabulary: int = 400) -> Tokenizer:
    """A small SentencePiece-like BPE tokenizer, made as LLaMA's legacy one is: a space before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [token for token in made["added_tokens"] if not token["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    return tokenizer


def bytes_tokenizer(added: list[str]) -> Tokenizer:
    """A small byte-level BPE tokenizer without a start token, as Qwen's is."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """The tokenizer's files, as a hub repository has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    known = {name: token for name, token in named.items() if tokenizer.token_to_id(token) is not None}
    settings = {**known, "add_bos_token": "bos_token" in known}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """The model with weights large enough that every part of it shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        scale = 0.08 if parameter.dim() > 1 else 0.02
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make_hf15(
    folder: Path,
    *,
    spelling: Spelling = "hub",
    seed: int = 0,
    layer: int = -2,
    strategy: str = "default",
    fit: str | None = None,
    shards: int = 1,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A llava-hf 1.5 folder, its tensors spelt as on the hub or in any other way that exists.

    ``nested`` is transformers' memory from 4.52 on, ``fresh`` a file newly saved by 5.x, ``raw`` one
    saved by 5.x without its conversion.
    """
    tokenizer = llama_tokenizer(["<image>", "<pad>"])
    size = tokenizer.get_vocab_size()
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT, vocab_size=size + (-size) % 64),
        image_token_index=tokenizer.token_to_id("<image>"),
        vision_feature_layer=layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=16,
    )
    torch.manual_seed(seed)
    model = shaken(LlavaForConditionalGeneration(config), seed).to(dtype)
    tensors = {respelt(name, spelling): tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_tokenizer(tokenizer, folder)
    save_shards(tensors, folder, shards)
    values = config.to_dict()
    if fit:
        values["image_aspect_ratio"] = fit
    (folder / "config.json").write_text(json.dumps({**values, "architectures": ["LlavaForConditionalGeneration"]}))
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(56)))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 2}))
    return folder


def make_v0(folder: Path, *, seed: int = 0, pickle: bool = False) -> V0:
    """The seed's arrangement: an openai CLIP repository, ``mm_projector``, and a LLaMA with v0's tokens."""
    places = V0(
        folder / "clip", folder / ("mm_projector.bin" if pickle else "mm_projector.safetensors"), folder / "llama"
    )
    torch.manual_seed(seed)
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50
    )
    clip = CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(**VISION).to_dict(), projection_dim=16)
    eyes = shaken(CLIPModel(clip), seed)
    places.tower.mkdir(parents=True)
    tensors = {hub_clip_name(name): tensor.contiguous() for name, tensor in eyes.state_dict().items()}
    save_file(tensors, places.tower / "model.safetensors")
    (places.tower / "config.json").write_text(json.dumps(clip.to_dict()))
    (places.tower / "preprocessor_config.json").write_text(
        json.dumps({**preprocessor(56), "size": 56, "crop_size": 56, "feature_extractor_type": "CLIPFeatureExtractor"})
    )
    generator = torch.Generator().manual_seed(seed + 1)
    projector = {
        "model.mm_projector.weight": torch.randn(64, 32, generator=generator) * 0.2,
        "model.mm_projector.bias": torch.randn(64, generator=generator) * 0.1,
    }
    if pickle:
        torch.save(projector, places.projector)
    else:
        save_file(projector, places.projector)
    tokenizer = llama_tokenizer(["<im_patch>", "<im_start>", "<im_end>"])
    config = LlamaConfig(**TEXT, vocab_size=tokenizer.get_vocab_size())
    language = shaken(LlamaForCausalLM(config), seed)
    save_tokenizer(tokenizer, places.language)
    save_file({k: v.contiguous() for k, v in language.state_dict().items()}, places.language / "model.safetensors")
    values = {**config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    (places.language / "config.json").write_text(json.dumps(values))
    return places


def respelt(name: str, spelling: Spelling) -> str:
    """A name of `LlavaForConditionalGeneration`'s state dict (5.x memory) in another spelling."""
    if spelling == "raw":
        return name
    if spelling == "nested":
        return name.replace("model.vision_tower.", "model.vision_tower.vision_model.")
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.", 1)
    return name if spelling == "fresh" else name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def hub_clip_name(name: str) -> str:
    """A name of transformers 5's ``CLIPModel`` as the openai repositories have it."""
    return (
        name
        if name.startswith(("vision_model.", "text_model.", "visual_", "text_proj", "logit"))
        else f"vision_model.{name}"
    )


def preprocessor(size: int) -> dict[str, object]:
    """CLIP's ``preprocessor_config.json`` in its newer form."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "do_convert_rgb": True,
    }


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's safetensors files."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def save_shards(tensors: dict[str, torch.Tensor], folder: Path, shards: int) -> None:
    """Tensors in one file, or in several with an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    names = sorted(tensors)
    where = {name: f"model-{at % shards + 1:05d}-of-{shards:05d}.safetensors" for at, name in enumerate(names)}
    for file in sorted(set(where.values())):
        save_file({name: tensors[name] for name in names if where[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
