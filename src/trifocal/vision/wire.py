"""How looks, pictures and rows travel between machines: safetensors with facts beside them, and nothing that runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from typing import TYPE_CHECKING, Any

from trifocal.conversation.templates import Control
from trifocal.errors import BadImage, UsageError
from trifocal.images import Image, Limits, from_bytes, from_frames
from trifocal.vision.base import Layout, Look

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image as Picture

__all__ = [
    "PROTOCOL",
    "Size",
    "encoded",
    "layout_from",
    "layout_to",
    "name_of",
    "pack",
    "picture_from",
    "rows_digest",
    "size_of",
    "unpack",
]

PROTOCOL = 1  # of what is said here; whoever speaks another one is refused
FACTS = "trifocal"  # the key in safetensors' metadata
MOST = 1 << 24  # rows of a picture; nobody has room for so many
Size = tuple[int, int, int]  # width and height in pixels, and how many frames: 0 of a picture


def size_of(image: Image) -> Size:
    """All that a look may depend on."""
    return image.width, image.height, len(image.frames)


def name_of(look: Look) -> str:
    """A short name of how a picture is seen; equal on two machines where the same rows will come."""
    return hashlib.sha256(f"{look.layout!r}:{look.way!r}".encode()).hexdigest()[:32]


def layout_to(layout: Layout) -> list[Any]:
    """A layout as JSON: numbers of rows, texts, and control tokens as objects."""
    return [{"token": item.name, "needed": item.needed} if isinstance(item, Control) else item for item in layout]


def layout_from(told: object) -> Layout:
    """The layout that somebody told.

    Raises:
        UsageError: it is none.
    """
    if not isinstance(told, list):
        raise UsageError("a layout is a list")
    return tuple(_item(each) for each in told)


def _item(told: object) -> str | Control | int:
    match told:
        case bool():
            pass
        case int() if 0 <= told <= MOST:
            return told
        case str():
            return told
        case {"token": str(name), "needed": bool(needed)}:
            return Control(name, needed)
    raise UsageError(f"{told!r:.80} stands in no layout")


def encoded(image: Image) -> list[bytes]:
    """The picture's pixels, or those of each frame, without loss."""
    return [_png(each) for each in image.frames or (image.pixels,)]


def picture_from(files: Sequence[bytes], size: Size, digest: str, name: str, limits: Limits) -> Image:
    """The picture whose pixels came, which are those of which the digest was told, and by which it is known here.

    Raises:
        BadImage: it is none, one over the limits, or another one.
    """
    shots = [from_bytes(file, name=name, limits=limits) for file in files]
    if not shots:
        raise BadImage("empty", "no pixels came", name)
    image = from_frames(shots, name=name, limits=limits) if size[2] else shots[0]
    # known by its pixels, whose digest is made here anyway: other clients' encoders make other files of them
    image = replace(image, file="")
    if size_of(image) != size or image.digest != digest:
        raise BadImage("other_picture", "the pixels that came are not those that were named", name)
    return image


def _png(picture: Picture) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=1)  # a third of the time of the default, a tenth more bytes
    return buffer.getvalue()


def pack(tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> bytes:
    """Tensors and facts as one safetensors file; tensors keep their precision, bit for bit."""
    from safetensors.torch import save

    # cloned: safetensors takes no two tensors of one memory, and rows are often parts of one
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return save(held, {FACTS: json.dumps(facts, separators=(",", ":"))})


def unpack(data: bytes) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a safetensors file, and its facts as the JSON that they are.

    Raises:
        UsageError: it is no such file, or has no facts.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = header["__metadata__"][FACTS]
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError("what came is no safetensors file of ours") from error
    return tensors, facts


def rows_digest(rows: Sequence[torch.Tensor]) -> str:
    """A digest of rows in order: their precision, shapes and bits."""
    import torch

    digest = hashlib.sha256()
    for each in rows:
        held = each.detach().cpu().contiguous()
        digest.update(f"{held.dtype} {tuple(held.shape)}\n".encode())
        digest.update(held.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
