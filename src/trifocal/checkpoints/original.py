"""The original layout (``mm_*`` keys), and a bare language model with tower and projector from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trifocal.checkpoints.configs import text_part, tower_part
from trifocal.checkpoints.inside import parts_inside
from trifocal.checkpoints.parts import CLIP_TOWER, Checkpoint, OwnVision, Projector, Text, Tiling, Tower
from trifocal.checkpoints.processors import preprocessing_part
from trifocal.checkpoints.reading import layer_number, read_json
from trifocal.checkpoints.tilings import original_layout
from trifocal.checkpoints.towers import known_tower
from trifocal.checkpoints.turns import template_of, turns_of
from trifocal.errors import CheckpointError, UsageError
from trifocal.hub.locate import EVERYTHING, PICKLES, locate
from trifocal.source import source_of
from trifocal.weights.tensors import weight_files

__all__ = ["from_original", "trained_with"]

_FEATURE = re.compile(r"^(?:(?P<several>slicefour|slice_m25811_f6)_)?(?P<kept>cls_)?patch$")
_PERCEPTRON = re.compile(r"^(?P<kind>mlp\d+x(?:_res\d+x)?)(?:_(?P<act>.*))?$")
# names of a resampler that computes nothing for an answer: LLaVA-NeXT drops rows in training alone, and by its
# spatial_pool makes the frames of videos smaller, as mm_spatial_pool_mode and mm_spatial_pool_stride say
_NO_RESAMPLER = (None, "", "identity", "masked_drop", "spatial_pool")
SLICE_M25811_F6 = (-2, -5, -8, -11, 6)  # the layers in that name of LLaVA-NeXT's
LLAMA_2 = 4096  # the context of LLaMA-2, and of no LLaMA before it


def from_original(
    folder: Path,
    config: dict[str, Any],
    tower: Path | None,
    projector: Path | None,
    language: Path,
    adapter: Path | None = None,
    patterns: Sequence[str] = EVERYTHING,
) -> Checkpoint:
    """Original LLaVA, a LoRA of it, or a bare language model with tower and projector from elsewhere."""
    _check_known(folder / "config.json", config)
    inside = parts_inside(folder, adapter, language)
    part, home = _own_tower(folder, config, tower, inside.homes.get("tower"), patterns)
    part = replace(part, adapter=inside.adapter("tower", adapter, tower))
    where = projector or inside.homes.get("projector") or _own_projector(folder, patterns)
    kind, act = _projector_kind(config)
    file = folder / "config.json"
    layout = original_layout(file, config, part.image_size, siglip=part.kind == "siglip")
    aspect = config.get("image_aspect_ratio")
    if layout.tiles is None and str(aspect).startswith("anyres"):
        aspect = None  # interleave: every picture is one square, as its tower's processor makes it
    own = config if language == folder or adapter else source_of(language).config()
    text = replace(text_part(language, own, adapter), marks=_marks(config))
    framed = bool(config.get("mm_use_im_start_end", source_of(language).knows("<im_start>")))
    if kind == "linear":
        family, recipe = _early(config, text, framed)
        template = turns_of(text, recipe)
    else:
        family = _family(part, layout.tiles)
        template = template_of(text, newer=family != "llava-1.5", original=True)
    preprocessing = preprocessing_part(home, part, aspect, layout)
    rows = Projector(where, kind, act or "gelu", inside.adapter("projector", adapter, projector))
    return Checkpoint(
        name=folder.name,
        family=family,
        vision=OwnVision(part, rows, preprocessing),
        language=text,
        template=template,
        strip_around_images=family == "llava-v0",
        original=True,
    ).framed(framed and kind == "linear")


def _check_known(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses ways to see that are another computation than tower and projector."""
    if config.get("s2"):
        raise CheckpointError(f"{file}: s2 is true: pictures seen at several sizes are not supported")
    resampler = config.get("mm_resampler_type")
    if resampler not in _NO_RESAMPLER:
        raise CheckpointError(
            f"{file}: mm_resampler_type is {resampler!r}: a resampler between tower and projector is not supported; "
            "where the model was trained without one, set it to null"
        )


def _marks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens that the original adds when it loads a checkpoint whose pictures stand between marks."""
    if not config.get("mm_use_im_start_end"):
        return ()
    return (*(("<im_patch>",) if config.get("mm_use_im_patch_token", True) else ()), "<im_start>", "<im_end>")


def _projector_kind(config: Mapping[str, Any]) -> tuple[str, str]:
    """A projector's kind and activation: ``mlp2x`` and ``gelu`` of ``mlp2x_gelu``; of a stranger's its whole name."""
    said = str(config.get("mm_projector_type") or "linear")
    found = _PERCEPTRON.match(said)
    return (found["kind"], found["act"] or "") if found else (said, "")


def _early(config: Mapping[str, Any], text: Text, framed: bool) -> tuple[str, str]:
    """Family and template of a checkpoint with a linear projector, by what its files say.

    v0, v1.1 and Lightning put marks around a picture, the 1.0 releases of Vicuna v1.3 and LLaMA-2 do not; of these
    two the base's context tells which it is. Nothing tells v1.1 and Lightning from v0: their template must be named.
    Of v0 only ScienceQA's has no marks: it keeps v0's ``###``, and a key or a version of v0's day.
    """
    if text.config["model_type"] == "mpt":
        return "llava-mpt", "mpt_multimodal" if framed else "mpt"
    if framed:
        return "llava-v0", "llava_v0_webui"
    if text.context >= LLAMA_2:
        return "llava-llama-2", "llava_llama_2"
    old = "sep_image_conv_front" in config or str(config.get("transformers_version", "")).startswith("4.28.")
    if old and "mm_use_im_patch_token" not in config:  # 1.0 always writes it
        return "llava-v0", "simple"
    if "mm_use_im_start_end" in config:
        return "llava-v1", "llava_v1"
    return "llava-v0", "llava_v0_webui"


def _own_tower(
    folder: Path, config: Mapping[str, Any], tower: Path | None, inside: Path | None, patterns: Sequence[str]
) -> tuple[Tower, Path]:
    """An original checkpoint's tower, and the folder that tells its preprocessing.

    A tower that the checkpoint brings along was trained with it, so the one it names gives only its
    configuration, which for the towers of LLaVA we know; where it names a path of the trainer's own machine, the
    path's last word, the checkpoint's own ``vision_config`` or the tensors' shapes tell it.
    """
    named = str(config.get("mm_vision_tower") or CLIP_TOWER)
    known = known_tower(named, config, inside) if inside is not None and tower is None else None
    home = folder if known else tower or _named_tower(folder, config, named, patterns)
    vision = known or read_json(home / "config.json")
    own = vision.get("vision_config", vision)
    siglip = isinstance(own, dict) and str(own.get("model_type", "")).startswith("siglip")
    # the code of v0's day took the last layer where none is named; a bare language model names nothing
    default = -1 if config.get("mm_use_im_start_end") and "mm_vision_tower" in config else -2
    layer = layer_number(folder, config, "mm_vision_select_layer", default)
    source = inside if tower is None and inside is not None else home
    if siglip:
        # LLaVA-NeXT takes SigLIP's last block away and then the last output, whatever the layer that is named
        return tower_part(source, vision, -2 if isinstance(layer, int) else layer, keep_first=True), home
    several, keep = _selected(folder, config)
    part = tower_part(source, vision, layer, keep_first=keep)
    if several and isinstance(layer, int):
        each = (part.layers + 1) // 4
        layers = range(each + layer, part.layers + 1, each) if several == "slicefour" else SLICE_M25811_F6
        part = tower_part(source, vision, tuple(layers), keep_first=keep)
    return part, home


def _selected(folder: Path, config: Mapping[str, Any]) -> tuple[str, bool]:
    """Which layers' features are taken beside the one that is named, and whether the class token's are kept."""
    said = str(config.get("mm_vision_select_feature") or "patch")
    found = _FEATURE.match(said)
    if found is None:
        raise CheckpointError(
            f"{folder / 'config.json'}: mm_vision_select_feature is {said!r}; known: patch and cls_patch, alone or "
            "behind slicefour_ or slice_m25811_f6_"
        )
    return found["several"] or "", bool(found["kept"])


def _named_tower(folder: Path, config: Mapping[str, Any], named: str, patterns: Sequence[str]) -> Path:
    """Where the tower lies that a configuration names, or the stock one where it names none."""
    try:
        return locate(named, patterns)
    except (CheckpointError, UsageError) as error:
        said = f"is {named!r}, and that" if config.get("mm_vision_tower") else f"is not told, and {named}"
        raise CheckpointError(
            f"{folder / 'config.json'}: mm_vision_tower {said} can't be had ({error}); "
            "name the tower with tower_from (--tower-from), as a folder or a hub id"
        ) from error


def _family(tower: Tower, tiles: Tiling | None) -> str:
    if tower.kind == "clip":
        return "llava-1.6" if tiles else "llava-1.5"
    return "llava-onevision" if tiles else "llava-interleave"


def _own_projector(folder: Path, patterns: Sequence[str]) -> Path:
    """An original checkpoint's projector that is not among its tensors: a file beside them, fetched or not."""
    if PICKLES[0] not in patterns:
        return folder
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            return folder / name
    if folder.is_dir():
        weight_files(folder)  # says so where there are no weights at all
    raise CheckpointError(f"{folder}: there is no projector in it; name one with projector_from (--projector-from)")


def trained_with(projector: Path | None) -> dict[str, Any]:
    """What a projector's own folder says about how pictures are to be shown to it, in original LLaVA's words."""
    file = projector / "config.json" if projector and projector.is_dir() else None
    config = read_json(file) if file and file.is_file() else {}
    named = ("image_aspect_ratio", "image_grid_pinpoints")
    return {key: value for key, value in config.items() if key.startswith(("mm_", "trifocal_")) or key in named}
