"""Pictures that text-generation-webui keeps beside a prompt: of its chat box and of its API, in order."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trifocal.errors import BadImage
from trifocal.images import Image, from_bytes, from_data_uri, from_pil
from trifocal.webui.held import Held

__all__ = ["attached", "brought", "has_images", "misplaced"]


def attached(state: Mapping[str, Any], fetch: Callable[[str], bytes]) -> list[Held]:
    """All pictures of a request, oldest first, from the first of these places that has any.

    ``image_attachments`` (chat box), ``history.messages`` (chat API), ``messages`` and ``raw_images``
    (completions API), and the history's own record of attachments, which is all that the host gives when it writes
    in the user's name. ``fetch`` gets the bytes behind a web address. None is decoded or fetched yet; the host itself
    leaves out one that is no picture without a word, `Held.read` does not.
    """
    history = state.get("history") or {}
    for found in (
        _attachments(state.get("image_attachments") or ()),
        _messages(_beside(state), fetch),
        (Held(functools.partial(from_pil, one, name=f"picture {at}")) for at, one in enumerate(_raw(state), 1)),
        _recorded(history.get("metadata") or {}),
    ):
        pictures = [*found]
        if pictures:
            return pictures
    return []


def has_images(state: Mapping[str, Any]) -> bool:
    """Whether a request of the API brings pictures beside its text, as far as its form tells; none is looked at."""
    return bool(state.get("raw_images") or any(True for _ in _addresses(_beside(state))))


def brought(state: Mapping[str, Any]) -> int:
    """How many pictures a chat request's question brings that the host of 2023 to 2025 made messages of their own.

    A question without its picture looks whole there: the picture's message is the older one, and goes first.
    """
    if "history" not in state or _beside(state):
        return 0
    newest = [*itertools.takewhile(lambda message: message.get("role") != "assistant", reversed(_asked(state)))]
    return sum(1 for _ in _addresses(newest)) + sum("image_url" in message for message in newest)


def misplaced(state: Mapping[str, Any]) -> str | None:
    """The place of a picture in a chat's message that is none of the user's, or None: the host trips over it."""
    messages = (state.get("history") or {}).get("messages") or ()
    others = (message if message.get("role") != "user" else {} for message in messages)
    return next((place for place, _ in _addresses(others)), None)


def _asked(state: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [message for message in state.get("messages") or () if isinstance(message, Mapping)]


def _beside(state: Mapping[str, Any]) -> Any:
    """The messages of a request whose pictures are not in its text: v4's.

    The host of 2023 to 2025 leaves a chat's messages in the state too, but has written their pictures into the text.
    """
    if "history" in state:
        return (state["history"] or {}).get("messages") or ()
    return state.get("messages") or ()


def _raw(state: Mapping[str, Any]) -> Any:
    return state.get("raw_images") or ()


def _attachments(attachments: Any) -> Iterator[Held]:
    for attachment in attachments:
        if attachment.get("type") == "image":
            data, name = str(attachment.get("image_data", "")), str(attachment.get("name", "attachment"))
            data = data if data.startswith("data:") else f"data:;base64,{data}"
            yield Held(functools.partial(from_data_uri, data, name=name))


def _messages(messages: Any, fetch: Callable[[str], bytes]) -> Iterator[Held]:
    return (Held(functools.partial(_behind, url, name, fetch)) for name, url in _addresses(messages))


def _addresses(messages: Any) -> Iterator[tuple[str, str]]:
    """Place and address of each picture of a request in OpenAI's form."""
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        for at, item in enumerate(content if isinstance(content, list) else ()):
            if isinstance(item, Mapping) and item.get("type") == "image_url":
                yield f"messages[{number}].content[{at}]", str((item.get("image_url") or {}).get("url", ""))


def _behind(url: str, name: str, fetch: Callable[[str], bytes]) -> Image:
    if url.startswith(("http://", "https://")):
        try:
            data = fetch(url)
        except Exception as error:  # whatever the host's own fetching raises
            raise BadImage("unreachable", f"{url[:100]} can't be fetched: {error}", name) from error
        return from_bytes(data, name=name)
    return from_data_uri(url, name=name)


def _recorded(metadata: Mapping[str, Any]) -> Iterator[Held]:
    rows = (key.removeprefix("user_") for key in metadata if key.startswith("user_"))
    for row in sorted(int(row) for row in rows if row.isdecimal()):
        yield from _attachments(metadata[f"user_{row}"].get("attachments") or ())
