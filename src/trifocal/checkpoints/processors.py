"""From an image processor's configuration to `Preprocessing`: each of its flags is followed or refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trifocal.checkpoints.parts import CLIP_MEAN, CLIP_STD, Fit, Frames, Preprocessing, Tower
from trifocal.checkpoints.reading import image_processor, number, real, video_processor
from trifocal.checkpoints.tilings import Layout
from trifocal.errors import CheckpointError

__all__ = ["channels", "preprocessing_part"]

_HALF = (0.5, 0.5, 0.5)
_NAME = re.compile(r"^(\w+?)(?:ImageProcessor|VideoProcessor|FeatureExtractor)(?:Fast|Pil)?$")
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # at PIL's numbers
# flags of transformers' image processors whose way is known here; another one that is on changes what the tower sees
_FLAGS = (
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "do_pad",
    "do_convert_rgb",  # every picture is RGB here
    "do_reduce_labels",  # of segmentation maps
    "do_sample_frames",  # a video comes as the frames that are to be seen
)
_CHANGING = ("crop_pct", "rescale_offset", "offset", "size_divisor", "pad_size")


@dataclass(frozen=True, slots=True)
class _Class:
    """What the class of an image processor says where its file is silent: one that does not crop stretches."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crops: bool


_CLIP, _SIGLIP = _Class(CLIP_MEAN, CLIP_STD, crops=True), _Class(_HALF, _HALF, crops=False)
# by its name in the file, without what stands behind it: transformers', and LLaVA-NeXT's own (SigLip)
_CLASSES = {
    **dict.fromkeys(("CLIP", "Llava", "LlavaNext", "LlavaNextVideo"), _CLIP),
    **dict.fromkeys(("Siglip", "SigLip"), _SIGLIP),
    "LlavaOnevision": _Class(CLIP_MEAN, CLIP_STD, crops=False),
}


def preprocessing_part(folder: Path, tower: Tower, aspect: str | None, layout: Layout) -> Preprocessing:
    """What ``preprocessor_config.json`` says, in any of its forms; where it is silent, what its class or tower says.

    Raises:
        CheckpointError: pictures of another size than the tower's, or a step that is not known.
    """
    file, config = _told(image_processor(folder))
    plain = _plain(file, config, tower)
    _check_grid(tower, layout)
    return replace(
        plain,
        fit=_fit(file, tower, aspect, config, layout, plain.fit),
        tiles=layout.tiles,
        newline=layout.newline,
        video=_video(folder, tower, layout, plain),
    )


def _told(found: tuple[Path, dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    file, given = found
    return file, {key: value for key, value in given.items() if value is not None}


def _video(folder: Path, tower: Tower, layout: Layout, pictures: Preprocessing) -> Frames | None:
    """How videos are seen: as the video processor's file says, else as the processor of ``pictures`` does it."""
    if layout.video is None or tower.patches != tower.side**2:  # a frame with a class token is no grid to make smaller
        return None
    file, config = _told(video_processor(folder))
    own = _plain(file, config, tower) if config else pictures
    return replace(layout.video, fit=own.fit, own=None if own == replace(pictures, fit=own.fit) else own)


def _plain(file: Path, config: Mapping[str, Any], tower: Tower) -> Preprocessing:
    """What a processor does by itself, to one square."""
    _check_flags(file, config)
    kind = _class(config, tower)
    square, resized = _resizing(file, config, tower, kind)
    return Preprocessing(
        size=tower.image_size,
        fit=square,
        mean=channels(file, config, "image_mean", kind.mean),
        std=channels(file, config, "image_std", kind.std),
        rescale=real(file, config.get("rescale_factor", 1 / 255), "rescale_factor") if _on(config, "do_rescale") else 1,
        resample=_resample(file, config.get("resample", 3)),
        resized=None if resized == tower.image_size else resized,
        normalise=_on(config, "do_normalize"),
    )


def _class(config: Mapping[str, Any], tower: Tower) -> _Class:
    """The class that the file names; one that is not known, or not named, is that of the tower's kind."""
    named = _NAME.match(_class_name(config))
    return _CLASSES.get(named[1] if named else "", _CLIP if tower.kind == "clip" else _SIGLIP)


def _class_name(processor: Mapping[str, Any]) -> str:
    keys = ("image_processor_type", "video_processor_type", "feature_extractor_type")
    return str(next((processor[key] for key in keys if processor.get(key)), ""))


def _check_grid(tower: Tower, layout: Layout) -> None:
    """Rows that are put together as one grid are patches alone, and a pooled frame's are not fewer than one stride."""
    if layout.tiles is not None and layout.tiles.merge != "flat" and tower.patches != tower.side**2:
        kept = tower.patches > tower.side**2
        what = "the class token is kept (cls_patch, or full)" if kept else "SigLIP's first patch is left away (default)"
        raise CheckpointError(
            f"the checkpoint's config.json: {what}, so that a tile's rows are no grid ({layout.tiles.merge}); "
            "the original's code fails there, too"
        )
    if layout.video is not None and layout.video.pool != "bilinear" and layout.video.stride > tower.side:
        raise CheckpointError(
            f"the checkpoint's config.json: spatial_pool_stride (mm_spatial_pool_stride) is {layout.video.stride}, "
            f"a frame has {tower.side} patches a side"
        )


def _on(config: Mapping[str, Any], flag: str) -> bool:
    return bool(config.get(flag, True))


def _check_flags(file: Path, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        if key.startswith("do_") and not isinstance(value, bool):
            raise CheckpointError(f"{file}: {key} is {value!r}, true or false was expected")
        if value and (key in _CHANGING or (key.startswith("do_") and key not in _FLAGS)):
            raise CheckpointError(
                f"{file}: {key} is {value!r}, a step that is not supported; known: {', '.join(_FLAGS)}"
            )


def _resizing(file: Path, config: Mapping[str, Any], tower: Tower, kind: _Class) -> tuple[Fit, int]:
    """How the processor makes a square of a picture by itself, and the side that it resizes to before any crop.

    CLIP's resizes the short side and takes the middle, SigLIP's stretches; a configuration may say the other.
    """
    own = tower.image_size
    if not _on(config, "do_resize"):
        raise CheckpointError(
            f"{file}: do_resize is false: only pictures of {own} x {own} pixels could be seen; set it to true"
        )
    side, exact = _size(file, config, "size") or (own, not kind.crops)
    if isinstance(config.get("size"), int):
        exact = not kind.crops
    crops = config.get("do_center_crop", kind.crops)
    cropped = (_size(file, config, "crop_size") or (own, True))[0] if crops else side
    if cropped != own:
        raise CheckpointError(f"{file}: pictures of {cropped} pixels for a tower that takes {own}")
    if crops or exact:
        return ("stretch" if exact else "crop"), side
    return "pad", side


def _size(file: Path, config: Mapping[str, Any], key: str) -> tuple[int, bool] | None:
    """A side in pixels, and whether both sides are told: from a number, a pair, or a table of sides."""
    value = config.get(key)
    if value is None:
        return None
    sides = [value]
    if isinstance(value, (list, tuple)):
        sides = list(value) if len(value) == 2 else []
    elif isinstance(value, dict) and {"height", "width"} <= set(value):
        sides = [value["height"], value["width"]]
    elif isinstance(value, dict):
        sides = [value.get("shortest_edge")] if value.get("longest_edge") is None else []
    sound = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in sides)
    if not sides or not sound or len(set(sides)) > 1:
        raise CheckpointError(
            f"{file}: {key} is {value!r}; a side, a shortest_edge, or two sides that are the same were expected"
        )
    return sides[0], not isinstance(value, int) and len(sides) == 2


def _pads(processor: Mapping[str, Any]) -> bool:
    """Whether an image processor makes a picture square itself; CLIP's and SigLIP's don't hear the flag."""
    return bool(processor.get("do_pad")) and not _class_name(processor).startswith(("CLIP", "Siglip", "SigLip"))


def _fit(
    file: Path, tower: Tower, aspect: str | None, processor: Mapping[str, Any], layout: Layout, square: Fit
) -> Fit:
    """How a picture becomes a square: what the model was trained with, else what its image processor does."""
    if layout.tiles is not None:
        return "pad"
    if aspect not in (None, "square", "pad"):
        raise CheckpointError(
            f"the checkpoint's config.json: image_aspect_ratio {aspect!r} is not supported; known: square, pad, "
            "anyres, anyres_max_9"
        )
    if aspect == "pad" or (aspect is None and _pads(processor)):
        return "pad"
    if square == "pad":
        raise CheckpointError(
            f"{file}: do_center_crop is false, so that pictures don't become {tower.image_size} x {tower.image_size} "
            "pixels; set it to true, or image_aspect_ratio to pad"
        )
    return square


def channels(
    file: Path, config: Mapping[str, Any], key: str, default: tuple[float, float, float] | None = None
) -> tuple[float, float, float]:
    """A number for each channel; one number is for all three."""
    value = config.get(key, default)
    each = [value] * 3 if isinstance(value, (int, float)) else value
    if not isinstance(each, (list, tuple)) or len(each) != 3:
        raise CheckpointError(f"{file}: {key} is {value!r}, three numbers (or one for all) were expected")
    read = real if key == "image_std" else number
    red, green, blue = (read(file, one, key) for one in each)
    return red, green, blue


def _resample(file: Path, value: Any) -> int:
    """PIL's number of a way to resize, from itself or its name."""
    name = value.rpartition(".")[2].lower() if isinstance(value, str) else None
    found = _RESAMPLING.index(name) if name in _RESAMPLING else value
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found < len(_RESAMPLING):
        raise CheckpointError(
            f"{file}: resample is {value!r}, PIL's number (0 to 5) or name ({', '.join(_RESAMPLING)}) was expected"
        )
    return found
