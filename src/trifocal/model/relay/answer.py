"""The events of an answer in OpenAI's dialect as chunks: its text, its calls, how it ended and what it cost."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from trifocal.errors import BadSampling, PeerError
from trifocal.messages import Call, Chunk, End, Sampling, TokenLogprob
from trifocal.peer import IMPOSSIBLE, finite

__all__ = ["read_chat", "read_text"]

Events = Generator[dict[str, Any], None, None]
ENDS = ("stop", "length", "tool_calls", "function_call", "content_filter", "eos", "end_turn")
CALLS = 128


def read_chat(
    events: Events, sampling: Sampling, left_out: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Generator[Chunk, None, None]:
    """The chunks of a chat completion; the last one carries `End`.

    Raises:
        PeerError: the server goes away before the end, or says what is no answer.
        BadSampling: log-probabilities were asked for and do not come.
    """
    yield from _read(events, sampling, left_out, notes, _chat)


def read_text(
    events: Events, sampling: Sampling, left_out: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Generator[Chunk, None, None]:
    """The chunks of a raw prompt's completion; raises as `read_chat`."""
    yield from _read(events, sampling, left_out, notes, _text)


@dataclass(slots=True)
class _Said:
    """What one event says."""

    text: str = ""
    thoughts: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: Sequence[Any] = ()


@dataclass(slots=True)
class _Heard:
    """What was heard so far."""

    finish: str | None = None
    stopped_by: str | None = None
    usage: Mapping[str, Any] = field(default_factory=dict)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    thoughts: int = 0
    additions: Mapping[str, Any] = field(default_factory=dict)


def _read(
    events: Events, sampling: Sampling, left_out: tuple[str, ...], notes: tuple[str, ...], say: Any
) -> Generator[Chunk, None, None]:
    started, first, heard = time.perf_counter(), 0.0, _Heard()
    with closing(events):
        for event in events:
            said = _heard(event, heard, say)
            if said.text and sampling.top_logprobs is not None and not said.logprobs:
                raise BadSampling("top_logprobs", "the server asked tells no log-probabilities")
            first = first or time.perf_counter()
            if said.text:
                yield Chunk(said.text, None, said.logprobs)
    if heard.finish is None:
        raise PeerError(
            "the server asked went away in the middle of its answer",
            "the server behind this one went away in the middle of its answer",
        )
    timings = {"prefill": first - started, "generate": time.perf_counter() - first} if first else {}
    yield Chunk("", _end(heard, sampling, left_out, notes, timings), calls=tuple(_calls(heard)))


def _heard(event: Mapping[str, Any], heard: _Heard, say: Any) -> _Said:
    """What an event says; what is to be told at the end is noted."""
    choices, usage, additions = event.get("choices"), event.get("usage"), event.get("trifocal")
    if isinstance(usage, dict):
        heard.usage = usage
    if isinstance(additions, dict):
        heard.additions = additions
    if choices is None and not isinstance(usage, dict):
        raise PeerError(f"the server asked answers with what is no completion: {str(event)[:200]!r}")
    if not choices:
        return _Said()
    choice = choices[0] if isinstance(choices, list) and isinstance(choices[0], dict) else None
    if choice is None:
        raise PeerError(f"the server asked answers with what is no completion: {str(event)[:200]!r}")
    finish, reason = choice.get("finish_reason"), choice.get("stop_reason")
    heard.finish = str(finish) if finish else heard.finish
    heard.stopped_by = reason if isinstance(reason, str) else heard.stopped_by
    said: _Said = say(choice)
    heard.thoughts += len(said.thoughts)
    for call in said.calls:
        _note_call(call, heard)
    return said


def _chat(choice: Mapping[str, Any]) -> _Said:
    delta = choice.get("delta") or choice.get("message") or {}
    if not isinstance(delta, dict):
        raise PeerError("the server asked answers with a delta that is no object")
    text, thoughts = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
    calls = delta.get("tool_calls")
    return _Said(
        text if isinstance(text, str) else "",
        thoughts if isinstance(thoughts, str) else "",
        tuple(_scored(choice.get("logprobs"))),
        calls if isinstance(calls, list) else (),
    )


def _text(choice: Mapping[str, Any]) -> _Said:
    text = choice.get("text")
    return _Said(text if isinstance(text, str) else "", "", tuple(_scored_text(choice.get("logprobs"))))


def _scored(told: Any) -> Iterator[TokenLogprob]:
    content = told.get("content") if isinstance(told, dict) else None
    for each in content if isinstance(content, list) else ():
        if isinstance(each, dict):
            top = [other for other in _listed(each.get("top_logprobs")) if isinstance(other, dict)]
            yield TokenLogprob(
                str(each.get("token", "")),
                _number(each.get("logprob")),
                tuple((str(other.get("token", "")), _number(other.get("logprob"))) for other in top),
            )


def _scored_text(told: Any) -> Iterator[TokenLogprob]:
    if not isinstance(told, dict) or not isinstance(told.get("tokens"), list):
        return
    tops = _listed(told.get("top_logprobs")) or [{}] * len(told["tokens"])
    for token, logprob, top in zip(told["tokens"], _listed(told.get("token_logprobs")), tops, strict=False):
        likely = top.items() if isinstance(top, dict) else ()
        yield TokenLogprob(str(token), _number(logprob), tuple((str(name), _number(value)) for name, value in likely))


def _number(told: Any) -> float:
    """A log-probability, of whatever it is told to be."""
    return finite(told) if isinstance(told, (int, float)) else -IMPOSSIBLE


def _listed(told: Any) -> list[Any]:
    """A list, of whatever it is told to be."""
    return told if isinstance(told, list) else []


def _note_call(told: Any, heard: _Heard) -> None:
    """A piece of a call: the name comes once, the arguments bit by bit."""
    if not isinstance(told, dict):
        return
    at = told.get("index", len(heard.calls))
    if not isinstance(at, int) or not 0 <= at < CALLS:
        raise PeerError("the server asked tells of a call at a place that there is not")
    held = heard.calls.setdefault(at, {"id": "", "name": "", "arguments": ""})
    given = told.get("function")
    function: Mapping[str, Any] = given if isinstance(given, dict) else {}
    held["id"] = held["id"] or str(told.get("id") or "")
    held["name"] = held["name"] or str(function.get("name") or "")
    arguments = function.get("arguments")
    held["arguments"] += arguments if isinstance(arguments, str) else ""


def _calls(heard: _Heard) -> Iterator[Call]:
    for _, call in sorted(heard.calls.items()):
        yield Call(call["name"], call["arguments"] or "{}", call["id"])


def _end(
    heard: _Heard, sampling: Sampling, left_out: tuple[str, ...], notes: tuple[str, ...], timings: dict[str, float]
) -> End:
    told = [*notes, *_strings(heard.additions.get("notes"))]
    if heard.finish == "content_filter":
        told.append("the server asked held a part of the answer back (content_filter)")
    elif heard.finish not in ENDS:
        told.append(f"the server asked ended the answer for a reason of its own: {str(heard.finish)[:80]!r}")
    if heard.thoughts:
        told.append(f"the model thought {heard.thoughts} characters before its answer, which are not shown")
    counts = [heard.usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = [count for count in counts if isinstance(count, int) and count >= 0]
    if len(known) < 2:
        told.append("the server asked does not tell what the answer cost: 0 tokens stand for not known")
    details = heard.usage.get("prompt_tokens_details")
    images = details.get("image_tokens") if isinstance(details, dict) else 0
    prompt, completion = known if len(known) == 2 else (0, 0)
    return End(
        finish="length" if heard.finish == "length" else "stop",
        prompt_tokens=prompt,
        image_tokens=images if isinstance(images, int) and 0 <= images <= prompt else 0,
        completion_tokens=completion,
        left_out=(*left_out, *_strings(heard.additions.get("left_out"))),
        notes=tuple(told),
        stopped_by=heard.stopped_by if heard.stopped_by in sampling.stop else None,
        timings=timings,
    )


def _strings(told: Any) -> list[str]:
    """What another Trifocal tells in words of what it left out or did otherwise."""
    return [each for each in told if isinstance(each, str)] if isinstance(told, list) else []
