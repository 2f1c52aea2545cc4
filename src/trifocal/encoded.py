"""Encoded pictures before they are decoded: of what parts a file is made, how many, and the file with pixels alone.

A decoder works through whatever stands in a file: four thousand scans of one JPEG, a million chunks of a PNG, comments
that are copied anew for each of their pieces. Here the parts are counted in one pass, what is slow by its structure is
refused, and what is no pixel is left out; how the picture is to be turned is read on the way.
"""

from __future__ import annotations

import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from trifocal.errors import BadImage

__all__ = ["MOST_PARTS", "MOST_SCANS", "Plain", "plain", "unpacked"]

MOST_PARTS = 20_000  # segments, chunks or blocks: a PNG of 20 MB has 2,500 as libpng writes it
MOST_BLOCKS = 200_000  # of at most 255 bytes each, in which a GIF's pixels stand
MOST_SCANS = 64  # progressive JPEGs have about ten
MOST_SCANNED = 1 << 30  # pixels times scans
# bytes of numbers that a decoder keeps until a JPEG's last scan was read, two for each: 45 megapixels in full colour
MOST_WAVES = 264 << 20
_PIECE = 1 << 20  # letters of base64 that are read at a time
_SPACES = "".join(letter for letter in map(chr, range(0x3001)) if letter.isspace())
_WHITE = "".join(filter(str.isascii, _SPACES)).encode()
_PLAIN = bytes.maketrans(b"-_", b"+/")
_ENTRIES = 256  # of EXIF, in which the orientation is looked for
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0"
# where a JPEG's pixels end: a marker that is neither a stuffed byte, a restart nor filling
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_BARE = (0x01, *range(0xD0, 0xD9))  # markers without a length
_SIZED = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_ORIENTED = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


@dataclass(frozen=True, slots=True)
class Plain:
    """A file with nothing but pixels, and how the picture is turned: EXIF's 1 to 8."""

    data: bytes
    orientation: int = 1


class _Notes:
    """What a file says beside its pixels, and how many parts it has."""

    def __init__(self, name: str) -> None:
        self._name, self._parts = name, 0
        self.exif = self.xmp = b""

    def count(self) -> None:
        """One more part."""
        self._parts += 1
        if self._parts > MOST_PARTS:
            raise self.refusal(f"it has over {MOST_PARTS} parts")

    def refusal(self, what: str) -> BadImage:
        return BadImage("too_slow", f"{what}; save it anew", self._name)

    def bound(self, waves: int, pixels: int) -> None:
        """Refuses a JPEG whose numbers are kept until all its scans were read, if they are too many."""
        if waves > MOST_WAVES:
            words = (
                f"a JPEG in several scans of {pixels} pixels takes {waves} bytes beside them, allowed are {MOST_WAVES}"
            )
            raise BadImage("too_many_pixels", f"{words}; save it as a baseline JPEG", self._name)

    def metadata(self, data: bytes) -> None:
        """A JPEG's segment of notes."""
        if data.startswith(b"Exif\0\0"):
            self.exif = self.exif or data[6:]
        elif data.startswith(_XMP):
            self.xmp = self.xmp or data

    @property
    def orientation(self) -> int:
        """What EXIF says, and where it says nothing XMP."""
        found = _ORIENTED.search(self.xmp[: 64 << 10])
        return _orientation(self.exif) or (int(found[1]) if found else 1)


def plain(data: bytes, kind: str, name: str) -> Plain:
    """The file of this format without its notes; a file that is damaged is left to the decoder, as far as it is whole.

    Raises:
        BadImage: it has more parts, or a JPEG more scans, than any that was meant to be looked at.
    """
    notes = _Notes(name)
    pieces = {"JPEG": _jpeg, "PNG": _png, "GIF": _gif, "WEBP": _webp}[kind]
    return Plain(b"".join(pieces(data, notes)), notes.orientation)


def unpacked(text: str) -> bytes:
    """The bytes of base64 in either alphabet, padded or not; white space may stand around it, and ASCII's within.

    It is read piece by piece: nobody else has a turn while one call reads 28 MB, and nine million pairs of letters
    with spaces between them would be nine million strings.

    Raises:
        ValueError: it is none.
    """
    text = text.lstrip().rstrip("=" + _SPACES)
    read, left = list[bytes](), b""
    for at in range(0, len(text), _PIECE):
        left += _bare(text[at : at + _PIECE])
        whole = len(left) - len(left) % 4
        read.append(_bytes(left[:whole]))
        left = left[whole:]
    return b"".join((*read, _bytes(left + b"=" * (-len(left) % 4), padded=True)))


def _bare(piece: str) -> bytes:
    """Letters of base64 alone, if it is that."""
    return piece.encode("ascii").translate(_PLAIN, _WHITE)


def _bytes(letters: bytes, *, padded: bool = False) -> bytes:
    if b"=" in letters and not padded:
        raise ValueError("base64 goes on after its end")
    return binascii.a2b_base64(letters, strict_mode=True)


def _jpeg(data: bytes, notes: _Notes) -> Iterator[bytes]:
    yield data[:2]
    at, scans, pixels, waves, components = 2, 0, 0, 0, b""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        notes.count()
        if marker in (0x00, 0xFF):
            at += 1
            continue
        if marker == 0xD9:
            yield data[at : at + 2]
            return
        end = at + 2 if marker in _BARE else at + 2 + int.from_bytes(data[at + 2 : at + 4])
        if marker in _SIZED:
            height, width = struct.unpack(">HH", data[at + 5 : at + 9].ljust(4, b"\0"))
            pixels = width * height
            components, waves = data[at + 9 : at + 10], _waves(data[at + 9 : end], pixels)
            notes.bound(waves if marker in _PROGRESSIVE else 0, pixels)
        if marker == 0xDA:
            scans += 1
            notes.bound(waves if data[at + 4 : at + 5] < components else 0, pixels)
            if scans > MOST_SCANS or scans * pixels > MOST_SCANNED:
                raise notes.refusal(f"it is a JPEG of {scans} scans or more of {pixels} pixels")
            found = _MARKER.search(data, end)
            end = found.start() if found else len(data)
        if marker == 0xE1:
            notes.metadata(data[at + 4 : end])
        elif marker in (0xE0, 0xEE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield data[at:end]
        at = max(end, at + 2)


def _waves(components: bytes, pixels: int) -> int:
    """The bytes of all numbers of a JPEG, of which its components have each its share."""
    sampled = [(each >> 4) * (each & 15) for each in components[2::3]]
    return 2 * pixels * sum(sampled) // max([1, *sampled])


def _png(data: bytes, notes: _Notes) -> Iterator[bytes]:
    yield data[:8]
    at = 8
    while at + 8 <= len(data):
        notes.count()
        size, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 12 + size
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            yield data[at:end]
        elif kind == b"eXIf":
            notes.exif = notes.exif or data[at + 8 : min(end - 4, at + 8 + (64 << 10))]
        elif kind == b"iTXt" and data.startswith(_PNG_XMP, at + 8):
            notes.xmp = notes.xmp or data[at + 8 : min(end - 4, at + 8 + (64 << 10))]
        if kind == b"IEND":
            return
        at = end


def _gif(data: bytes, notes: _Notes) -> Iterator[bytes]:
    """The first frame with its colours, and what says which of them shows through."""
    at = 13 + (3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0)
    yield data[:at]
    while at < len(data):
        notes.count()
        kind, start = data[at], at
        if kind == 0x21:
            at = _blocks(data, at + 2, notes)
            if data[start + 1 : start + 2] == b"\xf9":
                yield data[start:at]
        elif kind == 0x2C:
            colours = data[at + 9] if at + 9 < len(data) else 0
            at += 10 + (3 << (colours & 7) + 1 if colours & 0x80 else 0)
            yield data[start : _blocks(data, at + 1, notes)]
            yield b";"
            return
        else:
            yield data[at : at + 1]
            return


def _blocks(data: bytes, at: int, notes: _Notes) -> int:
    """Where a row of blocks ends, each with its length in front."""
    for _ in range(MOST_BLOCKS):
        size = data[at] if at < len(data) else 0
        at += size + 1
        if not size:
            return at
    raise notes.refusal(f"it is a GIF of over {MOST_BLOCKS} blocks")


def _webp(data: bytes, notes: _Notes) -> Iterator[bytes]:
    """All of it: the chunks are only counted, and looked at for the orientation."""
    at = 12
    while at + 8 <= len(data):
        notes.count()
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if kind == b"EXIF":
            found = data[at + 8 : at + 8 + min(size, 64 << 10)]
            notes.exif = notes.exif or found.removeprefix(b"Exif\0\0")
        elif kind == b"XMP ":
            notes.xmp = notes.xmp or data[at + 8 : at + 8 + min(size, 64 << 10)]
        at += 8 + size + size % 2
    yield data


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, from the first directory alone; 0 where it says none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 0
    (at,) = struct.unpack(f"{order}I", exif[4:8])
    count = struct.unpack(f"{order}H", exif[at : at + 2])[0] if at + 2 <= len(exif) else 0
    for entry in range(at + 2, at + 2 + 12 * min(count, _ENTRIES), 12):
        if entry + 12 > len(exif):
            return 0
        tag, kind, _, value = struct.unpack(f"{order}HHIH", exif[entry : entry + 10])
        if (tag, kind) == (0x0112, 3):
            return value if 1 <= value <= 8 else 0
    return 0
