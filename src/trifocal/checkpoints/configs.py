"""From the configurations of tower and language model to the parts' data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints.parts import Text, Tower
from trifocal.checkpoints.reading import real, whole
from trifocal.errors import CheckpointError

__all__ = ["text_part", "tower_part"]

# what a sparse configuration leaves to its class: transformers' LlamaConfig, MistralConfig, Qwen2Config
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "mpt": {
        "vocab_size": 50368,
        "d_model": 4096,
        "n_heads": 32,
        "n_layers": 32,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 1152,
        "num_hidden_layers": 26,
        "num_attention_heads": 16,
        "intermediate_size": 4304,
        "image_size": 384,
        "patch_size": 14,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
}
_TOWER_KINDS: dict[str, Literal["clip", "siglip"]] = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
}
# the language model of an original checkpoint, by the class that it names; model_type alone is ambiguous
_ARCHITECTURES = {
    "LlavaLlamaForCausalLM": "llama",
    "LlavaMistralForCausalLM": "mistral",
    "LlavaQwenForCausalLM": "qwen2",
    "LlavaMPTForCausalLM": "mpt",
    "LlavaMptForCausalLM": "mpt",
}
_LLAVA_KINDS = {
    "llava": "llama",
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava_qwen": "qwen2",
    "llava_mpt": "mpt",
}


def tower_part(source: Path, config: Mapping[str, Any], layer: int | tuple[int, ...], *, keep_first: bool) -> Tower:
    own = config.get("vision_config", config)
    if not isinstance(own, dict):
        raise CheckpointError(f"{source}: vision_config is {own!r}, a JSON object was expected")
    named = str(own.get("model_type", "clip_vision_model"))
    if named not in _TOWER_KINDS:
        raise CheckpointError(
            f"{source}: a vision tower of type {named!r} is not supported; supported: {', '.join(_TOWER_KINDS)}"
        )
    kind = _TOWER_KINDS[named]
    defaults = _VISION_DEFAULTS[kind]
    sizes = [key for key, value in defaults.items() if isinstance(value, int)]
    values = {key: whole(source, own, key, defaults[key]) for key in sizes}
    for large, small in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        if values[large] < values[small] or (large == "hidden_size" and values[large] % values[small]):
            raise CheckpointError(f"{source}: {large} {values[large]} does not go with {small} {values[small]}")
    layers = (layer,) if isinstance(layer, int) else layer
    if not all(-values["num_hidden_layers"] - 1 <= each <= values["num_hidden_layers"] for each in layers):
        raise CheckpointError(f"{source}: feature layer {layer} of a tower with {values['num_hidden_layers']} blocks")
    return Tower(
        source=source,
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp=values["intermediate_size"],
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        act=str(own.get("hidden_act", defaults["hidden_act"])),
        eps=real(source, own.get("layer_norm_eps", defaults["layer_norm_eps"]), "layer_norm_eps"),
        feature_layer=layer,
        keep_first=keep_first,
        kind=kind,
    )


def text_part(source: Path, config: Mapping[str, Any], adapter: Path | None = None) -> Text:
    """The language half's configuration with its class's defaults filled in and LLaVA's keys gone."""
    kind = str(config.get("model_type") or "llama")
    kind = _LLAVA_KINDS.get(kind, kind)
    classes = config.get("architectures")
    if isinstance(classes, list) and classes:
        kind = _ARCHITECTURES.get(str(classes[0]), kind)
    own = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_", "trifocal_"))}
    filled = {**_TEXT_DEFAULTS.get(kind, {}), **own, "model_type": kind}
    sizes = ("d_model", "max_seq_len") if kind == "mpt" else ("hidden_size", "max_position_embeddings")
    for key in sizes:
        whole(source, filled, key)
    if kind == "mpt":
        filled.pop("hidden_size", None)  # LLaVA's loader wrote it there beside d_model
    return Text(source, filled, adapter)
