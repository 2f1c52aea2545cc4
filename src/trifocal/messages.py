"""What goes into Llava and what comes out: messages, sampling options, chunks and replies."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trifocal.errors import BadMessages, BadSampling
from trifocal.images import Image

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "ROLES",
    "Call",
    "Chunk",
    "End",
    "Message",
    "Part",
    "Reply",
    "Role",
    "Sampling",
    "TokenLogprob",
    "Tool",
]

Part = str | Image
Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")
DEFAULT_MAX_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask for; ``parameters`` is the text of a JSON schema of an object."""

    name: str
    description: str = ""
    parameters: str = '{"type":"object"}'


@dataclass(frozen=True, slots=True)
class Call:
    """That an answer asks for a function: its name, the text of a JSON object, and what the result will refer to."""

    name: str
    arguments: str
    id: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The arguments; none where the answer was cut within them."""
        try:
            found = json.loads(self.arguments)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: a role and its parts, in the order in which they were written.

    A ``str`` given for ``parts`` is taken as one part. The literal ``<image>`` inside a text part
    says where the message's pictures go; see `trifocal.conversation.templates.place`. An assistant's turn may hold
    ``calls``; a ``tool`` turn is the result of the call with the id ``answers``, of the function ``name``.

    Raises:
        BadMessages: an unknown role, a part that is neither text nor `Image`, or a picture in a
            turn that is neither the user's nor a tool's.
    """

    role: Role
    parts: tuple[Part, ...]
    calls: tuple[Call, ...]
    answers: str
    name: str

    def __init__(
        self,
        role: Role,
        parts: Part | Sequence[Part],
        *,
        calls: Sequence[Call] = (),
        answers: str = "",
        name: str = "",
    ) -> None:
        if role not in ROLES:
            raise BadMessages(f"unknown role {role!r}; known: {', '.join(ROLES)}")
        whole = (parts,) if isinstance(parts, (str, Image)) else tuple(parts)
        for part in whole:
            if not isinstance(part, (str, Image)):
                raise BadMessages(f"a part is text or an Image, not {type(part).__name__}")
        if role not in ("user", "tool") and any(isinstance(part, Image) for part in whole):
            raise BadMessages(
                f"a picture stands in a {role} turn; only the user's turns and results of tools hold them"
            )
        for field_name, value in (("role", role), ("parts", whole), ("calls", tuple(calls))):
            object.__setattr__(self, field_name, value)
        object.__setattr__(self, "answers", answers)
        object.__setattr__(self, "name", name)

    def with_parts(self, parts: Part | Sequence[Part]) -> Message:
        """The same turn with another content."""
        return Message(self.role, parts, calls=self.calls, answers=self.answers, name=self.name)

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """The pictures, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How an answer is drawn. ``temperature=0`` is greedy decoding.

    The defaults are greedy, as in the reference's evaluation. ``top_k=0``, ``top_p=1`` and
    ``min_p=0`` switch the filter off. ``repetition_penalty`` divides positive and multiplies
    negative logits of tokens already in prompt text or answer (CTRL, arXiv 1909.05858);
    ``presence_penalty`` and ``frequency_penalty`` are OpenAI's, over the answer alone.
    ``ignore_end`` goes on past the end token. ``top_logprobs`` asks engines that can for the most
    likely tokens. ``schema`` is the text of a JSON schema that the answer is held to, by engines that
    can; others refuse it. ``max_tokens`` is a bound: fewer where fewer fit. None is as many as fit, at most
    `DEFAULT_MAX_TOKENS`; an engine that is asked directly goes on until its context is full.

    Raises:
        BadSampling: an option out of its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    top_logprobs: int | None = field(default=None)
    schema: str | None = None

    def __post_init__(self) -> None:
        def check(option: str, ok: bool, allowed: str) -> None:
            value = getattr(self, option)
            if (isinstance(value, float) and not math.isfinite(value)) or not ok:
                raise BadSampling(option, f"{value!r} is out of range; allowed: {allowed}")

        check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "1 or more")
        check("temperature", 0 <= self.temperature <= 100, "0 (greedy) to 100")
        check("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        check("top_k", self.top_k >= 0, "0 (off) or more")
        check("min_p", 0 <= self.min_p <= 1, "0 to 1")
        check("repetition_penalty", 0 < self.repetition_penalty <= 10, "above 0, at most 10")
        check("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2")
        check("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2")
        check("stop", all(self.stop), "strings that are not empty")
        if self.seed is not None:
            check("seed", -(2**63) <= self.seed < 2**63, "a 64-bit integer")
        if self.top_logprobs is not None:
            check("top_logprobs", 0 <= self.top_logprobs <= 20, "0 to 20")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True, slots=True)
class End:
    """How an answer ended, and what it cost in positions.

    ``prompt_tokens`` counts every position of the prompt, ``image_tokens`` those of them that are
    pictures. ``left_out`` tells, in words, what of the conversation did not fit or was not kept, ``notes``
    what else was done otherwise than asked. ``stopped_by`` is the caller's stop string that ended it.
    ``positions`` are those of each picture in order, ``cached`` says of which the rows were already
    known. ``guessed`` counts the tokens that came as they were guessed, and cost less time. ``timings`` are seconds per
    step: decode (of image files), preprocess, tower, projector, prefill, generate.
    """

    finish: Literal["stop", "length"]
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    positions: tuple[int, ...] = ()
    cached: tuple[bool, ...] = ()
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stopped_by: str | None = None
    guessed: int = field(default=0, compare=False)
    timings: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def images(self) -> int:
        """How many pictures the prompt had."""
        return len(self.positions)

    @property
    def cached_images(self) -> int:
        """Of how many of them the rows were already known."""
        return sum(self.cached)

    @property
    def cached_positions(self) -> int:
        """Positions of the pictures whose rows were already known."""
        return sum(count for count, known in zip(self.positions, self.cached, strict=True) if known)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer with its log-probability, and the likeliest ones in its place."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer's text as soon as it is sure; the last one carries `End`.

    ``logprobs`` are those of the tokens since the chunk before, where ``top_logprobs`` asked for them.
    ``prompt_tokens`` are known from the first one on, unless another server counts them. ``calls`` of functions come
    with the last one where a server that answers for us tells them apart from the text.
    """

    text: str
    end: End | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_tokens: int = 0
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    end: End
