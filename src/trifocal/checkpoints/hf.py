"""The llava-hf layout: ``vision_config`` and ``text_config`` beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import text_part, tower_part
from trifocal.checkpoints.parts import Checkpoint, OwnVision, Projector
from trifocal.checkpoints.processors import preprocessing_part
from trifocal.checkpoints.reading import layer_number, read_json
from trifocal.checkpoints.tilings import hf_layout
from trifocal.checkpoints.turns import template_of
from trifocal.errors import CheckpointError
from trifocal.source import source_of

__all__ = ["FAMILIES", "from_hf"]


@dataclass(frozen=True, slots=True)
class Family:
    """What a ``model_type`` leaves to its class: its name here, feature layer and selection."""

    name: str
    layer: int = -2
    strategy: str = "default"


FAMILIES = {
    "llava": Family("llava-1.5"),
    "llava_next": Family("llava-1.6"),
    "llava_next_video": Family("llava-next-video"),
    "llava_onevision": Family("llava-onevision", -1, "full"),
}


def from_hf(
    folder: Path, config: dict[str, Any], tower: Path | None, projector: Path | None, language: Path
) -> Checkpoint:
    """llava-hf's ``Llava``, ``LlavaNext``, ``LlavaNextVideo`` and ``LlavaOnevision`` ``ForConditionalGeneration``."""
    file = folder / "config.json"
    kind = str(config.get("model_type", "llava"))
    if kind not in FAMILIES:
        raise CheckpointError(f"{file}: model_type {kind!r} is not supported; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[kind]
    strategy = config.get("vision_feature_select_strategy", family.strategy)
    if strategy not in ("default", "full"):
        raise CheckpointError(f"{file}: vision_feature_select_strategy {strategy!r}; known: default, full")
    layer = layer_number(folder, config, "vision_feature_layer", family.layer)
    for key in ("vision_config", "text_config"):
        if not isinstance(config[key], dict):
            raise CheckpointError(f"{file}: {key} is {config[key]!r}, a JSON object was expected")
    vision = config["vision_config"] if tower is None else read_json(tower / "config.json")
    part = tower_part(tower or folder, vision, layer, keep_first=strategy == "full")
    act = str(config.get("projector_hidden_act", "gelu"))
    text = text_part(language, _inner(config) if language == folder else source_of(language).config())
    layout = hf_layout(file, config, part.image_size)
    preprocessing = preprocessing_part(tower or folder, part, config.get("image_aspect_ratio"), layout)
    return Checkpoint(
        name=folder.name,
        family=family.name if layout.tiles or part.kind == "clip" else "llava-interleave",
        vision=OwnVision(part, Projector(projector or folder, "mlp2x", act), preprocessing),
        language=text,
        template=template_of(text, newer=layout.tiles is not None),
    )


def _inner(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's configuration; its head is tied where it or the one around it says so."""
    inner: dict[str, Any] = {"model_type": "llama", **config["text_config"]}  # transformers' default
    return {**inner, "tie_word_embeddings": True} if config.get("tie_word_embeddings") else inner
