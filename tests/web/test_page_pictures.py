"""Pictures as people have them: photographs of a phone, files that are something else, files that lie."""

from __future__ import annotations

import base64
import json
import re
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import make_llava, running
from PIL import Image as Pictures
from visiting import EXAMPLE, Open, drawn

from trifocal.web import routes


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """12 megapixels of a phone, lying on its side: over 4 MB."""
    noise = np.random.default_rng(0).integers(0, 90, (1500, 2000, 3), dtype=np.uint8)
    picture = Pictures.fromarray(noise.repeat(2, axis=0).repeat(2, axis=1))
    exif = Pictures.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=88, exif=exif)
    assert len(buffer.getvalue()) > 4 << 20
    return buffer.getvalue()


def test_three_photographs_of_a_phone(visit: Open, photograph: bytes, tmp_path: Path) -> None:
    """As they are, they would be more than this server takes at once."""
    files = [tmp_path / f"IMG_{number}.JPG" for number in range(3)]
    for file in files:
        file.write_bytes(photograph)
    with running(make_llava(), routes(), body_bytes=12 << 20) as live:
        seen = visit(live.url)
        seen.add(*files)
        seen.toast("3 pictures were made as small as the model can use")
        bodies = seen.bodies()
        seen.ask(" Which of these?")
        seen.expect(".problem").to_have_count(0)
        sent = [part["image_url"]["url"] for part in bodies[0]["messages"][-1]["content"] if part["type"] != "text"]
        assert len(sent) == 3
        with Pictures.open(BytesIO(base64.b64decode(sent[0].split(",")[1]))) as first:
            assert first.size == (1536, 2048)  # upright
        told = re.compile("^IMG_0.JPG: made smaller from")
        seen.expect(seen.page.locator(".sent-open").first).to_have_attribute("title", told)


def test_the_original_is_kept_if_wanted(visit: Open, tmp_path: Path) -> None:
    file, original = tmp_path / "IMG.JPG", drawn("red", (2400, 300), "JPEG")
    file.write_bytes(original)
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.add(file)
        seen.page.locator(".toast button", has_text="Keep the original").click()
        seen.toast("The originals are kept and sent")
        bodies = seen.bodies()
        seen.ask(" What is it?")
        (picture,) = (part for part in bodies[0]["messages"][-1]["content"] if part["type"] != "text")
        assert base64.b64decode(picture["image_url"]["url"].split(",")[1]) == original


def test_bytes_are_counted_before_anything_is_sent(visit: Open, tmp_path: Path) -> None:
    with running(make_llava(), routes(), body_bytes=60_000, image_bytes=30_000) as live:
        seen = visit(live.url)
        noise = np.random.default_rng(1).integers(0, 255, (60, 130, 3), dtype=np.uint8)
        for number in range(2):
            file = tmp_path / f"{number}.png"
            Pictures.fromarray(noise).save(file)
            seen.add(file)
        seen.until("document.querySelector('.meter-words').innerText.includes('this server takes 60 kB at once')")
        bodies = seen.bodies()
        seen.ask(" Which?")
        assert bodies.all_of(0) == []
        seen.expect(".turn .problem").to_contain_text("Leave earlier pictures out")
        seen.page.locator(".sent").first.hover()
        seen.page.locator(".keep").first.click()
        seen.page.locator(".problem button", has_text="Try again").click()
        seen.page.wait_for_selector(".costs")


def png_of(width: int, height: int) -> bytes:
    """A picture of a few bytes that claims to be this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


REFUSED: dict[str, tuple[bytes, str]] = {
    "bomb.png": (png_of(50_000, 50_000), "bomb.png is 50,000 × 50,000 pixels; opening it would take 10.0 GB"),
    "strip.png": (png_of(3, 30_000), "strip.png is a thin strip of 3 × 30,000 pixels"),
    "paper.pdf": (b"%PDF-1.7\n", "paper.pdf is a PDF document, not a picture. Take a picture of the page"),
    "IMG_1.HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "IMG_1.HEIC is a photograph in Apple's HEIC format"),
    "photo.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "photo.jpg is a photograph in Apple's HEIC format"),
    "drawing.svg": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "drawing.svg is a drawing"),
    "clip.mov": (b"\0\0\0\x14ftypqt  \0\0\0\0", "clip.mov is a video"),
    "scan.tif": (b"II*\0\x08\0\0\0", "scan.tif is a TIFF picture"),
    "letter.docx": (b"PK\x03\x04....", "letter.docx is an archive or an office document"),
    "nothing.png": (b"", "nothing.png is empty: it has 0 bytes"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF", "cut.jpg is damaged"),
    "notes": (b"just words", "notes is no picture that is known here"),
}


def test_what_is_no_picture_is_called_what_it_is(visit: Open, tmp_path: Path) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        for name, (data, _) in REFUSED.items():
            (tmp_path / name).write_bytes(data)
        seen.page.set_input_files("#files", [str(tmp_path / name) for name in REFUSED])
        seen.until(f"document.querySelectorAll('.notices .problem').length === {len(REFUSED)}")
        problems = [re.compile(f"^{re.escape(expected)}") for _, expected in REFUSED.values()]
        seen.expect(".notices .problem").to_have_text(problems)
        seen.expect(".notices").not_to_contain_text(re.compile(r"decode|Error|invalid|messages\[|None"))
        seen.expect(".chip").to_have_count(0)
        seen.check()


def moving() -> bytes:
    frames = [Pictures.new("RGB", (60, 60), colour) for colour in ("red", "blue")]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "no-extension": (lambda: drawn("red"), ""),
    "wrong.gif": (lambda: drawn("red", kind="JPEG"), ""),
    "old.bmp": (lambda: drawn("red", kind="BMP"), "changed from BMP"),
    "moves.gif": (moving, "it moves; the model sees its first frame"),
    "ünïcödé 日本.png": (lambda: drawn("red"), ""),
}


def test_pictures_by_their_bytes_not_by_their_names(visit: Open, tmp_path: Path) -> None:
    for name, (data, _) in ODD.items():
        (tmp_path / name).write_bytes(data())
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.add(*(tmp_path / name for name in ODD))
        for number, (_, note) in enumerate(ODD.values()):
            seen.expect(seen.page.locator(".chip").nth(number)).to_have_attribute("title", re.compile(f"{note}.*"))
        bodies = seen.bodies()
        assert "And these" in seen.ask(" And these?")  # the server reads them all: it would refuse the question else
        assert len([part for part in bodies[0]["messages"][-1]["content"] if part["type"] == "image_url"]) == len(ODD)


def test_a_picture_added_before_the_server_told_what_it_is_waits_for_that(browser: Any, visit: Open) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 820})
    held: list[Any] = []
    free: list[bool] = []
    context.route("**/page/api/info", lambda route: route.continue_() if free else held.append(route))
    loading = json.dumps({"error": {"message": "the model is being loaded", "code": "model_loading"}})
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, context=context)
        seen.page.set_input_files("#files", str(EXAMPLE))
        while not held:
            seen.page.evaluate("new Promise(done => requestAnimationFrame(done))")
        bodies = seen.bodies()
        seen.say("And these?")
        seen.page.keyboard.press("Enter")  # it waits for its picture, and for one that comes behind that
        seen.page.set_input_files("#files", str(EXAMPLE))
        free.append(True)
        for route in held:  # the server is there, and its model is not yet
            route.fulfill(status=503, body=loading, content_type="application/json")
        seen.page.wait_for_selector(".costs")
        assert len([part for part in bodies[0]["messages"][-1]["content"] if part["type"] == "image_url"]) == 2


def test_a_picture_comes_into_the_chat_that_it_was_added_to(browser: Any, visit: Open) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 820})
    held: list[Any] = []
    context.route("**/page/api/info", lambda route: held.append(route))
    with running(make_llava(), routes()) as live:
        seen = visit(live.url, context=context)
        seen.page.set_input_files("#files", str(EXAMPLE))
        seen.say("And this?")
        seen.page.locator(".new-talk").click()
        seen.expect(".field").to_have_text("")
        while not held:
            seen.page.evaluate("new Promise(done => requestAnimationFrame(done))")
        held[0].continue_()
        seen.toast(f"{EXAMPLE.name} is in the chat that it was added to.")
        seen.expect(".chip").to_have_count(0)
        seen.page.locator(".talk-open").click()
        seen.expect(".field").to_have_text("And this?×")
        seen.expect(".chip").to_have_count(1)


def test_a_picture_taken_away_comes_back(visit: Open) -> None:
    with running(make_llava(), routes()) as live:
        seen = visit(live.url)
        seen.say("before ")
        seen.add(EXAMPLE)
        seen.say(" after")
        seen.page.locator(".chip").hover()
        seen.page.locator(".chip-remove").click()
        seen.expect(".chip").to_have_count(0)
        seen.page.locator(".toast button", has_text="Undo").click()
        order = "[...document.querySelector('.field').childNodes].map(n => n.dataset?.picture ? 'P' : n.textContent)"
        seen.until(f"{order}.join('').replaceAll('\\xa0', ' ') === 'before P after'")


def test_a_server_that_refuses_a_picture_calls_it_by_its_name(visit: Open) -> None:
    with running(make_llava(), routes(), image_bytes=500_000) as live:
        seen = visit(live.url)
        seen.page.route(
            "**/v1/chat/completions",
            lambda route: route.fulfill(
                status=400,
                json={
                    "error": {
                        "message": "messages[0].content[1]: the file is damaged",
                        "type": "invalid_request_error",
                        "param": "messages[0].content[1]",
                        "code": "invalid_image",
                    }
                },
            ),
        )
        seen.add(EXAMPLE, EXAMPLE)
        seen.ask(" What?")
        seen.expect(".turn .problem").to_contain_text(re.compile(r"^Example\.png: the file is damaged\."))
        seen.expect(".turn .problem").not_to_contain_text("messages[")
