"""A picture's tag in a raw prompt is a picture or an error, never text; the pass is linear."""

from __future__ import annotations

import base64
from io import BytesIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pictures

from trifocal.conversation import markup
from trifocal.conversation.markup import parse
from trifocal.errors import BadImage, BadMarkup
from trifocal.images import Image


def uri(colour: str, kind: str = "jpeg") -> str:
    out = BytesIO()
    Pictures.new("RGB", (3, 2), colour).save(out, "PNG")
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


RED, BLUE = uri("red"), uri("blue")


def test_texts_and_pictures_in_order() -> None:
    first, picture, middle, other, last = parse(f'one <img src="{RED}">\ntwo <img src="{BLUE}"> three')
    assert (first, middle, last) == ("one ", "\ntwo ", " three")
    assert isinstance(picture, Image)
    assert isinstance(other, Image)
    assert picture.pixels.getpixel((0, 0)) == (255, 0, 0)
    assert (picture.name, other.name) == ("image 1", "image 2")


@pytest.mark.parametrize(
    "tag",
    [
        f'<img src="{RED}">',
        f"<img src='{RED}'>",
        f"<img src={RED}>",
        f'<img src="{RED}"/>',
        f'<IMG SRC="{RED}" />',
        f'<img alt="a > b" src="{RED}">'.replace(" > ", " "),
        f'<img\n  width=3\n  src = "{RED}"\n  class="x">',
        f'<img src="{RED[:60]}\n{RED[60:]}">',
        f'<img src="{uri("red", "png")}">',
        f'<img src="{uri("red", "x-whatever")}">',
    ],
)
def test_near_variants_of_the_tag_are_pictures(tag: str) -> None:
    before, picture, after = parse(f"a{tag}b")
    assert (before, after) == ("a", "b")
    assert isinstance(picture, Image)


@pytest.mark.parametrize(
    "text", ["", "no picture", "the <img> tag", "<imgsrc=1>", "if a <img and b", "data:image/png;base64,AAAA"]
)
def test_text_about_pictures_stays_text(text: str) -> None:
    assert parse(text) == ((text,) if text else ())


@pytest.mark.parametrize(
    ("prompt", "error"),
    [
        ('<img src="data:image/png;base64,AAAA">', BadImage),
        ('<img src="data:image/png;base64,!!!!">', BadImage),
        ('<img src="data:image/png;base64,AAAA', BadMarkup),
        (f"look: {RED + 'A' * 600}", BadMarkup),
    ],
)
def test_what_can_be_no_picture_is_refused(prompt: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        parse(prompt)


def test_a_refusal_says_which_tag() -> None:
    with pytest.raises(BadImage, match="image 2"):
        parse(f'<img src="{RED}"> and <img src="data:image/png;base64,AAAA">')


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(["<img ", 'src="', "data:image/png;base64,", RED, '"', "'", ">", "<", "text ", "\n"]),
        max_size=12,
    )
)
def test_no_base64_ever_stays_text(words: list[str]) -> None:
    try:
        parts = parse("".join(words))
    except (BadMarkup, BadImage):
        return
    for part in parts:
        assert isinstance(part, Image) or markup._STRAY.search(part) is None


PIECES = (
    "<img ",
    "<IMG",
    "src",
    "=",
    "'",
    '"',
    ">",
    "<",
    " ",
    "data:",
    "DATA:",
    "a",
    "\n",
    "src=",
    "x=",
    "<img src='data:",
)


@given(st.lists(st.sampled_from(PIECES), max_size=14))
@settings(max_examples=500, deadline=None)
def test_a_tag_that_holds_a_picture_is_found_by_what_stands_in_it(pieces: list[str]) -> None:
    """Whoever looks for pictures alone finds those that are found among all tags."""
    text = "".join(pieces)
    found = [tag for place in markup.places(text) for tag in markup.tags(place)]
    assert [tag.source for tag in found if tag.holds_data] == [
        tag.source for tag in markup.tags(text) if tag.holds_data
    ]


def test_only_what_may_hold_a_picture_is_looked_at() -> None:
    text = '<img src="' * 70_000 + "data:" + "<img src=data:,> and data:image/png <b x=data:>"
    assert list(markup.places(text)) == ['<img src="data:', "<img src=data:,> and data:image/png ", "<b x=data:>"]
