"""From a path, bytes or a data URI to a bounded, upright picture, and what it is known by."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.encoded import plain, unpacked
from trifocal.errors import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["LIMITS", "Image", "Limits", "from_bytes", "from_data_uri", "from_frames", "from_path", "from_pil", "load"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_LONGEST_HEAD = 1024  # characters before a data URI's comma
_ARGS = 3  # of what PIL tells of a file's pixels, how they lie; it has a name from Pillow 11 on
_SCALES = {"1": 255, "L;2": 85, "L;4": 17}  # what a PNG's grey values are multiplied with when they are read
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"%PDF", "PDF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"SIMPLE  =", "FITS"),
    (b"%!PS", "EPS"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"PK\x03\x04", "ZIP"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a picture may be. Sides in pixels, ``aspect`` as long side over short side.

    The aspect limit is not about looks: a picture of 1 x 65535 pixels passes every pixel limit and
    takes 13 GB when it is padded to a square, and one of 700:1 takes 240 MB when it is cropped to 336 pixels.
    """

    bytes: int = 20 << 20
    pixels: int = 64_000_000
    side: int = 16_384
    aspect: int = 700
    taking: Callable[[int], None] | None = None  # told the bytes of each picture's pixels before it is decoded


LIMITS = Limits()
HELD_TWICE = 24_000_000  # pixels of what is held more than once while it is decoded
# bytes in which Pillow takes a picture's memory: larger than what malloc would keep for later (32 MB), not 16 MB
BLOCK = 64 << 20
_STRIP = 1 << 20  # pixels that are worked on at a time
_SAMPLE = (8, 8)  # pixels that tell pictures apart in a table
_TURNS = {  # EXIF's orientations, as PIL's transpositions
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


@dataclass(frozen=True, eq=False)
class Image:
    """A picture: upright, RGB, or RGBA where something shows through. Two are equal when their pixels are.

    ``name`` is for messages, ``seconds`` is how long decoding took, ``file`` names the encoded file that it came from.
    A video is an image with ``frames`` (RGB, all of one size); ``pixels`` is the first of them.
    """

    pixels: Picture
    name: str = field(default="image")
    seconds: float = field(default=0.0)
    frames: tuple[Picture, ...] = field(default=())
    file: str = field(default="")

    @cached_property
    def digest(self) -> str:
        """The sha256 over mode, size and pixels, or over its frames': all that a model can see of it.

        Made when it is first asked for: of a photograph it takes more than half of the time of its decoding.
        """
        if self.frames:
            return hashlib.sha256("".join(map(_digest, self.frames)).encode()).hexdigest()
        return _digest(self.pixels)

    @property
    def known_by(self) -> str:
        """What caches find it again by: its file where it has one, which costs next to nothing, else its digest.

        Equal names mean equal pixels. The same pixels out of another file have another name, and are seen anew.
        """
        return self.file or self.digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self.known_by == other.known_by or self.digest == other.digest)

    def __hash__(self) -> int:
        # of a few pixels: conversations are looked up by their pictures, and all pixels take milliseconds
        sample = self.pixels.resize(_SAMPLE, resample=0).tobytes()
        return hash((self.pixels.mode, self.pixels.size, len(self.frames), sample))

    @property
    def width(self) -> int:
        """In pixels."""
        return self.pixels.width

    @property
    def height(self) -> int:
        """In pixels."""
        return self.pixels.height

    def on(self, background: tuple[int, int, int]) -> Picture:
        """The picture as RGB, with ``background`` where it is transparent."""
        if self.pixels.mode == "RGB":
            return self.pixels
        from PIL import Image as Pictures

        canvas = Pictures.new("RGBA", self.pixels.size, (*background, 255))
        return Pictures.alpha_composite(canvas, self.pixels).convert("RGB")


def load(source: str | os.PathLike[str] | bytes | Picture | Image, *, limits: Limits = LIMITS) -> Image:
    """The picture in a path, a ``data:`` URI, encoded bytes or a PIL image.

    Raises:
        BadImage: it is no picture, or one over the limits.
    """
    if isinstance(source, Image):
        return source
    if isinstance(source, bytes):
        return from_bytes(source, limits=limits)
    if isinstance(source, str) and source.lstrip()[:5].lower() == "data:":
        return from_data_uri(source, limits=limits)
    if isinstance(source, (str, os.PathLike)):
        return from_path(source, limits=limits)
    return from_pil(source)


def from_path(path: str | os.PathLike[str], *, limits: Limits = LIMITS) -> Image:
    """The picture in a file of this machine.

    Raises:
        BadImage: no such file, or `from_bytes` refuses it.
    """
    name = os.fspath(path)
    try:
        found = Path(path).stat()
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise BadImage("unreadable", "this is a device or a pipe; name a file", name)
        size = found.st_size
        if size > limits.bytes:
            raise BadImage("too_many_bytes", f"{size} bytes; allowed are {limits.bytes}", name)
        return from_bytes(Path(path).read_bytes(), name=name, limits=limits)
    except FileNotFoundError as error:
        raise BadImage("not_found", "there is no such file", name) from error
    except IsADirectoryError as error:
        raise BadImage("is_a_folder", "this is a folder; name one picture in it", name) from error
    except (OSError, ValueError) as error:
        raise BadImage("unreadable", getattr(error, "strerror", None) or "the file can't be read", name) from error


def from_data_uri(uri: str, *, name: str = "image", limits: Limits = LIMITS) -> Image:
    """The picture in ``data:image/...;base64,...``.

    Any image type is taken and what the bytes say counts, since clients mislabel them. White space,
    line breaks, URL-safe letters and missing padding are allowed; any other character is refused.

    Raises:
        BadImage: no data URI of an image, no base64, or `from_bytes` refuses the bytes.
    """
    start = len(uri) - len(uri.lstrip())
    comma = uri.find(",", start, start + _LONGEST_HEAD)
    if comma < 0 or uri[start : start + 5].lower() != "data:":
        raise BadImage("not_a_data_uri", "this is no data URI: data:image/png;base64,... is expected", name)
    kind, *parameters = (word.strip().lower() for word in uri[start + 5 : comma].split(";"))
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise BadImage("not_an_image", f"the data URI is of type {kind[:40]!r}, not of an image", name)
    if "base64" not in parameters:
        raise BadImage("bad_base64", "the data URI is not in base64", name)
    if (len(uri) - comma) * 3 // 4 > limits.bytes * 1.1 + 1024:
        raise BadImage("too_many_bytes", f"over {limits.bytes} bytes", name)
    return from_bytes(_from_base64(uri[comma + 1 :], name), name=name, limits=limits)


def from_bytes(data: bytes, *, name: str = "image", limits: Limits = LIMITS) -> Image:
    """The picture in an encoded file: JPEG, PNG, WebP or the first frame of a GIF.

    Raises:
        BadImage: empty, too large, of another format, over the pixel limits, or damaged.
    """
    from PIL import Image as Pictures
    from PIL import _imaging

    _imaging.set_block_size(BLOCK)
    started = time.perf_counter()
    kind = _check_bytes(data, name, limits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _told(name):
            found = plain(data, kind, name)
            file = Pictures.open(BytesIO(found.data), formats=FORMATS)
        with file:
            check_size(*file.size, name=name, limits=limits)
            _check_held(file, kind, name)
            if limits.taking:
                limits.taking(4 * file.width * file.height)
            with _told(name):
                pixels = _turned(_plain(_keyed(file, found.data)), found.orientation)
    named = _name_of(data)
    return Image(pixels, name, time.perf_counter() - started, file=named)


def from_pil(picture: Picture, *, name: str = "image") -> Image:
    """The picture in a PIL image, of any mode.

    Raises:
        BadImage: it has no pixels.
    """
    from PIL import ImageOps

    if not picture.width or not picture.height:
        raise BadImage("empty", f"the picture is {picture.width} x {picture.height} pixels", name)
    return Image(_plain(ImageOps.exif_transpose(picture)), name)


def from_frames(frames: Sequence[Picture | Image], *, name: str = "video", limits: Limits = LIMITS) -> Image:
    """A video from its frames, in order; for models that were made for videos (LLaVA-OneVision).

    Raises:
        BadImage: no frame, frames of different sizes, or too many pixels in all.
    """
    shots = [frame if isinstance(frame, Image) else from_pil(frame, name=name) for frame in frames]
    if not shots:
        raise BadImage("empty", "a video has at least one frame", name)
    sizes = {(shot.width, shot.height) for shot in shots}
    if len(sizes) > 1:
        raise BadImage("different_sizes", f"the frames have {len(sizes)} different sizes; one was expected", name)
    pixels = sum(shot.width * shot.height for shot in shots)
    if pixels > limits.pixels:
        raise BadImage("too_many_pixels", f"the frames have {pixels} pixels; allowed are {limits.pixels}", name)
    plain = tuple(shot.on((255, 255, 255)) for shot in shots)
    files = [shot.file for shot in shots]
    return Image(plain[0], name, sum(shot.seconds for shot in shots), plain, _name_of_all(files) if all(files) else "")


def check_size(width: int, height: int, *, name: str = "image", limits: Limits = LIMITS) -> None:
    """Refuses a picture by its size alone, before anything is decoded.

    Raises:
        BadImage: too many pixels, a side too long, or too thin.
    """
    size = f"{width} x {height} pixels"
    if not width or not height:
        raise BadImage("empty", f"the picture is {size}", name)
    if max(width, height) > limits.side:
        raise BadImage("side_too_long", f"{size}; a side may have {limits.side}", name)
    if width * height > limits.pixels:
        raise BadImage("too_many_pixels", f"{size} are {width * height}; allowed are {limits.pixels}", name)
    if max(width, height) > limits.aspect * min(width, height):
        raise BadImage("too_thin", f"{size}; one side may be {limits.aspect} times the other", name)


def _check_bytes(data: bytes, name: str, limits: Limits) -> str:
    """Which of the formats that are taken it is."""
    if not data:
        raise BadImage("empty", "there are 0 bytes", name)
    if len(data) > limits.bytes:
        raise BadImage("too_many_bytes", f"{len(data)} bytes; allowed are {limits.bytes}", name)
    kind = _kind(data)
    if kind is None:
        raise BadImage("not_an_image", "this is no picture; JPEG, PNG, WebP and GIF are taken", name)
    if kind not in FORMATS:
        raise BadImage("unsupported_format", f"this is {kind}; JPEG, PNG, WebP and GIF are taken", name)
    return kind


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever a decoder raises on damaged input: OSError, SyntaxError, ValueError, struct.error, EOFError and more."""
    try:
        yield
    except (BadImage, MemoryError):
        raise
    except Exception as error:
        raise BadImage("damaged", "the file is damaged or cut short; save it anew", name) from error


def _check_held(file: Picture, kind: str, name: str) -> None:
    """Refuses what its decoder, or the search for its transparent colour, would hold several times over."""
    tiles = getattr(file, "tile", [])
    keyed = "transparency" in file.info and len(tiles) == 1 and str(tiles[0][_ARGS]) == "RGB;16B"
    pixels = file.width * file.height
    if pixels > HELD_TWICE and (kind == "WEBP" or keyed):
        what = "a WebP" if kind == "WEBP" else "a PNG of 16 bits with a transparent colour"
        raise BadImage("too_many_pixels", f"{what} of {pixels} pixels; allowed are {HELD_TWICE}", name)


def _kind(data: bytes) -> str | None:
    """What the first bytes say that this is."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return "HEIC or AVIF"
    start = data[:512].lstrip().lower()
    if start.startswith((b"<svg", b"<?xml")) or b"<svg" in start:
        return "SVG"
    return next((kind for magic, kind in _MAGIC if data.startswith(magic)), None)


def _keyed(file: Picture, data: bytes) -> Picture:
    """A file's picture, decoded; PIL compares a PNG's transparent colour with 8 bits, whatever the file's depth is."""
    from PIL import Image as Pictures

    tiles = getattr(file, "tile", [])
    raw = str(tiles[0][_ARGS]) if file.format == "PNG" and len(tiles) == 1 else ""
    file.load()
    key = file.info.get("transparency")
    if isinstance(key, int) and raw in _SCALES:
        file.info["transparency"] = min(key * _SCALES[raw], 255)
    if not isinstance(key, tuple) or raw != "RGB;16B":
        return file
    import numpy as np

    with Pictures.open(BytesIO(data), formats=FORMATS) as again:
        lower: Any = (*tiles[0][:_ARGS], "RGB;16L")  # of each value the lower byte
        again.tile = [lower]
        low = np.asarray(again, np.uint16)  # [height, width, 3]
    opaque = ((np.asarray(file, np.uint16) << 8 | low) != np.array(key, np.uint16)).any(axis=-1)
    layered = file.convert("RGB")
    layered.putalpha(Pictures.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    layered.info = {name: value for name, value in file.info.items() if name != "transparency"}
    return layered


def _plain(picture: Picture) -> Picture:
    """RGB, or RGBA where some pixel lets something through."""
    if picture.mode.startswith(("I", "F")):
        return _grey(picture)
    mode = "RGBA" if _lets_through(picture) else "RGB"
    if mode == "RGB":
        # of a colour that it has not: PIL would carry it along, and what shares the colour would be seen through
        picture.info.pop("transparency", None)
    return picture if picture.mode == mode else picture.convert(mode)


def _lets_through(picture: Picture) -> bool:
    """Whether some pixel lets something through; looked for in strips, as pictures of megapixels are held once."""
    if picture.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in picture.info:
        return False
    alphas = (strip.convert("RGBA").getchannel("A").getextrema() for strip in _strips(picture))
    return any(lowest < 255 for lowest, _ in alphas)  # type: ignore[operator]


def _grey(picture: Picture) -> Picture:
    """Grey of more than 8 bits, scaled to 8 where it has larger values than 255; PIL itself would clip it to white.

    A file of 16 bits is scaled even where it is dark: then PIL says so in its mode.
    """
    import numpy as np
    from PIL import Image as Pictures

    def values() -> Iterator[Any]:
        for strip in _strips(picture):
            yield np.nan_to_num(np.asarray(strip, dtype=np.float64)).clip(0, 65535)  # [height of the strip, width]

    key = picture.info.get("transparency")
    key = key if isinstance(key, int) else -1
    deep = picture.mode.startswith("I;16") or max(float(strip.max()) for strip in values()) > 255
    alpha = any((strip == key).any() for strip in values())
    made, top = Pictures.new("RGBA" if alpha else "RGB", picture.size), 0
    for strip in values():
        grey = Pictures.fromarray((strip.astype(np.uint16) >> (8 if deep else 0)).astype(np.uint8)).convert("RGB")
        if alpha:
            grey.putalpha(Pictures.fromarray(np.where(strip == key, 0, 255).astype(np.uint8)))
        made.paste(grey, (0, top))
        top += grey.height
    return made


def _name_of(data: bytes) -> str:
    """A name of an encoded file and of what decodes it: equal names mean equal pixels. No digest is such a name."""
    named = hashlib.sha256(_decoders())
    named.update(data)
    return f"file {named.hexdigest()}"


def _name_of_all(files: Sequence[str]) -> str:
    return f"files {hashlib.sha256(' '.join(files).encode()).hexdigest()}"


@cache
def _decoders() -> bytes:
    """The versions that pixels depend on: an engine may be shared by machines whose decoders round in other ways."""
    import PIL
    from PIL import features

    return repr((PIL.__version__, *map(features.version, ("libjpeg_turbo", "jpg", "webp")))).encode()


def _digest(pixels: Picture) -> str:
    framed = hashlib.sha256(f"{pixels.mode} {pixels.width} {pixels.height}\n".encode())
    for strip in _strips(pixels):
        framed.update(strip.tobytes())
    return framed.hexdigest()


def _strips(picture: Picture) -> Iterator[Picture]:
    """The picture in strips of full width from the top: what is made of it whole would be held whole."""
    height = max(1, _STRIP // picture.width)
    if height >= picture.height:
        yield picture  # a crop would copy it
        return
    for top in range(0, picture.height, height):
        yield picture.crop((0, top, picture.width, min(top + height, picture.height)))


def _turned(picture: Picture, orientation: int) -> Picture:
    """The picture as it is to be looked at."""
    if orientation not in _TURNS:
        return picture
    from PIL.Image import Transpose

    return picture.transpose(Transpose[_TURNS[orientation]])


def _from_base64(text: str, name: str) -> bytes:
    if "%" in text:
        for letter in "+/=":
            code = f"%{ord(letter):X}"
            text = text.replace(code, letter).replace(code.lower(), letter)
    try:
        return unpacked(text)
    except ValueError as error:
        raise BadImage("bad_base64", "the data URI's base64 is broken", name) from error
