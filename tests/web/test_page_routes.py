"""The page's routes: its files, and what it asks the server for beyond the dialects."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from live import HIDDEN, Gated, Live, data_uri, error_of, make_llava, png, running, user
from PIL import Image as Pictures
from PIL import ImageOps
from starlette.responses import FileResponse
from starlette.routing import Route

import trifocal
from trifocal.api import guard
from trifocal.api.needs import needs_of
from trifocal.api.settings import hash_key
from trifocal.conversation.templates import TEMPLATES, get_template
from trifocal.errors import UsageError
from trifocal.images import from_bytes
from trifocal.vision import Look, shown
from trifocal.web import pages, preview, routes
from twins import GONE, is_found
from waiting import PATIENCE, until

KEY = "correct-horse-battery-staple"
COUNT, PREVIEW = "/page/api/count", "/page/api/preview"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with a file of each kind."""
    folder = tmp_path_factory.mktemp("static")
    (folder / "index.html").write_text("<!doctype html><title>hello</title>")
    (folder / "app.js").write_text("1;")
    (folder / "app.css").write_text("a{}")
    (folder / "fonts").mkdir()
    (folder / "fonts" / "plain.woff2").write_bytes(b"wOF2")
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    (folder / "red.png").write_bytes(png("red"))
    (folder / "samples.json").write_text("[]")
    return folder


@pytest.fixture(scope="module")
def locked(built: Path, samples: Path) -> Iterator[Live]:
    """A server with a key and a small page."""
    with running(page=pages.routes(built, samples), keys=frozenset({hash_key(KEY)})) as live:
        yield live


@pytest.fixture(scope="module")
def echo() -> Iterator[Live]:
    with running(page=routes()) as live:
        yield live


@pytest.fixture(scope="module")
def thimble() -> Iterator[Live]:
    with trifocal.load() as llava, running(llava, routes()) as live:
        yield live


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page/index.html", "text/html; charset=utf-8"),
        ("/page/app.js", "text/javascript; charset=utf-8"),
        ("/page/app.css", "text/css; charset=utf-8"),
        ("/page/fonts/plain.woff2", "font/woff2"),
        ("/page/samples/red.png", "image/png"),
    ],
)
def test_files_need_no_key_and_are_asked_for_again_only_when_they_changed(locked: Live, path: str, kind: str) -> None:
    with locked.client() as client:
        first = client.get(path)
        assert first.status_code == 200
        assert first.headers["content-type"] == kind
        assert first.headers.get_list("cache-control") == ["no-cache"]
        assert first.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'self'" in first.headers["content-security-policy"]
        again = client.get(path, headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"if-none-match": '"other"'}).content == first.content
        head = client.head(path)
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", first.headers["etag"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/"), ("GET", "/nothing"), ("POST", "/v1/nothing"), ("GET", "/page"), ("GET", "/page/"),
        ("GET", "/page/nothing.js"), ("GET", "/page/api/nothing"), ("POST", "/page/app.js"), ("GET", "/page/app.js/"),
        ("GET", "/page/fonts/../app.js"), ("GET", "/page/%2e%2e/pages.py"), ("GET", "/page/..%2fpages.py"),
        ("GET", "/page/fonts%2fplain.woff2x"), ("GET", "/page/samples/samples.json"), ("GET", "/PAGE/app.js"),
    ],
)  # fmt: skip
def test_nothing_else_is_public(locked: Live, method: str, path: str) -> None:
    def status(headers: dict[str, str]) -> int:
        connection = HTTPConnection("127.0.0.1", locked.port, timeout=PATIENCE)  # sends the path as it is spelt
        with closing(connection):
            connection.request(method, path, headers=headers)
            return connection.getresponse().status

    assert status({}) == 401
    assert status({"authorization": f"Bearer {KEY}"}) in (404, 405)


def test_a_page_that_is_not_built_or_holds_strange_files_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not built"):
        pages.routes(tmp_path, built)
    (tmp_path / "index.html").write_text("")
    (tmp_path / "secret.pem").write_text("")
    with pytest.raises(UsageError, match=r"secret\.pem"):
        pages.routes(tmp_path, built)


def test_info_tells_the_model_its_parts_and_the_limits(thimble: Live) -> None:
    with thimble.client() as client:
        told = client.get("/page/api/info").json()
    assert (told["name"], told["family"], told["bundled"], told["context"]) == ("thimble", "llava-1.5", True, 4096)
    assert told["template"] == "llava_v0_webui"
    assert told["templates"] == list(TEMPLATES)
    assert told["system"] == get_template("llava_v0_webui").system
    assert told["systems"]["chatml_direct"] == "Answer the questions."
    assert (told["images"], told["fit"]) == ("all", "pad")
    assert told["fit_words"].endswith(".")
    assert [part["part"] for part in told["parts"]] == ["tower", "projector", "language"]
    assert all(part["device"] == "cpu" and part["dtype"] == "float32" for part in told["parts"])
    sizes = {part["part"]: part["bytes"] for part in told["parts"]}
    assert sizes["projector"] == 2 * 4 * (256 * 256 + 256)
    assert 20e6 < sizes["tower"] < 30e6
    assert told["engine"] == {"name": "native", "explains": True, "explains_not": None}
    assert told["limits"]["formats"] == ["JPEG", "PNG", "WEBP", "GIF"]
    assert told["limits"]["body_bytes"] == 32 << 20
    assert all(line.startswith("trifocal ") for line in told["needs"])


def test_info_of_an_engine_that_cannot_tell_says_so(echo: Live) -> None:
    with echo.client() as client:
        told = client.get("/page/api/info").json()
    assert told["bundled"] is True  # its checkpoint is, whatever it is called
    assert told["parts"] == []
    assert told["engine"]["explains"] is False
    assert "echo" in told["engine"]["explains_not"]


def talk(*, turns: int, text: str = "What is it?") -> list[dict[str, Any]]:
    """A conversation with a picture in each question; the last one is not answered yet."""
    question = user({"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": data_uri()}})
    answer = {"role": "assistant", "content": "Red."}
    return [question, *([answer, question] * (turns - 1))]


def test_count_tells_each_message_and_adds_up(echo: Live) -> None:
    with echo.client() as client:
        told = client.post(COUNT, json={"messages": talk(turns=2), "max_tokens": 100}).json()
    assert (told["context"], told["answer"], told["fits"]) == (4096, 100, True)
    assert told["total"] == told["text"] + told["pictures"]
    assert told["pictures"] == 8
    assert [turn["text"] for turn in told["messages"]] == [11, 4, 11]  # the echo's tokens are bytes
    assert [turn["pictures"] for turn in told["messages"]] == [[4], [], [4]]
    assert not any(turn["left_out"] for turn in told["messages"])
    assert told["left_out"] == []
    assert told["next"].startswith("the 2 oldest messages with 1 picture (")


def test_count_says_which_pictures_and_turns_are_left_out() -> None:
    engine = Gated(hidden=HIDDEN, context=256)
    with running(make_llava(engine), routes()) as live, live.client() as client:
        chosen = client.post(COUNT, json={"messages": talk(turns=2), "images": "last", "max_tokens": 1}).json()
        short = client.post(COUNT, json={"messages": talk(turns=2), "max_tokens": 50}).json()
        bound = client.post(COUNT, json={"messages": talk(turns=1), "max_tokens": 250}).json()
        full = client.post(COUNT, json={"messages": [user("x" * 300)], "max_tokens": 50}).json()
    assert [turn["pictures_left_out"] for turn in chosen["messages"]] == [[True], [], [False]]
    assert chosen["left_out"] == ["1 earlier picture (images=last)"]
    assert [turn["left_out"] for turn in short["messages"]] == [True, True, False]
    assert short["messages"][0]["pictures_left_out"] == [True]
    assert short["pictures"] == 4
    assert (short["next"], short["fits"]) == (None, True)
    assert (bound["answer"], bound["next"], bound["fits"]) == (64, None, True)
    assert (full["next"], full["fits"]) == (None, False)


def test_count_is_what_the_answer_then_takes(thimble: Live) -> None:
    with thimble.client() as client:
        for template in ("llava_v0_webui", "llava_v1"):
            counted = client.post(COUNT, json={"messages": talk(turns=2), "template": template}).json()
            body = {"messages": talk(turns=2), "max_tokens": 1, "trifocal": {"template": template}}
            usage = client.post("/v1/chat/completions", json=body).json()["usage"]
            assert usage["prompt_tokens"] == counted["total"]
            assert usage["prompt_tokens_details"]["image_tokens"] == counted["pictures"] == 512


def test_count_and_preview_do_not_wait_for_answers_but_explain_does() -> None:
    engine = Gated(hidden=HIDDEN)
    with running(make_llava(engine), routes(), queue=0) as live, live.client() as client:
        engine.gate.clear()
        chat = threading.Thread(
            target=lambda: client.post("/v1/chat/completions", json={"messages": [user("Hi")], "max_tokens": 1})
        )
        chat.start()
        until(lambda: engine.open, "the answer")
        assert client.post(COUNT, json={"messages": talk(turns=1)}).status_code == 200
        light = live.listener.app.state.server.pools["light"].admission
        until(lambda: not light.running, "the end of the counting")  # its place goes with its thread
        assert client.post(PREVIEW, json={"image": data_uri()}).status_code == 200
        answered = [*talk(turns=1), {"role": "assistant", "content": "Red."}]
        assert error_of(client.post("/page/api/explain", json={"messages": answered}), 503)["code"] == "server_busy"
        engine.gate.set()
        chat.join(PATIENCE)
        assert live.settled()


def test_counting_cannot_be_used_to_flood() -> None:
    llava = make_llava()
    held, free = threading.Event(), threading.Event()
    looks = llava.gallery.vision.looks

    def slowly(*given: Any) -> list[Look]:
        held.set()
        assert free.wait(PATIENCE)
        return looks(*given)

    llava.gallery.vision.looks = slowly  # type: ignore[method-assign]
    with running(llava, routes(), queue=0) as live, live.client() as client:
        first = threading.Thread(target=lambda: client.post(COUNT, json={"messages": talk(turns=1)}))
        first.start()
        assert held.wait(PATIENCE)
        for path, body in ((COUNT, {"messages": talk(turns=1)}), (PREVIEW, {"image": data_uri()})):
            assert error_of(client.post(path, json=body), 503)["code"] == "server_busy"
        assert client.post("/v1/chat/completions", json={"messages": [user("Hi")], "max_tokens": 1}).status_code == 200
        free.set()
        first.join(PATIENCE)
        assert live.settled()


def test_what_the_page_asks_for_waits_in_its_pool() -> None:
    pools = {getattr(route, "path", ""): needs_of(route) for route in routes()}
    assert {path: told.pool for path, told in pools.items() if told and told.pool} == {
        "/page/api/count": "light",
        "/page/api/preview": "light",
        "/page/api/explain": "answers",
    }


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [user("Hi")], "images": "some"}, "invalid_value", "images"),
        ({"messages": [user("Hi")], "template": "llava_v9"}, "invalid_value", "template"),
        ({"messages": [user("Hi")], "max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"messages": [user("Hi")], "temperature": 1}, "unknown_parameter", "temperature"),
        (
            {"messages": [{"role": "assistant", "content": data_uri() + "A" * 600}]},
            "invalid_value",
            "messages[0].content",
        ),
    ],
)
def test_a_bad_count_is_refused(echo: Live, body: Any, code: str, param: str) -> None:
    with echo.client() as client:
        error = error_of(client.post(COUNT, json=body))
    assert (error["code"], error["param"]) == (code, param)


def decoded(uri: str) -> Pictures.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Pictures.open(BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("size", [(300, 200), (100, 250), (224, 224)])
def test_the_preview_is_what_the_model_is_shown(thimble: Live, size: tuple[int, int]) -> None:
    data = png("orange", size)
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    with thimble.client() as client:
        told = client.post(PREVIEW, json={"image": uri}).json()
    assert (told["size"], told["fit"], told["positions"]) == (list(size), "pad", 256)
    (tile,) = told["tiles"]
    expected = shown(from_bytes(data), thimble.llava.checkpoint.preprocessing)
    assert decoded(tile["image"]).tobytes() == expected.tobytes()
    assert (tile["title"], tile["box"], told["seen"]) == ("whole", [0, 0, 1, 1], [0, 0, 1, 1])


@pytest.mark.parametrize(
    ("image", "code"),
    [
        ("data:image/png;base64,aGVsbG8=", "invalid_image"),
        ("data:text/plain;base64,aGVsbG8=", "invalid_image"),
        ("https://example.com/cat.png", "image_url_not_allowed"),
        ("hello", "image_url_not_allowed"),
    ],
)
def test_what_is_no_picture_has_no_preview(echo: Live, image: str, code: str) -> None:
    with echo.client() as client:
        assert error_of(client.post(PREVIEW, json={"image": image}))["code"] == code


def test_a_template_may_be_chosen_for_each_request(echo: Live) -> None:
    def said(client: httpx.Client, **ours: Any) -> str:
        body = {"messages": [user("Hi")], "trifocal": ours}
        text: str = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        return text

    with echo.client() as client:
        assert said(client).endswith("USER: Hi ASSISTANT:")
        assert said(client, template="vicuna_v1_webui").endswith("\n\nUSER: Hi\nASSISTANT:")
        error = error_of(
            client.post("/v1/chat/completions", json={"messages": [user("Hi")], "trifocal": {"template": "nonsense"}})
        )
        assert (error["code"], error["param"]) == ("invalid_value", "trifocal.template")
        raw = {"prompt": "Hi", "trifocal": {"template": "llava_v0"}}
        assert error_of(client.post("/v1/completions", json=raw))["code"] == "unsupported_parameter"


def test_its_twin_with_another_policy_is_found(locked: Live) -> None:
    check = lambda: test_files_need_no_key_and_are_asked_for_again_only_when_they_changed(  # noqa: E731
        locked, "/", "text/html; charset=utf-8"
    )
    is_found(check, guard, "PAGE_POLICY", "default-src *")


def test_its_twin_that_reads_paths_is_found() -> None:
    """A page whose files are looked for on the disk, wherever a path leads."""
    any_file = lambda request: FileResponse(pages.STATIC / request.path_params["path"])  # noqa: E731
    page = [*routes(), Route("/page/{path:path}", any_file, name="page")]
    with running(page=page, keys=frozenset({hash_key(KEY)})) as live, pytest.raises(GONE):
        test_nothing_else_is_public(live, "GET", "/page/%2e%2e/pages.py")


def test_its_twin_that_shows_another_picture_is_found(thimble: Live) -> None:
    negative = lambda view: shown_uri(replace(view, picture=ImageOps.invert(view.picture)))  # noqa: E731
    check = lambda: test_the_preview_is_what_the_model_is_shown(thimble, (300, 200))  # noqa: E731
    is_found(check, preview, "_uri", negative)


shown_uri = preview._uri
