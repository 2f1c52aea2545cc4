"""How the rows of a checkpoint's pictures and videos are laid out, and how they are cut into tiles."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from trifocal.checkpoints.parts import Frames, Merge, NewlinePosition, Pool, Tiling
from trifocal.checkpoints.reading import image_processor
from trifocal.errors import CheckpointError

__all__ = ["Layout", "hf_layout", "original_layout"]

MOST_PINPOINTS = 256
MOST_TILES = 64  # of one canvas; OneVision's largest has 36
_CORNER = re.compile(r"\((\d{1,2})x(\d{1,2})\)")
_MOST = re.compile(r"^anyres_max_(\d{1,3})$")
_MERGE = re.compile(r"^(?:flat|spatial(?:_(?:unpad|maxpool2x2|nobase))*)$")
# a checkpoint that says one of these was trained with videos
_VIDEO_KEYS = ("mm_newline_position", "mm_spatial_pool_mode", "mm_spatial_pool_stride")
MOST_STRIDE = 64
# what transformers' configurations have where theirs are not told
_NEXT_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_ONEVISION_PINPOINTS = tuple((384 * a, 384 * b) for a in range(1, 7) for b in range(1, 7))


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of the same names of `trifocal.checkpoints.Preprocessing`."""

    tiles: Tiling | None = None
    newline: bool = False
    video: Frames | None = None


def hf_layout(file: Path, config: Mapping[str, Any], tile: int) -> Layout:
    """The layout of ``llava_next``, its video form and ``llava_onevision``; elsewhere each picture is one square.

    transformers reads the pinpoints as ``(height, width)`` and rounds what unpadding keeps.

    Raises:
        CheckpointError: pinpoints that are no canvases of whole tiles, or not those of the image processor.
    """
    kind = config.get("model_type")
    if kind not in ("llava_next", "llava_next_video", "llava_onevision"):
        return Layout()
    told = config.get("image_grid_pinpoints")
    untold = _ONEVISION_PINPOINTS if kind == "llava_onevision" else _NEXT_PINPOINTS
    pinpoints = _pinpoints(file, untold if told is None else told, tile)
    beside, processor = image_processor(file.parent)
    if processor.get("image_grid_pinpoints") is not None:
        theirs = _pinpoints(beside, processor["image_grid_pinpoints"], tile)
        if theirs != pinpoints:
            raise CheckpointError(f"{beside}: its image_grid_pinpoints are not those of {file.name}")
    aspect = config.get("vision_aspect_ratio", "anyres_max_9") if kind == "llava_onevision" else None
    tiles = Tiling(
        pinpoints=tuple((width, height) for height, width in pinpoints),
        most=None if aspect is None else _bound(file, aspect),
        digits=7,
        alone=kind == "llava_onevision",
    )
    video = Frames() if tiles.alone else _early_frames(file, config) if kind == "llava_next_video" else None
    return Layout(tiles, newline=True, video=video)


def original_layout(file: Path, config: Mapping[str, Any], tile: int, *, siglip: bool = False) -> Layout:
    """The layout of an original checkpoint, as LLaVA-NeXT's ``prepare_inputs_labels_for_multimodal`` makes it.

    A SigLIP tower with plain ``anyres`` is interleave: its own demo and evaluation show each picture as one square,
    whatever its configuration says of tiles.

    Raises:
        CheckpointError: pinpoints that are no canvases of whole tiles, or a layout that is not known.
    """
    aspect = str(config.get("image_aspect_ratio"))
    merge = str(config.get("mm_patch_merge_type") or "flat")
    if not _MERGE.match(merge):
        raise CheckpointError(
            f"{file}: mm_patch_merge_type is {merge!r}; known: flat, spatial, and spatial with any of _unpad, "
            "_maxpool2x2 and _nobase behind it"
        )
    digits = _digits(file, config.get("trifocal_unpad_digits"))
    bounded = aspect.startswith("anyres") and aspect != "anyres"
    whole = not aspect.startswith("anyres") or (siglip and not bounded and digits is None)
    pooled, unpad = "maxpool2x2" in merge, "unpad" in merge
    kind: Merge = "spatial_maxpool2x2" if pooled else "spatial_unpad" if unpad else "spatial"
    tiles = (
        None
        if whole
        else Tiling(
            pinpoints=_pinpoints(file, config.get("image_grid_pinpoints"), tile),
            merge="flat" if merge == "flat" else kind,
            newline=kind == "spatial_unpad",
            most=_bound(file, aspect) if bounded else None,
            digits=digits,
            alone=bounded,
            base="nobase" not in merge,
        )
    )
    keyed = _pools(config) or any(config.get(key) is not None for key in _VIDEO_KEYS)
    video = _frames(file, config, merge, first=keyed and not siglip and _first(config)) if bounded or keyed else None
    return Layout(tiles, newline=unpad, video=video)


def _pools(config: Mapping[str, Any]) -> bool:
    return config.get("mm_resampler_type") == "spatial_pool"


def _first(config: Mapping[str, Any]) -> bool:
    """Whether the keys of videos are those of LLaVA-NeXT-Video's first release, of spring 2024.

    Its code pooled what the projector takes, and knew neither bilinear pooling nor a vector between frames; what was
    trained later says where that stands.
    """
    later = ("mm_newline_position", "add_faster_video")
    return config.get("mm_spatial_pool_mode") != "bilinear" and all(config.get(key) is None for key in later)


def _frames(file: Path, config: Mapping[str, Any], merge: str, *, first: bool) -> Frames:
    """How the frames of a video are made smaller, and where the learned vector stands between them."""
    usual = ("average", "no_token") if first else ("bilinear", "one_token")
    pool = _one_of(file, config, "mm_spatial_pool_mode", usual[0], get_args(Pool))
    newline = _one_of(file, config, "mm_newline_position", usual[1], get_args(NewlinePosition))
    if merge == "flat" or (newline == "one_token" and "unpad" not in merge):
        newline = "no_token"
    stride = _stride(file, config, "mm_spatial_pool_stride")
    if config.get("add_faster_video"):
        raise CheckpointError(
            f"{file}: add_faster_video is true: frames of two sizes in one video are not supported; "
            "set it to false in a copy of the file to see all frames at one size"
        )
    early = first or bool(config.get("trifocal_pool_early"))
    return Frames(pool, stride, newline, early=early)  # type: ignore[arg-type]  # each was looked up among its values


def _early_frames(file: Path, config: Mapping[str, Any]) -> Frames:
    """How ``llava_next_video`` makes its frames smaller: before the projector, and with no vector between them."""
    pool = _one_of(file, config, "spatial_pool_mode", "average", ("average", "max"))  # its third has weights: conv
    stride = _stride(file, config, "spatial_pool_stride")
    return Frames(pool, stride, "no_token", early=True)  # type: ignore[arg-type]  # it was looked up


def _stride(file: Path, config: Mapping[str, Any], key: str) -> int:
    value = 2 if config.get(key) is None else config[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MOST_STRIDE:
        raise CheckpointError(f"{file}: {key} is {value!r}, 1 to {MOST_STRIDE} was expected")
    return value


def _one_of(file: Path, config: Mapping[str, Any], key: str, default: str, known: tuple[str, ...]) -> str:
    value = default if config.get(key) is None else config[key]
    if value not in known:
        raise CheckpointError(f"{file}: {key} is {value!r}; known: {', '.join(known)}")
    return str(value)


def _digits(file: Path, value: Any) -> int | None:
    """How parts that were taken apart say that they are to be rounded as transformers does it."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 15):
        raise CheckpointError(f"{file}: trifocal_unpad_digits is {value!r}, a number of digits was expected")
    return value


def _bound(file: Path, aspect: Any) -> int:
    found = _MOST.match(str(aspect))
    if not found or not int(found[1]):
        raise CheckpointError(f"{file}: {aspect!r} is no way to see pictures; known: anyres, anyres_max_9 and the like")
    return int(found[1])


def _pinpoints(file: Path, value: Any, tile: int) -> tuple[tuple[int, int], ...]:
    """Pairs of pixels, in the order of the file; also from the text ``(1x1),...,(6x6)``, which counts tiles.

    Of such a text the original reads the first pair and the last, whatever stands between and around them.
    """
    if isinstance(value, str):
        corners = [(int(a), int(b)) for a, b in _CORNER.findall(value)]
        pairs = _between(corners[0], corners[-1], tile) if corners else _literal(value)
    else:
        pairs = value
    pairs = pairs if isinstance(pairs, (list, tuple)) else []
    if not 0 < len(pairs) <= MOST_PINPOINTS or not all(_is_canvas(pair, tile) for pair in pairs):
        raise CheckpointError(
            f"{file}: image_grid_pinpoints is {str(value)[:80]}; pairs of multiples of {tile} pixels were expected"
        )
    return tuple((int(first), int(second)) for first, second in pairs)


def _between(first: tuple[int, int], last: tuple[int, int], tile: int) -> list[tuple[int, int]]:
    """All pairs of tiles from the first to the last, in pixels."""
    return [(a * tile, b * tile) for a in range(first[0], last[0] + 1) for b in range(first[1], last[1] + 1)]


def _is_canvas(pair: Any, tile: int) -> bool:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return False
    whole = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 and side % tile == 0 for side in pair)
    return whole and (pair[0] // tile) * (pair[1] // tile) <= MOST_TILES


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text[:10_000])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
