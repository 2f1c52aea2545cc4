"""A conversation and its sampling as the body of a request in OpenAI's dialect."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from trifocal.conversation.templates import place
from trifocal.images import Image
from trifocal.messages import Message, Sampling, Tool

__all__ = ["Dialect", "chat_body", "text_body"]

_NEUTRAL = Sampling()
# sent only where they were asked for: OpenAI does not know the first four, whoever runs models at home does
_OPTIONAL = {
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "ignore_end": "ignore_eos",
    "top_p": "top_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "seed": "seed",
}
JPEG_QUALITY = 92


@dataclass(slots=True, eq=False)
class Dialect:
    """How this server is spoken to: the model's name, the form of pictures, and what was learnt of it."""

    model: str
    picture_format: str = "png"
    limit: str = "max_tokens"
    has_text: bool = True  # whether it has completions of raw prompts


def chat_body(
    messages: Sequence[Message], tools: Sequence[Tool], sampling: Sampling, dialect: Dialect
) -> dict[str, Any]:
    """The body of a chat completion."""
    body = {"messages": list(_turns(messages, dialect)), **_options(sampling, dialect)}
    if tools:
        body["tools"] = [_tool(tool) for tool in tools]
    if sampling.schema is not None:
        schema = {"name": "answer", "schema": json.loads(sampling.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if tools:
            body["tool_choice"] = "none"  # the schema is that of a call which was forced already
    if sampling.top_logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body


def text_body(prompt: str, sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    """The body of a completion of a raw prompt."""
    body = {"prompt": prompt, **_options(sampling, dialect)}
    if sampling.top_logprobs is not None:
        body["logprobs"] = sampling.top_logprobs
    return body


def _options(sampling: Sampling, dialect: Dialect) -> dict[str, Any]:
    told = {
        there: getattr(sampling, here)
        for here, there in _OPTIONAL.items()
        if getattr(sampling, here) != getattr(_NEUTRAL, here)
    }
    if sampling.max_tokens is not None:
        told[dialect.limit] = sampling.max_tokens
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": dialect.model, "temperature": sampling.temperature, **told, **streamed}


def _turns(messages: Sequence[Message], dialect: Dialect) -> Iterator[dict[str, Any]]:
    """The messages; a picture in a function's result stands in a user's turn behind it: a result is text alone."""
    for message in messages:
        if message.role == "tool":
            yield {"role": "tool", "tool_call_id": message.answers, "content": message.text}
            if message.images:
                yield {"role": "user", "content": [_picture(image, dialect) for image in message.images]}
            continue
        turn: dict[str, Any] = {"role": message.role, "content": _content(message, dialect)}
        if message.calls:
            turn["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
        yield turn


def _content(message: Message, dialect: Dialect) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.text
    return [
        _picture(part, dialect) if isinstance(part, Image) else {"type": "text", "text": part}
        for part in place(message, own_lines=False)
        if part != ""
    ]


def _picture(image: Image, dialect: Dialect) -> dict[str, Any]:
    """A picture as a data URI: without loss, unless a smaller JPEG was asked for."""
    buffer = BytesIO()
    if dialect.picture_format == "jpeg":
        image.on((255, 255, 255)).save(buffer, "JPEG", quality=JPEG_QUALITY)
    else:
        image.pixels.save(buffer, "PNG", compress_level=1)
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{dialect.picture_format};base64,{data}"}}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}
