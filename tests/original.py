"""The original's arithmetic on pictures and rows, for tests: what LLaVA 1.2.2 and LLaVA-NeXT compute, step by step.

Written from what those programs do (``process_images``, the image processors of their day, ``encode_multimodals`` and
``prepare_inputs_labels_for_multimodal``); nothing of the package is used, so that it can be held against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Pictures
from torch.nn import functional

Config = Mapping[str, Any]


def values(picture: Pictures.Image, processor: Config) -> torch.Tensor:
    """What CLIP's or SigLIP's image processor made of a picture in numpy, ``[3, high, wide]``."""
    if processor.get("do_resize", True):
        size = processor["size"]
        wide, high = picture.size
        if "shortest_edge" in size:
            short = size["shortest_edge"]
            target = (short, int(short * high / wide)) if wide <= high else (int(short * wide / high), short)
        else:
            target = size["width"], size["height"]
        picture = picture.resize(target, Pictures.Resampling(processor.get("resample", 3)))
    grid = np.asarray(picture)
    if processor.get("do_center_crop", "crop_size" in processor):
        grid = _centre(grid, processor["crop_size"]["height"], processor["crop_size"]["width"])
    if processor.get("do_rescale", True):
        grid = (grid * processor.get("rescale_factor", 1 / 255)).astype(np.float32)  # first in float64
    if processor.get("do_normalize", True):
        grid = grid.astype(np.float32)
        grid = (grid - np.array(processor["image_mean"], np.float32)) / np.array(processor["image_std"], np.float32)
    return torch.from_numpy(np.ascontiguousarray(grid.transpose(2, 0, 1), dtype=np.float32))


def _centre(grid: np.ndarray, high: int, wide: int) -> np.ndarray:
    """The middle; what is too small lies in the middle of black."""
    tall, broad = max(high, grid.shape[0]), max(wide, grid.shape[1])
    board = np.zeros((tall, broad, 3), grid.dtype)
    top, left = math.ceil((tall - grid.shape[0]) / 2), math.ceil((broad - grid.shape[1]) / 2)
    board[top : top + grid.shape[0], left : left + grid.shape[1]] = grid
    top, left = (tall - high) // 2, (broad - wide) // 2
    return board[top : top + high, left : left + wide]


def square(picture: Pictures.Image, processor: Config) -> Pictures.Image:
    """``expand2square``: on a square of the mean colour."""
    wide, high = picture.size
    if wide == high:
        return picture
    side = max(wide, high)
    board = Pictures.new("RGB", (side, side), tuple(int(mean * 255) for mean in processor["image_mean"]))
    board.paste(picture, ((side - wide) // 2, 0) if high > wide else (0, (side - high) // 2))
    return board


def best(size: tuple[int, int], pinpoints: Sequence[Sequence[int]]) -> tuple[int, int]:
    found, most, least = (0, 0), -1, math.inf
    for wide, high in pinpoints:
        scale = min(wide / size[0], high / size[1])
        effective = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        wasted = wide * high - effective
        if effective > most or (effective == most and wasted < least):
            found, most, least = (wide, high), effective, wasted
    return found


def views(picture: Pictures.Image, config: Config, processor: Config, tile: int) -> torch.Tensor:
    """``process_images`` of one picture, ``[views, 3, tile, tile]``."""
    aspect = config.get("image_aspect_ratio")
    if aspect == "pad":
        return values(square(picture, processor), processor)[None]
    if not str(aspect).startswith("anyres"):
        return values(picture, processor)[None]
    wide, high = best(picture.size, config["image_grid_pinpoints"])
    across, down = wide / picture.width, high / picture.height
    if across < down:
        to = wide, min(math.ceil(picture.height * across), high)
    else:
        to = min(math.ceil(picture.width * down), wide), high
    board = Pictures.new("RGB", (wide, high), (0, 0, 0))
    board.paste(picture.resize(to), ((wide - to[0]) // 2, (high - to[1]) // 2))
    cut = [board.crop((x, y, x + tile, y + tile)) for y in range(0, high, tile) for x in range(0, wide, tile)]
    return torch.stack([values(each, processor) for each in [picture.resize((tile, tile)), *cut]])


def _unpadded(grid: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """``[hidden, high, wide]`` without what shows padding alone."""
    high, wide = grid.shape[1:]
    if size[0] / size[1] > wide / high:
        over = (high - int(size[1] * (wide / size[0]))) // 2
        return grid[:, over : high - over]
    over = (wide - int(size[0] * (high / size[1]))) // 2
    return grid[:, :, over : wide - over]


def _ended(grid: torch.Tensor, newline: torch.Tensor) -> torch.Tensor:
    """``[hidden, high, wide]`` with the newline behind each row, as ``[rows, hidden]``."""
    column = newline[:, None, None].expand(len(newline), grid.shape[1], 1)
    return torch.cat([grid, column], dim=2).flatten(1).T


def rows(seen: torch.Tensor, newline: torch.Tensor, config: Config, size: tuple[int, int], tile: int) -> torch.Tensor:
    """The rows of a picture's views ``[views, patches, hidden]`` as they stand in the prompt."""
    merge, aspect = config.get("mm_patch_merge_type", "flat"), str(config.get("image_aspect_ratio"))
    if merge == "flat":
        return seen.flatten(0, 1)
    if len(seen) == 1:
        return torch.cat([seen[0], newline[None]]) if "unpad" in merge else seen[0]
    side = math.isqrt(seen.shape[1])
    wide, high = (edge // tile for edge in best(size, config["image_grid_pinpoints"]))
    grid = seen[1:].view(high, wide, side, side, -1).permute(4, 0, 2, 1, 3).flatten(1, 2).flatten(2, 3)
    bound = re.match(r"anyres_max_(\d+)", aspect)
    if "maxpool2x2" in merge:
        block = functional.max_pool2d(grid, 2).flatten(1).T
    elif "unpad" in merge:
        grid = _unpadded(grid, size)
        times = math.sqrt(grid.shape[1] * grid.shape[2] / (int(bound[1]) * side**2)) if bound else 0
        if times > 1.1:
            to = [int(grid.shape[1] // times), int(grid.shape[2] // times)]
            grid = functional.interpolate(grid[None], to, mode="bilinear")[0]
        block = _ended(grid, newline)
    else:
        block = grid.flatten(1).T
    return block if "nobase" in merge else torch.cat([seen[0], block])


def pooled(seen: torch.Tensor, config: Config) -> torch.Tensor:
    """Frames ``[frames, patches, hidden]`` made smaller, as ``[frames, hidden, high, wide]``."""
    stride = config.get("mm_spatial_pool_stride", 2)
    side = math.isqrt(seen.shape[1])
    grid = seen.view(len(seen), side, side, -1).permute(0, 3, 1, 2)
    if stride == 1:
        return grid
    mode = config.get("mm_spatial_pool_mode", "bilinear")
    if mode == "average":
        return functional.avg_pool2d(grid, stride)
    if mode == "max":
        return functional.max_pool2d(grid, stride)
    to = [math.ceil(side / stride)] * 2
    return functional.interpolate(grid, size=to, mode="bilinear")


def video_rows(seen: torch.Tensor, newline: torch.Tensor, config: Config) -> torch.Tensor:
    """The rows of a video's frames ``[frames, patches, hidden]`` as they stand in the prompt."""
    merge, position = config.get("mm_patch_merge_type", "flat"), config.get("mm_newline_position", "one_token")
    frames = [frame.flatten(1).T for frame in pooled(seen, config)]
    if merge != "flat" and position == "grid":
        return torch.cat([_ended(frame, newline) for frame in pooled(seen, config)])
    if merge != "flat" and position == "frame":
        return torch.cat([torch.cat([frame, newline[None]]) for frame in frames])
    ends = [newline[None]] if position == "one_token" and "unpad" in merge else []
    return torch.cat([*frames, *ends])


@torch.no_grad()
def seen(model: Any, views: torch.Tensor) -> torch.Tensor:
    """Rows of each view by the transformers modules of a reference (`Family.model`), ``[views, patches, hidden]``."""
    if hasattr(model, "projector"):
        return model.get_image_features(views)
    inner = model.model
    states = inner.vision_tower(views, output_hidden_states=True).hidden_states
    siglip = model.config.vision_config.model_type.startswith("siglip")
    rows: torch.Tensor = inner.multi_modal_projector(states[-1] if siglip else states[-2][:, 1:])
    return rows


@torch.no_grad()
def seen_early(model: Any, views: torch.Tensor, config: Config) -> torch.Tensor:
    """Rows of frames whose grids are made smaller before the projector, as in spring 2024; see `seen`."""
    inner = model.model
    states = inner.vision_tower(views, output_hidden_states=True).hidden_states
    small: torch.Tensor = inner.multi_modal_projector(pooled(states[-2][:, 1:], config).flatten(2).transpose(1, 2))
    return small
