"""Conversations written down by a Jinja template: a file of the user's own disk, or the checkpoint's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from trifocal.conversation.brought import LARGEST, own_template, tool_template
from trifocal.conversation.templates import (
    IMAGE_MARK,
    ChatTemplate,
    Control,
    Piece,
    at_marks,
    get_template,
    opening,
    place,
)
from trifocal.errors import BadMessages, CheckpointError, UsageError
from trifocal.images import Image
from trifocal.messages import Call, Message, Part, Role, Tool
from trifocal.source import TOKENS, source_of

__all__ = ["JinjaTemplate", "check_name", "find_template"]

CHECKPOINT = "checkpoint"  # the name of the template that lies beside the language model
SECONDS = 1.0  # of the process's own work: a busy machine is nobody's fault
_STARTING = 60.0
_HANGING = 30.0 if hasattr(signal, "setitimer") else SECONDS  # where the work can't be timed, the clock on the wall is
# where templates of the field say that a picture stands
_MARKS = (IMAGE_MARK, "<video>", "[IMG]", "<IMG_CONTEXT>", "<start_of_image>")
_SIGNS = re.compile(r"[^\w\s]{2,}")
_TOKEN = re.compile(r"<[^<>\s]{1,64}>|\[[A-Za-z_/]{1,64}\]")
_OTHERWISE = re.compile(rf"(?!{IMAGE_MARK})(?i:{IMAGE_MARK})")
_WHOSE = {"user": "a question", "assistant": "an answer", "system": "the system text", "tool": "a tool's result"}
_WORD = re.compile(r"[\w.$-]{1,64}", re.ASCII)
_SAFE = range(0xF0000, 0x10FF00, 0x80)  # where the letters that users type may be put: blocks of private use


def find_template(name: str, *homes: Path) -> ChatTemplate:
    """The template of that name; ``checkpoint`` is the one beside the language model, and a path is a Jinja file.

    ``homes`` are where the language model's own may lie; what the first says counts before what the others do.

    Raises:
        UnknownName: there is none of that name.
        UsageError: a file that is missing, or is no template that can write a conversation with a picture down.
        CheckpointError: the checkpoint has none, or a damaged one.
    """
    told = [source_of(home) for home in homes]
    tokens = {which: token for home in reversed(told) for which, token in home.special_tokens().items()}
    marks = [mark for home in told for mark in home.picture_marks()]
    if name == CHECKPOINT:
        brought = own_template(*homes)
        if brought is None:
            raise CheckpointError(
                f"{', '.join(map(str, homes))}: it has no chat template of its own; name one with template (--template)"
            )
        source, file = brought
        where = f"{file.parent.name}/{file.name}"
        return JinjaTemplate(source, "checkpoint", where, tokens, marks, tool_template(file))
    if _is_path(name):
        file = Path(name).expanduser()
        return JinjaTemplate(_read(file), file.name, file.name, tokens, marks)
    return get_template(name)


def check_name(name: str) -> None:
    """Refuses a template's name that nobody knows; a path may be another machine's.

    Raises:
        UnknownName: there is none of that name.
    """
    if name != CHECKPOINT and not _is_path(name):
        get_template(name)


def _is_path(name: str) -> bool:
    return name.endswith((".jinja", ".jinja2", ".j2")) or "/" in name or os.sep in name


class JinjaTemplate:
    """A conversation family as somebody else's Jinja template, in the shape that transformers gives them.

    It runs in a process of its own, in Jinja's sandbox, for at most `SECONDS` a time. Whether it takes a turn's
    content as a list of parts or as one text is found out by trying, for each role apart. Control tokens are what the
    *template* writes and the tokenizer knows; pictures stand where it writes ``<image>`` or its family's own mark. What
    people typed goes through it with every visible letter of ASCII replaced by one of private use, so that neither is
    ever made of it. ``with_tools`` is another one for conversations with tools, as transformers takes that of the name
    ``tool_use``.

    Raises:
        UsageError: the template can't be read, or can't write a conversation with a picture down; names file and line.
    """

    system = ""
    pictures: Literal["first", "last"] = "first"

    def __init__(
        self,
        source: str,
        name: str,
        file: str,
        tokens: Mapping[str, str] | None = None,
        marks: Sequence[str] = (),
        with_tools: str | None = None,
    ) -> None:
        self._mark = re.compile("|".join(map(re.escape, dict.fromkeys((*_MARKS, *marks)))))
        self.name, self._source, self._file = name, source, file
        self._with_tools = with_tools or source
        self._tokens = dict.fromkeys(TOKENS, "") | dict(tokens or {})
        self._process = _Process()
        self._listed: dict[Role, bool] = {"tool": False}
        self._ask_shapes()
        self.stop = self._stops()

    @cached_property
    def system_inside(self) -> bool:
        """Whether it writes a system turn that stands between others, found out by trying."""
        talk = [
            Message("user", "one"),
            Message("assistant", "two"),
            Message("system", "seen"),
            Message("user", "three"),
        ]
        text = self._tried(talk)
        return text.find("two") < text.find("seen") < text.find("three")

    @cached_property
    def has_tools(self) -> bool:
        """Whether it writes tools, calls and results down, found out by trying."""
        talk = [
            Message("user", "one"),
            Message("assistant", "", calls=[Call("probe_it", '{"said": "two"}', "1")]),
            Message("tool", "three", answers="1", name="probe_it"),
        ]
        for self._listed["tool"] in (False, True):
            text = self._tried(talk, [Tool("probe_it", "what it does")])
            if "what it does" in text and text.count("probe_it") > 1 and text.find("two") < text.find("three"):
                return True
        return False

    @cached_property
    def alternates(self) -> bool:
        """Whether it refuses two turns of the user in a row, or an assistant's turn first."""
        return not self._tried([Message("user", "one"), Message("user", "two")]) or not self._tried(
            [Message("assistant", "one"), Message("user", "two")]
        )

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """The conversation in prompt order: text, control tokens and pictures; as `Template.render`.

        Raises:
            BadMessages: no conversation, or one that the template refuses, fails at or drops a part of.
        """
        opening(messages, inside=True)
        changed = next((each.role for each in messages if each.role in self._changing and each.text), None)
        if changed is not None:
            raise BadMessages(f"the template {self._changed(changed)}")
        try:
            return self._written(messages, self._listed, tools)
        except _Failed as error:
            raise BadMessages(f"the template {self._at(error)}") from error

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn; pictures that nobody placed come first, as the templates of the field have them."""
        if IMAGE_MARK in text:
            return Message("user", (text, *images))
        return Message("user", (*images, text) if text else tuple(images))

    def _tried(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """The text of a conversation, nothing where the template fails at it."""
        try:
            pieces = self._written(messages, self._listed, tools)
        except _Failed:
            return ""
        return "".join(piece for piece in pieces if isinstance(piece, str))

    def _written(
        self,
        messages: Sequence[Message],
        listed: Mapping[Role, bool],
        tools: Sequence[Tool] = (),
        *,
        clear: bool = False,
    ) -> tuple[Piece, ...]:
        private, numbers = _Private(messages, tools, clear=clear), _Numbers()
        turns = [_turn(message, private, numbers, listed=listed[message.role]) for message in messages]
        images = [part for message in messages for part in _parts(message) if isinstance(part, Image)]
        is_open = messages[-1].role == "assistant"
        if is_open:
            _leave_open(turns[-1], private.end)
        text = self._process.render(
            self._with_tools if tools else self._source,
            {
                "messages": turns,
                "add_generation_prompt": not is_open,
                "tools": [_offered(tool, private) for tool in tools] or None,
                "documents": None,
                **self._tokens,
            },
            private.first,
        )
        if is_open and private.end not in text:
            raise _Failed("it does not write the answer down that is to be continued")
        texts = self._mark.split(text.split(private.end)[0])
        if len(texts) - 1 != len(images):
            other = _OTHERWISE.search(text)
            changed = f" ({other[0]!r} is none: a filter changed it)" if other else ""
            raise _Failed(f"it writes {len(texts) - 1} {IMAGE_MARK} marks for {len(images)} pictures{changed}")
        _check_whole(messages, "".join(texts), private)
        pieces: list[Piece] = []
        for at, run in enumerate(texts):
            pieces += [images[at - 1]] if at else []
            pieces += _pieces(run, private)
        return tuple(pieces)

    def _ask_shapes(self) -> None:
        """Finds out for each role whether its content is a list of parts, or one text (with ``<image>`` in it).

        A template that refuses a role in both shapes is told when a conversation has that role, in the user's shape.
        """
        asked = Message("user", (_dot(), "seen"))
        failures = self._ask_shape("user", [asked])
        if failures:
            raise UsageError(f"the template {self._reason(failures)}")
        self._listed.update(dict.fromkeys(("assistant", "system"), self._listed["user"]))
        answered = [asked, Message("assistant", "said"), Message("user", "more")]
        instructed = [Message("system", "told"), asked]
        talks: dict[Role, list[Message]] = {"assistant": answered, "system": instructed}
        whole = [role for role, talk in talks.items() if not self._ask_shape(role, talk)]
        if self._changes([asked]) or self._changes([Message("user", "seen")]):
            raise UsageError(f"the template {self._changed('user')}")
        # what does not come through at all is not changed: a conversation that has it is told the template's own reason
        self._changing = [role for role in whole if self._changes(talks[role])]

    def _changes(self, talk: Sequence[Message]) -> bool:
        """Whether the template would write other letters if it were shown what people typed."""
        try:
            pieces = self._written(talk, self._listed, clear=True)
        except _Failed:
            return False
        # a word between marks of the template's own may look like a token
        named = (piece.name if isinstance(piece, Control) else piece for piece in pieces)
        written = "".join(piece for piece in named if isinstance(piece, str))
        return any(message.text not in written for message in talk)

    def _changed(self, role: Role) -> str:
        return (
            f"{self._file}: it changes the letters of {_WHOSE[role]}, as a filter like upper does; what people type is "
            "kept from templates here, so that it can't be followed: take the filter away in a copy of it (--template)"
        )

    def _ask_shape(self, role: Role, talk: Sequence[Message]) -> dict[bool, _Failed]:
        """Notes the shape in which a role's turns come through whole; what failed in each where none does."""
        failures = {}
        for listed in (True, False):
            shapes = {**self._listed, role: listed}
            try:
                self._written(talk, shapes)
            except _Failed as error:
                failures[listed] = error
                continue
            self._listed[role] = listed
            return {}
        return failures

    def _reason(self, failures: Mapping[bool, _Failed]) -> str:
        """Why a question with a picture can't be written: in the shape that comes through without one, else in both."""
        works = [listed for listed in failures if not self._fails([Message("user", "seen")], {"user": listed})]
        said = list(dict.fromkeys(self._at(failures[listed]) for listed in (works if len(works) == 1 else failures)))
        if len(said) == 1:
            return said[0]
        return f"takes a turn neither as a list of parts ({said[0]}) nor as one text ({said[1]})"

    def _fails(self, messages: Sequence[Message], listed: Mapping[Role, bool]) -> bool:
        try:
            self._written(messages, listed)
        except _Failed:
            return True
        return False

    def _stops(self) -> tuple[str, ...]:
        """What the template writes after an answer: its first control token, or else its text.

        Of a text that begins with signs (``### Human:``) the signs alone: a model may go on as somebody else.
        """
        talk = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
        try:
            pieces = list(self._written(talk, self._listed))
        except _Failed:
            return ()
        answered = next((at for at, piece in enumerate(pieces) if isinstance(piece, str) and "two" in piece), None)
        if answered is None:
            return ()
        text = str(pieces[answered]).split("two", 1)[1].split("three")[0].strip()
        token = pieces[answered + 1] if answered + 1 < len(pieces) else None
        signs = _SIGNS.match(text)
        return (signs[0] if signs else text,) if text else (token.name,) if isinstance(token, Control) else ()

    def _at(self, error: _Failed) -> str:
        return f"{self._file}{f', line {error.line}' if error.line else ''}: {error}"


class _Failed(Exception):
    """What is wrong with a template, and in which line."""

    def __init__(self, what: str, line: int | None = None) -> None:
        self.line = line
        super().__init__(what)


class _Private:
    """Another block of letters for what people typed: one that none of them used. ``clear`` leaves it as it is."""

    def __init__(self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, clear: bool = False) -> None:
        typed = [message.text + message.name for message in messages]
        typed += [call.name + call.arguments for message in messages for call in message.calls]
        typed += [tool.name + tool.description + tool.parameters for tool in tools]
        used = {ord(letter) >> 7 for text in typed for letter in text if ord(letter) >= _SAFE.start}
        free = [base for base in _SAFE if base >> 7 not in used]
        if not free:
            raise BadMessages("the conversation uses every block of private letters; take some of them away")
        self._to = {} if clear else {letter: free[0] + letter for letter in range(0x21, 0x7F)}
        self._from = {private: letter for letter, private in self._to.items()}
        self.first = 0 if clear else free[0]  # of the block, as 0 is of ASCII
        self.end = chr(free[0])

    def hide(self, text: str) -> str:
        """Typed text, with nothing in it that could be taken for a template's own."""
        return text.translate(self._to)

    def show(self, text: str) -> str:
        """The text as it was typed."""
        return text.translate(self._from)

    def hide_in(self, value: Any) -> Any:
        """A value whose texts were typed; plain words stay, since templates compare them."""
        if isinstance(value, str):
            return value if _WORD.fullmatch(value) else self.hide(value)
        if isinstance(value, dict):
            return {self.hide_in(key): self.hide_in(each) for key, each in value.items()}
        return [self.hide_in(each) for each in value] if isinstance(value, list) else value


class _Numbers:
    """Ids of calls as templates of the field ask for them: nine letters and digits."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, given: str) -> str:
        """The id that stands for the one that was given."""
        return self._known.setdefault(given, f"call{len(self._known):05d}")


class _Process:
    """The process that renders: started when it is first needed, and again after it had to be ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._end: weakref.finalize[Any, Any] | None = None

    def render(self, source: str, values: Mapping[str, Any], first: int = 0) -> str:
        """What the template writes; ``first`` is where the block of letters begins that stand for ASCII's.

        Raises:
            _Failed: it is wrong, or takes too much time or memory.
        """
        request = json.dumps({"source": source, "values": values, "first": first, "seconds": SECONDS}) + "\n"
        with self._lock:
            running = self._running or self._started()
            answer = _within(_HANGING, running, request)
            if not answer.endswith("\n"):
                self._stopped()
                raise _Failed(f"it takes longer than {SECONDS:g} s, or more memory than is allowed")
        found = json.loads(answer)
        if "error" in found:
            raise _Failed(found["error"], found["line"])
        return str(found["text"])

    def _started(self) -> subprocess.Popen[str]:
        program = Path(__file__).with_name("sandbox.py")
        kept = {name: os.environ[name] for name in ("SYSTEMROOT", "PATH", "LD_LIBRARY_PATH") if name in os.environ}
        running = subprocess.Popen(
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**kept, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
        )
        self._running, self._end = running, weakref.finalize(self, _ended, running)
        if _within(_STARTING, running, "") != "ready\n":
            self._stopped()
            raise _Failed("the process that renders templates does not start")
        return running

    def _stopped(self) -> None:
        if self._end is not None:
            self._end()
        self._running = None


def _within(seconds: float, running: subprocess.Popen[str], request: str) -> str:
    """One line of a process's answer; a part of one, or nothing, where it died or had to be ended."""
    assert running.stdin is not None
    assert running.stdout is not None
    timer = threading.Timer(seconds, running.kill)
    timer.start()
    try:
        running.stdin.write(request)
        running.stdin.flush()
        return running.stdout.readline()
    except (OSError, ValueError):
        return ""
    finally:
        timer.cancel()


def _ended(running: subprocess.Popen[str]) -> None:
    running.kill()
    running.wait()
    for pipe in (running.stdin, running.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except OSError:
                continue


def _parts(message: Message) -> tuple[Part, ...]:
    """A message's content with its pictures at their marks, those without one at the end."""
    parts, over = at_marks(message)
    return (*parts, *over)


def _turn(message: Message, private: _Private, numbers: _Numbers, *, listed: bool) -> dict[str, Any]:
    """A message in the shape that transformers' templates take."""
    turn = {"role": message.role, "content": _content(message, private, listed=listed)}
    if message.role == "tool":
        turn |= {"name": private.hide_in(message.name), "tool_call_id": numbers.of(message.answers)}
    if message.calls:
        calls = [
            {"name": private.hide_in(call.name), "arguments": private.hide_in(json.loads(call.arguments))}
            for call in message.calls
        ]
        ids = [numbers.of(call.id) for call in message.calls]
        turn["tool_calls"] = [
            {"type": "function", "id": at, "function": call} for at, call in zip(ids, calls, strict=True)
        ]
    return turn


def _offered(tool: Tool, private: _Private) -> dict[str, Any]:
    """A tool in the shape that transformers' templates take."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": private.hide_in(function)}


def _content(message: Message, private: _Private, *, listed: bool) -> str | list[dict[str, Any]]:
    if not listed:
        texts = (private.hide(part) if isinstance(part, str) else IMAGE_MARK for part in place(message))
        return "".join(texts)
    content = [
        {"type": "text", "text": private.hide(part)}
        if isinstance(part, str)
        else {"type": "video" if part.frames else "image"}
        for part in _parts(message)
        if part != ""
    ]
    return content or [{"type": "text", "text": ""}]


def _check_whole(messages: Sequence[Message], text: str, private: _Private) -> None:
    """Refuses what was written without a part of what people typed, whatever was done to its white space."""
    written = _letters(text)
    for message in messages:
        for part in _parts(message):
            if isinstance(part, str) and not any(_letters(private.hide(each)) in written for each in _spellings(part)):
                raise _Failed(f"it does not write {_WHOSE[message.role]} down")


def _spellings(text: str) -> tuple[str, str]:
    """A text as it is and as JSON has it, in which Llama 3's templates write a tool's result."""
    return text, re.sub(r'["\\]', r"\\\g<0>", text)


def _letters(hidden: str) -> str:
    """What people typed of a text in which that is hidden, without white space and letters' cases."""
    return "".join(letter for letter in hidden.casefold() if not letter.isascii() and not letter.isspace())


def _leave_open(turn: dict[str, Any], end: str) -> None:
    if isinstance(turn["content"], str):
        turn["content"] += end
    else:
        turn["content"][-1]["text"] += end


def _pieces(run: str, private: _Private) -> Iterator[Piece]:
    """Text between pictures, what looks like a control token apart."""
    at = 0
    for token in _TOKEN.finditer(run):
        if token.start() > at:
            yield private.show(run[at : token.start()])
        yield Control(private.show(token[0]), needed=False) if token[0].isascii() else private.show(token[0])
        at = token.end()
    if at < len(run):
        yield private.show(run[at:])


def _dot() -> Image:
    from PIL import Image as Pictures

    from trifocal.images import from_pil

    return from_pil(Pictures.new("L", (1, 1)))


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise UsageError(f"the template {file}: more than {LARGEST} bytes")
        return file.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"the template {file} is not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {file} can't be read: {error}") from error
