"""Where else clients look: addresses by other names, counting, and words for what is not here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import Field
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from trifocal.api.caller import caller_of
from trifocal.api.errors import Refusal, refuse, server_busy
from trifocal.api.needs import needs
from trifocal.api.openai_messages import ChatMessage, drafts_of
from trifocal.api.parameters import Whole
from trifocal.api.serving import Server, Serving
from trifocal.api.wire import Draft, Json, Wire

__all__ = ["Places", "greeting", "nearest", "place_of", "router"]

router = APIRouter(tags=["Elsewhere"])
# base URLs that were written down without /v1, with it twice, or as other servers have them
_BARE = re.compile(r"/(?:chat/completions|completions|models|responses|messages|embeddings)(?:/.*)?")
_ALIASES = (
    (re.compile(r"/(?:openai|anthropic)(/v1/.*)"), r"\1"),
    (re.compile(r"/openai/deployments/[^/]+(/(?:chat/completions|completions|embeddings))"), r"/v1\1"),  # Azure's
    (re.compile(r"/api/v0(/(?:chat/completions|completions|embeddings))"), r"/v1\1"),  # LM Studio's
    (re.compile(r"/v1(/v1/.*|/api/.*|/tokenize|/detokenize|/health)"), r"\1"),
    (
        re.compile(r"/api(?:/v1)?(/(?:chat/completions|completions|models|responses|messages)(?:/.*)?)"),
        r"/v1\1",
    ),
)


class Places:
    """The outermost layer: an address by another name is the one that it means, and HEAD is GET without a body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = place_of(scope["path"])
            if path != scope["path"]:
                scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "surrogateescape")}
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def place_of(path: str) -> str:
    """The address that is meant by a path."""
    path = re.sub(r"\A/{2,}", "/", path)
    if path.startswith(("/v1/", "/api/")) or _BARE.fullmatch(path):
        path = path.rstrip("/")
    for pattern, meant in _ALIASES:
        found = pattern.fullmatch(path)
        if found:
            return place_of(found.expand(meant))
    return f"/v1{path}" if _BARE.fullmatch(path) else path


def nearest(path: str, routes: Iterable[BaseRoute]) -> str:
    """The words of a 404: which of our addresses is most like the one that was asked for."""
    known = {getattr(route, "path", "") for route in routes}
    near = get_close_matches(path, known, 1, 0.6)
    return f"there is nothing here; did you mean {near[0]}?" if near else "there is nothing here; see /openapi.json"


class TextRequest(Wire):
    """A text to count."""

    text: str


class TokensRequest(Wire):
    """Ids to read."""

    tokens: list[Whole] = Field(max_length=1 << 20)


class TokenizeRequest(Wire):
    """A text, or a conversation, to take apart."""

    lenient = True

    content: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, max_length=1024)
    model: str | None = None
    add_special: bool | None = None
    add_special_tokens: bool | None = None


@router.get("/health", name="health", summary="Whether the server is well")
@needs(key=False)
async def health(server: Serving) -> Response:
    """As `/readyz`, where llama.cpp's and other servers' clients look."""
    if server.draining:
        raise server_busy("shutting_down", "the server is shutting down")
    return Json({"status": "ok"})


@router.get("/v1/internal/health", summary="Whether the server is well")
async def internal_health(server: Serving) -> Response:
    """As `/health`."""
    return await health(server)


@router.get("/v1/internal/model/info", summary="The served model")
async def model_info(server: Serving) -> Response:
    """Its name; there are no LoRAs to switch."""
    return Json({"model_name": server.name, "lora_names": [], "loader": server.llava.engine_name})


@router.get("/v1/internal/model/list", summary="The served model's names")
async def model_list(server: Serving) -> Response:
    """Its name and its other names."""
    return Json({"model_names": server.names})


@router.get("/v1/internal/lora/list", summary="There are no LoRAs to switch")
async def lora_list() -> Response:
    """None: an adapter is a part of the served checkpoint."""
    return Json({"lora_names": []})


@router.post("/v1/internal/encode", summary="The ids of a text")
@needs(pool="light")
async def encode(request: Request, body: TextRequest, server: Serving) -> Response:
    """`{"tokens": [...], "length": ...}`, the beginning token included."""
    tokens = await _tokens(request, server, body.text, start=True)
    return Json({"tokens": tokens, "length": len(tokens)})


@router.post("/v1/internal/decode", summary="The text of ids")
@needs(pool="light")
async def decode(request: Request, body: TokensRequest, server: Serving) -> Response:
    """`{"text": ...}`."""
    return Json({"text": await _text(request, server, body.tokens)})


@router.post("/v1/internal/token-count", summary="Count a text")
@needs(pool="light")
async def token_count(request: Request, body: TextRequest, server: Serving) -> Response:
    """`{"length": ...}`, the beginning token included."""
    return Json({"length": len(await _tokens(request, server, body.text, start=True))})


@router.post("/v1/internal/stop-generation", summary="Stop one's own answers")
@needs()
async def stop_generation(request: Request, server: Serving) -> Response:
    """Ends the answers that this caller (its key, or else its address) asked for in text-generation-webui's dialect."""
    server.stop(caller_of(request))
    return Json("OK")


@router.post("/tokenize", summary="The ids of a text")
@needs(pool="light")
async def tokenize(request: Request, body: TokenizeRequest, server: Serving) -> Response:
    """`{"tokens": [...], "count": ..., "max_model_len": ...}`; of a conversation the count alone."""
    server.check_model(body.model)
    more: dict[str, Any] = {"max_model_len": server.llava.context}
    if body.messages is not None:
        drafts = drafts_of(body.messages)
        return Json({"count": await server.work(request, drafts, server.llava.count), **more})
    text = body.content if body.content is not None else body.prompt
    if text is None:
        raise refuse("missing_required_parameter", "it is required", "content")
    start = body.add_special if body.prompt is None else body.add_special_tokens is not False
    tokens = await _tokens(request, server, text, start=bool(start))
    return Json({"tokens": tokens, "count": len(tokens), **more})


@router.post("/detokenize", summary="The text of ids")
@needs(pool="light")
async def detokenize(request: Request, body: TokensRequest, server: Serving) -> Response:
    """`{"content": ..., "prompt": ...}`: llama.cpp's word for it, and vLLM's."""
    text = await _text(request, server, body.tokens)
    return Json({"content": text, "prompt": text})


@router.get("/props", summary="What llama.cpp's clients ask of a server")
async def props(server: Serving) -> Response:
    """The context, the slots, and that pictures are seen."""
    generation = {"n_ctx": server.llava.context}
    seen = {"vision": True, "audio": False}
    slots = server.settings.slots
    return Json(
        {"default_generation_settings": generation, "total_slots": slots, "modalities": seen, "model_path": server.name}
    )


@router.get("/api/v0/models", summary="The served models, as LM Studio lists them")
async def studio_models(server: Serving) -> Response:
    """Each with its context, whether it is loaded, and what it can do."""
    return Json({"object": "list", "data": [_studio(each, each.name) for each in server.all]})


@router.get("/api/v0/models/{name:path}", summary="One model, as LM Studio tells of it")
async def studio_model(name: str, server: Serving) -> Response:
    """The model of that name, if it is served."""
    server.check_model(name)
    return Json(_studio(next((each for each in server.all if each.name == name), server), name))


@router.post("/v1/embeddings", summary="There are no embeddings", status_code=400)
@needs()
async def embeddings(server: Serving) -> Response:
    """Says that the served model makes none."""
    words = f"{server.name} answers questions; it makes no embeddings: ask a server that has a model for them"
    raise Refusal(400, "not_supported", words, param="model")


@needs(key=False)
async def greeting(request: Request) -> Response:
    """What stands at ``/`` where no page does: clients of Ollama look whether anybody is there."""
    return PlainTextResponse("Trifocal is running")


def _studio(server: Server, name: str) -> dict[str, Any]:
    context = {"max_context_length": server.facts.context} if server.facts.context else {}
    return {
        "id": name,
        "object": "model",
        "type": "vlm",
        "publisher": "trifocal",
        "arch": server.facts.family,
        "compatibility_type": "gguf",  # its clients know no others but mlx
        "quantization": None,
        "state": "loaded" if server.is_loaded else "not-loaded",
        **context,
        "capabilities": ["vision", *(["tool_use"] if server.facts.has_tools else [])],
    }


async def _tokens(request: Request, server: Server, text: str, *, start: bool) -> list[int]:
    encode = server.llava.tokenizer.encode
    return await server.work(request, [Draft("user", (text,))], lambda _: encode(text, start=start))


async def _text(request: Request, server: Server, tokens: list[int]) -> str:
    """The text of ids.

    Raises:
        Refusal: one that the tokenizer does not have.
    """

    def text(_: object) -> str:
        try:
            return server.llava.tokenizer.decode(tokens)
        except (ValueError, OverflowError, IndexError, TypeError) as error:
            raise refuse("invalid_value", "there is an id that the tokenizer does not have", "tokens") from error

    return await server.work(request, [], text)
