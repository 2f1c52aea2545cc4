"""A tower elsewhere: real processes of ``trifocal see``, asked, killed in the middle of a request, and lying relays."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch
from click.testing import CliRunner
from live import data_uri, error_of, running, user
from PIL import Image as Pictures

import trifocal
from layouts import family, save_hf
from little_server import Dripping, Held, answer, little
from trifocal.checkpoints import find_checkpoint
from trifocal.cli.ask import ask
from trifocal.cli.inspect import inspect
from trifocal.cli.see import see
from trifocal.conversation.templates import Control
from trifocal.errors import BadImage, UsageError, VisionError
from trifocal.images import Image, from_bytes, from_frames, from_pil
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.vision import Gallery, Vision, elsewhere, open_vision
from trifocal.vision.elsewhere import VisionElsewhere, open_elsewhere
from trifocal.vision.wire import encoded, layout_from, layout_to, pack, picture_from, rows_digest, size_of, unpack
from waiting import PATIENCE, until

pytestmark = pytest.mark.usefixtures("forked")

KEY = "0123456789abcdef-sees"
ENVIRON = {"TRIFOCAL_VISION_KEY": KEY}


@dataclass
class Seer:
    """A process of ``trifocal see``."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, key: str = KEY) -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False)

    def unread(self) -> int:
        """Bytes of requests that lie there and that it has not read."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        mine = [row for row in rows if int(row[1].split(":")[1], 16) == self.port and row[3] == "01"]
        return sum(int(row[4].split(":")[1], 16) for row in mine)


@contextmanager
def seeing(folder: Path, *options: str) -> Iterator[Seer]:
    command = [sys.executable, "-m", "trifocal", "see", "--port", "0", *options]
    environment = {**os.environ, "TRIFOCAL_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    log = folder / f"{time.monotonic_ns()}.log"  # and no pipe: nobody reads on, and a full one stops who writes

    def address() -> re.Match[str] | None:
        return re.search(r"is served at (http://127.0.0.1:\d+)", log.read_text("utf-8"))

    with log.open("wb") as said, subprocess.Popen(command, stderr=said, env=environment, cwd=folder) as process:
        try:
            until(lambda: address() or process.poll() is not None, "its address")
            found = address()
            assert found, log.read_text("utf-8")
            yield Seer(process, found[1])
        finally:
            process.kill()


@pytest.fixture(scope="module")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seer]:
    """A process that lives as long as this file's tests."""
    with seeing(tmp_path_factory.mktemp("seer")) as found:
        yield found


@pytest.fixture(scope="module")
def local() -> Vision:
    return open_vision(find_checkpoint("thimble"), Placement("cpu"), Placement("cpu"))


def noise(width: int, height: int, seed: int, bands: int = 3) -> Image:
    drawn = torch.randint(
        0, 256, (height, width, bands), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return from_pil(Pictures.fromarray(drawn.numpy()), name=f"noise {seed}")


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    return len(found) == len(wanted) and all(
        one.dtype == other.dtype and torch.equal(one, other) for one, other in zip(found, wanted, strict=True)
    )


def test_rows_of_another_process_are_those_of_this_one_bit_for_bit(seer: Seer, local: Vision) -> None:
    vision = open_elsewhere(seer.url, ENVIRON)
    assert (vision.hidden, vision.identity) == (local.hidden, local.identity)
    assert [part.what for part in vision.parts] == [part.what for part in local.parts]  # type: ignore[attr-defined]
    pictures = [noise(70, 50, 1), noise(9, 200, 2), noise(64, 64, 3, bands=4), noise(70, 50, 1), noise(1, 1, 4)]
    looks = vision.looks(pictures)
    assert [look.layout for look in looks] == [look.layout for look in local.looks(pictures)]
    rows = vision.see(looks)
    assert rows[0].dtype == torch.float32
    assert same(rows, Gallery(local).rows(local.looks(pictures)))
    assert looks[0] == looks[3]
    assert vision.looks([pictures[0]])[0] == looks[0]  # in whatever company: known again
    assert vision.see([]) == vision.looks([]) == []


def test_tiles_and_videos_are_seen_there_as_here(tmp_path: Path) -> None:
    folder = save_hf(family("onevision"), tmp_path / "onevision")
    local = open_vision(find_checkpoint(str(folder)), Placement("cpu"), Placement("cpu"))
    video = from_frames([noise(40, 30, seed) for seed in range(3)])
    with seeing(tmp_path, "-m", str(folder), "--tower", "cpu", "--projector", "cpu") as other:
        vision = open_elsewhere(other.url, ENVIRON)
        assert vision.identity == local.identity
        # a picture by itself is cut in tiles, one among others is not: its company travels with it
        for pictures in ([noise(70, 30, 1)], [noise(70, 30, 1), noise(30, 50, 2)], [video], [noise(9, 8, 3), video]):
            looks = vision.looks(pictures)
            assert [look.layout for look in looks] == [look.layout for look in local.looks(pictures)]
            assert same(vision.see(looks), Gallery(local).rows(local.looks(pictures)))
        alone, among = vision.looks([noise(70, 30, 1)])[0], vision.looks([noise(70, 30, 1), noise(30, 50, 2)])[0]
        assert alone != among
        assert [len(rows) for rows in vision.see([among, alone])] == [among.rows, alone.rows]


def test_many_who_ask_at_once_get_their_own_rows(seer: Seer, local: Vision) -> None:
    pictures = [noise(30 + number, 40, number) for number in range(24)]

    def ask(image: Image) -> torch.Tensor:
        vision = open_elsewhere(seer.url, ENVIRON)
        return vision.see(vision.looks([image]))[0]

    with ThreadPoolExecutor(24) as threads:
        rows = list(threads.map(ask, pictures))
    alone = [local.see(local.looks([image]))[0] for image in pictures]
    for each, other in zip(rows, alone, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-5)


def test_a_whole_answer_is_the_same(seer: Seer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_VISION_KEY", KEY)
    picture, sampling = trifocal.open_image("docs/example.png"), Sampling(max_tokens=20)
    with trifocal.load() as here, trifocal.load(vision=seer.url) as there:
        wanted = here.complete([here.question("What is in the picture?", [picture])], sampling)
        found = there.complete([there.question("What is in the picture?", [picture])], sampling)
        assert found.text == wanted.text
        assert found.text
        assert seer.url in [part.device for part in there.parts]
        assert there.preview(picture) is None
        assert there.explains_not
    command = ["docs/example.png", "What is in the picture?", "--vision", seer.url, "--max-tokens", "20"]
    told = CliRunner().invoke(ask, command, catch_exceptions=False)
    assert wanted.text in told.output
    monkeypatch.delenv("TRIFOCAL_VISION_KEY")
    with pytest.raises(VisionError, match=r"127.0.0.1.*status 401.*a key is needed"):
        trifocal.load(vision=seer.url)


def test_who_dies_in_the_middle_of_a_request_is_replaced(tmp_path: Path, seer: Seer, local: Vision) -> None:
    with seeing(tmp_path) as other:
        vision = open_elsewhere(f"{other.url}, {seer.url}", ENVIRON)
        pictures = [noise(50, 50, seed) for seed in range(100, 108)]
        looks = vision.looks(pictures)
        other.process.send_signal(signal.SIGSTOP)  # it takes what is sent, and does nothing
        with ThreadPoolExecutor(1) as threads:
            rows = threads.submit(vision.see, looks)
            until(other.unread, "the request")
            assert not rows.done()
            other.process.kill()
            for each, other_rows in zip(rows.result(PATIENCE), local.see(local.looks(pictures)), strict=True):
                torch.testing.assert_close(each, other_rows, rtol=1e-5, atol=1e-5)  # seen in other company: close
        alone = open_elsewhere(f"{other.url},{seer.url}", ENVIRON)  # one of them is there
        assert len(alone.see(alone.looks(pictures[:1]))) == 1
        with pytest.raises(VisionError, match=f"no vision server answers .{other.url}: .*trifocal see"):
            open_elsewhere(other.url, ENVIRON)


def test_where_nobody_is_left_the_error_names_everybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_VISION_KEY", KEY)
    with seeing(tmp_path) as only, trifocal.load(vision=only.url) as llava, running(llava) as front:
        vision = open_elsewhere(only.url, ENVIRON)
        looks = vision.looks([noise(20, 20, 5)])
        only.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as threads:
            rows = threads.submit(vision.see, looks)
            until(only.unread, "the request")
            only.process.kill()
            with pytest.raises(VisionError, match=f"no vision server could be asked .{only.url}: "):
                rows.result(PATIENCE)
        with front.client() as client:
            picture = {"type": "image_url", "image_url": {"url": data_uri()}}
            body = {"model": "thimble", "max_tokens": 4, "messages": [user({"type": "text", "text": "Hi"}, picture)]}
            refused = error_of(client.post("/v1/chat/completions", json=body), 503)
            assert (refused["code"], "127.0.0.1" in refused["message"]) == ("vision_unavailable", False)
            body["messages"] = [user("Hi")]  # who shows nothing is answered
            assert client.post("/v1/chat/completions", json=body).status_code == 200


def test_another_vision_is_never_taken_for_this_one(tmp_path: Path, seer: Seer) -> None:
    with seeing(tmp_path, "--tower", "cpu/bfloat16") as other:
        with pytest.raises(UsageError, match="see differently"):
            open_elsewhere(f"{seer.url},{other.url}", ENVIRON)
        vision = open_elsewhere(other.url, ENVIRON)
        image = noise(20, 20, 6)
        with other.client() as client:
            sizes = {"identity": open_elsewhere(seer.url, ENVIRON).identity, "sizes": [[20, 20, 0]]}
            answer = client.post("/v1/vision/looks", json=sizes)
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "other_vision")
        assert len(vision.see(vision.looks([image]))) == 1
        other.process.send_signal(signal.SIGTERM)
        other.process.wait(PATIENCE)
        assert other.process.returncode == 0


@contextmanager
def relay(seer: Seer, change: Callable[[bytes], bytes] = bytes, *, cut: int = 0, full: int = 0) -> Iterator[str]:
    """The address of a relay to a server that changes what it answers about rows, or leaves out its end.

    It has no room for the first ``full`` of such requests.
    """
    left = [full]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._pass_on("GET", b"")

        def do_POST(self) -> None:
            self._pass_on("POST", self.rfile.read(int(self.headers["content-length"])))

        def _pass_on(self, method: str, body: bytes) -> None:
            kind = {"content-type": self.headers["content-type"]} if body else {}
            with seer.client() as client:
                answer = client.request(method, self.path, content=body, headers=kind)
            about_rows = self.path.endswith("/see")
            if about_rows and left[0]:
                left[0] -= 1
                self.send_error(503)
                return
            content = change(answer.content) if about_rows else answer.content
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - cut] if about_rows else content)

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def other_facts(**facts: object) -> Callable[[bytes], bytes]:
    def change(answer: bytes) -> bytes:
        tensors, text = unpack(answer)
        return pack(tensors, {**json.loads(text), **facts})

    return change


def other_rows(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[bytes], bytes]:
    """The answer with other rows, of which the rest is true."""

    def changed(answer: bytes) -> bytes:
        tensors, text = unpack(answer)
        rows = {name: change(each) for name, each in tensors.items()}
        ordered = [rows[str(number)] for number in range(len(rows))]
        dtype = str(ordered[0].dtype).removeprefix("torch.")
        return pack(rows, {**json.loads(text), "dtype": dtype, "digest": rows_digest(ordered)})

    return changed


def one_row_less(answer: bytes) -> bytes:
    tensors, text = unpack(answer)
    return pack({name: rows[1:] for name, rows in tensors.items()}, json.loads(text))


@pytest.mark.parametrize(
    ("change", "cut", "reason"),
    [
        (lambda answer: answer[:-1] + bytes([answer[-1] ^ 1]), 0, "digest"),
        (other_facts(identity="another"), 0, "another vision"),
        (other_facts(dtype="float16"), 0, "another precision"),
        (one_row_less, 0, "promised"),
        (other_rows(lambda rows: rows.int()), 0, "of none that rows have"),
        (other_rows(lambda rows: rows.to(torch.float8_e5m2)), 0, "of none that rows have"),
        (other_rows(lambda rows: rows.double()), 0, "of none that rows have|more than"),
        (other_rows(lambda rows: rows * float("nan")), 0, "no finite numbers"),
        (other_rows(lambda rows: rows + float("inf")), 0, "no finite numbers"),
        (other_rows(lambda rows: rows[None]), 0, "promised"),
        (lambda answer: b"\xff" * 64, 0, "no safetensors"),
        (lambda answer: answer + b"\0" * (4 << 20), 0, "more than"),
        (lambda answer: answer, 100, "IncompleteRead"),
    ],
)
def test_an_answer_that_is_not_to_be_believed_is_not(
    seer: Seer, local: Vision, change: Callable[[bytes], bytes], cut: int, reason: str
) -> None:
    image = noise(33, 44, 7)
    with relay(seer, change, cut=cut) as url:
        vision = open_elsewhere(url, ENVIRON)
        with pytest.raises(VisionError, match=reason):
            vision.see(vision.looks([image]))
        both = open_elsewhere(f"{url},{seer.url}", ENVIRON)
        for seed in range(4):  # whoever is asked first
            picture = noise(33, 44, seed)
            assert same(both.see(both.looks([picture])), local.see(local.looks([picture])))


FACTS = {"protocol": 1, "hidden": 8, "identity": "x", "body_bytes": 1 << 20, "parts": []}


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (answer(b"{"), "protocol"),
        (answer({**FACTS, "hidden": True}), "its hidden"),
        (answer({**FACTS, "hidden": -8}), "a width of -8"),
        (answer({**FACTS, "body_bytes": 0}), "0 bytes that it takes"),
        (answer({**FACTS, "parts": None}), "its parts"),
        (answer({}, "302 Found", location="http://127.0.0.1:9/"), "status 302"),
        (Dripping(b"HTTP/1.1 100 Continue\r\n\r\n"), "too long|timed out"),
        (Dripping(b" ").after(answer(b"{}" + b" " * (1 << 20))[: -1 << 20]), "too long|timed out"),
        (Held(answer(b"{}" * 99)[:-50]), "too long|timed out"),
    ],
)
def test_a_server_that_is_none_is_told_in_time(told: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "SLOWEST", 1 << 30)
    with little(told) as there, pytest.raises(VisionError, match=reason):
        open_elsewhere(there.url, ENVIRON, seconds=0.5)


@pytest.mark.parametrize("layout", [[1 << 60], [-1], [True], [1.5], "many", [{"token": 3, "needed": True}], 7])
def test_looks_that_are_none(layout: object) -> None:
    looks = {"identity": "x", "looks": [{"layout": layout, "way": "plain"}]}
    with little(answer(FACTS), answer(looks)) as there:
        vision = open_elsewhere(there.url, ENVIRON)
        with pytest.raises(VisionError, match="not what was asked for"):
            vision.looks([noise(8, 8, 1)])


def test_a_full_server_is_asked_again(seer: Seer, local: Vision) -> None:
    image = noise(33, 44, 9)
    with relay(seer, full=2) as url:
        vision = open_elsewhere(url, ENVIRON)
        assert same(vision.see(vision.looks([image])), local.see(local.looks([image])))


def body_of(vision: VisionElsewhere, image: Image, **changes: object) -> bytes:
    """A request for a picture's rows with some of what it says changed."""
    (look,) = vision.looks([image])
    asked = {"digest": image.digest, "way": look.way.name, "prompt": 0, "at": 0}  # type: ignore[attr-defined]
    facts = {"identity": vision.identity, "prompts": [[size_of(image)]], "looks": [asked]}
    for name, value in changes.items():
        (facts if name in facts else asked)[name] = value  # type: ignore[assignment]
    (file,) = encoded(image)
    return pack({"0.0": torch.frombuffer(bytearray(file), dtype=torch.uint8)}, facts)


def test_what_no_client_of_ours_sends_is_refused(seer: Seer) -> None:
    vision, image = open_elsewhere(seer.url, ENVIRON), noise(12, 12, 8)
    with seer.client() as client:

        def see(body: bytes) -> tuple[int, str]:
            answer = client.post("/v1/vision/see", content=body)
            return answer.status_code, answer.json()["error"]["code"]

        assert client.post("/v1/vision/see", content=body_of(vision, image)).status_code == 200
        assert see(b"") == see(b"{}") == see(b"\xff" * 100) == (400, "invalid_value")
        assert see(body_of(vision, image, identity="x")) == (409, "other_vision")
        assert see(body_of(vision, image, way="x")) == (409, "other_look")
        assert see(body_of(vision, image, digest="x")) == (400, "other_picture")
        assert see(body_of(vision, image, prompts=[[(12, 13, 0)]])) == (400, "other_picture")
        assert see(body_of(vision, image, at=1)) == see(body_of(vision, image, prompt=7)) == (400, "invalid_value")
        assert see(body_of(vision, image, looks=[])) == (400, "invalid_value")
        assert see(body_of(vision, image, more=1)) == (400, "invalid_value")
        assert see(body_of(vision, image, prompts=[[(12, 12, 2)]])) == (400, "other_picture")
        for sizes in ([[0, 1, 0]], [[1, 1]], [[1, 1, -1]], [["1", 1, 0]], [[1.5, 1, 0]], None, [[1, 1, 0]] * 5000):
            answer = client.post("/v1/vision/looks", json={"identity": vision.identity, "sizes": sizes})
            assert answer.status_code == 400, sizes
        assert client.get("/v1/vision", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/v1/visions").status_code == 404
        assert client.get("/v1/vision/see").status_code == 405
        assert client.get("/metrics").text.count("trifocal_requests") > 1
    with seer.client("another key altogether") as client:
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200
        assert client.get("/v1/vision").status_code == client.post("/v1/vision/see").status_code == 401


def test_a_picture_that_is_refused_there_is_named_as_it_is_here(seer: Seer, local: Vision) -> None:
    vision = open_elsewhere(seer.url, ENVIRON)
    video = from_frames([noise(8, 8, 1), noise(8, 8, 2)], name="film.mp4")
    for each in (local, vision):
        with pytest.raises(BadImage, match=r"film.mp4: this model takes pictures, not videos") as caught:
            each.looks([noise(8, 8, 3), video])
        assert caught.value.rule == "is_a_video"
    with pytest.raises(BadImage, match=r"long\.png: .*a side may have") as caught:
        vision.looks([from_pil(Pictures.new("RGB", (17_000, 30)), name="long.png")])
    assert caught.value.rule == "side_too_long"


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://a:99999999",
        "http://a:b",
        "ftp://a",
        "http://me:secret@a",
        "http://a?b",
        "http://a,",
        "http://a b",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="vision: "):
        open_elsewhere(address, {})


def test_a_checkpoint_is_the_same_wherever_it_is_seen() -> None:
    plain, elsewhere = (
        CliRunner().invoke(inspect, ["--json", *more], catch_exceptions=False).output
        for more in ([], ["--vision", "http://a:1"])
    )
    assert json.loads(elsewhere) == json.loads(plain)
    for command in (["--vision", "HTTP://a:1"], ["--vision", "https://a"]):
        with pytest.raises(UsageError, match="sees already"):
            CliRunner().invoke(see, command, catch_exceptions=False)


def test_what_must_be_said_where_the_tower_is_is_refused_here() -> None:
    for options in ({"tower": "cpu"}, {"projector": "cpu/float16"}, {"fit": "pad"}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}: the vision is at http://a:1; say --"):
            trifocal.load(vision="http://a:1", **options)


def test_what_travels_comes_back_as_it_was() -> None:
    layout = (3, "text", Control("<a>"), 2, Control("<b>", needed=False))
    assert layout_from(json.loads(json.dumps(layout_to(layout)))) == layout
    for bad in ("x", [True], [-1], [1.5], [{"token": "a"}], [None]):
        with pytest.raises(UsageError):
            layout_from(bad)
    video = from_frames([noise(5, 4, 1), noise(5, 4, 2)])
    seen_through = from_frames([noise(5, 4, 1, bands=4), noise(5, 4, 2)])
    for image in (video, seen_through, noise(7, 3, 3), noise(7, 3, 4, bands=4), from_bytes(encoded(noise(7, 3, 5))[0])):
        back = picture_from(encoded(image), size_of(image), image.digest, "it", trifocal.images.LIMITS)
        assert (back, size_of(back), back.known_by) == (image, size_of(image), image.digest)
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        rows = torch.tensor([[float("nan"), 1.0, -0.0]], dtype=kind)
        tensors, text = unpack(pack({"0": rows}, {"a": 1}))
        assert tensors["0"].view(torch.uint8).tolist() == rows.view(torch.uint8).tolist()
        assert (tensors["0"].dtype, json.loads(text)) == (kind, {"a": 1})
