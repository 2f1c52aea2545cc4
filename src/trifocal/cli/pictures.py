"""Pictures as words on the command line: files, addresses, standard input and the clipboard."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from trifocal.errors import BadImage, UsageError
from trifocal.images import LIMITS, Image, from_data_uri, from_pil
from trifocal.tools.pictures import ENDINGS, decode, open_picture

__all__ = ["STDIN", "clipboard", "is_picture_word", "looks_like_a_name", "path_of", "read_picture", "read_stdin"]

STDIN = "-"
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://|data:image/", re.IGNORECASE)
# IMG_1234, cat.old, photos/cat: no words that one would ask
_NAME = re.compile(r"[\w.~-]*[\d_][\w.~-]*|\S*[/\\]\S*|\S*\w\.\w{1,8}|~.*", re.ASCII)


def is_picture_word(word: str) -> bool:
    """Whether a word is a file that is there, an address, or ``-`` for standard input."""
    return word == STDIN or bool(_ADDRESS.match(word)) or os.path.isfile(path_of(word))


def looks_like_a_name(word: str) -> bool:
    """Whether a word that is no file can be one that was misspelt, or a folder; such a word is never asked."""
    return os.path.isdir(path_of(word)) or Path(word).suffix.lower() in ENDINGS or bool(_NAME.fullmatch(word))


def path_of(word: str) -> str:
    """A word as a path: ``~`` is the user's home and ``file://`` an address of this machine."""
    if word.lower().startswith("file://"):
        return unquote(urlsplit(word).path)
    return word if os.path.lexists(word) else os.path.expanduser(word)


def read_picture(word: str, url_hosts: Sequence[str] = ()) -> Image:
    """The picture that a word names; web pages' ones only from hosts that were allowed.

    Raises:
        BadImage: it is no picture, or one over the limits, or may not be fetched.
    """
    if word == STDIN:
        return decode(read_stdin("a picture"), "standard input")
    if word[:5].lower() == "data:":
        return from_data_uri(word, name="data URI")
    if _ADDRESS.match(word) and not word.lower().startswith("file://"):
        return decode(_fetched(word, url_hosts), word)
    return open_picture(path_of(word))


def read_stdin(what: str) -> bytes:
    """All of standard input.

    Raises:
        UsageError: it is a terminal, where nobody would know that they are waited for, or closed.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(f"- is standard input, where {what} is expected: pipe it in")
    return sys.stdin.buffer.read()


def clipboard() -> Image:
    """The picture that was copied last.

    Raises:
        BadImage: there is none, or the desktop can't be asked.
    """
    from PIL import ImageGrab

    try:
        held = ImageGrab.grabclipboard()
    except (NotImplementedError, OSError, ChildProcessError) as error:
        detail = "the clipboard can't be asked here; on Linux wl-paste or xclip is needed, and a desktop"
        raise BadImage("unreadable", detail, "clipboard") from error
    if isinstance(held, list) and held:
        return open_picture(held[0])
    if held is None or isinstance(held, list):
        raise BadImage("empty", "there is no picture in it", "clipboard")
    return from_pil(held, name="clipboard")


def _fetched(address: str, hosts: Sequence[str]) -> bytes:
    import asyncio

    from trifocal.api.fetch import Fetcher, parse_url

    host = parse_url(address, address).host
    if host not in {each.lower() for each in hosts}:
        raise BadImage("url_not_allowed", f"pictures are fetched when it is asked for: --url-host {host}", address)
    return asyncio.run(Fetcher(hosts, LIMITS.bytes).fetch(address, address))
