"""The llava-hf layout: ``vision_config`` and ``text_config`` beside each other, or what their class has for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import text_part, tower_part
from trifocal.checkpoints.parts import Checkpoint, OwnVision, Projector
from trifocal.checkpoints.processors import preprocessing_part
from trifocal.checkpoints.reading import layer_number, read_json
from trifocal.checkpoints.tilings import hf_layout
from trifocal.checkpoints.towers import TOWERS
from trifocal.checkpoints.turns import template_of
from trifocal.errors import CheckpointError
from trifocal.source import source_of

__all__ = ["FAMILIES", "from_hf", "is_hf"]


@dataclass(frozen=True, slots=True)
class Family:
    """What a ``model_type`` leaves to its class: its name here, feature layer and selection, and its halves' kinds.

    ``tower`` is the configuration of one that is not told at all.
    """

    name: str
    layer: int = -2
    strategy: str = "default"
    text: str = "llama"
    tower: Mapping[str, Any] = field(default_factory=lambda: TOWERS["openai/clip-vit-large-patch14-336"])


_ONEVISION = {**TOWERS["google/siglip-so400m-patch14-384"], "num_hidden_layers": 26}
FAMILIES = {
    "llava": Family("llava-1.5"),
    "llava_next": Family("llava-1.6"),
    "llava_next_video": Family("llava-next-video"),
    "llava_onevision": Family("llava-onevision", -1, "full", "qwen2", _ONEVISION),
}


def is_hf(config: Mapping[str, Any]) -> bool:
    """Whether it is llava-hf's layout: both halves are told, or one and not a word of the original's."""
    told = [key in config for key in ("vision_config", "text_config")]
    return all(told) or (any(told) and config.get("model_type") in FAMILIES and "mm_vision_tower" not in config)


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
    own = _half(file, config, "vision_config", family.tower, {"model_type": family.tower["model_type"]})
    inner = _half(file, config, "text_config", {}, {"model_type": family.text})
    if config.get("tie_word_embeddings"):  # the head is tied where this configuration or the one inside says so
        inner["tie_word_embeddings"] = True
    if config.get("eos_token_id") is not None:  # in transformers, too, what stands outside counts first
        inner["eos_token_id"] = config["eos_token_id"]
    vision = own if tower is None else read_json(tower / "config.json")
    part = tower_part(tower or folder, vision, layer, keep_first=strategy == "full")
    act = str(config.get("projector_hidden_act", "gelu"))
    text = text_part(language, inner if language == folder else source_of(language).config())
    layout = hf_layout(file, config, part.image_size)
    preprocessing = preprocessing_part(tower or folder, part, config.get("image_aspect_ratio"), layout)
    return Checkpoint(
        name=folder.name,
        family=family.name if layout.tiles or part.kind == "clip" else "llava-interleave",
        vision=OwnVision(part, Projector(projector or folder, "mlp2x", act), preprocessing),
        language=text,
        template=template_of(text, newer=layout.tiles is not None),
    )


def _half(
    file: Path, config: Mapping[str, Any], key: str, untold: Mapping[str, Any], always: Mapping[str, Any]
) -> dict[str, Any]:
    """The configuration of tower or language model: ``untold`` where it is not there, ``always`` below what is."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise CheckpointError(f"{file}: {key} is {value!r}, a JSON object was expected")
    return {**always, **(untold if value is None else value)}
