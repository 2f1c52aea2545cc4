"""Items of OpenAI's Responses: what each is to a model, and how it is told to who asks for it again."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Tag, TypeAdapter

from trifocal.api.errors import refuse
from trifocal.api.openai_messages import ContentPart, custom_call, parts_of
from trifocal.api.parameters import ECHOED
from trifocal.api.tools import call_of, spaced
from trifocal.api.wire import Draft, Echoed, Picture, Wire, check_text, dump, from_base64, octets, picture
from trifocal.messages import Role

__all__ = ["Item", "MessageItem", "Said", "drafts_of", "said_of"]


@dataclass(frozen=True, slots=True)
class Said:
    """An item of a conversation by its id: as it came or, where it is kept, as it is told; and the turns it is."""

    id: str
    item: Any
    drafts: tuple[Draft, ...]

    @property
    def told(self) -> dict[str, Any]:
        """The item as it is told."""
        if isinstance(self.item, dict):
            return self.item
        return {"status": "completed", **self.item.told, "id": self.id}

    @property
    def kept(self) -> Said:
        """The same, told: so it is smaller. Nobody waits for it, as somebody does for an answer."""
        return replace(self, item=self.told)

    @property
    def tools(self) -> Sequence[Any]:
        """The functions that are offered too from here on."""
        if isinstance(self.item, dict):
            offers = self.item["type"] in ("additional_tools", "configuration_update")
            return self.item.get("tools", ()) if offers else ()
        return self.item.tools or () if isinstance(self.item, SettingItem) else ()

    @property
    def size(self) -> int:
        """About how many bytes it takes. What is told and the draft hold the same texts and pictures."""
        return _weight(self.told) + sum(draft.octets for draft in self.drafts)


def _weight(value: Any) -> int:
    match value:
        case str():
            return 64 + octets(value)
        case list():
            return 64 + sum(map(_weight, value))
        case dict():
            return 64 + sum(_weight(name) + _weight(each) for name, each in value.items())
    return 32


class MessageItem(Echoed):
    """A turn of a conversation, an answer's own included."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """The turn with its pictures as they were sent."""
        role: Role = "system" if self.role == "developer" else self.role
        parts = parts_of(self.content, role, f"{where}.content")
        if role != "user" and not all(isinstance(part, str) for part in parts):
            raise refuse("invalid_value", "only user messages and results of tools hold pictures", where)
        return (Draft(role, parts),)

    @property
    def told(self) -> dict[str, Any]:
        """The turn with its content as parts, which are called as the Responses API calls them."""
        kind = "output_text" if self.role == "assistant" else "input_text"
        given = self.content if isinstance(self.content, list) else []
        parts = [_told_part(part, kind) for part in given]
        if isinstance(self.content, str):
            parts = [_told_text(kind, text=self.content)]
        return {**self.model_dump(exclude_none=True, exclude={"content"}), "content": parts}


def _told_part(part: Any, kind: str) -> dict[str, Any]:
    told: dict[str, Any] = part.model_dump(exclude_none=True)
    if told["type"] in ("text", "input_text", "output_text"):
        return _told_text(kind, **{name: value for name, value in told.items() if name != "type"})
    if told["type"] in ("image_url", "input_image"):
        url = told["image_url"]
        detail = told.get("detail", "auto")
        return {"type": "input_image", "image_url": url["url"] if isinstance(url, dict) else url, "detail": detail}
    return told


def _told_text(kind: str, **content: Any) -> dict[str, Any]:
    return {"type": kind, **({"annotations": []} if kind == "output_text" else {}), **content}


class _Whole(Echoed):
    """An item that is told as it came."""

    @property
    def told(self) -> dict[str, Any]:
        """The item."""
        return self.model_dump(exclude_none=True)


class CallItem(_Whole):
    """A call that an answer asked for."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    namespace: str | None = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """The call as an assistant's turn."""
        names[self.call_id] = name = spaced(self.namespace, self.name)
        return (Draft("assistant", (), calls=(call_of(name, self.arguments, self.call_id, f"{where}.arguments"),)),)


class ResultItem(_Whole):
    """What a call gave."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str = ""
    output: str | list[ContentPart]
    name: str | None = None
    namespace: str | None = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """The result as a tool's turn."""
        parts = parts_of(self.output, "tool", f"{where}.output")
        called = spaced(self.namespace, self.name) if self.name else names.get(self.call_id, "")
        return (Draft("tool", parts, answers=self.call_id, name=called),)


class CustomCallItem(_Whole):
    """A call whose argument is one text."""

    type: Literal["custom_tool_call"]
    call_id: str
    name: str
    input: str
    namespace: str | None = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """The call as an assistant's turn."""
        names[self.call_id] = name = spaced(self.namespace, self.name)
        return (Draft("assistant", (), calls=(custom_call(name, self.input, self.call_id, f"{where}.input"),)),)


class ThoughtItem(_Whole):
    """What an answer thought before; it is not thought again."""

    type: Literal["reasoning"]
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """Nothing."""
        return ()


class SettingItem(_Whole):
    """What changes from here on: functions that are offered too, or hints that have no effect."""

    lenient = True
    type: Literal["additional_tools", "configuration_update"]
    tools: list[dict[str, Any]] | None = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """Nothing."""
        return ()


class HostedItem(_Whole):
    """What a tool of another service was asked for or gave: a search, a program, a picture that it drew.

    It stays in the history when a conversation moves here. Its words are read, as a call and what it gave; a picture
    in it is seen.
    """

    lenient = True
    type: Literal[
        "web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call",
        "mcp_list_tools", "mcp_approval_request", "mcp_approval_response", "computer_call", "computer_call_output",
        "local_shell_call", "local_shell_call_output", "shell_call", "shell_call_output", "apply_patch_call",
        "apply_patch_call_output", "tool_search_call", "tool_search_output", "program", "program_output",
    ]  # fmt: skip
    call_id: str | None = None

    def drafts(self, where: str, names: dict[str, str]) -> tuple[Draft, ...]:
        """A call, what it gave, or both.

        Raises:
            Refusal: its picture is not in it.
        """
        if self.type.startswith(("mcp_list", "mcp_approval")):
            return ()
        said = {name: value for name, value in (self.model_extra or {}).items() if name not in ECHOED}
        id = str(self.call_id or (self.model_extra or {}).get("id") or "")
        if self.type.endswith("_output"):
            return (Draft("tool", self._given(said, where), answers=id, name=names.get(id, "")),)
        name = str(said.pop("name", None) or self.type.removesuffix("_call"))
        given = {each: said.pop(each) for each in _GIVEN if each in said}
        names[id] = name
        call = Draft("assistant", (), calls=(call_of(name, said.get("arguments", said), id, where),))
        if self.type in _ASKING:
            return (call,)
        return call, Draft("tool", self._given(given, where) or ("completed",), answers=id, name=name)

    def _given(self, given: dict[str, Any], where: str) -> tuple[str | Picture, ...]:
        """The words and the pictures of what a tool gave."""
        pictures = self._pictures(given, where)
        words = [value for value in given.values() if value not in ("", [], {})]
        text = "\n".join(value if isinstance(value, str) else dump(value) for value in words)
        check_text(text, where)
        return (*([text] if text else []), *pictures)

    def _pictures(self, given: dict[str, Any], where: str) -> list[Picture]:
        """The pictures, which are taken out of what was given."""
        if self.type == "image_generation_call":
            drawn = given.pop("result", None)
            if drawn is None and "error" in given:
                return []
            if not isinstance(drawn, str):
                raise refuse("invalid_value", "the picture that was drawn is not in it: send its result", where)
            return [Picture(from_base64(drawn, where), where)]
        if self.type == "computer_call_output":
            output = given.pop("output", None)
            url = output.get("image_url") if isinstance(output, dict) else None
            if not isinstance(url, str):
                raise refuse("invalid_value", "the picture of the screen is not in it: send its image_url", where)
            return [picture(url, where)]
        outputs = given.get("outputs")
        outputs = outputs if isinstance(outputs, list) else []
        drawn = [each for each in outputs if isinstance(each, dict) and "url" in each]
        given |= {"outputs": [each for each in outputs if each not in drawn]} if drawn else {}
        return [picture(str(each["url"]), f"{where}.outputs") for each in drawn]


_GIVEN = ("results", "outputs", "output", "result", "error")
_ASKING = ("computer_call", "local_shell_call", "shell_call", "apply_patch_call", "tool_search_call", "program")


class KeptItem(Wire):
    """An item of an answer that is kept here, by its id."""

    type: Literal["item_reference"]
    id: str


def _kind(item: Any) -> str:
    given = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return _TAGS.get(str(given), str(given or "message"))


_HOSTED = "web_search_call"  # the tag of their kind, which an error names among those that are known
_TAGS = {
    "custom_tool_call_output": "function_call_output",
    "configuration_update": "additional_tools",
    **dict.fromkeys(get_args(HostedItem.model_fields["type"].annotation), _HOSTED),
}
Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[CallItem, Tag("function_call")]
    | Annotated[ResultItem, Tag("function_call_output")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[ThoughtItem, Tag("reasoning")]
    | Annotated[SettingItem, Tag("additional_tools")]
    | Annotated[HostedItem, Tag(_HOSTED)]
    | Annotated[KeptItem, Tag("item_reference")],
    Discriminator(_kind),
]
_ITEM: TypeAdapter[Any] = TypeAdapter(Item)
_BEGINNINGS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def said_of(
    given: str | Sequence[Any], kept: Callable[[str], dict[str, Any] | None], before: Sequence[Said] = ()
) -> tuple[Said, ...]:
    """A request's input, each item with an id of its own. ``kept`` gives an item of an earlier answer by its id.

    Raises:
        Refusal: what no model here can take in, or an item that is not kept.
    """
    items = [MessageItem(role="user", content=given)] if isinstance(given, str) else given
    names = {call.id: call.name for said in before for draft in said.drafts for call in draft.calls}
    taken = {said.id for said in before}
    done = []
    for at, item in enumerate(items):
        where = "input" if isinstance(given, str) else f"input[{at}]"
        found = _resolved(item, kept, where) if isinstance(item, KeptItem) else item
        done.append(_said(found, where, names, taken))
        taken.add(done[-1].id)
    return tuple(done)


def drafts_of(items: Sequence[Said]) -> tuple[Draft, ...]:
    """The conversation that items are: calls that follow an assistant's turn are a part of it."""
    done: list[Draft] = []
    for draft in (draft for item in items for draft in item.drafts):
        if done and draft.calls and done[-1].role == draft.role == "assistant":
            done[-1] = replace(done[-1], parts=(*done[-1].parts, *draft.parts), calls=(*done[-1].calls, *draft.calls))
        else:
            done.append(draft)
    return tuple(done)


def _said(item: Any, where: str, names: dict[str, str], taken: set[str]) -> Said:
    id = (item.model_extra or {}).get("id")
    if not isinstance(id, str) or not id or id in taken:
        id = f"{_BEGINNINGS.get(item.type, 'item')}_{secrets.token_hex(16)}"
    return Said(id, item, item.drafts(where, names))


def _resolved(reference: KeptItem, kept: Callable[[str], dict[str, Any] | None], where: str) -> Any:
    """The item that a reference means."""
    item = kept(reference.id)
    if item is None:
        words = f"there is no item {reference.id[:80]}: it was not kept, or no longer; send the item itself"
        raise refuse("item_not_found", words, where)
    return _ITEM.validate_python(item)
