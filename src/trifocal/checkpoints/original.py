"""The original layout (``mm_*`` keys), and a bare language model with tower and projector from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import preprocessing_part, text_part, tower_part
from trifocal.checkpoints.parts import CLIP_TOWER, Projector
from trifocal.checkpoints.reading import knows, layer_number, own_config, read_json
from trifocal.errors import CheckpointError
from trifocal.hub import CONFIGS, PICKLES, WEIGHTS, locate
from trifocal.weights import canonical, stored_names

__all__ = ["from_original", "trained_with"]


def from_original(
    folder: Path, config: dict[str, Any], tower: Path | None, projector: Path | None, language: Path
) -> dict[str, Any]:
    """Original LLaVA, or a bare language model with tower and projector from elsewhere."""
    names = [canonical(name) for name in stored_names(folder)]
    inside = {found[0] for found in names if found}
    named = config.get("mm_vision_tower") or CLIP_TOWER
    home = tower or locate(str(named), (*CONFIGS, *WEIGHTS, *PICKLES))
    vision = read_json(home / "config.json")
    layer = layer_number(folder, config, "mm_vision_select_layer")
    select = config.get("mm_vision_select_feature", "patch")
    source = folder if tower is None and "tower" in inside else home
    part = tower_part(source, vision, layer, keep_first=select == "cls_patch")
    where = projector or _own_projector(folder, config, inside)
    kind, _, act = str(config.get("mm_projector_type") or "linear").partition("_")
    first_family = kind == "linear"
    return {
        "family": "llava-v0" if first_family else "llava-1.5",
        "tower": part,
        "projector": Projector(where, kind, act or "gelu"),
        "preprocessing": preprocessing_part(home, part.image_size, config.get("image_aspect_ratio")),
        "language": text_part(language, config if language == folder else own_config(language)),
        "template": "llava_v0_webui" if first_family else "llava_v1",
        "framed": first_family and knows(language, "<im_start>"),
        "strip_around_images": first_family,
    }


def _own_projector(folder: Path, config: Mapping[str, Any], inside: set[str]) -> Path:
    """An original checkpoint's projector: among its tensors, or in a file beside them."""
    if "projector" in inside:
        return folder
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            return folder / name
    if not inside and "mm_hidden_size" in config:
        return folder  # one pickle: what it holds is known when it is opened
    raise CheckpointError(f"{folder}: there is no projector in it; name one with projector_from (--projector-from)")


def trained_with(projector: Path | None) -> dict[str, Any]:
    """What a projector's own folder says about how pictures are to be shown to it, in original LLaVA's words."""
    file = projector / "config.json" if projector and projector.is_dir() else None
    config = read_json(file) if file and file.is_file() else {}
    named = ("image_aspect_ratio", "trifocal_template")
    return {key: value for key, value in config.items() if key.startswith("mm_") or key in named}
