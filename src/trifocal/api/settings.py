"""How the server listens, whom it lets in and how much it takes: one frozen object."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trifocal.engines.base import STEP_LIMIT
from trifocal.errors import UsageError

__all__ = ["KEY_VARIABLE", "ServerSettings", "check_hosts", "hash_key", "read_keys"]

KEY_VARIABLE = "TRIFOCAL_API_KEY"
SHORTEST_KEY = 16
_HOST = re.compile(r"\w(?:[\w.-]*\w)?\.?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::\d{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What the server needs to know beside the model. Seconds, bytes and counts.

    Without keys only a loopback address is served, unless ``open_to_all`` says otherwise; keys are
    kept as sha256 digests. ``public_hosts`` are the names under which clients may ask for the
    server beside the loopback ones, ``origins`` the web pages that may call it, ``url_hosts`` the
    hosts from which pictures are fetched (none: URLs are refused). At most ``slots`` answers are made at
    once (None: as many as the engine's positions allow, up to 32, and one where it does not count), ``queue`` requests
    wait, each key has at most ``per_key`` of both, and ``responses`` that are kept. A request may take ``deadline``
    seconds in all and wait ``queue_wait`` of them. Where several models are offered, the weights of those that are
    loaded together take ``memory_bytes`` at most (0: one is loaded at a time).
    What was seen and computed for one key is found again for
    that one alone, unless they ``share_caches``. Pictures are taken as embeddings, too, where
    ``image_embeds`` says so. The language engine runs in ``replicas`` processes of its own (0: in the server's), of
    which one that makes no step for ``step_limit`` seconds is started again.
    """

    host: str = "127.0.0.1"
    port: int = 5000
    legacy_port: int | None = None
    keys: frozenset[str] = frozenset()
    open_to_all: bool = False
    public_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    url_hosts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    slots: int | None = None
    queue: int = 64
    per_key: int = 8
    share_caches: bool = False
    image_embeds: bool = False
    replicas: int = 1
    step_limit: float = STEP_LIMIT
    deadline: float = 300.0
    queue_wait: float = 60.0
    drain: float = 10.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    body_progress_seconds: float = 10.0
    body_progress_bytes: int = 8 << 10
    write_seconds: float = 30.0
    body_bytes: int = 32 << 20
    held_bytes: int = 512 << 20
    connections: int = 4096
    sockets: int = 64
    sockets_per_caller: int = 16
    header_bytes: int = 32 << 10
    header_count: int = 100
    image_bytes: int = 20 << 20
    images: int = 16
    decoded_bytes: int = 512 << 20
    text_bytes: int = 768 << 10
    answers: int = 8
    memory_bytes: int = 0
    responses: int = 64
    responses_bytes: int = 64 << 20
    stops: int = 16
    stop_characters: int = 256
    json_depth: int = 64
    json_values: int = 50_000
    log_format: Literal["text", "json"] = "text"

    def __post_init__(self) -> None:
        for origin in self.origins:
            _check_origin(origin)
        check_hosts("--public-host", self.public_hosts)
        check_hosts("--url-host", self.url_hosts)
        for name in ("slots", "per_key", "deadline", "queue_wait", "header_seconds", "body_seconds", "write_seconds"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:  # which none is that is no number
                raise UsageError(f"{name}: {getattr(self, name)} is not above 0")
        if not (self.queue >= 0 and self.drain >= 0):
            raise UsageError("queue and drain are 0 or more")
        if not self.keys and not self.open_to_all and not self.is_loopback:
            raise UsageError(
                f"{self.host} can be reached from other machines and no key is set: give --api-key-file (or the "
                f"variable {KEY_VARIABLE}), or say --open-to-all if anybody may use this model"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def with_keys(self, file: Path | None, environ: Mapping[str, str] | None = None) -> ServerSettings:
        """These settings with the keys of a file (one a line, ``#`` comments) or of the environment.

        Raises:
            UsageError: the file can't be read, holds no key, or a key is short enough to guess.
        """
        return replace(self, keys=read_keys(file, os.environ if environ is None else environ))


def check_hosts(option: str, names: Sequence[str]) -> None:
    """Refuses what is no host's name: no request ever comes for it.

    Raises:
        UsageError: an address, a pattern, or nothing.
    """
    for name in names:
        if not _HOST.fullmatch(name) and not _is_address(name):
            raise UsageError(f"{option} {name}: a host's name alone was expected, such as images.example.org")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _check_origin(origin: str) -> None:
    """Refuses what no browser says of a page.

    Raises:
        UsageError: a pattern, or an address that is no origin.
    """
    example = "as in --origin https://page.example, once for each"
    if "*" in origin or origin == "null":
        raise UsageError(
            f"--origin {origin}: any page of the web could ask this server; name each page's own, {example}"
        )
    if not _ORIGIN.fullmatch(origin):
        raise UsageError(f"--origin {origin}: an origin is scheme://host or scheme://host:port, {example}")


def hash_key(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(file: Path | None, environ: Mapping[str, str]) -> frozenset[str]:
    """The digests of the keys in a file, or in the environment where no file is named."""
    if file is None:
        lines = environ.get(KEY_VARIABLE, "").split(",")
    else:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"key file {file}: it can't be read") from error
    keys = {line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")}
    if file is not None and not keys:
        raise UsageError(f"key file {file}: there is no key in it")
    if any(len(key) < SHORTEST_KEY for key in keys):
        raise UsageError(f"a key has at least {SHORTEST_KEY} characters; make one with: openssl rand -hex 32")
    return frozenset(map(hash_key, keys))
