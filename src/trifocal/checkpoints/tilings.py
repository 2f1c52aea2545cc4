"""How a checkpoint's pictures are cut into tiles, out of its configuration."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints.parts import Tiling
from trifocal.checkpoints.reading import image_processor
from trifocal.errors import CheckpointError

__all__ = ["hf_tiling", "original_tiling"]

MOST_PINPOINTS = 256
MOST_TILES = 64  # of one canvas; OneVision's largest has 36
_RANGE = re.compile(r"^\s*\((\d{1,2})x(\d{1,2})\)\s*,\s*\.\.\.\s*,\s*\((\d{1,2})x(\d{1,2})\)\s*$")
_MOST = re.compile(r"^anyres_max_(\d{1,3})$")
MERGES: dict[str, Literal["flat", "spatial", "spatial_unpad"]] = {
    "flat": "flat",
    "spatial": "spatial",
    "spatial_unpad": "spatial_unpad",
}


def hf_tiling(file: Path, config: Mapping[str, Any], tile: int) -> Tiling | None:
    """The tiling of ``llava_next`` and ``llava_onevision``; None for the families that have none.

    transformers reads the pinpoints as ``(height, width)`` and rounds what unpadding keeps.

    Raises:
        CheckpointError: pinpoints that are no canvases of whole tiles, or not those of the image processor.
    """
    kind = config.get("model_type")
    if kind not in ("llava_next", "llava_onevision"):
        return None
    pinpoints = _pinpoints(file, config.get("image_grid_pinpoints"), tile)
    beside, processor = image_processor(file.parent)
    if "image_grid_pinpoints" in processor:
        theirs = _pinpoints(beside, processor["image_grid_pinpoints"], tile)
        if theirs != pinpoints:
            raise CheckpointError(f"{beside}: its image_grid_pinpoints are not those of {file.name}")
    aspect = config.get("vision_aspect_ratio", "anyres_max_9") if kind == "llava_onevision" else None
    return Tiling(
        pinpoints=tuple((width, height) for height, width in pinpoints),
        most=None if aspect is None else _bound(file, aspect),
        digits=7,
        alone=kind == "llava_onevision",
    )


def original_tiling(file: Path, config: Mapping[str, Any], tile: int) -> Tiling | None:
    """The tiling of an original checkpoint; None where its pictures are seen whole.

    Raises:
        CheckpointError: pinpoints that are no canvases of whole tiles, or a merge type that is not known.
    """
    aspect = str(config.get("image_aspect_ratio"))
    if not aspect.startswith("anyres"):
        return None
    merge = config.get("mm_patch_merge_type") or "flat"
    if str(merge) not in MERGES:
        raise CheckpointError(f"{file}: mm_patch_merge_type is {merge!r}; known: {', '.join(MERGES)}")
    bounded = aspect != "anyres"
    return Tiling(
        pinpoints=_pinpoints(file, config.get("image_grid_pinpoints"), tile),
        merge=MERGES[str(merge)],
        newline=merge == "spatial_unpad",
        most=_bound(file, aspect) if bounded else None,
        digits=_digits(file, config.get("trifocal_unpad_digits")),
        alone=bounded,
    )


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
    """Pairs of pixels, in the order of the file; also from the text ``(1x1),...,(6x6)``, which counts tiles."""
    if isinstance(value, str):
        span = _RANGE.match(value)
        if span:
            first, second, last, end = map(int, span.groups())
            value = [(a * tile, b * tile) for a in range(first, last + 1) for b in range(second, end + 1)]
        else:
            value = _literal(value)
    pairs = value if isinstance(value, (list, tuple)) else []
    if not 0 < len(pairs) <= MOST_PINPOINTS or not all(_is_canvas(pair, tile) for pair in pairs):
        raise CheckpointError(
            f"{file}: image_grid_pinpoints is {str(value)[:80]}; pairs of multiples of {tile} pixels were expected"
        )
    return tuple((int(first), int(second)) for first, second in pairs)


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
