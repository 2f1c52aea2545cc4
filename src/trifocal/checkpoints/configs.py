"""From the configurations of tower and language model to the parts' data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints.parts import Text, Tower
from trifocal.checkpoints.reading import real, whole
from trifocal.errors import CheckpointError
from trifocal.weights.names import canonical
from trifocal.weights.tensors import stored_names

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
# and its CLIPVisionConfig, SiglipVisionConfig: whoever saves one leaves away what its class says anyway
_VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "clip": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    "siglip": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "image_size": 224,
        "patch_size": 16,
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
# the language model of an original checkpoint, by a word in the class that it names, or in its model_type: LLaVA's own
# and those that others derived from them (Share4VLlamaForCausalLM). Longer words come first
_WORDS = {
    "mixtral": "mixtral",
    "mistral": "mistral",
    "qwenmoe": "qwen2_moe",
    "qwen2": "qwen2",
    "qwen": "qwen2",
    "gemma": "gemma",
    "mpt": "mpt",
    "llama": "llama",
}
_CLASS = re.compile(r"^\w*?(?P<word>" + "|".join(_WORDS) + r")ForCausalLM$", re.IGNORECASE)


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
    kind = _kind(source, config)
    own = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_", "trifocal_"))}
    filled = {**_TEXT_DEFAULTS.get(kind, {}), **own, "model_type": kind}
    sizes = ("d_model", "max_seq_len") if kind == "mpt" else ("hidden_size", "max_position_embeddings")
    for key in sizes:
        whole(source, filled, key)
    if kind == "mpt":
        filled.pop("hidden_size", None)  # LLaVA's loader wrote it there beside d_model
    return Text(source, filled, adapter)


def _kind(source: Path, config: Mapping[str, Any]) -> str:
    """The kind of a language model, as transformers calls it, where the configuration may be LLaVA's own.

    The class says it, since LLaVA's ``model_type`` is ``llava`` whatever is inside; where there is none, the tensors.
    """
    kind, classes = str(config.get("model_type") or "llava"), config.get("architectures")
    if not (kind.startswith("llava") or "mm_vision_tower" in config):
        return kind
    named = str(classes[0]) if isinstance(classes, list) and classes else str(classes)
    if found := _CLASS.match(named):
        return _WORDS[found["word"].lower()]
    word = kind.rpartition("llava")[2].replace("_", "").lower()  # of tiny_llava_phi its phi
    if word in _WORDS:
        return _WORDS[word]
    if word and "llava" in kind:
        raise CheckpointError(
            f"{source}: a language model of class {named!r} in model_type {kind!r} is not supported in LLaVA's own "
            f"layout; supported there: {', '.join(dict.fromkeys(_WORDS.values()))}. If the release has a folder in "
            "llava-hf's layout, which transformers reads by itself, take that one"
        )
    return kind if word else _kind_of_tensors(source, config)


def _kind_of_tensors(source: Path, config: Mapping[str, Any]) -> str:
    """What only one kind has: Qwen 2 biases of its queries alone, MPT and Mistral keys of their own."""
    if "d_model" in config:
        return "mpt"
    named = [found[1] for name in stored_names(source) if (found := canonical(name)) and found[0] == "language"]
    biased = {name.rpartition("self_attn.")[2] for name in named}
    if "q_proj.bias" in biased and "o_proj.bias" not in biased:
        return "qwen2"
    return "mistral" if "sliding_window" in config else "llama"
