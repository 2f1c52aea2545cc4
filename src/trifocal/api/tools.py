"""Functions that a model may ask for, in any dialect: offered, chosen, forced by grammar, and read from answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from trifocal.api.errors import refuse
from trifocal.api.wire import LONGEST_TEXT, check_values, dump, octets, too_long
from trifocal.messages import Call, Tool

__all__ = ["Offer", "Reader", "allowed_of", "call_of", "choice_of", "numbered", "offer_of", "spaced"]

MOST = 512
_NAME = re.compile(r"[\w.:/-]{1,256}")
# what templates of the field write before and after a call; a tokenizer may take them for control tokens and drop them
_MARKS = re.compile(
    r"</?tool_calls?>|</?function_calls?>|\[/?TOOL_CALLS\]|<\|(?:python_tag|eom_id|eot_id|tool_call)\|>|```(?:json)?"
)
_BEFORE = ("<tool_call", "<function_call", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>", "```", "{", "[{")


@dataclass(frozen=True, slots=True)
class Offer:
    """The functions of a request. ``forced`` are those of which one must be called; ``notes`` what is not offered.

    ``own`` has the namespace and the name in it of each function that stands in one. Of a ``single`` offer at most one
    call is told.
    """

    tools: tuple[Tool, ...] = ()
    forced: tuple[Tool, ...] = ()
    notes: tuple[str, ...] = ()
    own: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    single: bool = False

    @property
    def octets(self) -> int:
        """How many bytes the functions take."""
        return sum(octets(text) for tool in self.tools for text in (tool.name, tool.description, tool.parameters))

    @property
    def schema(self) -> str | None:
        """What the answer is held to where a function must be called: its arguments, or its name and its arguments."""
        if not self.forced:
            return None
        if len(self.forced) == 1:
            return self.forced[0].parameters
        calls = [
            {
                "type": "object",
                "properties": {"name": {"const": tool.name}, "arguments": {"$ref": f"#/$defs/tool{at}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for at, tool in enumerate(self.forced)
        ]
        inner = {f"tool{at}": _moved(json.loads(tool.parameters), at) for at, tool in enumerate(self.forced)}
        return dump({"anyOf": calls, "$defs": inner})

    def forced_call(self, text: str) -> Call:
        """The call that an answer held to `schema` is; one that was cut has the arguments that there are."""
        if len(self.forced) == 1:
            return Call(self.forced[0].name, text)
        try:
            found = json.loads(text)
            return Call(found["name"], dump(found["arguments"]))
        except (ValueError, RecursionError):
            name = re.search(r'"name":"([^"]*)', text)
            _, _, arguments = text.partition('"arguments":')
            return Call(name[1] if name else "", arguments)


def offer_of(
    given: Sequence[Any] | None,
    choice: str | tuple[str, ...],
    where: str = "tools",
    *,
    single: bool = False,
    allowed: tuple[str, ...] | None = None,
) -> Offer:
    """The offer that a request makes. ``choice`` is ``auto``, ``none``, ``required``, or the names that are left.

    Where functions are ``allowed``, the others are not offered.

    Every dialect's way to write a function is read; tools of other kinds run on their makers' own servers.

    Raises:
        Refusal: a function without a name or with a schema that is none, or a choice that there is not.
    """
    read = _Read(where)
    for at, each in enumerate(given or ()):
        read.add(each, f"{where}[{at}]")
    tools, known = tuple(read.tools.values()), read.known
    if Offer(tools).octets > LONGEST_TEXT:
        raise too_long(LONGEST_TEXT, where)
    if choice == "none":
        return Offer()
    names = tuple(read.tools) if choice == "required" else (allowed or ()) if choice == "auto" else choice
    unknown = [name for name in names if name not in known]
    if unknown or not (names or choice == "auto"):
        words = f"there is no tool {unknown[0]!r}" if unknown else "there is no function to choose"
        raise refuse("invalid_value", f"{words}; known: {', '.join(read.tools) or 'none'}", "tool_choice")
    named = tuple(known[name] for name in names)
    if choice == "auto":
        return Offer(tools if allowed is None else named, (), read.notes, read.own, single)
    return Offer(tools, named, read.notes, read.own)


def spaced(namespace: str | None, name: str) -> str:
    """A function's name as a model knows it: of two namespaces each may have one of the same name."""
    return f"{namespace.removesuffix('__')}__{name}" if namespace else name


def choice_of(given: Any) -> str | tuple[str, ...]:
    """A tool choice in any dialect: ``auto``, ``none``, ``required``, or the names of which one must be called.

    Raises:
        Refusal: there is no such choice.
    """
    kind = given.get("type", "function") if isinstance(given, dict) else given
    match kind:
        case None | "auto":
            return "auto"
        case "none" | "required":
            return str(kind)
        case "any":
            return "required"
        case "function" | "tool" | "custom":
            named = given.get(kind) if isinstance(given.get(kind), dict) else given
            if isinstance(named.get("name"), str):
                return (named["name"],)
        case "allowed_tools":
            mode = _inner(given, "allowed_tools").get("mode")
            return allowed_of(given) or () if mode == "required" else "auto"
    raise refuse("invalid_value", "it is none, auto, required or a function by its name", "tool_choice")


def allowed_of(given: Any) -> tuple[str, ...] | None:
    """The functions to which a tool choice restricts an answer, whether or not one must be called; None: to none.

    Raises:
        Refusal: they are no list of functions.
    """
    if not isinstance(given, dict) or given.get("type") != "allowed_tools":
        return None
    tools = _inner(given, "allowed_tools").get("tools")
    listed = tools if isinstance(tools, list) else [None]
    inner = [_inner(each, "function") if isinstance(each, dict) else {} for each in listed]
    names = [spaced(each.get("namespace"), each["name"]) for each in inner if isinstance(each.get("name"), str)]
    if len(names) < len(inner):
        raise refuse(
            "invalid_value", "the tools that are allowed are a list of functions by their names", "tool_choice"
        )
    return tuple(names)


def _inner(given: dict[str, Any], name: str) -> dict[str, Any]:
    """The object of that name inside another, in whose place its members may stand."""
    inner = given.get(name)
    return inner if isinstance(inner, dict) else given


def call_of(name: str, arguments: Any, id: str, where: str) -> Call:
    """A call that a client sends back; ``arguments`` are an object or its text.

    Raises:
        Refusal: they are neither, or longer than the texts of a request may be.
    """
    if isinstance(arguments, str):
        check_values(arguments, where)
    written = _written(arguments or {})
    if written is None:
        raise refuse("invalid_value", "the arguments of a call are a JSON object", where)
    return Call(name, written, id)


def _written(arguments: Any) -> str | None:
    """An object's JSON; None of what is neither that nor its text, or holds a number that is none, or half a letter."""
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        written = dump(value)
        written.encode()
    except (ValueError, RecursionError):
        return None
    return written if isinstance(value, dict) else None


class Reader:
    """Finds calls in an answer as it comes: text that may be the beginning of one is held back."""

    def __init__(self, offer: Offer) -> None:
        self._offer, self._held, self._open = offer, "", False
        self._names = {tool.name for tool in offer.tools}

    @property
    def holds(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def push(self, text: str) -> str:
        """The text that is surely none."""
        if not self._offer.tools or self._offer.forced:
            self._held += text if self._offer.forced else ""
            return "" if self._offer.forced else text
        self._held += text
        if self._open:
            return ""
        at = self._begins()
        self._open = at is not None
        sure = len(self._held) - self._half() if at is None else at
        given, self._held = self._held[:sure], self._held[sure:]
        return given

    def finish(self) -> tuple[str, tuple[Call, ...]]:
        """The rest of the text, and the calls."""
        held, self._held = self._held, ""
        if self._offer.forced:
            return "", (self._offer.forced_call(held),)
        calls = tuple(_calls(held, self._names)) if held else ()
        return ("", calls) if calls else (held, ())

    def _begins(self) -> int | None:
        """Where a call may begin: a mark anywhere, a bracket only where nothing was said before it."""
        start = len(self._held) - len(self._held.lstrip())
        found = [at for mark in _BEFORE[:5] if (at := self._held.find(mark)) >= 0]
        if self._held.startswith(_BEFORE[5:], start):
            found.append(start)
        return min(found, default=None)

    def _half(self) -> int:
        """How many of the last characters may be the beginning of a mark."""
        text = self._held
        if not text.strip():
            return len(text)
        return max((size for mark in _BEFORE for size in range(1, len(mark)) if text.endswith(mark[:size])), default=0)


def _calls(text: str, names: set[str]) -> Iterator[Call]:
    """The calls that a text is: JSON values one after the other; none where anything else is in it."""
    rest, found, decoder = _MARKS.sub("\n", text).strip(), list[Any](), json.JSONDecoder()
    while rest:
        name = re.match(r"([\w.-]{1,256})\s*(?:\[ARGS\])?\s*(?=\{)", rest)  # Mistral's: the name, then its arguments
        try:
            value, end = decoder.raw_decode(rest, name.end() if name else 0)
        except (ValueError, RecursionError):
            return
        found += [{"name": name[1], "arguments": value}] if name else value if isinstance(value, list) else [value]
        rest = rest[end:].lstrip(" \n\t,;")
    calls = [_call(each, names) for each in found]
    if all(calls):
        yield from (call for call in calls if call)


def _call(value: Any, names: set[str]) -> Call | None:
    value = value.get("function", value) if isinstance(value, dict) else None
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(name, str) or name not in names:
        return None
    written = _written(value.get("arguments", value.get("parameters", {})))
    return None if written is None else Call(name, written)


@dataclass(slots=True)
class _Read:
    """The functions of a request as they are read, and the kinds of the tools that are none."""

    where: str
    tools: dict[str, Tool] = field(default_factory=dict)
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    others: dict[str, None] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not offered."""
        return tuple(f"the tool {kind} was not offered: it is none of this server's" for kind in self.others)

    @property
    def known(self) -> dict[str, Tool]:
        """The functions by their names, and by their names in their namespaces."""
        return {name: self.tools[full] for full, (_, name) in self.own.items()} | self.tools

    def add(self, given: Any, where: str, namespace: str = "") -> None:
        """One tool: a function, a namespace of them, or one of another kind."""
        if not isinstance(given, dict):
            raise refuse("invalid_type", f"{where}: it is an object", where)
        kind = given.get("type") or "function"
        if kind == "namespace":
            self._add_all(given, where)
        elif kind not in ("function", "custom") or (kind == "custom" and "input_schema" not in given):
            self.others[str(kind)[:64]] = None
        else:
            self._add_function(given, where, namespace)

    def _add_all(self, given: dict[str, Any], where: str) -> None:
        space, inner = _name_of(given, where, "a namespace"), given.get("tools") or []
        if not isinstance(inner, list):
            raise refuse("invalid_type", "it is a list of functions", f"{where}.tools")
        for at, each in enumerate(inner):
            self.add(each, f"{where}.tools[{at}]", space)

    def _add_function(self, given: dict[str, Any], where: str, namespace: str) -> None:
        inner = isinstance(given.get("function"), dict)
        place, function = (f"{where}.function", given["function"]) if inner else (where, given)
        own = _name_of(function, place, "a function")
        name = spaced(namespace, own)
        parameters = function.get("parameters", function.get("input_schema", function.get("inputSchema"))) or {}
        if not isinstance(parameters, dict):
            raise refuse("invalid_type", "they are a JSON schema", f"{place}.parameters")
        if name in self.tools:
            raise refuse("invalid_value", f"there are two functions called {name}", f"{place}.name")
        if len(self.tools) == MOST:
            raise refuse("invalid_value", f"up to {MOST} functions are taken", self.where)
        schema = {"type": "object", **({} if parameters else {"properties": {}}), **parameters}
        self.tools[name] = Tool(name, str(function.get("description") or ""), dump(schema))
        if namespace:
            self.own[name] = (namespace, own)


def _name_of(given: dict[str, Any], where: str, what: str) -> str:
    name = given.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        code = "missing_required_parameter" if name is None else "invalid_value"
        raise refuse(code, f"{what} has a name of letters, digits, . : / _ and -", f"{where}.name")
    return name


def _moved(schema: Any, at: int) -> Any:
    """A schema whose references to itself still hold below ``#/$defs/toolN``."""
    if isinstance(schema, list):
        return [_moved(each, at) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {name: _moved(value, at) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = f"#/$defs/tool{at}{reference[1:]}"
    return moved


def numbered(calls: Sequence[Call], new_id: Callable[[], str]) -> tuple[Call, ...]:
    """Calls with the ids by which results will refer to them; those that have one keep it."""
    return tuple(call if call.id else replace(call, id=new_id()) for call in calls)
