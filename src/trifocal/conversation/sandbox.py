"""A process of its own that renders Jinja templates which nobody here wrote: little memory, no writing, no secrets.

`trifocal.conversation.jinja` starts it and ends it when it takes too long. It reads one request a line,
``{"source", "values"}`` as JSON, and answers with one line, ``{"text"}`` or ``{"error", "line"}``.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["main", "rendered"]

MEMORY = 256 << 20
LONGEST = 4 << 20  # characters of what a template writes


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


def rendered(source: str, values: dict[str, Any]) -> dict[str, Any]:
    """What a template writes, or what is wrong with it and in which of its lines."""
    try:
        pieces, size = [], 0
        for piece in _compiled(source).generate(**values):
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
        print(json.dumps(rendered(request["source"], request["values"])), flush=True)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """As transformers sets Jinja up (``chat_template_utils``), but for names that are not there."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], undefined=_Unknown
    )
    environment.filters["tojson"] = _json
    environment.globals.pop("lipsum")
    environment.globals.update(raise_exception=_raise, strftime_now=lambda form: datetime.now().strftime(form))
    return environment.from_string(source)


def _json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    """Without the escapes for web pages that Jinja's own has."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _line(error: BaseException) -> int | None:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
    return lines[-1] if lines else None


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
