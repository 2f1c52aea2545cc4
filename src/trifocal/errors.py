"""The errors Trifocal raises, and nothing else.

TrifocalError
├── UsageError            what the caller gave can't be done as asked
│   ├── UnknownName         an engine, option, template or model nobody has heard of
│   ├── BadImage            a picture that is refused: says which picture and which rule
│   ├── BadMarkup           an ``<img ...>`` tag in a raw prompt that is no picture
│   ├── BadSampling         a sampling option out of its range
│   ├── BadMessages         a conversation that no template can render
│   ├── PromptTooLong       the prompt can't fit: carries the counts
│   ├── NotSupported        this model can't do that at all, however it is asked
│   └── PeerRefused         another server refused the request: has its own words
├── CheckpointError       files of a model are missing, damaged or not what they say
├── MissingExtra          an optional dependency that is not installed
├── OutOfMemory           a device had no room: says which part and where
├── EngineError           a language engine failed in the middle of its work
│   ├── EngineLost          the process that did the work is gone: a new one may answer
│   └── PeerError           another server that works for us can't be asked, or is not to be believed
│       ├── PeerBusy          it has no room now: says when to come back
│       └── PeerTimeout       it did not answer in time
└── VisionError           what sees pictures on another machine can't be asked, or is not to be believed
"""

from __future__ import annotations

from difflib import get_close_matches

__all__ = [
    "BadImage",
    "BadMarkup",
    "BadMessages",
    "BadSampling",
    "CheckpointError",
    "EngineError",
    "EngineLost",
    "MissingExtra",
    "NotSupported",
    "OutOfMemory",
    "PeerBusy",
    "PeerError",
    "PeerRefused",
    "PeerTimeout",
    "PromptTooLong",
    "TrifocalError",
    "UnknownName",
    "UsageError",
    "VisionError",
]


class TrifocalError(Exception):
    """The root: everything that Trifocal raises on purpose."""


class UsageError(TrifocalError):
    """The caller's request can't be done as asked; asking differently may work."""


class UnknownName(UsageError):
    """A name that is in none of our tables; the message lists those that are."""

    def __init__(self, kind: str, given: str, known: list[str]) -> None:
        self.kind, self.given, self.known = kind, given, sorted(known)
        near = get_close_matches(given, self.known, 1, 0.7)
        told = f"; did you mean {near[0]}?" if near else ""
        super().__init__(f"unknown {kind} {given!r}; known: {', '.join(self.known) or 'none'}{told}")


class BadImage(UsageError):
    """A picture that is refused.

    ``name`` says which picture (a path, or a place such as ``messages[0].content[1]``), ``rule``
    is a short stable code (``not_an_image``, ``too_many_pixels``, ...), ``detail`` says what was
    found and what is allowed.
    """

    def __init__(self, rule: str, detail: str, name: str = "image") -> None:
        self.rule, self.detail, self.name = rule, detail, name
        super().__init__(f"{name}: {detail}")

    def named(self, name: str) -> BadImage:
        """The same refusal, told of the picture by another name."""
        return BadImage(self.rule, self.detail, name)


class BadMarkup(UsageError):
    """An ``<img`` tag that can't be read as a picture. ``at`` is its offset in characters."""

    def __init__(self, detail: str, at: int) -> None:
        self.detail, self.at = detail, at
        super().__init__(f"<img> tag at character {at}: {detail}")


class BadSampling(UsageError):
    """A sampling option out of its range. ``option`` is its name, ``detail`` what is wrong with it."""

    def __init__(self, option: str, detail: str) -> None:
        self.option, self.detail = option, detail
        super().__init__(f"{option}: {detail}")


class BadMessages(UsageError):
    """A conversation that can't be rendered: wrong roles, order or number of picture marks."""


class PromptTooLong(UsageError):
    """The prompt can't fit the engine's context; nothing was generated.

    All counts are in positions: rows of the language model's input.
    """

    def __init__(self, positions: int, images: int, max_tokens: int, context: int) -> None:
        self.positions, self.images = positions, images
        self.max_tokens, self.context = max_tokens, context
        super().__init__(
            f"the prompt takes {positions} positions ({images} of them pictures) and {max_tokens} are "
            f"asked for the answer, but the model's context is {context}: "
            "shorten the text, send fewer pictures or ask for a shorter answer"
        )


class NotSupported(UsageError):
    """This model can't do that at all, however it is asked; the message says why."""


class PeerRefused(UsageError):
    """Another server refused the request as it is. ``status``, ``code`` and ``param`` are its own, as are the words."""

    def __init__(self, words: str, status: int = 400, code: str | None = None, param: str | None = None) -> None:
        self.status, self.code, self.param = status, code, param
        super().__init__(words)


class CheckpointError(TrifocalError):
    """A model's files are missing, damaged, unsafe or not of the shape that they say."""


class MissingExtra(TrifocalError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{what} needs an optional dependency: pip install 'trifocal[{extra}]'")


class OutOfMemory(TrifocalError):
    """A device had no room for a part or for a prompt."""


class EngineError(TrifocalError):
    """A language engine failed while it worked; the request is lost, the process is not."""


class EngineLost(EngineError):
    """The process in which a language engine worked is gone; another one is started, or is not any more."""


class PeerError(EngineError):
    """Another server that works for us can't be asked, or its answer is not to be believed.

    ``told`` is what whoever asks us may know of it: no address, and of the other's words those meant for its clients.
    """

    def __init__(self, words: str, told: str = "") -> None:
        self.told = told or "the server behind this one can't be asked, or its answer is not to be believed"
        super().__init__(words)


class PeerBusy(PeerError):
    """It has no room now; ``retry_after`` seconds later it may have, as it says. ``status`` is 429 or 503."""

    def __init__(self, words: str, told: str = "", status: int = 503, retry_after: float = 1.0) -> None:
        self.status, self.retry_after = status, retry_after
        super().__init__(words, told)


class PeerTimeout(PeerError):
    """It did not answer in time."""


class VisionError(TrifocalError):
    """What sees pictures on another machine can't be asked, or its answer is not to be believed."""
