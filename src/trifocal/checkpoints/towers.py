"""The towers that original checkpoints name: their configurations, for checkpoints that bring the weights along."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifocal.weights.tensors import part_weights, weight_files

__all__ = ["TOWERS", "known_tower"]

_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}

TOWERS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14": {**_CLIP, "image_size": 224},
    "openai/clip-vit-large-patch14-336": {**_CLIP, "image_size": 336},
    "google/siglip-so400m-patch14-384": {**_SIGLIP, "image_size": 384},
}
_HEADS = {768: 12, 1024: 16, 1152: 16, 1280: 16}  # of the towers that OpenAI, LAION and Google released, by width
_SIDES = {(27, 14): 384, (16, 14): 224, (24, 14): 336}  # of a picture, by patches and their size: 384 leaves a rest


def known_tower(named: str, config: Mapping[str, Any], inside: Path) -> dict[str, Any] | None:
    """The configuration of a tower whose tensors a checkpoint brings along; None where only its own folder tells it.

    By its name, by the last word of a path of the machine on which it was trained, by the checkpoint's own
    ``vision_config``, or by its tensors' shapes.
    """
    word = named.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if named in TOWERS:
        return TOWERS[named]
    if Path(named).expanduser().exists():
        return None
    own = config.get("vision_config")
    if isinstance(own, dict):
        return own
    found = next((tower for name, tower in TOWERS.items() if name.rpartition("/")[2] == word), None)
    is_path = named.count("/") != 1 or named[0] in "./~" or "\\" in named
    return found or (_measured(inside) if is_path else None)


def _measured(source: Path) -> dict[str, Any] | None:
    """A tower's configuration by its tensors' shapes, where its width is that of a released one."""
    files = [source] if source.is_file() else weight_files(source)
    if any(file.suffix != ".safetensors" for file in files):
        return None
    weights = part_weights(source, "tower")
    names = (
        "embeddings.patch_embedding.weight",
        "embeddings.position_embedding.weight",
        "encoder.layers.0.mlp.fc1.weight",
    )
    if any(name not in weights for name in names):
        return None
    (hidden, _, patch, _), (places, _), (inner, _) = (weights.spec(name)[1] for name in names)
    clip = "embeddings.class_embedding" in weights
    side = math.isqrt(places - clip)
    if hidden not in _HEADS:
        return None
    return {
        **(_CLIP if clip else _SIGLIP),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": len({name.split(".")[2] for name in weights if name.startswith("encoder.layers.")})
        + (not clip),
        "num_attention_heads": _HEADS[hidden],
        "patch_size": patch,
        "image_size": _SIDES.get((side, patch), side * patch),
    }
