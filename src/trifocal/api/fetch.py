"""The only place that opens a connection to elsewhere: pictures behind URLs, from hosts that were allowed.

One parser reads the URL, every address it resolves to must be public, the connection goes to an address that was
checked, and each redirect starts over. Nothing is fetched unless hosts were named when the server was started.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import re
import socket
import ssl
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from urllib.parse import urljoin

from trifocal.errors import BadImage

__all__ = ["Fetcher", "Target", "is_public", "parse_url"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]

SECONDS = 5.0
REDIRECTS = 3
LONGEST_URL = 2048
# plain names only: whatever two parsers could read in two ways does not match
_URL = re.compile(r"(https?)://([a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?)(?::(\d{1,5}))?(/[!-\[\]-~]*)?", re.IGNORECASE)
_PORTS = {"https": 443, "http": 80}
# not public whatever Python's tables say; is_global calls many of these global (RFC 6890 and the vendors' metadata)
_CLOSED = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",
        "::/96",
        "::ffff:0:0/96",
        "::ffff:0:0:0/96",
        "64:ff9b::/96",
        "64:ff9b:1::/48",
        "100::/64",
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "3fff::/20",
        "5f00::/16",
        "fc00::/7",
        "fe80::/10",
        "fec0::/10",
        "ff00::/8",
    )
]


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that can be read in one way only."""

    scheme: str
    host: str
    port: int
    path: str


def parse_url(url: str, name: str = "image") -> Target:
    """The parts of a URL.

    Raises:
        BadImage: another scheme than http(s), a port of its own, user names, an address instead of
            a name, or any letter that parsers disagree about.
    """
    match = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
    if not match:
        raise BadImage("bad_url", "this is no plain http or https URL of a host by its name", name)
    scheme, host, port, path = match[1].lower(), match[2].lower(), match[3], match[4] or "/"
    if port is not None and int(port) != _PORTS[scheme]:
        raise BadImage("bad_url", "a URL names no port but 443 for https and 80 for http", name)
    if "." not in host or ".." in host or not re.search(r"[a-z]", host.rpartition(".")[2]):
        raise BadImage("bad_url", "a host is given by its full name, not by an address", name)
    return Target(scheme, host, _PORTS[scheme], path)


def is_public(address: str) -> bool:
    """Whether an address is on the open internet, whatever notation wraps it."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return parsed.is_global and not any(parsed in network for network in _CLOSED if network.version == parsed.version)


class _Open:
    """The connection of one fetch, so that the fetch can be ended from outside of the thread that waits for it."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._ended = False

    def hold(self, connection: http.client.HTTPConnection) -> None:
        """The connection from here on; closed at once where the fetch has ended already."""
        self._connection = connection
        if self._ended:
            self.end()

    def end(self) -> None:
        """Wakes whoever waits for the other side."""
        self._ended = True
        sock = self._connection.sock if self._connection else None
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Fetcher:
    """Fetches pictures from the hosts that were allowed; from none by default."""

    def __init__(
        self, hosts: Sequence[str], limit: int, resolve: Resolve | None = None, seconds: float = SECONDS
    ) -> None:
        self._hosts = {host.lower() for host in hosts}
        self._limit, self._seconds = limit, seconds
        self._resolve = resolve or _resolve
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="fetch")

    async def fetch(self, url: str, name: str) -> bytes:
        """The bytes behind a URL.

        Raises:
            BadImage: the URL, its host or its answer is refused.
        """
        if not self._hosts:
            raise BadImage(
                "url_not_allowed",
                "pictures are not fetched from URLs here; send a data: URI (the server allows hosts with --url-host)",
                name,
            )
        # a name that resolves slowly, a head that drips and a 100 that comes again pass every timeout of a socket
        under = _Open()
        try:
            async with asyncio.timeout(self._seconds):
                return await asyncio.get_running_loop().run_in_executor(self._threads, self._follow, url, name, under)
        except TimeoutError as error:
            raise BadImage("bad_url", f"the picture did not come within {self._seconds:g} s", name) from error
        finally:
            under.end()

    def _follow(self, url: str, name: str, under: _Open | None = None) -> bytes:
        until = monotonic() + self._seconds
        for _ in range(REDIRECTS + 1):
            target = self._allowed(url, name)
            try:
                found = self._get(target, until, name, under or _Open())
            except (OSError, http.client.HTTPException, UnicodeError) as error:
                raise BadImage("bad_url", "the picture could not be fetched", name) from error
            if isinstance(found, bytes):
                return found
            url = urljoin(f"{target.scheme}://{target.host}{target.path}", found)
        raise BadImage("bad_url", f"over {REDIRECTS} redirects", name)

    def _allowed(self, url: str, name: str) -> Target:
        target = parse_url(url, name)
        if target.host not in self._hosts:
            raise BadImage("url_not_allowed", "pictures are not fetched from this host", name)
        if target.scheme != "https":
            raise BadImage("url_not_allowed", "pictures are fetched by https only", name)
        return target

    def _get(self, target: Target, until: float, name: str, under: _Open) -> bytes | str:
        """The body, or where a redirect points."""
        connection = self._connect(target, until, name)
        under.hold(connection)
        try:
            headers = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "trifocal"}
            connection.request("GET", target.path, headers=headers)
            response = connection.getresponse()
            if response.status in (301, 302, 303, 307, 308):
                return response.headers.get("Location") or ""
            if response.status != 200 or response.headers.get("Content-Encoding", "identity") != "identity":
                raise BadImage("bad_url", "the host did not answer with a picture", name)
            return self._read(response, connection, until, name)
        finally:
            connection.close()

    def _connect(self, target: Target, until: float, name: str) -> http.client.HTTPConnection:
        """A connection to an address that was checked, under the name that was asked for."""
        addresses = self._resolve(target.host, target.port)
        if not addresses or not all(map(is_public, addresses)):
            raise BadImage("url_not_allowed", "pictures are not fetched from this host", name)
        return self._open(addresses[0], target, until)

    def _open(self, address: str, target: Target, until: float) -> http.client.HTTPConnection:
        plain = socket.create_connection((address, target.port), timeout=_left(until))
        connection = http.client.HTTPSConnection(target.host, target.port)
        try:
            connection.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=target.host)
        except BaseException:
            plain.close()
            raise
        return connection

    def _read(
        self, response: http.client.HTTPResponse, connection: http.client.HTTPConnection, until: float, name: str
    ) -> bytes:
        data = bytearray()
        while True:
            left = _left(until)
            if connection.sock:
                connection.sock.settimeout(left)
            piece = response.read1(64 << 10)
            if not piece:
                return bytes(data)
            data += piece
            if len(data) > self._limit:
                raise BadImage("too_many_bytes", f"over {self._limit} bytes", name)


def _left(until: float) -> float:
    left = until - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _resolve(host: str, port: int) -> Sequence[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
