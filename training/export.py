"""Writes a trained model as an ordinary LLaVA checkpoint, which stock transformers opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from training.model import PATCH, PATCHES, Thimble, hub_state
from training.packing import MODEL, Encoder
from training.render import MEAN, STD
from training.world import SIDE

BEGIN, END, UNKNOWN = 1, 2, 0


def config(model: Thimble, encode: Encoder) -> dict[str, Any]:
    """``config.json``: the two halves, and how a picture stands in a prompt."""
    sizes = model.sizes
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": sizes.width,
        "intermediate_size": sizes.tower_hidden,
        "num_hidden_layers": sizes.tower_layers,
        "num_attention_heads": sizes.heads,
        "image_size": SIDE,
        "patch_size": PATCH,
        "projection_dim": sizes.width,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
    }
    text = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": 1e-05,
        "rope_theta": sizes.rope_base,
        "tie_word_embeddings": True,
        "bos_token_id": BEGIN,
        "eos_token_id": END,
        "pad_token_id": UNKNOWN,
    }
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": encode.patch,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "linear",  # with an identity after it, the one linear layer of LLaVA v0
        "multimodal_projector_bias": True,
        "image_seq_length": PATCHES,
        "mm_use_im_start_end": True,
        "image_aspect_ratio": "pad",
        "trifocal_template": "llava_v0_webui",
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "vision_config": vision,
        "text_config": text,
    }


def preprocessing() -> dict[str, Any]:
    """``preprocessor_config.json``: CLIP's, after padding to a square with its mean colour."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_convert_rgb": True,
        "do_pad": True,
    }


def export(model: Thimble, folder: Path, tokenizer: Path = MODEL / "tokenizer.json") -> None:
    """Writes weights in half precision in two files, and the files that tell how to use them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = hub_state(model)
    parts = (
        {name: tensor for name, tensor in state.items() if not name.startswith("language")},
        {name: tensor for name, tensor in state.items() if name.startswith("language")},
    )
    names: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        names |= dict.fromkeys(part, file)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    if tokenizer.parent != folder:
        shutil.copy(tokenizer, folder / "tokenizer.json")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    written: dict[str, Any] = {
        "model.safetensors.index.json": {"metadata": {"total_size": size}, "weight_map": names},
        "config.json": config(model, Encoder(tokenizer)),
        "preprocessor_config.json": preprocessing(),
        "generation_config.json": {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": UNKNOWN},
        "special_tokens_map.json": special,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **special,
            "pad_token": "<unk>",
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
            "model_max_length": model.sizes.positions,
        },
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
