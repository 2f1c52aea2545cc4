"""Every kind of picture comes in upright and bounded, and everything else is refused by name and rule."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from trifocal import images
from trifocal.errors import BadImage
from trifocal.images import LIMITS, Image, Limits, from_bytes, from_data_uri, from_frames, from_path, from_pil, load
from twins import is_found

GREY = 100


def encoded(mode: str = "RGB", form: str = "PNG", size: tuple[int, int] = (6, 4), **save: object) -> bytes:
    out = BytesIO()
    Pictures.new(mode, size, GREY if mode in ("L", "P", "I;16", "1") else None).save(out, form, **save)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def refused(data: bytes, limits: Limits = LIMITS) -> str:
    with pytest.raises(BadImage) as error:
        from_bytes(data, name="mine.png", limits=limits)
    assert str(error.value).startswith("mine.png: ")
    assert " at 0x" not in str(error.value)
    return error.value.rule


@pytest.mark.parametrize(
    ("mode", "form"),
    [
        ("RGB", "PNG"),
        ("RGB", "JPEG"),
        ("RGB", "WEBP"),
        ("L", "PNG"),
        ("L", "JPEG"),
        ("1", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("I;16", "PNG"),
        ("CMYK", "JPEG"),
    ],
)
def test_every_mode_and_format_becomes_rgb(mode: str, form: str) -> None:
    image = from_bytes(encoded(mode, form))
    assert image.pixels.mode == "RGB"
    assert (image.width, image.height) == (6, 4)
    assert image.seconds > 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_the_background_and_opaque_alpha_is_dropped(mode: str) -> None:
    clear = from_pil(Pictures.new(mode, (2, 2), (0,) * len(mode)))
    assert clear.pixels.mode == "RGBA"
    assert clear.on((255, 255, 255)).getpixel((0, 0)) == (255, 255, 255)
    assert clear.on((9, 8, 7)).getpixel((1, 1)) == (9, 8, 7)
    opaque = from_pil(Pictures.new(mode, (2, 2), (5,) * (len(mode) - 1) + (255,)))
    assert opaque.pixels.mode == "RGB"


def test_a_transparent_colour_that_no_pixel_has_is_forgotten() -> None:
    """Else what is made smaller may have it, and be seen through."""
    picture = Pictures.new("RGB", (4, 4), (9, 9, 9))
    file = BytesIO()
    picture.save(file, "PNG", transparency=(1, 2, 3))
    found = from_bytes(file.getvalue())
    assert found == from_pil(picture)
    assert "transparency" not in found.pixels.info


@pytest.mark.parametrize(("form", "key"), [("PNG", 2), ("GIF", 2), ("PNG", bytes([255] * 4))])
def test_a_transparent_place_of_a_palette_that_no_pixel_has_is_forgotten(form: str, key: int | bytes) -> None:
    """Its colour is another place's, too; and where each place has its own it is no warning's cause."""
    picture = Pictures.new("P", (4, 4), 1)
    picture.putpalette([9, 9, 9, 0, 0, 0, 0, 0, 0, 7, 7, 7])
    file = BytesIO()
    picture.save(file, form, transparency=key, optimize=False)
    for found in (from_bytes(file.getvalue()), from_pil(Pictures.open(file))):
        assert found == from_pil(Pictures.new("RGB", (4, 4)))
        assert from_pil(found.pixels) == found


def test_a_picture_of_layers_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    file = BytesIO()
    Pictures.new("RGBA", (6, 4), (9, 8, 7, 6)).save(file, "PNG")
    monkeypatch.setattr(images, "_STRIP", 6)
    made: list[tuple[int, int]] = []
    convert = Pictures.Image.convert
    with monkeypatch.context() as patch:
        patch.setattr(Pictures.Image, "convert", lambda self, *how: made.append(self.size) or convert(self, *how))
        assert from_bytes(file.getvalue()).pixels.mode == "RGBA"
    assert set(made) == {(6, 1)}


def test_a_transparent_palette_colour_shows_the_background() -> None:
    picture = Pictures.new("P", (2, 2), 0)
    picture.putpalette([10, 20, 30] * 256)
    out = BytesIO()
    picture.save(out, "PNG", transparency=0)
    assert from_bytes(out.getvalue()).on((1, 2, 3)).getpixel((0, 0)) == (1, 2, 3)


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    out = BytesIO()
    Pictures.new("I;16", (2, 2), 0x8000).save(out, "PNG")
    assert from_bytes(out.getvalue()).pixels.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    from PIL import ImageOps

    picture = Pictures.linear_gradient("L").resize((16, 8)).convert("RGB")
    exif = Pictures.Exif()
    exif[0x0112] = orientation
    out = BytesIO()
    picture.save(out, "PNG", exif=exif)
    upright = from_bytes(out.getvalue())
    assert (upright.width, upright.height) == ((16, 8) if orientation < 5 else (8, 16))
    assert upright == from_pil(ImageOps.exif_transpose(Pictures.open(BytesIO(out.getvalue()))))


def test_the_digest_is_of_what_can_be_seen() -> None:
    one, two = (from_bytes(encoded(form=form), name=form) for form in ("PNG", "WEBP"))
    assert one == from_bytes(encoded(), name="other")
    assert hash(one) == hash(from_bytes(encoded()))
    assert len(two.digest) == 64
    shapes = [from_pil(Pictures.new("RGB", size)) for size in ((2, 3), (3, 2), (6, 1), (1, 6))]
    assert len({image.digest for image in shapes}) == 4
    assert from_pil(Pictures.new("RGB", (1, 1))) != "a string"


def test_a_digest_is_the_same_on_every_day() -> None:
    grey = Pictures.linear_gradient("L").resize((6, 4))
    red = from_pil(Pictures.new("RGB", (6, 4), "red"))
    plain, seen_through = from_pil(grey.convert("RGB")), from_pil(Pictures.merge("RGBA", [grey] * 4))
    assert [image.digest for image in (plain, seen_through, from_frames([plain, red]))] == [
        "120319019b93794b1d4af6aeb56fab0c01ceebef9834be2e1408c0478deb3760",
        "d8e8b32be63d47d11528ea8976471e12fb24d4e6a76713826f15bcfc754dafb4",
        "c1ea791bfac5d629c99af35d13d3f8163b9c75f8fa215eec6b1fed4bc5aad82d",
    ]


def test_a_digest_is_made_once_and_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made, digest = list[Pictures.Image](), images._digest
    monkeypatch.setattr(images, "_digest", lambda pixels: made.append(pixels) or digest(pixels))
    image, same = from_bytes(encoded()), from_bytes(encoded())
    assert (image.known_by, hash(image), image) == (same.known_by, hash(same), same)
    from_frames([image, same])
    assert made == []
    assert (image.digest, image.digest) == (same.digest, image.digest)
    assert made == [image.pixels, same.pixels]


def test_caches_know_a_picture_by_its_file(tmp_path: Path) -> None:
    data, other = (encoded(compress_level=level, size=(60, 40)) for level in (0, 9))
    (tmp_path / "a.png").write_bytes(data)
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    names = {load(source).known_by for source in (data, uri, tmp_path / "a.png")}
    assert names == {from_bytes(data, name="another", limits=Limits(pixels=3000)).known_by}
    one, again, held = from_bytes(data), from_bytes(other), from_pil(Pictures.open(BytesIO(data)))
    assert one == again == held
    assert hash(one) == hash(again) == hash(held)
    assert len({one.known_by, again.known_by, held.known_by}) == 3
    assert held.known_by == held.digest


def test_what_no_two_pictures_are_known_by() -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6
    flat, turned = from_bytes(encoded()), from_bytes(encoded(exif=exif))
    assert (flat.width, flat.height) == (turned.height, turned.width)
    one = from_bytes(encoded(size=(3, 3)))
    drawn = from_pil(Pictures.new("RGB", (3, 3), "red"))
    videos = [[one], [one, one], [one, drawn], [drawn], [drawn, one]]
    names = [image.known_by for image in (flat, turned, one, drawn, *map(from_frames, videos))]
    assert len(set(names)) == len(names)
    assert from_frames([one, one]).known_by == from_frames([one, from_bytes(encoded(size=(3, 3)))]).known_by


def test_a_file_that_others_decode_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    here = from_bytes(encoded())
    monkeypatch.setattr(images, "_decoders", lambda: b"of another machine")
    assert from_bytes(encoded()).known_by != here.known_by


def test_pictures_are_told_apart_in_a_table_without_their_digests() -> None:
    first, *rest = (Pictures.effect_noise((30, 20), sigma).convert("RGB") for sigma in range(20, 60))
    assert len({hash(from_pil(each)) for each in (first, *rest)}) == 40
    near = first.copy()
    near.putpixel((0, 0), (1, 2, 3))
    assert from_pil(near) != from_pil(first)  # whatever their hashes are


def test_only_the_first_frame_of_a_gif() -> None:
    out = BytesIO()
    frames = [Pictures.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert from_bytes(out.getvalue()).pixels.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("start", "rule"),
    [
        (b"", "empty"),
        (b"hello", "not_an_image"),
        (b"%PDF-1.7", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "unsupported_format"),
        (b"<?xml version='1.0'?><svg>", "unsupported_format"),
        (b"II*\0" + bytes(50), "unsupported_format"),
        (b"BM" + bytes(50), "unsupported_format"),
        (b"8BPS" + bytes(50), "unsupported_format"),
        (b"SIMPLE  =                    T", "unsupported_format"),
        (b"%!PS-Adobe", "unsupported_format"),
        (bytes(4) + b"ftypheic", "unsupported_format"),
        (b"\0\0\1\0" + bytes(50), "unsupported_format"),
        (b"PK\3\4" + bytes(50), "unsupported_format"),
        (png_header(1, 65535), "side_too_long"),
        (png_header(65535, 1), "side_too_long"),
        (png_header(13000, 13000), "too_many_pixels"),
        (png_header(1, 16000), "too_thin"),
        (png_header(0, 5), "damaged"),
        (encoded(size=(64, 64))[:60], "damaged"),
        (encoded(form="JPEG", size=(64, 64))[:200], "damaged"),
        (png_header(8, 8), "damaged"),
    ],
)
def test_what_is_refused_says_the_rule(start: bytes, rule: str) -> None:
    assert refused(start) == rule


def test_the_byte_limit_comes_before_anything_is_read() -> None:
    assert refused(b"x" * 101, Limits(bytes=100)) == "too_many_bytes"


def test_a_one_pixel_picture_is_a_picture() -> None:
    assert from_bytes(encoded(size=(1, 1))).width == 1


def test_paths_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded())
    assert from_path(file).name == str(file)
    for path, rule in [(tmp_path / "none.png", "not_found"), (tmp_path, "is_a_folder")]:
        with pytest.raises(BadImage) as error:
            from_path(path)
        assert error.value.rule == rule
    with pytest.raises(BadImage, match="allowed are 10"):
        from_path(file, limits=Limits(bytes=10))


BASE64 = base64.b64encode(encoded()).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{BASE64}",
        f"data:image/jpeg;base64,{BASE64}",
        f"DATA:IMAGE/PNG;BASE64,{BASE64}",
        f"data:image/png;charset=utf-8;base64,{BASE64}",
        f" data:image/png;base64,\n{BASE64[:20]}\n {BASE64[20:]}\n",
        f"data:image/png;base64,{BASE64.rstrip('=')}",
        f"data:image/png;base64,{BASE64.replace('+', '-').replace('/', '_')}",
        f"data:;base64,{BASE64}",
    ],
)
def test_near_misses_of_a_data_uri_are_pictures(uri: str) -> None:
    assert from_data_uri(uri) == load(uri) == from_bytes(encoded())


@pytest.mark.parametrize("case", [str.upper, str.lower])
@pytest.mark.parametrize("letters", ["+/==", "+/8=", "+/+/"])
def test_a_data_uri_may_be_escaped_as_an_address_is(letters: str, case: Callable[[str], str]) -> None:
    """The letters lie behind the picture's end."""
    assert len(BASE64.rstrip("=")) % 4 == 0
    escaped = re.sub("[+/=]", lambda found: case(f"%{ord(found[0]):x}"), BASE64 + letters)
    assert from_data_uri(f"data:image/png;base64,{escaped}") == from_bytes(encoded())


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        ("http://example.org/a.png", "not_a_data_uri"),
        ("data:image/png", "not_a_data_uri"),
        (f"data:image/png,{BASE64}", "bad_base64"),
        (f"data:text/html;base64,{BASE64}", "not_an_image"),
        (f"data:image/png;base64,{BASE64[:30]}*{BASE64[30:]}", "bad_base64"),
        ("data:image/png;base64,AAAAA", "bad_base64"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,AAAA", "not_an_image"),
    ],
)
def test_other_uris_are_refused(uri: str, rule: str) -> None:
    with pytest.raises(BadImage) as error:
        from_data_uri(uri)
    assert error.value.rule == rule


def test_load_takes_whatever_a_picture_can_be(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded())
    image = load(tmp_path / "a.png")
    assert image == load(str(tmp_path / "a.png")) == load(encoded()) == load(image) == load(image.pixels)


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]),
    st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8),
)
def test_any_damage_is_a_picture_or_a_refusal(form: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(form=form, size=(16, 12)))
    for at, value in damage:
        data[at % len(data)] = value
    try:
        assert isinstance(from_bytes(bytes(data)), Image)
    except BadImage as error:
        assert error.rule


def test_what_is_held_several_times_while_it_is_decoded_may_be_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HELD_TWICE", 23)
    deep = png(16, np.zeros((4, 6, 3), np.int64), (1, 2, 3))
    for held in (encoded("RGB", "WEBP"), deep):
        assert refused(held) == "too_many_pixels"
    for once in (encoded(), encoded("P", "GIF"), png(16, np.zeros((4, 6, 3), np.int64), None)):
        assert from_bytes(once).width == 6
    monkeypatch.setattr(images, "HELD_TWICE", 24)
    assert from_bytes(deep).width == 6


# a PNG's transparent colour, which it tells in its own depth


def png(depth: int, samples: np.ndarray, key: tuple[int, ...] | None) -> bytes:
    """A PNG of grey ``[height, width]`` or RGB ``[height, width, 3]`` samples, one of which is transparent."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    if depth == 16:
        rows = [row.astype(">u2").tobytes() for row in samples]
    else:
        bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1  # [height, width (, 3), depth]
        rows = [np.packbits(row.flatten().astype(np.uint8)).tobytes() for row in bits]
    colour, (high, wide) = (2 if samples.ndim == 3 else 0), samples.shape[:2]
    told = [] if key is None else [chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))]
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, colour, 0, 0, 0)),
            *told,
            chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
            chunk(b"IEND", b""),
        ]
    )


@pytest.mark.parametrize(("depth", "channels"), [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
def test_the_transparent_colour_of_every_depth(depth: int, channels: int) -> None:
    most = 2**depth
    shape = (5, 6, 3) if channels == 3 else (5, 6)
    samples = np.random.default_rng(depth).integers(0, most, shape)
    key = samples[2, 3].copy()
    if depth == 16:  # the same upper bytes in another place: not transparent
        samples[4, 4] = key ^ 1
    told = tuple(int(value) for value in np.atleast_1d(key))
    image = from_bytes(png(depth, samples, told))
    wanted = (samples == key).all(-1) if channels == 3 else samples == key
    assert image.pixels.mode == "RGBA"
    assert np.array_equal(np.asarray(image.pixels)[..., 3] == 0, wanted)
    grey = samples >> 8 if depth == 16 else samples * (255 // (most - 1))
    assert np.array_equal(np.asarray(image.pixels)[..., 0], grey[..., 0] if channels == 3 else grey)
    assert from_bytes(png(depth, samples, None)).pixels.mode == "RGB"


@pytest.mark.parametrize(("depth", "channels"), [(4, 1), (8, 3), (16, 3)])
def test_pngs_are_read_by_a_pillow_before_11_too(depth: int, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the tuple that tells how a file's pixels lie has no names; the webui's hosts are as old as that."""
    monkeypatch.setattr("PIL.PngImagePlugin.ImageFile._Tile", lambda *told: told)
    test_the_transparent_colour_of_every_depth(depth, channels)


@pytest.mark.parametrize("key", [7, 0x1234])
def test_a_deep_pil_picture_keeps_its_transparent_value(key: int) -> None:
    picture = Pictures.fromarray(np.array([[key, 0x4000], [key + 1, 9]], np.uint16))
    picture.info["transparency"] = key
    assert np.asarray(from_pil(picture).pixels)[..., 3].tolist() == [[0, 255], [255, 255]]


@pytest.mark.parametrize(
    ("mode", "values", "wanted"),
    [
        ("I", [0, 100, 255], [0, 100, 255]),
        ("I", [0, 256, 65535], [0, 1, 255]),
        ("I", [-5, 70000, 512], [0, 255, 2]),
        ("F", [0.0, 100.7, 255.0], [0, 100, 255]),
        ("F", [0.0, 255.5, 65535.0], [0, 0, 255]),
        ("F", [float("nan"), float("inf"), -1.0], [0, 255, 0]),
        ("I;16", [0, 100, 255], [0, 0, 0]),
        ("I;16", [0, 256, 65535], [0, 1, 255]),
    ],
)
def test_grey_of_32_bits_is_scaled_where_it_is_deeper_than_8(mode: str, values: list[float], wanted: list[int]) -> None:
    kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
    picture = Pictures.fromarray(np.array([values], kind))
    assert picture.mode == mode
    assert np.asarray(from_pil(picture).pixels)[0, :, 0].tolist() == wanted


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(BadImage, match="a device or a pipe"):
            load(path)


def test_its_twin_that_does_not_look_at_the_shape_is_found() -> None:
    flat = lambda pixels: hashlib.sha256(pixels.tobytes()).hexdigest()  # noqa: E731
    is_found(test_the_digest_is_of_what_can_be_seen, images, "_digest", flat)


def test_its_twin_that_does_not_look_at_all_of_a_file_is_found() -> None:
    start = lambda data: f"file {data[:24].hex()}"  # noqa: E731
    is_found(test_what_no_two_pictures_are_known_by, images, "_name_of", start)
