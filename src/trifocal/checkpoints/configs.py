"""From the configurations of tower, language model and image processor to the parts' data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifocal.checkpoints.parts import CLIP_MEAN, CLIP_STD, Preprocessing, Text, Tower
from trifocal.checkpoints.reading import colours, read_json, real, whole
from trifocal.errors import CheckpointError

__all__ = ["preprocessing_part", "text_part", "tower_part"]

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
_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}


def tower_part(source: Path, config: Mapping[str, Any], layer: int, *, keep_first: bool) -> Tower:
    own = config.get("vision_config", config)
    if not isinstance(own, dict):
        raise CheckpointError(f"{source}: vision_config is {own!r}, a JSON object was expected")
    kind = own.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise CheckpointError(
            f"{source}: a vision tower of type {kind!r} is not supported; supported: clip_vision_model"
        )
    values = {key: whole(source, own, key, default) for key, default in _VISION_DEFAULTS.items()}
    for large, small in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        if values[large] < values[small] or (large == "hidden_size" and values[large] % values[small]):
            raise CheckpointError(f"{source}: {large} {values[large]} does not go with {small} {values[small]}")
    if not -values["num_hidden_layers"] - 1 <= layer <= values["num_hidden_layers"]:
        raise CheckpointError(f"{source}: feature layer {layer} of a tower with {values['num_hidden_layers']} blocks")
    return Tower(
        source=source,
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp=values["intermediate_size"],
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        act=str(own.get("hidden_act", "quick_gelu")),
        eps=real(source, own.get("layer_norm_eps", 1e-5), "layer_norm_eps"),
        feature_layer=layer,
        keep_first=keep_first,
    )


def text_part(source: Path, config: Mapping[str, Any]) -> Text:
    """The language half's configuration with its class's defaults filled in and LLaVA's keys gone."""
    kind = str(config.get("model_type") or "llama")
    kind = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}.get(kind, kind)
    own = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_", "trifocal_"))}
    filled = {**_TEXT_DEFAULTS.get(kind, {}), **own, "model_type": kind}
    for key in ("hidden_size", "max_position_embeddings"):
        whole(source, filled, key)
    return Text(source, filled)


def preprocessing_part(folder: Path, size: int, aspect: str | None) -> Preprocessing:
    """What ``preprocessor_config.json`` says, in either of its forms; CLIP's values where it is silent."""
    file = folder / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    side = config.get("crop_size", config.get("size", size))
    if isinstance(side, dict):
        side = side.get("height", side.get("shortest_edge", size))
    if side != size:
        raise CheckpointError(f"{file}: pictures of {side} pixels for a tower that takes {size}")
    if aspect not in (None, "square", "pad"):
        raise CheckpointError(f"{folder}: image_aspect_ratio {aspect!r} is not supported; supported: square, pad")
    pad = aspect == "pad" or (aspect is None and bool(config.get("do_pad")))
    resample = config.get("resample", 3)
    if resample not in range(6):
        raise CheckpointError(f"{file}: resample is {resample!r}, one of PIL's numbers 0 to 5 was expected")
    return Preprocessing(
        size=size,
        fit="pad" if pad else "crop",
        mean=colours(file, config.get("image_mean", CLIP_MEAN), "image_mean"),
        std=colours(file, config.get("image_std", CLIP_STD), "image_std"),
        rescale=real(file, config.get("rescale_factor", 1 / 255), "rescale_factor"),
        resample=int(resample),
    )
