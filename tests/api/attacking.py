"""Generated attacks: requests of every route, each the same for the same number, with something hostile somewhere."""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from live import data_uri, png
from test_hostile import BOMBS

from test_encoded import FAT, SLOW

__all__ = ["BODIES", "MOST", "SOCKETS", "Attack", "attack", "over_socket"]

MOST = 32 << 20  # bytes that a body may have
PICTURE = {"type": "image_url", "image_url": {"url": data_uri()}}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}, PICTURE]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "a", "content": "fine"},
    {"role": "user", "content": "And now?"},
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "pattern": "a+", "enum": ["a", "aa"]}}}
TOOL = {"name": "f", "description": "What it does", "parameters": SCHEMA}
TAGGED = f'What is <img src="{data_uri()}"> this?'
OLLAMA = {"model": "echo", "options": {"num_predict": 1, "stop": ["x"]}, "stream": False, "format": SCHEMA}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": TALK,
        "max_tokens": 1,
        "stop": ["x"],
        "tools": [{"type": "function", "function": TOOL}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    },
    "/v1/completions": {"prompt": [TAGGED, "b"], "max_tokens": 1, "stop": "x", "logprobs": 1},
    "/v1/responses": {
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"role": "user", "content": [{"type": "input_image", "image_url": data_uri()}]},
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "fine"},
        ],
        "instructions": "Be brief.",
        "max_output_tokens": 16,
        "tools": [{"type": "function", **TOOL}],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}},
    },
    "/api/v1/generate": {"prompt": TAGGED, "max_new_tokens": 1, "stopping_strings": ["x"]},
    "/api/v1/chat": {
        "user_input": TAGGED,
        "max_new_tokens": 1,
        "history": {"internal": [[TAGGED, "yes"]], "visible": [["Hi", "yes"]]},
    },
    "/api/v1/token-count": {"prompt": TAGGED},
    "/api/v1/stop-stream": {},
    "/v1/messages": {
        "model": "echo",
        "max_tokens": 1,
        "system": "Be brief.",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Hi"},
                    {
                        "type": "image",
                        "source": {
                            "type": "base64",
                            "media_type": "image/png",
                            "data": base64.b64encode(png()).decode(),
                        },
                    },
                ],
            }
        ],
        "tools": [{"name": "f", "input_schema": SCHEMA}],
        "stop_sequences": ["x"],
    },
    "/v1/messages/count_tokens": {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]},
    "/api/chat": {
        **OLLAMA,
        "messages": [{"role": "user", "content": "Hi", "images": [base64.b64encode(png()).decode()]}],
    },
    "/api/generate": {**OLLAMA, "prompt": "Hi", "images": [base64.b64encode(png()).decode()]},
    "/api/show": {"model": "echo"},
    "/api/pull": {"model": "echo", "stream": False},
    "/api/embed": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/v1/internal/encode": {"text": "Hi"},
    "/v1/internal/decode": {"tokens": [1, 2, 3]},
    "/v1/internal/token-count": {"text": "Hi"},
    "/v1/internal/stop-generation": {},
    "/tokenize": {"content": "Hi", "messages": TALK},
    "/detokenize": {"tokens": [1, 2, 3]},
    "/page/api/count": {"messages": TALK, "max_tokens": 1},
    "/page/api/preview": {"image": data_uri()},
    "/page/api/explain": {"messages": [*TALK, {"role": "assistant", "content": "Fine."}]},
}
SOCKETS = {"/api/v1/generate": "/api/v1/stream", "/api/v1/chat": "/api/v1/chat-stream"}
READ = (
    "/v1/models",
    "/v1/models/{}",
    "/v1/responses/{}",
    "/v1/responses/{}/input_items",
    "/api/tags",
    "/api/ps",
    "/metrics",
    "/v1/limits",
    "/props",
    "/api/v0/models",
    "/api/v0/models/{}",
    "/page/{}",
    "/{}",
)
PIECES = (
    *("<img ", "src=", "<img src='data:", '<img src="', "data:image/png", ";base64,", "AAAA", " ", "'", '"', ">", "="),
    *("\\", "\u202e", "<|im_end|>", "</s>", "[INST]", "<image>", "[[", "{%", "{{", "%41", "\U0001f600", "&#x41;"),
    *("\x00", "a", "\n", "\t", "\u0130", "\ufb03", "\u0301", "\u200b", "e\u0301", "word ", "<", "&", ",", "\u4e2d"),
)
SIZES = (1, 30, 1000, 30_000, 300_000, 1_000_000)
Dice = random.Random


@dataclass(frozen=True)
class Attack:
    """One request."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def attack(number: int) -> Attack:
    """The attack of that number."""
    dice = Dice(f"attack {number}")
    if dice.random() < 0.05:
        name = repeated(dice, 300).encode().hex("%")
        return Attack(dice.choice(["GET", "DELETE", "HEAD"]), dice.choice(READ).format(f"%{name}"[:8000]))
    path = dice.choice(list(BODIES))
    body = copy.deepcopy(BODIES[path])
    places = dice.choice([1, 1, 1, 2, 5])
    for _ in range(places):
        _spoil(dice, body, MOST // places)
    data = _written(dice, body)[:MOST]
    kinds = {"Content-Type": "application/json"}
    if dice.random() < 0.05:
        kinds = {"Content-Type": dice.choice(["multipart/form-data; boundary=x", "text/plain", "application/x+json"])}
    return Attack("POST", path, data, kinds)


def over_socket(one: Attack) -> Attack | None:
    """The same as a websocket's frame, where there is one for it."""
    return Attack("WEBSOCKET", SOCKETS[one.path], one.body) if one.path in SOCKETS else None


def repeated(dice: Dice, most: int = MOST) -> str:
    """A few pieces of what the dialects read, over and over."""
    text = "".join(dice.choices(PIECES, k=dice.randrange(1, 6)))
    return text * max(1, min(dice.choice(SIZES), most // len(json.dumps(text))))


def _spoil(dice: Dice, body: dict[str, Any], most: int) -> None:
    """Puts something else in one place of a body, or beside it."""
    holder, key = dice.choice(list(_places(body)) or [(body, "x")])
    given = holder[key] if holder is not body or key in body else None
    value = dice.choice(WAYS)(dice, given if len(str(given)) < 3000 else "x", most)
    if isinstance(holder, dict) and dice.random() < 0.1:
        holder[repeated(dice, 10_000)] = value
    else:
        holder[key] = value


def _places(value: Any) -> Any:
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    for key, each in inside:
        yield value, key
        if isinstance(each, dict | list) and len(each) < 17:  # a longer list has the same value over and over
            yield from _places(each)


def _deep(dice: Dice, _: Any, __: int) -> Any:
    value: Any = "x"
    kind = dice.choice(["list", "dict", "not", "items"])
    for _ in range(dice.choice([3, 30, 62, 300])):
        value = [value] if kind == "list" else {kind: value}
    return value


def _picture(dice: Dice, _: Any, __: int) -> str:
    data = dice.choice([*SLOW.values(), *FAT.values(), *(data for data, _ in BOMBS.values())])
    return f"data:image/{dice.choice(['png', 'jpeg', 'x'])};base64,{base64.b64encode(data).decode()}"


def _many(dice: Dice, given: Any, most: int) -> Any:
    count = dice.choice([17, 100, 1025, 9000, 49_000, 200_000])
    if dice.random() < 0.5:
        return [given] * min(count, most // (len(str(given)) + 8))
    return {f"k{at}": dice.choice([1, "x", {}]) for at in range(count)}


WAYS: tuple[Callable[[Dice, Any, int], Any], ...] = (
    lambda dice, _, most: repeated(dice, most),
    lambda dice, _, most: repeated(dice, most),
    lambda dice, _, most: f"data:image/png;base64,{repeated(dice, most)}",
    lambda dice, _, most: f"https://{repeated(dice, most)}",
    lambda dice, _, __: dice.choice([None, True, -1, 0, 2**31, 2**63, 2**64, 1e308, 10**300, -0.0, "1", "", [], {}]),
    _deep,
    _picture,
    _many,
    _many,
    lambda _, given, __: {"type": given},
)


def _written(dice: Dice, body: dict[str, Any]) -> bytes:
    """The body as JSON, now and then damaged, padded or in other letters."""
    data = json.dumps(body, ensure_ascii=dice.random() < 0.7).encode("utf-8", "surrogatepass")
    roll = dice.random()
    if roll < 0.05:
        return data[: dice.randrange(len(data))]
    if roll < 0.1:
        at = dice.randrange(len(data))
        unit = dice.choice([b"[", b"{", b'"', b"\\", b"[]", b'"":', b"1,", b"9", b"\\u0041", b" ", b"\xff", b"\x00"])
        return data[:at] + unit * (dice.choice(SIZES) * 30 // len(unit)) + data[at:]
    if roll < 0.12:
        return data.decode("utf-8", "surrogatepass").encode(dice.choice(["utf-16", "utf-32"]), "surrogatepass")
    return data
