"""A process of its own that renders Jinja templates which nobody here wrote: little memory, no writing, no secrets.

`trifocal.conversation.jinja` starts it and ends it when it takes too long. It reads one request a line,
``{"source", "values", "first", "seconds"}`` as JSON, and answers with one line, ``{"text"}`` or ``{"error", "line"}``.
A template writes text, numbers and truth values; a list, a dict, a function or None that it would write as Python
spells it is a mistake, which is told.
"""

from __future__ import annotations

import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["main", "rendered"]

MEMORY = 256 << 20
LONGEST = 4 << 20  # characters of what a template writes
# the filters that take lists, dicts and names that are not there; all others make text of what they are given
_TAKE_ALL = frozenset((
    "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last", "length",
    "list", "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort",
    "sum", "unique",
))  # fmt: skip
_FIRST = "the first letter"  # a name that no template can spell
_JINJAS = ("_loop_vars", "_block_vars")  # what its compiler adds to a call, beside the template's own


class _Unknown(jinja2.Undefined):
    """A name that is not there may be asked for, as templates do to see what they have, but not written down."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self._fail_with_undefined_error())


class _Generation(Extension):
    """``{% generation %}``, which marks answers for training, and means nothing here."""

    tags = {"generation"}  # noqa: RUF012  # Jinja's own spelling

    def parse(self, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Shown(str):
    """Text that can be written, but not as Python spells it."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise TypeError("it writes a text as Python spells it, with its quotes")


class _Turn(dict[str, Any]):
    """A message, or a part of one: asked for what is in it, never written down whole."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise _spelt(self)


class _Parts(list[Any]):
    """The messages, or the parts of one."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise _spelt(self)


_Turn.__name__, _Parts.__name__ = "dict", "list"  # what Jinja's own messages call them
_Turn.__module__ = _Parts.__module__ = "builtins"


class _Code(CodeGenerator):
    """Joins by ``~`` in `_Environment.joined`."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # Jinja's own spelling
        self.write("environment.joined((")
        for one in node.nodes:
            self.visit(one, frame)
            self.write(", ")
        self.write("))")


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every way from a value to text goes through `_plain`."""

    code_generator_class = _Code
    intercepted_binops = frozenset("%")

    def joined(self, values: tuple[Any, ...]) -> str:
        """What ``~`` makes of them."""
        return "".join(str(_plain(value)) for value in values)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The ``%`` of texts, filled with what can be written."""
        if isinstance(left, str):
            right = _filled(right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A method of a text gets what can be written, and ``join`` texts alone."""
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps ``format``
        if isinstance(getattr(method, "__self__", None), str):
            name = method.__name__
            if name == "format_map":
                raise TypeError("it asks for format_map; format is what it may use")
            args = tuple(_argument(name, one) for one in args)
            kwargs = {key: one if key in _JINJAS else _argument(name, one) for key, one in kwargs.items()}
        return super().call(__context, __obj, *args, **kwargs)


def rendered(source: str, values: dict[str, Any], first: int = 0) -> dict[str, Any]:
    """What a template writes, or what is wrong with it and in which of its lines.

    ``first`` is where the block of letters begins that stand for what people typed in ASCII.
    """
    told = {**values, "messages": _guarded(values.get("messages", [])), _FIRST: first}
    try:
        pieces, size = [], 0
        for piece in _compiled(source).generate(**told):
            pieces.append(piece)
            size += len(piece)
            if size > LONGEST:
                raise MemoryError(f"it writes more than {LONGEST} characters")
        return {"text": "".join(pieces)}
    except jinja2.TemplateSyntaxError as error:
        return {"error": str(error.message), "line": error.lineno}
    except MemoryError as error:
        return {"error": str(error) or f"it takes more than {MEMORY >> 20} MB of memory", "line": _line(error)}
    except Exception as error:  # of a stranger's program anything may come
        return {"error": str(error) or type(error).__name__, "line": _line(error)}


def main() -> None:
    """Answers requests on standard input until it ends."""
    _bounded()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        _timed(request["seconds"])
        answer = json.dumps(rendered(request["source"], request["values"], request["first"]))
        _timed(0)
        print(answer, flush=True)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """As transformers sets Jinja up (``chat_template_utils``), but for what can't be written."""
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
        undefined=_Unknown,
        finalize=_written,
        optimized=False,  # constants are joined without asking `_Environment`
    )
    for name in ("pprint", "xmlattr"):  # Python's own spelling, and that of web pages
        environment.filters.pop(name)
    for name in set(environment.filters) - _TAKE_ALL:
        environment.filters[name] = _writing(environment.filters[name])
    environment.filters.update(tojson=_json, join=_join)
    environment.globals.pop("lipsum")
    environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
    return environment.from_string(source)


def _guarded(value: Any) -> Any:
    """Messages as values that can't be written whole; calls of tools may be, as JSON."""
    if isinstance(value, dict):
        return _Turn({key: one if key == "tool_calls" else _guarded(one) for key, one in value.items()})
    return _Parts(map(_guarded, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """What can be written as it is: text, a number or a truth value, or a name that is not there, which tells itself.

    Raises:
        TypeError: anything else.
    """
    if isinstance(value, (str, int, float, jinja2.Undefined)):
        return value
    raise _spelt(value)


@jinja2.pass_context  # so that constants aren't joined at once here either
def _written(_: Context, value: Any) -> Any:
    return _plain(value)


def _spelt(value: Any) -> TypeError:
    what = next(kind.__name__ for kind in (list, dict, type(value)) if isinstance(value, kind))
    return TypeError(f"it writes a {what} as Python spells it into the prompt")


def _shown(value: Any) -> Any:
    """The same, and a text not with its quotes either."""
    return _Shown(value) if isinstance(_plain(value), str) else value


def _filled(right: Any) -> Any:
    """What stands to the right of a format's ``%``."""
    if isinstance(right, tuple):
        return tuple(map(_shown, right))
    return {key: _shown(value) for key, value in right.items()} if isinstance(right, Mapping) else _shown(right)


def _argument(method: str, value: Any) -> Any:
    """What a method of a text is called with."""
    if method == "join":
        return [_plain(one) for one in value]
    if value is None or (isinstance(value, tuple) and method in ("startswith", "endswith")):
        return value
    return _shown(value)


def _writing(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that makes text, of nothing but what can be written."""
    passed = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment, which Jinja puts in front

    @wraps(function)
    def checked(*args: Any, **named: Any) -> Any:
        shown = (_shown(one) for one in args[passed:])
        more = {name: one if one is None else _shown(one) for name, one in named.items()}
        return function(*args[:passed], *shown, **more)

    return checked


@jinja2.pass_environment
def _join(environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    found = value if attribute is None else map(make_attrgetter(environment, attribute), value)
    return str(_plain(d)).join(str(_plain(one)) for one in found)


@jinja2.pass_context
def _json(context: Context, value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Without the escapes for web pages that Jinja's own has, and never of a message's parts.

    The letters that stand for what people typed are escaped as those that they stand for.
    """
    _check_json(value)
    text = json.dumps(value, ensure_ascii=False, indent=indent, **more)
    first = context[_FIRST]
    hidden = range(first, first + 0x80) if first else range(0)
    quote, slash = chr(first + 0x22), chr(first + 0x5C)

    def escaped(letter: str) -> str:
        if ord(letter) in hidden:
            return slash + letter if letter in (quote, slash) else letter
        return json.dumps(letter)[1:-1] if ensure_ascii and not letter.isascii() else letter

    return "".join(map(escaped, text))


def _check_json(value: Any) -> None:
    if isinstance(value, (_Turn, _Parts)):
        raise TypeError("it writes a message or its parts as JSON into the prompt")
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        _check_json(one)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _line(error: BaseException) -> int | None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


def _timed(seconds: float) -> None:
    """Ends this process when it has worked so long; 0 forgets it. Waiting for a busy machine is no work."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _bounded() -> None:
    """Bounds this process's memory, and keeps it from writing files and starting programs, where the system can."""
    try:
        import resource
    except ImportError:
        return
    for what, most in (("RLIMIT_AS", MEMORY), ("RLIMIT_FSIZE", 0), ("RLIMIT_NPROC", 0)):
        if hasattr(resource, what):
            try:
                resource.setrlimit(getattr(resource, what), (most, most))
            except (ValueError, OSError):
                continue


if __name__ == "__main__":
    main()
