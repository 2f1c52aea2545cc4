"""The llava-hf layout: ``vision_config`` and ``text_config`` beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import preprocessing_part, text_part, tower_part
from trifocal.checkpoints.parts import Projector
from trifocal.checkpoints.reading import layer_number, own_config, read_json
from trifocal.errors import CheckpointError

__all__ = ["from_hf"]


def from_hf(
    folder: Path, config: dict[str, Any], tower: Path | None, projector: Path | None, language: Path
) -> dict[str, Any]:
    """llava-hf's ``LlavaForConditionalGeneration``."""
    kind = config.get("model_type", "llava")
    if kind != "llava":
        raise CheckpointError(f"{folder / 'config.json'}: model_type {kind!r} is not supported; supported: llava")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(
            f"{folder / 'config.json'}: vision_feature_select_strategy {strategy!r}; known: default, full"
        )
    layer = layer_number(folder, config, "vision_feature_layer")
    for key in ("vision_config", "text_config"):
        if not isinstance(config[key], dict):
            raise CheckpointError(f"{folder / 'config.json'}: {key} is {config[key]!r}, a JSON object was expected")
    vision = config["vision_config"] if tower is None else read_json(tower / "config.json")
    part = tower_part(tower or folder, vision, layer, keep_first=strategy == "full")
    act = str(config.get("projector_hidden_act", "gelu"))
    return {
        "family": "llava-1.5",
        "tower": part,
        "projector": Projector(projector or folder, "mlp2x", act),
        "preprocessing": preprocessing_part(tower or folder, part.image_size, config.get("image_aspect_ratio")),
        "language": text_part(language, config["text_config"] if language == folder else own_config(language)),
        "template": "llava_v1",
    }
