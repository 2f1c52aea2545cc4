"""Picture files of this machine, of every format that Pillow reads, told from other files by their content."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from trifocal.errors import BadImage
from trifocal.images import LIMITS, Image, check_size, from_bytes, from_path, from_pil

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

__all__ = ["ENDINGS", "decode", "is_picture", "open_picture"]

# what Pillow reads besides the server's formats; those that run programs, or are no pictures, are not among them
FORMATS = ("BMP", "TIFF", "ICO", "ICNS", "PPM", "PCX", "QOI", "SGI", "DDS", "JPEG2000", "AVIF", "PSD", "XBM", "XPM")
ENDINGS = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ico")
    + (".icns", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".qoi", ".sgi", ".dds", ".jp2", ".j2k", ".jpx", ".avif")
    + (".heic", ".heif", ".hif", ".psd", ".xbm", ".xpm", ".svg", ".jxl", ".tga", ".dng", ".cr2", ".cr3", ".nef", ".arw")
)

TAKEN = "JPEG, PNG, WebP, GIF, BMP, TIFF and more are read here"

_PHONES = {
    b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1", b"avif", b"avis")
}


def open_picture(path: str | os.PathLike[str]) -> Image:
    """The picture in a file.

    Raises:
        BadImage: no such file, no picture, one over the limits, or of a format that nothing here reads.
    """
    try:
        return from_path(path)
    except BadImage as error:
        if error.rule not in ("unsupported_format", "not_an_image"):
            raise
        return _other(Path(path).read_bytes(), error)


def decode(data: bytes, name: str) -> Image:
    """The picture in a file's bytes, of any of these formats.

    Raises:
        BadImage: as `open_picture`.
    """
    try:
        return from_bytes(data, name=name)
    except BadImage as error:
        if error.rule not in ("unsupported_format", "not_an_image"):
            raise
        return _other(data, error)


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its content, or is called like one."""
    if path.suffix.lower() in ENDINGS:
        return True
    from PIL import Image as Pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with path.open("rb") as file:
                if file.read(12)[4:] in _PHONES:  # named, whether or not its library is here
                    return True
            with Pictures.open(path, formats=("JPEG", "PNG", "WEBP", "GIF", *_read())):
                return True
        except Pictures.DecompressionBombError:
            return True
        except Exception:  # whatever a decoder raises on bytes that are not its own
            return False


def _other(data: bytes, refusal: BadImage) -> Image:
    """A picture that the server would not take; its refusal where nothing here reads it either."""
    from PIL import Image as Pictures

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            file: Picture = Pictures.open(BytesIO(data), formats=_read())
        except Pictures.DecompressionBombError as error:
            detail = f"it has more pixels than the {LIMITS.pixels} that are allowed"
            raise BadImage("too_many_pixels", detail, refusal.name) from error
        except Exception as error:  # whatever a decoder raises on bytes that are damaged or not its own
            raise _explained(data, refusal) from error
        with file:
            check_size(*file.size, name=refusal.name, limits=LIMITS)
            try:
                file.load()
                return from_pil(file, name=refusal.name)
            except (BadImage, MemoryError):
                raise
            except Exception as error:
                detail = "the file is damaged or cut short; save it anew"
                raise BadImage("damaged", detail, refusal.name) from error


def _read() -> tuple[str, ...]:
    """The formats that are read here, HEIC too where its library is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return FORMATS
    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def _explained(data: bytes, refusal: BadImage) -> BadImage:
    """The refusal in a local file's words."""
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return BadImage(
            "unsupported_format", "this is AVIF, which the Pillow installed here does not read", refusal.name
        )
    if data[4:8] == b"ftyp" and "HEIF" not in _read():
        detail = "this is HEIC; pip install 'trifocal[heic]' and it is read, or save it as JPEG"
        return BadImage("unsupported_format", detail, refusal.name)
    kind = refusal.detail.partition(";")[0].removeprefix("this is ")
    if kind.replace(" ", "") in FORMATS:
        return BadImage("damaged", f"the {kind} is damaged or cut short; save it anew", refusal.name)
    return BadImage(refusal.rule, f"{refusal.detail.partition(';')[0]}; {TAKEN}", refusal.name)
