"""Every reader of what strangers send, against damaged input: a value or our own error, and nothing else.

``make fuzz`` has the full numbers; in every run a few of each, and the corpus of what was found once.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures
from pydantic import ValidationError
from safetensors.torch import save

from fuzzing import CORPUS, Target, fuzz
from trifocal import embedded
from trifocal.api import anthropic, ollama, openai, places, responses, textgen
from trifocal.api.errors import Refusal
from trifocal.api.fetch import parse_url
from trifocal.api.strict_json import loads
from trifocal.api.tools import Offer, Reader, call_of
from trifocal.api.wire import user_text
from trifocal.conversation.markup import parse
from trifocal.conversation.sandbox import rendered
from trifocal.conversation.templates import get_template
from trifocal.engines import schemas
from trifocal.errors import BadImage, TrifocalError
from trifocal.gguf.container import GgufFile
from trifocal.images import Limits, from_bytes, from_data_uri
from trifocal.messages import Message, Tool
from trifocal.tokens.folder import read_words
from trifocal.web import count, explain, preview
from trifocal.webui import held
from trifocal.weights.headers import read_header

FULL = os.environ.get("TRIFOCAL_FULL") == "1"
SHARE = float(os.environ.get("TRIFOCAL_FUZZ", "1"))  # of the full numbers
SMALL = Limits(pixels=250_000)
MARKS = (
    '<img src="data:image/png;base64,',
    "<img ",
    "src=",
    "'",
    '"',
    ">",
    "<image>",
    "AAAA",
    "\\",
    "&quot;",
    "\n",
    "\u202e",
)


def pictures() -> list[bytes]:
    """Fourteen formats and modes."""
    noise = Pictures.fromarray(np.random.default_rng(1).integers(0, 256, (12, 17, 3), np.uint8))
    exif = Pictures.Exif()
    exif[0x0112] = 6
    kinds: list[tuple[Pictures.Image, str, dict[str, Any]]] = [
        (noise, "PNG", {}),
        *((noise.convert(mode), "PNG", {}) for mode in ("1", "L", "LA", "P", "RGBA")),
        (Pictures.fromarray(np.arange(204, dtype=np.uint16).reshape(12, 17)), "PNG", {"transparency": 3}),
        (noise, "JPEG", {"exif": exif}),
        (noise, "JPEG", {"progressive": True}),
        (noise.convert("CMYK"), "JPEG", {}),
        (noise.convert("L"), "JPEG", {}),
        (noise, "WEBP", {"lossless": True}),
        (noise.convert("RGBA"), "WEBP", {}),
        (noise.convert("P"), "GIF", {"save_all": True, "append_images": [noise.rotate(90).convert("P")]}),
    ]
    made = []
    for picture, kind, options in kinds:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        made.append(file.getvalue())
    return made


def texts(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """A reader of text as one of bytes."""
    return lambda data: read(data.decode("utf-8", "replace"))


def prompts() -> list[bytes]:
    """Prompts with and without pictures."""
    data = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP8z4AdMOEQ"
    uri = f"data:image/png;base64,{data}H6QSAM1BAQ/oQeJvAAAAAElFTkSuQmCC"
    told = ("Hi", f'a <img src="{uri}"> b', f"<img alt='x' src='{uri}'/>", f"<img src={uri}>", "### Human: <image>\n")
    return [each.encode() for each in told]


def all_of_a_prompt(text: str) -> None:
    """Every reader of a user's text, one after the other."""
    held.tagged(text)
    template().render([Message("user", text)])
    for read in (parse, lambda text: user_text(text, "x"), from_data_uri, parse_url):
        with suppress(TrifocalError, Refusal):
            read(text)


@cache
def template() -> Any:
    return get_template("llava_v1")


MODELS = (
    *(openai.ChatRequest, openai.CompletionRequest, responses.ResponseRequest, anthropic.MessagesRequest),
    *(anthropic.CountRequest, ollama.ChatRequest, ollama.GenerateRequest, ollama.ModelRequest, textgen.GenerateRequest),
    *(textgen.ChatRequest, textgen.TokenCountRequest, places.TextRequest, places.TokensRequest, places.TokenizeRequest),
    *(count.CountRequest, explain.ExplainRequest, preview.PreviewRequest),
)


def bodies() -> list[bytes]:
    """A body of every dialect."""
    turn = {
        "role": "user",
        "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:,"}}],
    }
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    told: list[dict[str, Any]] = [
        {"messages": [turn], "max_tokens": 1, "stop": ["x"], "tools": [tool], "temperature": 0.5, "n": 2},
        {"prompt": ["a", "b"], "logprobs": 1, "seed": 3},
        {
            "input": [
                {"role": "user", "content": "Hi"},
                {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            ]
        },
        {
            "model": "x",
            "max_tokens": 1,
            "messages": [{"role": "user", "content": "Hi"}],
            "system": [{"type": "text", "text": "a"}],
        },
        {"model": "x", "messages": [{"role": "user", "content": "Hi", "images": ["AA"]}], "options": {"stop": ["x"]}},
        {"user_input": "x", "history": {"internal": [["a", "b"]], "visible": []}, "mode": "chat"},
        {"tokens": [1, 2]},
    ]
    return [json.dumps(each).encode() for each in told]


def body(data: bytes) -> None:
    """Reads it as JSON, and as a request of every route."""
    value = loads(data)
    for model in MODELS:
        with suppress(ValidationError, Refusal):
            model.model_validate(value)


SCHEMA = (
    b'{"type": "object", "properties": {"a": {"type": "string", "pattern": "a+", "enum": ["a"]}},'
    b' "$defs": {"b": {"not": {}}}}'
)


@cache
def folder() -> Path:
    """Where files are that are read from a file."""
    return Path(tempfile.mkdtemp(prefix="fuzz", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))


def filed(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A reader of a file as one of bytes."""

    def reading(data: bytes) -> object:
        file = folder() / name
        file.write_bytes(data)
        return read(file)

    return reading


def tensors() -> list[bytes]:
    """Small safetensors."""
    return [save({"a": torch.ones(2, 3), "b.c": torch.zeros(4, dtype=torch.float16)}, {"format": "pt"}), save({})]


def ggufs() -> list[bytes]:
    """A GGUF file of two tensors and values of every kind."""
    gguf = pytest.importorskip("gguf")
    file = folder() / "made.gguf"
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "\u00e9"])
    writer.add_array("scores", [0.5, 1.5])
    writer.add_bool("yes", True)
    writer.add_tensor("a.weight", np.ones((2, 32), np.float32))
    writer.add_tensor("b.weight", np.ones((1, 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [file.read_bytes()]


def opened(file: Path) -> None:
    """The header, and every tensor that it tells of."""
    found = GgufFile(file)
    for name in found:
        found[name]


def tokenizers(name: str) -> Callable[[], Sequence[bytes]]:
    """What the tests have of a tokenizer's files."""
    return lambda: (
        [(Path(__file__).parent / "data" / "tokens" / "llama.model").read_bytes()[:3000]]
        if name == "tokenizer.model"
        else [
            json.dumps(
                {
                    "version": "1.0",
                    "added_tokens": [
                        {
                            "id": 2,
                            "content": "<s>",
                            "special": True,
                            "lstrip": False,
                            "rstrip": False,
                            "normalized": False,
                            "single_word": False,
                        }
                    ],
                    "normalizer": {"type": "NFC"},
                    "pre_tokenizer": {
                        "type": "Metaspace",
                        "replacement": "\u2581",
                        "prepend_scheme": "first",
                        "split": False,
                    },
                    "post_processor": None,
                    "decoder": {"type": "ByteFallback"},
                    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "<s>": 2, "ab": 3}, "merges": [["a", "b"]]},
                }
            ).encode()
        ]
    )


def called(text: str) -> None:
    """A model's text, read for calls, letter by letter; and as the arguments of a call that a client sends back."""
    reader = Reader(Offer((Tool("f", "", "{}"),)))
    for at in range(0, len(text), 7):
        reader.push(text[at : at + 7])
    reader.finish()
    for arguments in (text, text.partition("<tool_call>")[2].partition("</tool_call>")[0]):
        with suppress(Refusal):
            call_of("f", arguments, "", "x")


TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}USER: {{ message.content | trim }} "
    "{% else %}ASSISTANT: {{ message['content'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def written(source: str) -> None:
    """What a template of strangers writes, or what is said to be wrong with it."""
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    told = rendered(source, {"messages": talk, "add_generation_prompt": True})
    if "error" in told:
        assert isinstance(told["error"], str)
        raise ValueError(told["error"])
    assert isinstance(told["text"], str)


TARGETS: dict[str, tuple[Target, int, int]] = {
    "pictures": (Target(lambda data: from_bytes(data, limits=SMALL), pictures, (BadImage,)), 200_000, 600),
    "prompts": (
        Target(texts(all_of_a_prompt), prompts, (TrifocalError, Refusal), tuple(each.encode() for each in MARKS)),
        5_000_000,
        600,
    ),
    "bodies": (
        Target(body, bodies, (Refusal,), (b"[", b"{", b'"', b"\\u0041", b"null", b"1e400", b"NaN", b",", b":")),
        200_000,
        300,
    ),
    "calls": (
        Target(
            texts(called),
            lambda: [b'a <tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call> b'],
            (Refusal,),
            (b"<tool_call>", b"</tool_call>", b"{", b'"', b"NaN", b"1e999", b"\\ud800"),
        ),
        500_000,
        300,
    ),
    "safetensors": (
        Target(
            filed("a.safetensors", read_header),
            tensors,
            (TrifocalError,),
            (b"data_offsets", b"shape", b"F32", b"{", b"]"),
        ),
        200_000,
        300,
    ),
    "gguf": (Target(filed("a.gguf", opened), ggufs, (TrifocalError,)), 100_000, 150),
    "rows": (
        Target(embedded.from_bytes, lambda: [save({"image_embeds": torch.ones(2, 8)})], (TrifocalError,)),
        100_000,
        150,
    ),
    "tokenizer.model": (
        Target(
            filed("tokenizer.model", lambda file: read_words(file.parent)),
            tokenizers("tokenizer.model"),
            (TrifocalError,),
        ),
        20_000,
        20,
    ),
    "tokenizer.json": (
        Target(
            filed("tokenizer.json", lambda file: read_words(file.parent)),
            tokenizers("tokenizer.json"),
            (TrifocalError,),
            (b'"type": "BPE"', b"null", b"{}", b"[]", b"-1"),
        ),
        100_000,
        100,
    ),
    "templates": (
        Target(
            texts(written),
            lambda: [TEMPLATE.encode()],
            (ValueError,),
            (b"{{", b"}}", b"{%", b"%}", b"|join", b"~", b"loop.index", b"{% endfor %}", b"messages", b"['a']", b"{#"),
        ),
        100_000,
        100,
    ),
    "schemas": (
        Target(texts(schemas._bounded), lambda: [SCHEMA], (), (b'"properties":', b'{"not": ', b"[", b'"$ref": "#"')),
        500_000,
        300,
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_read_or_refused(name: str) -> None:
    target, whole, few = TARGETS[name]
    for file in folder().iterdir():
        file.unlink()
    tries = int(whole * SHARE) if FULL else few
    good = fuzz(name, target, tries, os.environ.get("TRIFOCAL_SEED", ""))
    print(f"{name}: {tries} mutants, {good} were read")
    assert good


def test_its_twins_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that lets a foreign error out, and one that takes for ever, are found and kept."""
    monkeypatch.setattr("fuzzing.CORPUS", tmp_path)
    foreign = Target(lambda data: data.decode("ascii"), lambda: [b"plain"], ())
    with pytest.raises(AssertionError, match="UnicodeDecodeError"):
        fuzz("twin", foreign, 1000)
    slow = Target(lambda data: sum(range(3_000_000)), lambda: [b"x"], (), slowest=0.001)
    with pytest.raises(AssertionError, match="too long"):
        fuzz("twin", slow, 10)
    assert len(list((tmp_path / "twin").iterdir())) == 2


def test_the_corpus_is_small() -> None:
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert files
    assert {file.parent.name for file in files} <= set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 500_000
