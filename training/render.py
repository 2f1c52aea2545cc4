"""Drawing scenes: sprites on a background, then what cameras, scalers and JPEG do to pictures. On any device."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as functional
from PIL import Image

from training.scenes import FADING, GRAINY, UNRECOGNISABLE, Scene, pack
from training.sprites import FIRST_GLYPH, FIRST_SHAPE, SIZES, Sprites, shapes_alone, sprites
from training.world import EMOJI, SIDE

MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's
STD = (0.26862954, 0.26130258, 0.27577711)
PADDING = (122 / 255, 116 / 255, 104 / 255)  # the mean in bytes, which pads pictures that are not square


class Atlas(NamedTuple):
    """Every sprite at every size in one row of packed RGBA, and where each begins."""

    pixels: torch.Tensor  # [pixels], int32
    starts: torch.Tensor  # [sprites], int32


def _packed(rgba: torch.Tensor) -> torch.Tensor:
    """``[sprites, 4, height, width]`` in 0 to 1 as ``[sprites, height * width]`` of int32."""
    red, green, blue, alpha = (rgba.clamp(0, 1) * 255 + 0.5).to(torch.int32).unbind(1)
    return (red | (green << 8) | (blue << 16) | (alpha << 24)).flatten(1)


def make_atlas(kept: Sprites, device: str | torch.device) -> Atlas:
    """Scales every sprite to every size."""
    base = torch.from_numpy(kept.shapes).to(device).float()[:, None].expand(-1, 4, -1, -1) / 255
    absent = FIRST_SHAPE // len(SIZES) if kept.emoji is None else 0
    if kept.emoji is not None:
        emoji = torch.from_numpy(kept.emoji).to(device).float().permute(0, 3, 1, 2) / 255
        base = torch.cat([emoji, base])
    count = len(base)
    starts = torch.zeros(absent + count, len(SIZES), dtype=torch.int64)
    parts, length = [], 0
    for index, size in enumerate(SIZES):
        scaled = functional.interpolate(base.contiguous(), size=(size, size), mode="bicubic", antialias=True)
        parts.append(_packed(scaled).flatten())
        starts[absent:, index] = length + torch.arange(count) * size * size
        length += count * size * size
    glyphs = torch.from_numpy(kept.glyphs).to(device).to(torch.int32)
    parts.append(glyphs | (glyphs << 8) | (glyphs << 16) | (glyphs << 24))
    areas = kept.metrics[:, 3].astype(np.int64) * kept.metrics[:, 4]
    glyph_starts = torch.from_numpy(np.concatenate([[0], np.cumsum(areas)])[:-1] + length)
    assert len(starts.flatten()) == FIRST_GLYPH == (len(EMOJI) * len(SIZES) + len(kept.shapes) * len(SIZES))
    return Atlas(torch.cat(parts), torch.cat([starts.flatten(), glyph_starts]).to(torch.int32).to(device))


def compose(
    picture: torch.Tensor,
    start: torch.Tensor,
    left: torch.Tensor,
    top: torch.Tensor,
    width: torch.Tensor,
    height: torch.Tensor,
    tint: torch.Tensor,
    pixels: torch.Tensor,
) -> torch.Tensor:
    """Lays 16 sprites one after the other on pictures ``[pictures, 3, 224, 224]``; ``tint`` ``[pictures, 16, 3]``."""
    side = torch.arange(SIDE, device=picture.device, dtype=torch.int32)
    across, down = side[None, None, :], side[None, :, None]
    red, green, blue = picture[:, 0], picture[:, 1], picture[:, 2]
    for slot in range(start.shape[1]):
        x, y = across - left[:, slot, None, None], down - top[:, slot, None, None]
        wide = width[:, slot, None, None]
        inside = (x >= 0) & (x < wide) & (y >= 0) & (y < height[:, slot, None, None])
        pixel = torch.where(inside, pixels[torch.where(inside, start[:, slot, None, None] + y * wide + x, 0)], 0)
        through = 1 - ((pixel >> 24) & 255).float() / 255
        ink = tint[:, slot, :, None, None]
        red = red * through + (pixel & 255).float() / 255 * ink[:, 0]
        green = green * through + ((pixel >> 8) & 255).float() / 255 * ink[:, 1]
        blue = blue * through + ((pixel >> 16) & 255).float() / 255 * ink[:, 2]
    return torch.stack([red, green, blue], 1)


def draw_backgrounds(behind: torch.Tensor) -> torch.Tensor:
    """``[pictures, 9]`` to pictures ``[pictures, 3, 224, 224]``: plain, fading, grainy, or noise of every size."""
    count, device = len(behind), behind.device
    style = behind[:, 0].long()[:, None, None, None]
    one, other = behind[:, 1:4, None, None] / 255, behind[:, 4:7, None, None] / 255
    ramp = torch.linspace(0, 1, SIDE, device=device)
    across = behind[:, 7].long()[:, None, None, None] == 1
    share = torch.where(across, ramp[None, None, None, :], ramp[None, None, :, None]) * (style == FADING).float()
    pictures = one * (1 - share) + other * share
    coarse = functional.interpolate(torch.randn(count, 3, 28, 28, device=device), size=(SIDE, SIDE), mode="bilinear")
    grain = coarse * 0.035 + torch.randn(count, 1, SIDE, SIDE, device=device) * 0.02
    pictures = pictures + grain * (style == GRAINY)
    noisy = torch.nonzero(style.flatten() == UNRECOGNISABLE).flatten()
    if len(noisy):
        pictures = pictures.index_copy(0, noisy, _noise(len(noisy), device).to(pictures.dtype))
    return pictures


def _noise(count: int, device: torch.device) -> torch.Tensor:
    """Noise whose strength falls with frequency, as in photographs."""
    spectrum = torch.fft.rfft2(torch.randn(count, 3, SIDE, SIDE, device=device))
    down = torch.fft.fftfreq(SIDE, device=device)[:, None]
    across = torch.fft.rfftfreq(SIDE, device=device)[None]
    radius = (across * across + down * down).sqrt().clamp_min(1 / SIDE)
    fall = torch.rand(count, 1, 1, 1, device=device) + 0.8
    noise = torch.fft.irfft2(spectrum / radius**fall, s=(SIDE, SIDE))
    noise = noise - noise.mean((2, 3), keepdim=True)
    noise = noise / noise.std((1, 2, 3), keepdim=True)
    gray = noise.mean(1, keepdim=True)
    noise = gray + (noise - gray) * torch.rand(count, 1, 1, 1, device=device)
    light = torch.rand(count, 3, 1, 1, device=device) * 0.6 + 0.2
    shown: torch.Tensor = light + noise * (0.1 + 0.25 * torch.rand(count, 1, 1, 1, device=device))
    return shown


# the tables that the JPEG standard suggests, for brightness and for colour
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))


def jpeg(pictures: torch.Tensor, quality: torch.Tensor, subsampled: bool) -> torch.Tensor:
    """What JPEG leaves of pictures, each at its own quality of 10 to 95."""
    device, count = pictures.device, len(pictures)
    luminance = torch.tensor(_LUMINANCE, device=device).float()
    chrominance = torch.full((8, 8), 99.0, device=device)
    chrominance[:4, :4] = torch.tensor(_CHROMINANCE, device=device).float()
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    order = torch.arange(8, device=device).float()
    cosine = torch.cos((2 * order[None] + 1) * order[:, None] * math.pi / 16) * 0.5
    cosine[0] /= 2**0.5

    def through(planes: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        channels, high, wide = planes.shape[1:]
        blocks = (planes - 128).reshape(count, channels, high // 8, 8, wide // 8, 8).permute(0, 1, 2, 4, 3, 5)
        steps = (table[None] * scale[:, None, None]).clamp_min(1)[:, None, None, None]
        kept = ((cosine @ blocks @ cosine.T) / steps).round() * steps
        back = (cosine.T @ kept @ cosine).permute(0, 1, 2, 4, 3, 5)
        return back.reshape(count, channels, high, wide) + 128

    red, green, blue = (pictures * 255).unbind(1)
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    to_blue = -0.168736 * red - 0.331264 * green + 0.5 * blue + 128
    to_red = 0.5 * red - 0.418688 * green - 0.081312 * blue + 128
    colour = torch.stack([to_blue, to_red], 1)
    if subsampled:
        colour = functional.avg_pool2d(colour, 2)
    light, colour = through(light[:, None], luminance)[:, 0], through(colour, chrominance)
    if subsampled:
        colour = functional.interpolate(colour, scale_factor=2, mode="bilinear")
    to_blue, to_red = colour[:, 0] - 128, colour[:, 1] - 128
    planes = [light + 1.402 * to_red, light - 0.344136 * to_blue - 0.714136 * to_red, light + 1.772 * to_blue]
    return (torch.stack(planes, 1) / 255).clamp(0, 1)


def weathered(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures with their light changed; a third of them blurred by scaling, a quarter through JPEG; some noisy."""
    count, device = len(pictures), pictures.device

    def uniform() -> torch.Tensor:
        return torch.rand(count, 1, 1, 1, device=device)

    pictures = pictures * (1 + (uniform() - 0.5) * 0.16) + (uniform() - 0.5) * 0.08
    sixth, eighth = count // 6, count // 8
    for turn in range(2):
        part = slice(turn * sixth, (turn + 1) * sixth)
        size = int(112 + 104 * float(torch.rand(())))
        small = functional.interpolate(pictures[part], size=(size, size), mode="bilinear", antialias=True)
        pictures[part] = functional.interpolate(small, size=(SIDE, SIDE), mode="bicubic").clamp(-0.1, 1.1)
    pictures = pictures.clamp(0, 1)
    for turn in range(2):
        part = slice(sixth // 2 + turn * eighth, sixth // 2 + (turn + 1) * eighth)
        pictures[part] = jpeg(pictures[part], torch.rand(eighth, device=device) * 75 + 18, subsampled=turn == 1)
    noise = torch.randn_like(pictures) * (uniform() - 0.6).clamp_min(0) * 0.08
    return (pictures + noise).clamp(0, 1)


def letterboxed(pictures: torch.Tensor, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One picture in eight squeezed in one direction onto the padding colour, its slots moved along."""
    device, count = pictures.device, len(pictures) // 8
    squeeze = torch.rand(count, device=device) * 0.45 + 0.55
    tall = torch.rand(count, device=device) < 0.5
    wide, high = torch.where(tall, squeeze, 1.0), torch.where(tall, 1.0, squeeze)
    zero = torch.zeros(count, device=device)
    rows = [torch.stack([1 / wide, zero, zero], 1), torch.stack([zero, 1 / high, zero], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [count, 3, SIDE, SIDE], align_corners=False)
    padding = torch.tensor(PADDING, device=device)[None, :, None, None]
    pictures = pictures.clone()
    squeezed = functional.grid_sample(pictures[:count] - padding, grid, mode="bilinear", align_corners=False)
    pictures[:count] = squeezed + padding
    moved = slots[:count].clone()
    middle = SIDE / 2
    moved[..., 1] = middle + (moved[..., 1] - middle) * wide[:, None]
    moved[..., 2] = middle + (moved[..., 2] - middle) * high[:, None]
    moved[..., 3] = moved[..., 3] * wide[:, None]
    moved[..., 4] = moved[..., 4] * high[:, None]
    return pictures, torch.cat([moved, slots[count:]])


def normalised(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures as CLIP's tower takes them."""
    mean = torch.tensor(MEAN, device=pictures.device)[None, :, None, None]
    return (pictures - mean) / torch.tensor(STD, device=pictures.device)[None, :, None, None]


class Renderer:
    """Draws batches of packed scenes."""

    def __init__(self, device: str | torch.device, compiled: bool = False, kept: Sprites | None = None) -> None:
        self.device = device
        self.atlas = make_atlas(kept or sprites(), device)
        self._compose = torch.compile(compose, dynamic=False) if compiled else compose

    @torch.no_grad()
    def __call__(self, slots: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        """Slots ``[pictures, 16, 10]`` and backgrounds ``[pictures, 9]`` to pictures in 0 to 1."""
        slots, behind = slots.to(self.device), behind.to(self.device)
        sprite, left, top, width, height = slots[..., :5].to(torch.int32).unbind(-1)
        there = sprite >= 0
        start = torch.where(there, self.atlas.starts[sprite.clamp_min(0).long()], 0)
        width = torch.where(there, width, 0)
        left, top, width, height = (each.contiguous() for each in (left, top, width, height))
        tint = (slots[..., 5:8] / 255).contiguous()
        pictures = draw_backgrounds(behind).float()
        return self._compose(pictures, start, left, top, width, height, tint, self.atlas.pixels).clamp(0, 1)


def paint(scene: Scene, seed: int = 0) -> Image.Image:
    """The scene as a picture of 224 x 224, on the CPU; the seed is that of its grain.

    Scenes of the split ``shapes`` need no font; all others need those that sprites.py names.
    """
    slots, behind = (torch.from_numpy(each)[None] for each in pack(scene))
    alone = all(FIRST_SHAPE <= slot.sprite < FIRST_GLYPH for slot in scene.slots)
    torch.manual_seed(seed)
    renderer: Renderer = _renderer(alone)
    picture = renderer(slots, behind)[0].permute(1, 2, 0)
    return Image.fromarray((picture * 255).round().to(torch.uint8).numpy())


@cache
def _renderer(alone: bool) -> Renderer:
    return Renderer("cpu", kept=shapes_alone() if alone else None)


class Aims(NamedTuple):
    """What the tower is to know of each of a picture's 256 patches; ``[pictures, 256]`` unless said otherwise."""

    label: torch.Tensor  # what is there, 0 for nothing
    colour: torch.Tensor  # of a shape or letter, -1 for none
    behind: torch.Tensor  # the background's colour, -1 where something covers it
    box: torch.Tensor  # [pictures, 256, 4]: of what is there, centre from here and size, in half pictures
    covered: torch.Tensor
    centre: torch.Tensor  # 1 where something has its centre


@torch.no_grad()
def aims(slots: torch.Tensor, behind: torch.Tensor) -> Aims:
    """From packed scenes, what every patch of 14 x 14 shows."""
    device, count = slots.device, len(slots)
    there = slots[..., 0] >= 0
    left, top, width, height = slots[..., 1:5].unbind(-1)
    edges = torch.arange(16, device=device).float() * 14

    def overlap(start: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
        low = torch.maximum(edges[None, None], start[..., None])
        return (torch.minimum(edges[None, None] + 14, (start + length)[..., None]) - low).clamp_min(0) / 14

    cover = overlap(top, height)[..., :, None] * overlap(left, width)[..., None, :] * there[..., None, None]
    most, which = cover.reshape(count, -1, 256).max(1)
    covered = most > 0.3

    def of_slot(values: torch.Tensor) -> torch.Tensor:
        return torch.gather(values, 1, which)

    label = torch.where(covered, of_slot(slots[..., 8]).long() + 1, 0)
    colour = torch.where(covered, of_slot(slots[..., 9]).long(), -1)
    even = (behind[:, 0] != FADING) & (behind[:, 0] != UNRECOGNISABLE)
    background = torch.where(~covered & even[:, None], behind[:, 8].long()[:, None], -1)
    x, y = left + width / 2, top + height / 2
    patch = torch.arange(256, device=device)
    here_x, here_y = (patch % 16) * 14.0 + 7, (patch // 16) * 14.0 + 7
    place = [(of_slot(x) - here_x) / 112, (of_slot(y) - here_y) / 112]
    box = torch.stack([*place, of_slot(width) / 112, of_slot(height) / 112], -1)
    centre = torch.zeros(count, 256, device=device)
    cell = (y / 14).long().clamp(0, 15) * 16 + (x / 14).long().clamp(0, 15)
    centre.scatter_reduce_(1, cell, there.float(), "amax")
    return Aims(label, colour, background, box, covered, centre)


def shape_scene(seed: int) -> tuple[Image.Image, list[tuple[str, str]]]:
    """A picture of coloured shapes that needs no font, with a dozen questions and their answers."""
    from training.asking import Asker
    from training.questions import ask
    from training.scenes import make_scene

    rng = random.Random(seed)
    scene = make_scene(rng, "shapes")
    asker = Asker(rng)
    asked: dict[str, str] = {}
    while len(asked) < 12:
        first = ask(scene, asker)[0]
        if not first.kind.startswith(("chat", "not_understood")):
            asked[first.question] = first.answer
    return paint(scene, seed), list(asked.items())
