"""The original layout (``mm_*`` keys), and a bare language model with tower and projector from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import preprocessing_part, template_of, text_part, tower_part
from trifocal.checkpoints.parts import CLIP_TOWER, Projector, Tiling, Tower
from trifocal.checkpoints.reading import knows, layer_number, own_config, read_json
from trifocal.checkpoints.tilings import original_tiling
from trifocal.checkpoints.towers import TOWERS
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
    part, home = _own_tower(folder, config, tower, "tower" in inside)
    where = projector or _own_projector(folder, inside)
    kind, _, act = str(config.get("mm_projector_type") or "linear").partition("_")
    first_family = kind == "linear"
    file = folder / "config.json"
    tiles = original_tiling(file, config, part.image_size)
    if part.kind == "siglip" and tiles is not None and tiles.merge == "flat":
        tiles, config = None, {**config, "image_aspect_ratio": None}  # interleave: every picture is one square
    family = _family(part, tiles)
    text = text_part(language, config if language == folder else own_config(language))
    return {
        "family": "llava-v0" if first_family else family,
        "tower": part,
        "projector": Projector(where, kind, act or "gelu"),
        "preprocessing": preprocessing_part(home, part, config.get("image_aspect_ratio"), tiles),
        "language": text,
        "template": "llava_v0_webui" if first_family else template_of(text, newer=family != "llava-1.5"),
        "framed": first_family and knows(language, "<im_start>"),
        "strip_around_images": first_family,
    }


def _own_tower(folder: Path, config: Mapping[str, Any], tower: Path | None, inside: bool) -> tuple[Tower, Path]:
    """An original checkpoint's tower, and the folder that tells its preprocessing.

    A tower that the checkpoint brings along was trained with it, so the one it names gives only its
    configuration, which for the towers of LLaVA we know.
    """
    named = str(config.get("mm_vision_tower") or CLIP_TOWER)
    known = TOWERS.get(named) if inside and tower is None else None
    home = folder if known else tower or locate(named, (*CONFIGS, *WEIGHTS, *PICKLES))
    vision = known or read_json(home / "config.json")
    own = vision.get("vision_config", vision)
    if isinstance(own, dict) and str(own.get("model_type", "")).startswith("siglip"):
        # LLaVA-NeXT takes SigLIP's last block away and then the last output, whatever the layer that is named
        layer, keep = -2, True
    else:
        layer = layer_number(folder, config, "mm_vision_select_layer")
        keep = config.get("mm_vision_select_feature", "patch") == "cls_patch"
    source = folder if tower is None and inside else home
    return tower_part(source, vision, layer, keep_first=keep), home


def _family(tower: Tower, tiles: Tiling | None) -> str:
    if tower.kind == "clip":
        return "llava-1.6" if tiles else "llava-1.5"
    return "llava-onevision" if tiles else "llava-interleave"


def _own_projector(folder: Path, inside: set[str]) -> Path:
    """An original checkpoint's projector: among its tensors, or in a file beside them."""
    if "projector" in inside:
        return folder
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder}: there is no projector in it; name one with projector_from (--projector-from)")


def trained_with(projector: Path | None) -> dict[str, Any]:
    """What a projector's own folder says about how pictures are to be shown to it, in original LLaVA's words."""
    file = projector / "config.json" if projector and projector.is_dir() else None
    config = read_json(file) if file and file.is_file() else {}
    named = ("image_aspect_ratio", "image_grid_pinpoints", "trifocal_template", "trifocal_unpad_digits")
    return {key: value for key, value in config.items() if key.startswith("mm_") or key in named}
