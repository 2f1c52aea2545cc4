"""URLs of pictures: refused unless a host is allowed, and never followed to this machine (T-04, T-05)."""

from __future__ import annotations

import asyncio
import http.client
import http.server
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import httpx
import pytest
from live import error_of, png, running, user

from trifocal.api import fetch
from trifocal.api.fetch import Fetcher, Target, is_public, parse_url
from trifocal.errors import BadImage
from twins import is_found
from waiting import PATIENCE

HOSTS = [
    "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "017700000001", "0177.0.0.1", "LOCALHOST",
    "localhost", "①②⑦.⓪.⓪.①", "127。0。0。1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "0.0.0.0", "[::]",
    "2852039166", "0xa9fea9fe", "169.254.169.254", "[::127.0.0.1]", "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]",
    "224.0.0.1", "[ff02::1]", "[fec0::1]", "192.88.99.1", "168.63.129.16", "192.0.0.192", "100.100.100.200",
    "198.18.0.1", "240.0.0.1", "[fd00:ec2::254]", "[fe80::1%lo]", "[2001:0::1]", "ⓛocalhost", "good.example.",
    "a@good.example", "good.example:22", "good.example:0x50", "good.example:80:80", "good.example:8443",
    "127.0.0.1:{port}", "localhost:{port}", "good.example%00.evil", "good.example%09", "evil.example",
    "user:pass@good.example", "good..example",
]  # fmt: skip
URLS = [
    "http://127.0.0.1:{port}\\@1.1.1.1/", "http://good.example\\@127.0.0.1/", "https://good.example\\@127.0.0.1:{port}/",
    "http://good.example\t.evil/", " https://good.example/a", "\x01https://good.example/", "http:///127.0.0.1/",
    "HTTPS:good.example", "file:///etc/passwd", "file://localhost/etc/passwd", "ftp://good.example/a",
    "gopher://127.0.0.1:{port}/x", "dict://127.0.0.1:{port}/", "jar:https://good.example!/", "//127.0.0.1:{port}/",
    "https://good.example#@127.0.0.1:{port}/", "https://good.example?@127.0.0.1:{port}/", "/etc/passwd", "a.png",
    "blob:https://good.example/x", "javascript:alert(1)", "https://good.example/\r\nHost: x", "https://", "x" * 5000,
]  # fmt: skip
CLOSED = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "192.168.1.1", "192.0.0.192", "192.88.99.1", "198.18.0.1", "168.63.129.16", "224.0.0.1",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::", "2001:0::1", "fd00:ec2::254", "fe80::1", "fe80::1%lo",
    "fec0::1", "ff02::1", "2001:db8::1", "nonsense",
]  # fmt: skip


class Canary(http.server.BaseHTTPRequestHandler):
    """Counts whoever comes; nobody should."""

    hits = 0

    def do_GET(self) -> None:
        type(self).hits += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(png())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def canary() -> Iterator[tuple[int, type[Canary]]]:
    class Mine(Canary):
        hits = 0

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, Mine
    server.shutdown()
    thread.join(PATIENCE)
    server.server_close()


def test_no_form_of_an_address_reaches_this_machine(canary: tuple[int, type[Canary]]) -> None:
    urls = [f"{scheme}://{host}/a.png" for scheme in ("http", "https") for host in HOSTS] + URLS
    assert len(urls) >= 60
    none_comes(canary, urls)


def none_comes(canary: tuple[int, type[Canary]], urls: Sequence[str]) -> None:
    """Whichever way a URL comes in, it is refused and nobody comes to the canary."""
    port, hits = canary
    urls = [url.replace("{port}", str(port)) for url in urls]
    allowed = ("good.example", "localhost", "127.0.0.1", "127.1", "2130706433", "0")
    with running(url_hosts=allowed) as live, live.client() as client:
        for url in urls:
            content = [{"type": "image_url", "image_url": {"url": url}}]
            for stream in (False, True):
                error = error_of(
                    client.post("/v1/chat/completions", json={"messages": [user(*content)], "stream": stream})
                )
                assert error["code"] in ("invalid_image_url", "image_url_not_allowed", "invalid_image"), url
                assert "127.0.0.1" not in error["message"]
            tag = {"prompt": f'<img src="{url}">'}
            assert client.post("/api/v1/generate", json=tag).status_code == 400
    assert hits.hits == 0


def test_urls_are_off_by_default(client: httpx.Client) -> None:
    content = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    error = error_of(client.post("/v1/chat/completions", json={"messages": [user(content)]}))
    assert error["code"] == "image_url_not_allowed"
    assert "--url-host" in error["message"]


@pytest.mark.parametrize("address", CLOSED)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_a_plain_url_is_read_in_one_way() -> None:
    target = parse_url("https://Good.Example/a/b.png?x=1&y=%20")
    assert (target.scheme, target.host, target.port, target.path) == (
        "https",
        "good.example",
        443,
        "/a/b.png?x=1&y=%20",
    )


class Answer:
    """What a host would answer: a status, a body in pieces, headers."""

    def __init__(self, status: int, pieces: Sequence[bytes] = (), **headers: str) -> None:
        self.status, self._pieces = status, list(pieces)
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def read1(self, _: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


class FakeFetcher(Fetcher):
    """The fetcher with the wire replaced; parsing, lists, addresses, redirects and limits are the real ones."""

    def __init__(self, answers: dict[str, Answer], addresses: Sequence[str] = ("1.1.1.1",), limit: int = 1000) -> None:
        super().__init__(("good.example", "also.example"), limit, resolve=lambda host, port: addresses)
        self.answers, self.asked = answers, []  # type: ignore[var-annotated]

    def _open(self, address: str, target: Any, until: float) -> Any:
        fetcher = self

        class Connection:
            sock = None

            def request(self, method: str, path: str, headers: dict[str, str]) -> None:
                fetcher.asked.append((address, target.host, path))
                assert "Cookie" not in headers

            def getresponse(self) -> Answer:
                return fetcher.answers[path_of(fetcher.asked[-1])]

            def close(self) -> None:
                pass

        return Connection()


def path_of(asked: tuple[str, str, str]) -> str:
    return f"{asked[1]}{asked[2]}"


def follow(fetcher: Fetcher, url: str = "https://good.example/a") -> bytes:
    return fetcher._follow(url, "image")


def test_a_picture_is_fetched_from_the_checked_address() -> None:
    fetcher = FakeFetcher({"good.example/a": Answer(200, [b"pic", b"ture"])}, ["1.1.1.1", "8.8.8.8"])
    assert follow(fetcher) == b"picture"
    assert fetcher.asked == [("1.1.1.1", "good.example", "/a")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_checked_anew(status: int) -> None:
    to_ok = FakeFetcher({"good.example/a": Answer(status, Location="/b"), "good.example/b": Answer(200, [b"x"])})
    assert follow(to_ok) == b"x"
    for bad in (
        "http://127.0.0.1/",
        "https://evil.example/",
        "http://good.example/",
        "//127.0.0.1/",
        "file:///etc/x",
        "",
    ):
        fetcher = FakeFetcher({"good.example/a": Answer(status, Location=bad)})
        with pytest.raises(BadImage):
            follow(fetcher)
        assert {asked[1] for asked in fetcher.asked} == {"good.example"}


def test_redirects_end_after_three() -> None:
    loop = FakeFetcher({"good.example/a": Answer(302, Location="/a")})
    with pytest.raises(BadImage, match="over 3 redirects"):
        follow(loop)
    assert len(loop.asked) == 4


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["1.1.1.1", "127.0.0.1"], ["::1"], ["64:ff9b::7f00:1"], []])
def test_one_closed_address_among_the_answers_is_enough_to_refuse(addresses: list[str]) -> None:
    fetcher = FakeFetcher({"good.example/a": Answer(200, [b"x"])}, addresses)
    with pytest.raises(BadImage) as refused:
        follow(fetcher)
    assert refused.value.rule == "url_not_allowed"
    assert not fetcher.asked


def test_a_name_that_changes_its_address_is_asked_once() -> None:
    answers = iter([["1.1.1.1"], ["127.0.0.1"]] * 500)
    fetcher = FakeFetcher({"good.example/a": Answer(200, [b"x"])})
    fetcher._resolve = lambda host, port: next(answers)
    for _ in range(500):
        fetcher.answers["good.example/a"] = Answer(200, [b"x"])
        assert follow(fetcher) == b"x"
        with pytest.raises(BadImage):
            follow(fetcher)
    assert {asked[0] for asked in fetcher.asked} == {"1.1.1.1"}


def test_a_body_is_bounded_in_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadImage, match="over 1000 bytes"):
        follow(FakeFetcher({"good.example/a": Answer(200, [b"x" * 600] * 1000)}))
    with pytest.raises(BadImage):
        follow(FakeFetcher({"good.example/a": Answer(200, [b"x"], Content_Encoding="gzip")}))
    slow = FakeFetcher({"good.example/a": Answer(200, [b"x"] * 900)})
    clock = iter(range(100))
    monkeypatch.setattr("trifocal.api.fetch.monotonic", lambda: next(clock))
    with pytest.raises(BadImage, match="could not be fetched"):
        follow(slow)


def trusting(self: Fetcher, url: str, name: str) -> Target:
    """Any URL, of any host at any port."""
    found = httpx.URL(url)
    return Target(found.scheme, found.host, found.port or 80, found.path)


def test_its_twin_that_takes_any_url_is_found(
    canary: tuple[int, type[Canary]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lambda self, target, until, name: http.client.HTTPConnection(target.host, target.port)  # noqa: E731
    monkeypatch.setattr(Fetcher, "_connect", plain)
    is_found(lambda: none_comes(canary, ["http://127.0.0.1:{port}/a.png"]), Fetcher, "_allowed", trusting)
    assert canary[1].hits


def test_its_twin_to_which_every_address_is_public_is_found() -> None:
    check = lambda: test_one_closed_address_among_the_answers_is_enough_to_refuse(["127.0.0.1"])  # noqa: E731
    is_found(check, fetch, "is_public", lambda address: True)


def test_its_twin_that_asks_twice_for_an_address_is_found() -> None:
    """What is checked is one answer, what is connected to is the next."""

    def connected(self: Fetcher, target: Target, until: float, name: str) -> Any:
        if not all(map(is_public, self._resolve(target.host, target.port))):
            raise BadImage("url_not_allowed", "refused", name)
        return self._open(self._resolve(target.host, target.port)[0], target, until)

    is_found(test_a_name_that_changes_its_address_is_asked_once, Fetcher, "_connect", connected)


class Dripping(Fetcher):
    """A host that answers 100 Continue for ever, until its connection is shut down."""

    def __init__(self) -> None:
        super().__init__(("good.example",), 1000, resolve=lambda host, port: ["1.1.1.1"], seconds=0.1)
        self.near, self.far = socket.socketpair()
        self.ended = threading.Event()

    def _open(self, address: str, target: Any, until: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(target.host)
        connection.sock = self.near
        threading.Thread(target=self._drip).start()
        return connection

    def _drip(self) -> None:
        with self.far, suppress(OSError):
            while True:
                self.far.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                time.sleep(0.001)
        self.ended.set()


def test_a_host_that_drips_is_left_and_its_thread_comes_back() -> None:
    fetcher = Dripping()
    with pytest.raises(BadImage, match="within 0"):
        asyncio.run(fetcher.fetch("https://good.example/a", "image"))
    assert fetcher.ended.wait(PATIENCE)
    fetcher._threads.shutdown(wait=True)
    fetcher.near.close()
