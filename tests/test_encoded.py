"""Files of many parts: what is slow by its structure is refused, notes are left out, pixels stay as they are."""

from __future__ import annotations

import base64
import io
import random
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pictures
from PIL import ImageFile, ImageOps

from trifocal import encoded
from trifocal.errors import BadImage
from trifocal.images import Image, from_bytes

NOISE = Pictures.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), np.uint8))


def saved(kind: str, picture: Pictures.Image = NOISE, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Any:
    tags = Pictures.Exif()
    tags[0x010F] = "a camera"
    tags[0x0112] = orientation
    return tags


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def scanned(count: int) -> bytes:
    """A progressive JPEG whose last scan stands there so often."""
    whole = saved("JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * count + b"\xff\xd9"


PNG, JPEG, GIF = saved("PNG"), saved("JPEG"), saved("GIF", NOISE.convert("P"))
WEBP = saved("WEBP", lossless=True)
SLOW = {
    "scans of a JPEG": scanned(4000),
    "segments of a JPEG": JPEG[:2] + segment(0xFE, b"x") * 30_000 + JPEG[2:],
    "markers of a JPEG": JPEG[:2] + b"\xff\xd0" * 30_000 + JPEG[2:],
    "filling of a JPEG": JPEG[:2] + b"\xff" * 30_000 + JPEG[2:],
    "stuffed bytes of a JPEG": JPEG[:2] + b"\xff\x00" * 30_000 + JPEG[2:],
    "chunks of a PNG": PNG[:33] + chunk(b"tEXt", b"a\0b") * 30_000 + PNG[33:],
    "empty data of a PNG": PNG[:33] + chunk(b"IDAT", b"") * 30_000 + PNG[33:],
    "comments of a GIF": GIF[: 13 + 768] + b"\x21\xfe\x01x\0" * 30_000 + GIF[13 + 768 :],
    "blocks of a GIF's comment": GIF[: 13 + 768] + b"\x21\xfe" + b"\x01x" * 300_000 + b"\0" + GIF[13 + 768 :],
    "chunks of a WebP": WEBP[:4] + struct.pack("<I", len(WEBP) - 8 + 240_000) + WEBP[8:] + b"abcd\0\0\0\0" * 30_000,
}


@pytest.mark.parametrize("name", SLOW)
def test_what_is_slow_by_its_structure_is_refused_before_it_is_decoded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "__init__", None)  # whoever opens it fails
    with pytest.raises(BadImage, match="save it anew") as caught:
        from_bytes(SLOW[name])
    assert caught.value.rule == "too_slow"


def resized(data: bytes, width: int, height: int) -> bytes:
    """A JPEG that says it is of another size."""
    at = next(at for at in range(2, len(data)) if data[at] == 0xFF and data[at + 1] in (0xC0, 0xC2))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def apart() -> bytes:
    """A JPEG, not progressive, whose first scan is of one component of three."""
    whole = saved("JPEG", subsampling=0)
    at = whole.index(b"\xff\xda")
    return whole[: at + 4] + b"\1" + whole[at + 5 :]


def begun() -> bytes:
    """A progressive JPEG that ends with its first scan, of all components."""
    whole = saved("JPEG", progressive=True, subsampling=0)
    return whole[: whole.index(b"\xff\xda") + 40]


WAVES = {
    "the beginning of a progressive one": begun(),
    "one component after the other": apart(),
    "progressive": saved("JPEG", progressive=True, subsampling=0),
    "four components": saved("JPEG", NOISE.convert("CMYK"), progressive=True),
}


@pytest.mark.parametrize("name", WAVES)
def test_a_jpeg_whose_decoder_would_hold_it_several_times_is_refused(name: str) -> None:
    with pytest.raises(BadImage, match="save it as a baseline JPEG") as caught:
        from_bytes(resized(WAVES[name], 7990, 8000))
    assert caught.value.rule == "too_many_pixels"


def test_what_a_jpegs_decoder_holds_follows_from_its_components() -> None:
    large = (7990, 8000)
    for small in (saved("JPEG"), saved("JPEG", progressive=True), saved("JPEG", NOISE.convert("L"), progressive=True)):
        assert encoded.plain(resized(small, *large), "JPEG", "x")  # halved colours, or none, or never kept
    for camera in ((8192, 5464), (8256, 5504)):  # of 45 megapixels, as they call it
        assert encoded.plain(resized(WAVES["progressive"], *camera), "JPEG", "x")
    with pytest.raises(BadImage):
        encoded.plain(resized(WAVES["progressive"], 6800, 6800), "JPEG", "x")


def test_base64_is_read_in_pieces_as_if_it_were_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded, "_PIECE", 8)
    for size in range(40):
        data = bytes(range(230, 230 + min(size, 20))) + b"\xff" * (size - 20)
        text = base64.b64encode(data).decode()
        for one in (
            text,
            text.rstrip("="),
            text.replace("+", "-").replace("/", "_"),
            " \n".join(text),
        ):
            assert encoded.unpacked(one) == data
    for wrong in (
        "AA==AAAA",
        "A",
        "AAAAAAAAA",
        "=AAA",
        "AA*A",
        "AAAA\u0661AAA",
        "AAAAAA==AAAAAAAA",
        "AA\x00A",
        "\x80",
        "\ud800",
    ):
        with pytest.raises(ValueError):
            encoded.unpacked(wrong)


ZEROS = zlib.compress(bytes(64 << 20))
FAT = {
    "JPEG": JPEG[:2] + b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000)) for _ in range(99)) + JPEG[2:],
    "exif of a JPEG": JPEG[:2] + b"".join(segment(0xE1, b"Exif\0\0" + bytes(60_000)) for _ in range(99)) + JPEG[2:],
    "PNG": PNG[:33] + chunk(b"zTXt", b"k\0\0" + ZEROS) * 9 + PNG[33:],
    "profile of a PNG": PNG[:33] + chunk(b"iCCP", b"k\0\0" + ZEROS) + PNG[33:],
    "GIF": GIF[: 13 + 768] + b"\x21\xfe" + (b"\xff" + b"x" * 255) * 9999 + b"\0" + GIF[13 + 768 :],
}


@pytest.mark.parametrize("name", FAT)
def test_what_is_no_pixel_is_left_out(name: str) -> None:
    kind = name.split()[-1]
    small = encoded.plain(FAT[name], kind, "x").data
    assert len(small) <= {"PNG": len(PNG), "JPEG": len(JPEG), "GIF": len(GIF)}[kind]
    thin = {"PNG": PNG, "JPEG": JPEG, "GIF": GIF}[kind]
    assert from_bytes(FAT[name]) == from_bytes(thin)


KINDS: dict[str, dict[str, Any]] = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True, "quality": 95, "subsampling": 0},
    "JPEG restarts": {"restart_marker_rows": 1},
    "PNG": {},
    "WEBP": {"lossless": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_pictures_are_turned_as_pil_turns_them(kind: str, orientation: int) -> None:
    data = saved(kind.split()[0], exif=exif(orientation), **KINDS[kind])
    with Pictures.open(io.BytesIO(data)) as file:
        upright = ImageOps.exif_transpose(file).convert("RGB")
    assert from_bytes(data).pixels.tobytes() == upright.tobytes()


def test_where_exif_says_nothing_xmp_is_heard() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    for data in (saved("JPEG", xmp=xmp), saved("WEBP", xmp=xmp)):
        assert from_bytes(data).pixels.size == (40, 60)


MODES = {
    "1": NOISE.convert("1"),
    "L": NOISE.convert("L"),
    "LA": NOISE.convert("LA"),
    "P": NOISE.convert("P"),
    "RGBA": NOISE.convert("RGBA"),
    "I;16": Pictures.fromarray(np.random.default_rng(2).integers(0, 65536, (40, 60), np.uint16)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_png_keeps_its_pixels(mode: str) -> None:
    data = saved("PNG", MODES[mode])
    with Pictures.open(io.BytesIO(encoded.plain(data, "PNG", "x").data)) as file:
        assert file.tobytes() == MODES[mode].tobytes()


def test_cmyk_animations_and_transparent_frames_keep_their_pixels() -> None:
    frames = [NOISE.convert("P"), NOISE.rotate(180).convert("P")]
    samples = [
        saved("JPEG", NOISE.convert("CMYK")),
        saved("GIF", frames[0], save_all=True, append_images=frames[1:], transparency=3, comment=b"x" * 3000),
        saved("PNG", NOISE, save_all=True, append_images=[NOISE.rotate(180)]),
        saved("WEBP", NOISE, save_all=True, append_images=[NOISE.rotate(180)], lossless=True),
    ]
    for data in samples:
        with Pictures.open(io.BytesIO(data)) as file:
            kind = str(file.format)
            whole = file.convert("RGBA")
        with Pictures.open(io.BytesIO(encoded.plain(data, kind, "x").data)) as file:
            assert file.convert("RGBA").tobytes() == whole.tobytes(), kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP"])
def test_damaged_files_are_pictures_or_refused(kind: str) -> None:
    dice = random.Random(kind)
    whole = {"JPEG": scanned(3), "PNG": PNG, "GIF": GIF, "WEBP": saved("WEBP", exif=exif(6))}[kind]
    seen = set()
    for _ in range(400):
        data = bytearray(whole[: dice.choice([len(whole), dice.randrange(12, len(whole))])])
        for _ in range(dice.choice([0, 1, 2, 20])):
            data[dice.randrange(8, len(data))] = dice.choice([0, 0xFF, dice.randrange(256)])
        try:
            seen.add(type(from_bytes(bytes(data))))
        except BadImage as error:
            seen.add(type(error))
    assert seen == {Image, BadImage}
