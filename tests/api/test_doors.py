"""Who may come in: keys, host names, origins, and what they may send (T-14, T-15, T-16)."""

from __future__ import annotations

import hmac
import json
import logging
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

import httpx
import pytest
from live import Live, data_uri, error_of, full, running
from starlette.routing import BaseRoute
from starlette.types import Scope
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from trifocal.api import app, guard
from trifocal.api.errors import refuse
from trifocal.api.guard import matched
from trifocal.api.needs import NOTHING, Needs, needs_of
from trifocal.api.settings import ServerSettings, hash_key
from trifocal.errors import UsageError
from trifocal.web import routes
from twins import is_found
from waiting import PATIENCE, until

KEY = "correct-horse-battery-staple"
PATHS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/echo"),
    ("POST", "/v1/messages"),
    ("POST", "/api/v1/generate"),
    ("POST", "/api/v1/chat"),
    ("POST", "/api/v1/token-count"),
    ("GET", "/api/v1/model"),
    ("POST", "/api/v1/stop-stream"),
    ("POST", "/api/chat"),
    ("POST", "/api/generate"),
    ("GET", "/api/tags"),
    ("POST", "/api/show"),
    ("GET", "/api/version"),
    ("POST", "/v1/responses"),
    ("GET", "/api/ps"),
    ("POST", "/api/pull"),
    ("POST", "/api/embed"),
    ("POST", "/api/embeddings"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("POST", "/api/push"),
    ("DELETE", "/api/delete"),
    ("POST", "/v1/messages/count_tokens"),
    ("POST", "/v1/responses/input_tokens"),
    ("POST", "/v1/responses/compact"),
    ("GET", "/v1/internal/health"),
    ("GET", "/v1/internal/model/info"),
    ("GET", "/v1/internal/model/list"),
    ("GET", "/v1/internal/lora/list"),
    ("POST", "/v1/internal/encode"),
    ("POST", "/v1/internal/decode"),
    ("POST", "/v1/internal/token-count"),
    ("POST", "/v1/internal/stop-generation"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/props"),
    ("GET", "/api/v0/models"),
    ("POST", "/v1/embeddings"),
    ("GET", "/metrics"),
    ("GET", "/v1/limits"),
    ("GET", "/openapi.json"),
    ("GET", "/page/api/info"),
    ("GET", "/page/api/models"),
    ("POST", "/page/api/count"),
    ("POST", "/page/api/preview"),
    ("POST", "/page/api/explain"),
]


@pytest.fixture(scope="module")
def locked() -> Iterator[Live]:
    with running(page=routes(), keys=frozenset({hash_key(KEY)}), origins=("https://good.example",)) as live:
        yield live


def raw(live: Live, *lines: str, body: bytes = b"") -> bytes:
    """What the server says to a request written by hand."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=PATIENCE) as sock:
        sock.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
        return answer


def test_the_table_of_paths_is_all_there_is(locked: Live) -> None:
    served = locked.listener.app.router.routes
    known = {path for _, path in PATHS} | {"/v1/models/{name:path}", "/v1/responses/{id}"}
    known |= {"/api/v0/models/{name:path}", "/v1/responses/{id}/input_items", "/v1/responses/{id}/cancel"}
    known |= {"/api/v1/stream", "/api/v1/chat-stream"}
    paths = {getattr(route, "path", "") for route in served if getattr(route, "name", "") != "page"}
    assert paths - known == {"/livez", "/readyz", "/health"}
    public = {getattr(route, "name", "") for route in served if not (needs_of(route) or NOTHING).key}
    assert public == {"page", "livez", "readyz", "health"}


@pytest.mark.parametrize(("method", "path"), PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Basic {KEY}"},
        {"x-api-key": "wrong"},
        {"api-key": "wrong"},
        {"x-api-key": KEY.upper()},
    ],
)
def test_no_route_answers_without_the_key(locked: Live, method: str, path: str, headers: dict[str, str]) -> None:
    with locked.client() as client:
        response = client.request(method, path, headers=headers)
    error = error_of(response, 401)
    assert error["code"] in ("invalid_api_key", None)
    assert error["message"].startswith("a key is needed")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_the_key_opens_every_route(locked: Live, method: str, path: str) -> None:
    with locked.client() as client:
        for headers in ({"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"api-key": KEY}):
            assert client.request(method, path, headers=headers).status_code not in (401, 403, 404, 405, 500)


@pytest.mark.parametrize(
    "target",
    [
        "//v1/models", "/V1/models", "/v1/models/", "/v1/%6dodels", "/v1/models?x=/livez", "/livez/../v1/models",
        "/livez/%2e%2e/v1/models", "/v1\\models", "/%2fv1/models", "http://127.0.0.1/v1/models", "/livez/", "/livez;x",
        "/openapi.json", "/docs", "/v1/models%00", "/v1/models#/livez",
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT"])
def test_no_spelling_of_a_path_gets_round_the_key(locked: Live, target: str, method: str) -> None:
    answer = raw(locked, f"{method} {target} HTTP/1.1", "Host: localhost", "Content-Length: 0")
    assert answer.split(b" ")[1] in (b"401", b"400"), answer[:200]


@pytest.mark.parametrize(
    "host", ["x/?", "x/#", "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "", "127.0.0.1:1:1"]
)
def test_only_known_host_names_are_answered(locked: Live, host: str) -> None:
    answer = raw(locked, "GET /livez HTTP/1.1", f"Host: {host}")
    assert answer.split(b" ")[1] in (b"403", b"400")


def test_two_host_headers_are_refused(locked: Live) -> None:
    answer = raw(locked, "GET /livez HTTP/1.1", "Host: localhost", "Host: localhost")
    assert answer.split(b" ")[1] in (b"400", b"403")


def test_the_public_routes_need_no_key(locked: Live) -> None:
    with locked.client() as client:
        assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_keys_are_compared_in_constant_time(locked: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    compare = hmac.compare_digest

    def watched(given: str, known: str) -> bool:
        compared.append((given, known))
        return compare(given, known)

    monkeypatch.setattr(guard.hmac, "compare_digest", watched)
    with locked.client() as client:
        client.get("/v1/models", headers={"x-api-key": "guess"})
    assert compared == [(hash_key("guess"), hash_key(KEY))]


def test_websockets_need_the_key_too(locked: Live) -> None:
    url = f"ws://127.0.0.1:{locked.port}/api/v1/stream"
    with pytest.raises(InvalidStatus) as refused:
        connect(url, proxy=None)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
    with connect(url, proxy=None, additional_headers={"Authorization": f"Bearer {KEY}"}):
        pass
    with pytest.raises(InvalidStatus):
        connect(f"ws://127.0.0.1:{locked.port}/api/v1/nothing", proxy=None)


@pytest.mark.parametrize(
    "origin", [None, "self", "https://evil.example", "null", "http://localhost:1", "https://good.example"]
)
@pytest.mark.parametrize("host", ["ok", "rebind.example"])
@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data; boundary=x"])
def test_pages_of_other_origins_get_nothing(live: Live, origin: str | None, host: str, kind: str) -> None:
    own = f"127.0.0.1:{live.port}"
    headers = {"Host": own if host == "ok" else host, "Content-Type": kind}
    if origin is not None:
        headers["Origin"] = f"http://{own}" if origin == "self" else origin
    with live.client() as client:
        response = client.post("/api/v1/token-count", content=b'{"prompt": "x"}', headers=headers)
    allowed = origin in (None, "self") and host == "ok"
    taken = 200 if kind == "application/json" else 415
    assert response.status_code == (taken if allowed else 403)
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_browser_that_says_cross_site_is_refused(client: httpx.Client) -> None:
    response = client.post("/api/v1/token-count", json={"prompt": "x"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert error_of(response, 403)["code"] == "origin_not_allowed"


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_websockets_of_other_origins_are_refused(live: Live, origin: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{live.port}/api/v1/stream", proxy=None, origin=origin)  # type: ignore[arg-type]
    assert refused.value.response.status_code == 403


def test_a_listed_origin_is_let_in_by_name(locked: Live) -> None:
    headers = {"Origin": "https://good.example", "Authorization": f"Bearer {KEY}"}
    with locked.client() as client:
        response = client.post("/api/v1/token-count", json={"prompt": "x"}, headers=headers)
        preflight = client.options("/v1/chat/completions", headers={"Origin": "https://good.example"})
        stranger = client.options("/v1/chat/completions", headers={"Origin": "https://evil.example"})
    assert response.headers["access-control-allow-origin"] == "https://good.example"
    assert "access-control-allow-credentials" not in response.headers
    assert preflight.status_code == 204
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert stranger.status_code == 403


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    with running(body_bytes=1000) as live:
        answer = raw(live, "POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Length: 999999999999")
        assert b" 413 " in answer
        assert b"request_too_large" in answer
        chunks = b"".join(b"100\r\n" + b"x" * 256 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
        answer = raw(
            live, "POST /v1/completions HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", body=chunks
        )
        assert b" 413 " in answer


@pytest.mark.parametrize(("count", "size", "taken"), [(900, 1, True), (3000, 300, True), (1010, 1, False)])
def test_a_body_in_very_many_chunks_is_refused(live: Live, count: int, size: int, taken: bool) -> None:
    """40,000 of one byte, as they are read at once, held the server for two seconds."""
    chunk = f"{size:x}\r\n{' ' * size}\r\n".encode()
    head = (
        "POST /tokenize HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        "Transfer-Encoding: chunked",
    )
    answer = raw(live, *head, body=b'10\r\n{"content":"aa"}\r\n' + chunk * count + (b"0\r\n\r\n" if taken else b""))
    assert (b" 200 " if taken else b"send larger chunks") in answer


def test_all_bodies_together_are_bounded() -> None:
    with running(held_bytes=3000) as live:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2500\r\n\r\n"
        with socket.create_connection(("127.0.0.1", live.port)) as first, live.client() as client:
            first.sendall(head + b"x" * 2000)
            refused: list[httpx.Response] = []

            def ask() -> int:
                refused[:] = [client.post("/v1/completions", json={"prompt": "x" * 2000})]
                return refused[0].status_code

            until(lambda: ask() == 503, "the first body's having arrived")
            assert error_of(refused[0], 503)["code"] == "server_busy"
            assert refused[0].headers["retry-after"] == "1"
        with live.client() as client:
            until(lambda: ask() == 200, "the room that the first one leaves")


def test_compressed_bodies_are_refused(client: httpx.Client) -> None:
    response = client.post("/v1/completions", content=b"x", headers={"Content-Encoding": "gzip"})
    assert error_of(response, 415)["code"] == "unsupported_media_type"


def test_too_many_or_too_long_headers_are_refused(live: Live) -> None:
    many = [f"x-{at}: 1" for at in range(150)]
    assert b" 431 " in raw(live, "GET /livez HTTP/1.1", "Host: localhost", *many)
    assert b" 431 " in raw(live, "GET /livez HTTP/1.1", "Host: localhost", "x: " + "y" * 50_000)


def test_what_is_no_http_gets_the_error_object(live: Live) -> None:
    answer = raw(live, "\x16\x03\x01 nonsense")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"[" * 100 + b"]" * 100,
        b'{"a":' * 2000 + b"1" + b"}" * 2000,
        b"[" + b"1," * 1_000_000 + b"1]",
        b'{"prompt": "x", "temperature": 1e400}',
        b'{"prompt": "x", "temperature": NaN}',
        b'{"prompt": "x", "temperature": -Infinity}',
        b'{"prompt": "x", "prompt": "y"}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}",
        b"null",
        b'"text"',
        b"[]",
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/api/v1/generate", "/api/chat"])
def test_hostile_json_is_a_400(client: httpx.Client, body: bytes, path: str) -> None:
    error_of(client.post(path, content=body, headers={"Content-Type": "application/json"}))


def test_error_bodies_are_bounded_and_echo_little(client: httpx.Client) -> None:
    name = "z" * 10_000
    response = client.post("/v1/chat/completions", json={name: 1, "messages": [{name: 1}] * 900})
    assert "z" * 300 not in response.text
    error_of(response)


def test_every_answer_has_a_request_id(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"X-Request-Id": "mine-1"}).headers["x-request-id"] == "mine-1"
    for bad in ("a b", "x" * 100, "<script>"):
        assert len(client.get("/nothing", headers={"X-Request-Id": bad}).headers["x-request-id"]) == 16


def test_open_addresses_need_a_key_or_a_word() -> None:
    with pytest.raises(UsageError, match="no key is set"):
        ServerSettings(host="0.0.0.0")
    ServerSettings(host="0.0.0.0", open_to_all=True)
    ServerSettings(host="::1")


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# mine\n{KEY}\n\n")
    assert ServerSettings().with_keys(file, {}).keys == {hash_key(KEY)}
    assert ServerSettings().with_keys(None, {"TRIFOCAL_API_KEY": KEY}).keys == {hash_key(KEY)}
    assert not ServerSettings().with_keys(None, {}).keys
    file.write_text("short\n")
    with pytest.raises(UsageError, match="at least 16"):
        ServerSettings().with_keys(file, {})
    file.write_text("# nothing\n")
    with pytest.raises(UsageError, match="no key"):
        ServerSettings().with_keys(file, {})


def test_nothing_leaks_into_logs_errors_or_metrics(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    nothing_leaks(live, caplog, full(333, 20))


def nothing_leaks(live: Live, caplog: pytest.LogCaptureFixture, rounds: int) -> None:
    """Three requests a round, with a word that must be found nowhere but in answers to its own."""
    caplog.clear()
    canary = "CANARY-7f3a"
    logging.getLogger("trifocal.api").propagate = True
    with caplog.at_level(logging.INFO, "trifocal.api"), live.client() as client:
        for at in range(rounds):
            request = {"prompt": f"{canary}{at}\x1b[31m\r\n <img src='{data_uri()}'>"}
            client.post("/api/v1/generate", json=request, headers={"Authorization": f"Bearer {canary}"})
            bad = client.post("/api/v1/generate", json={"prompt": f"<img src='data:image/png;base64,{canary}'>"})
            unknown = client.post(f"/v1/{canary}?key={canary}", json={canary: canary})
            for response in (bad, unknown):
                assert canary not in response.text
                assert not any(word in response.text for word in (" at 0x", "Traceback", "/src/", "site-packages"))
        assert canary not in client.get("/metrics").text
    facts = " ".join(str(record.__dict__) for record in caplog.records)
    assert "route" in facts
    assert canary not in facts


def test_its_twins_that_let_anybody_in_are_found(live: Live, locked: Live) -> None:
    access = guard.AccessCheck
    is_found(
        lambda: test_no_route_answers_without_the_key(locked, "GET", "/v1/models", {}),
        access,
        "_check_key",
        lambda self, scope: scope.update({"trifocal.caller": "-"}),
    )
    is_found(
        lambda: test_only_known_host_names_are_answered(locked, "evil.example"),
        access,
        "_check_host",
        lambda self, scope: None,
    )
    is_found(
        lambda: test_pages_of_other_origins_get_nothing(live, "https://evil.example", "ok", "application/json"),
        access,
        "_check_origin",
        lambda self, scope: None,
    )


def test_its_twin_that_takes_any_body_is_found(client: httpx.Client) -> None:
    unchecked = lambda self, scope: None  # noqa: E731
    is_found(lambda: test_compressed_bodies_are_refused(client), guard.BodyLimit, "_check", unchecked)


def by_path(routes: Iterable[BaseRoute], scope: Scope) -> tuple[str, Needs]:
    """A route that is logged and counted by what was asked for, not by its own name."""
    return scope["path"], matched(routes, scope)[1]


def test_its_twin_that_logs_what_was_asked_is_found(caplog: pytest.LogCaptureFixture) -> None:
    with running() as live:
        is_found(lambda: nothing_leaks(live, caplog, 1), guard, "matched", by_path)


def test_its_twin_that_echoes_all_it_was_sent_is_found(client: httpx.Client) -> None:
    whole = lambda errors, body: refuse("invalid_value", str(errors))  # noqa: E731
    is_found(lambda: test_error_bodies_are_bounded_and_echo_little(client), app, "invalid", whole)
