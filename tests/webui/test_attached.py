"""Pictures beside a prompt, in the shapes in which the host keeps them."""

from __future__ import annotations

import base64
import io
from typing import Any

import PIL.Image
import pytest

from trifocal.errors import BadImage
from trifocal.images import Image, from_bytes
from trifocal.webui.attached import attached, has_images


def png(colour: str, size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def uri(colour: str) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(colour)).decode()}"


def box(colour: str, name: str = "a.png") -> dict[str, Any]:
    return {"type": "image", "name": name, "image_data": uri(colour), "image_id": "x"}


def said(*items: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": item}} for item in items]
    return {"role": "user", "content": [{"type": "text", "text": "What?"}, *content]}


def seen(state: dict[str, Any], fetch: Any = bytes) -> list[Image]:
    return [held.read() for held in attached(state, fetch)]


def colours(state: dict[str, Any], fetch: Any = None) -> list[str]:
    names = {from_bytes(png(c)).digest: c for c in ("red", "green", "blue")}
    return [names[image.digest] for image in seen(state, fetch)]


def test_nothing_beside_a_prompt_is_no_picture() -> None:
    assert attached({}, bytes) == []
    assert seen({"history": {"internal": [], "visible": [], "metadata": {"user_0": {}}}, "messages": []}, bytes) == []


def test_the_chat_box_gives_its_attachments_in_order_and_other_files_are_passed_over() -> None:
    text = {"type": "text/plain", "name": "b.txt", "content": "words"}
    assert colours({"image_attachments": [box("red"), text, box("blue")]}) == ["red", "blue"]


def test_an_attachment_without_the_uri_s_head_is_read_too() -> None:
    bare = {"type": "image", "name": "a.png", "image_data": uri("red").split(",")[1]}
    assert colours({"image_attachments": [bare]}) == ["red"]


def test_the_chat_api_gives_its_messages() -> None:
    messages = [said(uri("red")), {"role": "assistant", "content": "Red."}, said(uri("green"), uri("blue"))]
    assert colours({"history": {"messages": messages}, "messages": messages}) == ["red", "green", "blue"]


def test_the_completions_api_gives_its_messages_or_pictures() -> None:
    assert colours({"messages": [said(uri("red"))], "raw_images": [PIL.Image.new("RGB", (8, 6), "red")]}) == ["red"]
    assert colours({"raw_images": [PIL.Image.new("RGB", (8, 6), "green")]}) == ["green"]


def test_writing_in_the_user_s_name_finds_pictures_in_the_history_s_record_by_row_not_by_letter() -> None:
    rows = {"user_10": {"attachments": [box("blue")]}, "user_2": {"attachments": [box("red")]}, "assistant_2": {}}
    assert colours({"history": {"metadata": rows}}) == ["red", "blue"]


def test_a_web_address_is_fetched_by_the_host() -> None:
    asked: list[str] = []

    def fetch(url: str) -> bytes:
        asked.append(url)
        return png("green")

    assert colours({"history": {"messages": [said("https://example.com/a.png")]}}, fetch) == ["green"]
    assert asked == ["https://example.com/a.png"]


def test_what_can_t_be_fetched_is_an_error_with_its_place() -> None:
    def fetch(url: str) -> bytes:
        raise OSError("private address")

    with pytest.raises(
        BadImage, match=r"messages\[0\].content\[1\]: http://10.0.0.1/ can't be fetched: private address"
    ):
        seen({"history": {"messages": [said("http://10.0.0.1/")]}}, fetch)


@pytest.mark.parametrize("bad", ["data:image/png;base64,AAAA", "file:///etc/passwd", "", "data:text/html;base64,AAAA"])
def test_what_is_no_picture_is_an_error_and_not_left_out(bad: str) -> None:
    with pytest.raises(BadImage, match=r"messages\[0\].content\[1\]"):
        seen({"history": {"messages": [said(bad)]}}, bytes)


@pytest.mark.parametrize(
    ("state", "has"),
    [
        ({}, False),
        ({"messages": [{"role": "user", "content": "Hi"}]}, False),
        ({"raw_images": [PIL.Image.new("RGB", (8, 6))]}, True),
        ({"messages": [said("https://example.com/")]}, True),
        ({"history": {"messages": [said("nonsense")]}}, True),
        ({"history": {"messages": [said()]}, "messages": "nonsense"}, False),
    ],
)
def test_whether_there_are_pictures_is_told_without_looking(state: dict[str, Any], has: bool) -> None:
    assert has_images(state) is has


def test_nothing_is_decoded_or_fetched_before_it_is_shown() -> None:
    def fetch(url: str) -> bytes:
        raise AssertionError(url)

    assert len(attached({"messages": [said("https://example.com/a.png", "data:image/png;base64,AAAA")]}, fetch)) == 2
