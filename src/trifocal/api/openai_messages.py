"""Messages as OpenAI's chat completions write them: contents, pictures, calls and results, as drafts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field

from trifocal.api.errors import refuse
from trifocal.api.tools import call_of
from trifocal.api.wire import Draft, Echoed, Picture, Rows, Tagged, check_text, from_base64, picture, user_text
from trifocal.messages import Call, Role

__all__ = ["ChatMessage", "ContentPart", "custom_call", "drafts_of", "parts_of"]

_ROLES: dict[str, Role] = {"developer": "system", "function": "tool"}
Parts = tuple[str | Picture | Tagged, ...]


class ImageUrl(Echoed):
    """Where a picture is: a ``data:`` URI, or a URL whose host the server allows."""

    url: str


class TextPart(Echoed):
    """Text."""

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(Echoed):
    """What an answer said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class ThoughtPart(Echoed):
    """What an answer thought before; it is not thought again."""

    type: Literal["thinking", "reasoning"]
    text: Any = None
    summary: Any = None


class ImagePart(Echoed):
    """A picture, as an object or as a plain string."""

    type: Literal["image_url"]
    image_url: ImageUrl | str


class InputImagePart(Echoed):
    """A picture, as the Responses API writes it."""

    type: Literal["input_image"]
    image_url: ImageUrl | str | None = None
    file_id: str | None = None


class EmbedsPart(Echoed):
    """A picture as the rows that a vision made of it, as vLLM takes them: base64 of safetensors or of torch's file."""

    type: Literal["image_embeds"]
    image_embeds: str | dict[str, str]
    uuid: Any = None


class FileData(Echoed):
    """A file's name and its bytes as a data URI."""

    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None


class FilePart(Echoed):
    """A file: a text or a picture can be taken in."""

    type: Literal["file", "input_file"]
    file: FileData | None = None
    filename: str | None = None
    file_data: str | None = None
    file_id: str | None = None
    file_url: str | None = None


class OtherPart(Echoed):
    """What no served model can take in."""

    type: Literal["input_audio", "audio", "audio_url", "video_url", "input_video"]
    input_audio: Any = None
    audio: Any = None
    audio_url: Any = None
    video_url: Any = None


ContentPart = Annotated[
    TextPart | RefusalPart | ThoughtPart | ImagePart | InputImagePart | EmbedsPart | FilePart | OtherPart,
    Field(discriminator="type"),
]


class CalledFunction(Echoed):
    """A function's name and the text of its arguments."""

    name: str
    arguments: str | dict[str, Any] = ""


class CustomCall(Echoed):
    """A name, and the one text that it was called with."""

    name: str
    input: str = ""


def custom_call(name: str, text: str, id: str, where: str) -> Call:
    """A call whose argument is one text, as a call of a function.

    Raises:
        Refusal: the text is too long, or a picture in disguise.
    """
    check_text(text, where)
    return call_of(name, {"input": text}, id, where)


class ToolCall(Echoed):
    """A call that an answer asked for: of a function, or with a text."""

    id: str = ""
    type: Literal["function", "custom"] = "function"
    function: CalledFunction | None = None
    custom: CustomCall | None = None

    def call(self, where: str) -> Call:
        """The call.

        Raises:
            Refusal: nothing is called, or its arguments are no object.
        """
        if self.function:
            arguments: Any = self.function.arguments
            return call_of(self.function.name, arguments, self.id, f"{where}.function.arguments")
        if self.custom:
            return custom_call(self.custom.name, self.custom.input, self.id, f"{where}.custom.input")
        raise refuse("missing_required_parameter", "it is required", f"{where}.{self.type}")


class ChatMessage(Echoed):
    """One turn. ``image_url`` beside ``role`` is the way of early clients."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    image_url: str | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, max_length=128)
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None

    def calls(self, where: str) -> tuple[Call, ...]:
        """The calls of an answer that is sent back."""
        calls = [call.call(f"{where}.tool_calls[{at}]") for at, call in enumerate(self.tool_calls or ())]
        if self.function_call:
            called = self.function_call
            calls.append(call_of(called.name, called.arguments, "", f"{where}.function_call.arguments"))
        return tuple(calls)


def drafts_of(messages: Sequence[ChatMessage]) -> list[Draft]:
    """The messages with their pictures as they were sent.

    Raises:
        Refusal: a message without content, a content that no model here can take in, or a picture outside the
            user's messages and the results of tools.
    """
    names: dict[str, str] = {}
    drafts = []
    for at, message in enumerate(messages):
        drafts.append(_draft(message, f"messages[{at}]", names))
        names |= {call.id: call.name for call in drafts[-1].calls}
    return drafts


def parts_of(content: str | Sequence[Any] | None, role: Role, where: str) -> Parts:
    """A content as parts of a draft."""
    if isinstance(content, str):
        return _text(role, content, where)
    parts: list[str | Picture | Tagged] = []
    for at, part in enumerate(content or ()):
        parts += _part(part, role, f"{where}[{at}]")
    return tuple(parts)


def _draft(message: ChatMessage, where: str, names: dict[str, str]) -> Draft:
    role: Role = _ROLES.get(message.role, message.role)  # type: ignore[arg-type]  # the other names are ours
    if message.content is None and message.image_url is None and role in ("system", "user"):
        raise refuse("missing_required_parameter", "a message needs content", f"{where}.content")
    parts = parts_of(message.content, role, f"{where}.content")
    if message.refusal and not parts:
        parts = (message.refusal,)
    if message.image_url is not None:
        parts = (*parts, picture(message.image_url, f"{where}.image_url"))
    if role not in ("user", "tool") and not all(isinstance(part, str) for part in parts):
        raise refuse("invalid_value", "only user messages and results of tools hold pictures", where)
    answers = message.tool_call_id or ""
    name = (message.name or names.get(answers, "")) if role == "tool" else ""
    return Draft(role, parts, calls=message.calls(where), answers=answers, name=name)


def _part(part: Any, role: Role, where: str) -> Parts:
    match part:
        case TextPart():
            return _text(role, part.text, where)
        case RefusalPart():
            return _text(role, part.refusal, where)
        case ThoughtPart():
            return ()
        case ImagePart():
            url = part.image_url
            return (picture(url if isinstance(url, str) else url.url, where),)
        case EmbedsPart():
            return (_rows(part.image_embeds, where),)
        case InputImagePart():
            given = part.image_url
            if given is None:
                raise refuse("unsupported_parameter", "there are no uploaded files here: send a data URI", where)
            return (picture(given if isinstance(given, str) else given.url, where),)
        case FilePart():
            return _file(part, role, where)
    raise refuse("unsupported_parameter", f"{part.type}: only text and pictures can be taken in", where)


def _rows(given: str | dict[str, str], where: str) -> Rows:
    """Embeddings, alone or as an object of nothing else: grids of pictures are other models'."""
    if isinstance(given, dict):
        if set(given) != {"image_embeds"}:
            raise refuse("unsupported_parameter", "image_embeds alone is taken, as base64", f"{where}.image_embeds")
        given = given["image_embeds"]
    return Rows(given, where)


def _file(part: FilePart, role: Role, where: str) -> Parts:
    """A file that came whole and is a text, after its name, or a picture."""
    file = part.file or part
    data = file.file_data or ""
    kind = re.match(r"data:(text|image)/[^,]*,", data[:200], re.IGNORECASE)
    if kind is None:
        words = f"{part.type}: only texts and pictures can be taken in, as a data URI in file_data"
        raise refuse("unsupported_parameter", words, where)
    if kind[1].lower() == "image":
        return (picture(data, where),)
    given = data[kind.end() :]
    encoded = ";base64" in kind[0].lower()
    text = from_base64(given, where).decode("utf-8", "replace") if encoded else unquote(given)
    return _text(role, f"{file.filename}:\n{text}" if file.filename else text, where)


def _text(role: Role, text: str, where: str) -> Parts:
    if role == "user":
        return (user_text(text, where),)
    check_text(text, where)
    return (text,)
