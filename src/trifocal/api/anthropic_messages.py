"""Messages as Anthropic writes them: blocks of text, pictures, documents, calls and results, as drafts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from trifocal.api.errors import refuse
from trifocal.api.parameters import ECHOED
from trifocal.api.tools import call_of
from trifocal.api.wire import Draft, Echoed, Picture, Tagged, check_text, dump, from_base64, picture, user_text
from trifocal.messages import Call, Role

__all__ = ["TextBlock", "Turn", "drafts_of"]

Part = str | Picture | Tagged


class TextBlock(Echoed):
    """Text."""

    type: Literal["text"]
    text: str


class Base64Source(Echoed):
    """A file's bytes, or a text."""

    type: Literal["base64", "text"]
    media_type: str | None = None
    data: str


class UrlSource(Echoed):
    """Where a file is; a picture's host is one that the server allows."""

    type: Literal["url"]
    url: str


class FileSource(Echoed):
    """A file that was uploaded before; there are none here."""

    type: Literal["file"]
    file_id: str


Source = Annotated[Base64Source | UrlSource | FileSource, Field(discriminator="type")]


class ImageBlock(Echoed):
    """A picture."""

    type: Literal["image"]
    source: Source


class ContentSource(Echoed):
    """A document that is written out: texts and pictures."""

    type: Literal["content"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class DocumentBlock(Echoed):
    """A document, of which texts and pictures can be read."""

    type: Literal["document"]
    source: Annotated[Base64Source | ContentSource | UrlSource | FileSource, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Echoed):
    """What a search of the client's own found."""

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


class UploadBlock(Echoed):
    """A file that was uploaded for a program to run on; there are none here."""

    type: Literal["container_upload"]
    file_id: str


class SummaryBlock(Echoed):
    """What stands for the turns that it sums up; null where that failed."""

    type: Literal["compaction"]
    content: str | None = None
    encrypted_content: Any = None
    tool_changes: list[Any] | None = Field(None, max_length=0)


class ThoughtBlock(Echoed):
    """What an answer thought before, which is not thought again, and marks of a service's own."""

    lenient = True
    type: Literal["thinking", "redacted_thinking", "fallback", "mcp_tool_listing"]


class CallBlock(Echoed):
    """A call that an answer asked for, or that its service made itself."""

    type: Literal["tool_use", "server_tool_use", "mcp_tool_use"]
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)
    server_name: str | None = None
    toolset_name: str | None = None


class FoundBlock(Echoed):
    """A function that a search for functions found; from here on the client offers it."""

    type: Literal["tool_reference"]
    tool_name: str


Inner = Annotated[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | FoundBlock, Field(discriminator="type")]


class ResultBlock(Echoed):
    """What a call gave."""

    type: Literal["tool_result", "mcp_tool_result"]
    tool_use_id: str
    content: str | list[Inner] | None = None
    is_error: bool | None = None
    toolset_name: str | None = None


class HostedResultBlock(Echoed):
    """What a call gave that the service made itself: pages, the output of programs, errors."""

    type: Literal[
        "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result", "tool_search_tool_result",
        "bash_code_execution_tool_result", "text_editor_code_execution_tool_result", "advisor_tool_result",
    ]  # fmt: skip
    tool_use_id: str
    content: Any = None


Block = Annotated[
    TextBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
    | SummaryBlock
    | UploadBlock
    | ThoughtBlock
    | CallBlock
    | ResultBlock
    | HostedResultBlock,
    Field(discriminator="type"),
]


class Turn(Echoed):
    """One turn; the keys of a whole answer may stand beside its content."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]
    type: Literal["message"] = "message"

    @property
    def blocks(self) -> list[Any]:
        """Its content as blocks."""
        return [TextBlock(type="text", text=self.content)] if isinstance(self.content, str) else self.content


def drafts_of(turn: Turn, where: str, names: dict[str, str]) -> list[Draft]:
    """A turn as drafts. Results of tools are turns of their own: before what the user says besides, and inside an
    answer where they came.
    """
    done: list[Draft] = []
    parts: list[Part] = []
    calls: list[Call] = []
    for at, block in enumerate(turn.blocks):
        name = f"{where}.content[{at}]"
        match block:
            case CallBlock():
                calls.append(call_of(block.name, block.input, block.id, f"{name}.input"))
                names[block.id] = block.name
            case ResultBlock() | HostedResultBlock():
                if turn.role == "assistant" and (parts or calls):
                    done.append(Draft(turn.role, tuple(parts), calls=tuple(calls)))
                    parts, calls = [], []
                done.append(_result(block, name, names.get(block.tool_use_id, "")))
            case ThoughtBlock():
                continue
            case _:
                parts += _parts(block, turn.role, name)
    if done and not parts and not calls:
        return done
    return [*done, Draft(turn.role, tuple(parts), calls=tuple(calls))]


def notes_of(turns: Sequence[Turn]) -> tuple[str, ...]:
    """In words, what of the turns nobody can read or do here."""
    blocks = [block for turn in turns for block in turn.blocks]
    inner = [each for block in blocks if isinstance(block, ResultBlock) for each in block.content or () if each]
    notes = []
    if any(_cited(block) for block in (*blocks, *inner)):
        notes.append("citations have no effect here")
    if any(isinstance(block, HostedResultBlock) and "encrypted_" in dump(block.content) for block in blocks):
        notes.append("what is encrypted in the results of another service's tools can't be read here")
    return tuple(notes)


def _cited(block: Any) -> bool:
    """Whether the answer is asked to cite it."""
    asked = (getattr(block, "model_extra", None) or {}).get("citations")
    return isinstance(asked, dict) and bool(asked.get("enabled"))


def _result(block: ResultBlock | HostedResultBlock, where: str, called: str) -> Draft:
    parts: list[Part] = []
    if isinstance(block, HostedResultBlock):
        parts = _text("\n".join(_words(block.content, f"{where}.content")), "tool", where)
    elif isinstance(block.content, str):
        parts = _text(block.content, "tool", where)
    else:
        for at, each in enumerate(block.content or ()):
            parts += _parts(each, "tool", f"{where}.content[{at}]")
    if isinstance(block, ResultBlock) and block.is_error:
        parts = ["Error: ", *parts]
    return Draft("tool", tuple(parts), answers=block.tool_use_id, name=called)


def _parts(block: Any, role: Role, where: str) -> list[Part]:
    match block:
        case ImageBlock():
            return [_picture(block.source, role, where)]
        case DocumentBlock():
            return _document(block, role, where)
        case SearchResultBlock():
            return _text("\n\n".join([block.title, block.source, *(each.text for each in block.content)]), role, where)
        case FoundBlock():
            return _text(f"found: {block.tool_name}", role, where)
        case SummaryBlock():
            return _text(block.content or "", role, where)
        case UploadBlock():
            raise refuse("unsupported_parameter", "there are no uploaded files here: send what is in it", where)
    return _text(block.text, role, where)


def _text(text: str, role: Role, where: str) -> list[Part]:
    if role == "user":
        return [user_text(text, where)]
    check_text(text, where)
    return [text]


def _document(block: DocumentBlock, role: Role, where: str) -> list[Part]:
    """Its title, its context and what is in it, with empty lines between."""
    source = block.source
    match source:
        case Base64Source():
            inner: list[Any] = [_file(source, where)]
        case ContentSource():
            inner = [source.content] if isinstance(source.content, str) else source.content
        case _:
            words = "documents are neither uploaded nor fetched here: send the text, or pictures of the pages"
            raise refuse("unsupported_parameter", words, where)
    parts: list[Part] = []
    for each in (block.title, block.context, *inner):
        if isinstance(each, ImageBlock):
            parts.append(_picture(each.source, role, where))
        elif each:
            said = each if isinstance(each, str) else each.text
            parts += _text(f"\n\n{said}" if parts else said, role, where)
    return parts


def _file(source: Base64Source, where: str) -> str:
    """The text that a document is.

    Raises:
        Refusal: it is none.
    """
    if source.type == "text":
        return source.data
    kind = source.media_type or "its kind"
    if not kind.startswith("text/"):
        words = f"of documents only texts can be read, not {kind}: send pictures of the pages"
        raise refuse("unsupported_parameter", words, where)
    return from_base64(source.data, where).decode("utf-8", "replace")


def _words(value: Any, where: str) -> Iterator[str]:
    """What can be read of what a service's own tool gave."""
    match value:
        case str():
            yield value
        case list():
            for each in value:
                yield from _words(each, where)
        case {"type": "base64", "data": str() as data}:
            yield _file(Base64Source(type="base64", media_type=str(value.get("media_type", "")), data=data), where)
        case dict():
            for name, each in value.items():
                if isinstance(each, list | dict) or name in ("text", "data", "content"):
                    yield from _words(each, where)
                elif name != "type" and name not in ECHOED and not name.startswith("encrypted") and each is not None:
                    yield f"{name}: {each if isinstance(each, str) else dump(each)}"


def _picture(source: Source, role: Role, where: str) -> Picture:
    if role not in ("user", "tool"):
        raise refuse("invalid_value", "only user messages and results of tools hold pictures", where)
    if isinstance(source, UrlSource):
        return picture(source.url, where)
    if isinstance(source, FileSource):
        raise refuse("unsupported_parameter", "there are no uploaded files here: send the picture's base64", where)
    return Picture(from_base64(source.data, where), where)
