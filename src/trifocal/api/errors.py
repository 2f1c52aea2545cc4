"""The one place where an error becomes a status and the error object of the dialect that was spoken.

OpenAI's is ``{"error": {"message", "type", "param", "code"}}`` with string codes, and every route's that is nobody's;
Anthropic's has its own names of types; Ollama's is ``{"error": "words"}``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel

from trifocal.errors import (
    BadImage,
    BadMarkup,
    BadMessages,
    BadSampling,
    EngineError,
    EngineLost,
    NotSupported,
    OutOfMemory,
    PeerBusy,
    PeerError,
    PeerRefused,
    PeerTimeout,
    PromptTooLong,
    UsageError,
    VisionError,
)

__all__ = ["ErrorBody", "Refusal", "dialect_of", "error_model", "explain", "refuse", "server_busy", "shutting_down"]

LONGEST_MESSAGE = 600
_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error", 409: "conflict_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_IMAGE_CODES = {
    "unsupported_format": "unsupported_image_format",
    "too_many_bytes": "image_too_large",
    "too_many_pixels": "image_too_large",
    "side_too_long": "image_too_large",
    "too_thin": "image_aspect_ratio",
    "bad_embeds": "invalid_image_embeds",
    "too_many_images": "too_many_images",
    "url_not_allowed": "image_url_not_allowed",
    "bad_url": "invalid_image_url",
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The error object of OpenAI's dialect, and of routes that are nobody's."""

    error: ErrorDetail


class AnthropicDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class AnthropicErrorBody(BaseModel):
    """The error object of Anthropic's dialect."""

    type: Literal["error"]
    error: AnthropicDetail


class OllamaErrorBody(BaseModel):
    """The error of Ollama's dialect: words."""

    error: str


def dialect_of(path: str) -> Literal["OpenAI", "Anthropic", "Ollama"]:
    """Whose errors the clients of a path can read."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "Anthropic"
    return "Ollama" if path.startswith("/api/") and not path.startswith(("/api/v0/", "/api/v1/")) else "OpenAI"


def error_model(path: str) -> type[BaseModel]:
    """What an error of that path looks like."""
    models: dict[str, type[BaseModel]] = {"Anthropic": AnthropicErrorBody, "Ollama": OllamaErrorBody}
    return models.get(dialect_of(path), ErrorBody)


class Refusal(Exception):
    """A request that is answered with an error: a status, a stable code and words for people."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: float | None = None
    ) -> None:
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after
        self.message = _plain(message)
        super().__init__(f"{status} {code}")

    @property
    def type(self) -> str:
        """The error's family, as OpenAI calls it."""
        if self.status == 503:
            return "service_unavailable_error"
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self, path: str = "") -> dict[str, Any]:
        """The error object, as the clients of that path expect it."""
        match dialect_of(path):
            case "Anthropic":
                return {"type": "error", "error": {"type": _anthropic_type(self.status), "message": self.told}}
            case "Ollama":
                return {"error": self.told}
        param = "input" if self.param == "messages" and path.endswith("/responses") else self.param
        error = {"message": self.message, "type": self.type, "param": param, "code": self.code}
        return {"error": error}

    @property
    def told(self) -> str:
        """The message with its place, for dialects whose errors have no field for it."""
        said = self.param is None or self.param in self.message
        return self.message if said else _plain(f"{self.param}: {self.message}")

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it: when to come back, how to authenticate, and that the connection ends."""
        headers = {}
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413, 431):
            headers["connection"] = "close"
        return headers


def refuse(code: str, message: str, param: str | None = None) -> Refusal:
    """The refusal of a request that can't be done as asked: status 400."""
    return Refusal(400, code, message, param=param)


def server_busy(code: str = "server_busy", message: str = "all slots and waiting places are taken") -> Refusal:
    """The refusal of a request for which there is no room now: status 503."""
    return Refusal(503, code, message, retry_after=1)


def shutting_down(message: str = "the server is shutting down") -> Refusal:
    """The refusal of whatever the server's end meets: status 503, another server or a later one may do it."""
    return server_busy("shutting_down", message)


def explain(error: BaseException) -> Refusal:
    """What a client is told of any error. Nothing of an error that is not ours reaches it."""
    match error:
        case Refusal():
            return error
        case BadImage():
            param = error.name if error.name != "image" else None
            return refuse(_IMAGE_CODES.get(error.rule, "invalid_image"), str(error), param)
        case BadMarkup():
            return refuse("invalid_image", str(error), "prompt")
        case PromptTooLong():
            return refuse("context_length_exceeded", str(error))
        case BadSampling():
            return refuse("invalid_value", str(error), "response_format" if error.option == "schema" else error.option)
        case BadMessages():
            return refuse("invalid_value", str(error), "messages")
        case NotSupported():
            return Refusal(501, "not_supported", str(error))
        case PeerRefused():
            return Refusal(
                413 if error.status == 413 else 400, error.code or "invalid_value", str(error), param=error.param
            )
        case UsageError():
            return refuse("invalid_value", str(error))
        case OutOfMemory() | MemoryError():
            return Refusal(503, "insufficient_memory", "there is no memory for this request now", retry_after=1)
        case PeerBusy():
            return Refusal(error.status, "backend_busy", error.told, retry_after=error.retry_after)
        case PeerTimeout():
            return Refusal(504, "backend_timeout", error.told)
        case PeerError():
            return Refusal(502, "backend_error", error.told)
        case EngineLost():
            words = "the process of the language engine ended; this request is lost, others may come again"
            return server_busy("engine_lost", words)
        case EngineError():
            return Refusal(500, "engine_failure", "the language engine failed; this request is lost, others are not")
        case VisionError():
            words = "what sees pictures can't be asked now; this request is lost, others may come again"
            return server_busy("vision_unavailable", words)
        case TimeoutError():
            return Refusal(504, "timeout", "the request took longer than the server's deadline")
    if "outofmemory" in type(error).__name__.lower() or "out of memory" in str(error)[:400].lower():
        return explain(OutOfMemory())  # as other packages' engines may say it
    return Refusal(500, "internal_error", "an error of ours; tell us the request id")


def _anthropic_type(status: int) -> str:
    return _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _plain(message: str) -> str:
    """Printable text of bounded length: what a client sent is never echoed raw, or read to its end."""
    start = message[:LONGEST_MESSAGE]
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in start)
    return text if len(message) <= LONGEST_MESSAGE else text[:-1] + "…"
