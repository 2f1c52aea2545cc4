"""A tiny LLaVA v0 in its three parts, made by chance, and hosts that hold its language model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.webui.hosts import AGES, Host

HIDDEN, WIDTH, SIDE, PATCHES, ROWS = 64, 32, 56, 16, 32003


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
    tower: Any
    weight: torch.Tensor
    bias: torch.Tensor
    language: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("v0")
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
    seeing = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "mm_vision_tower": str(root / "clip"),
        "mm_hidden_size": WIDTH,
        "mm_vision_select_layer": -2,
        "mm_use_im_start_end": True,
        "use_mm_proj": True,
    }
    (llava / "config.json").write_text(json.dumps(shape | seeing))
    language = LlamaForCausalLM(LlamaConfig(**shape, rms_norm_eps=1e-6)).eval()
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(llava)
    return Parts(root / "clip", llava, tower, weight, bias, language, tokenizer)


@pytest.fixture
def settings(parts: Parts) -> dict[str, Any]:
    """The seed's settings, naming the parts as the seed does."""
    return {
        "llava-clip_repo": str(parts.clip),
        "llava-projector_repo": str(parts.llava),
        "llava-projector_filename": "mm_projector.bin",
        "llava-clip_device": "cpu",
        "llava-projector_device": "cpu",
    }


@pytest.fixture
def start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, parts: Parts, settings: dict[str, Any]
) -> Callable[..., Host]:
    """Starts a host of an age with the extension in it; values replace what ``modules.shared`` holds."""

    def begin(age: str, *, name: str = "llava", ui: bool = True, own: dict[str, Any] | None = None, **shared: Any) -> Host:
        shared.setdefault("model", parts.language)
        host = AGES[age](monkeypatch, tmp_path, tokenizer=parts.tokenizer, **shared)
        host.shared.settings.update(settings if own is None else own)
        host.load(name, ui=ui)
        return host

    if hasattr(parts.language, "last_prompt_token_count"):
        del parts.language.last_prompt_token_count
    return begin
