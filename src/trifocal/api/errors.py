"""The one place where an error becomes a status and the error object that every route answers with.

The shape is OpenAI's: ``{"error": {"message", "type", "param", "code"}}`` with string codes.
"""

from __future__ import annotations

import math
from typing import Any

from trifocal.errors import (
    BadImage,
    BadMarkup,
    BadMessages,
    BadSampling,
    EngineError,
    OutOfMemory,
    PromptTooLong,
    UsageError,
)

__all__ = ["Refusal", "explain", "refuse", "server_busy", "shutting_down"]

LONGEST_MESSAGE = 600
_TYPES = {401: "invalid_request_error", 403: "permission_error", 429: "rate_limit_error", 409: "conflict_error"}
_IMAGE_CODES = {
    "unsupported_format": "unsupported_image_format",
    "too_many_bytes": "image_too_large",
    "too_many_pixels": "image_too_large",
    "side_too_long": "image_too_large",
    "too_thin": "image_aspect_ratio",
    "too_many_images": "too_many_images",
    "url_not_allowed": "image_url_not_allowed",
    "bad_url": "invalid_image_url",
}


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

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

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
        case UsageError():
            return refuse("invalid_value", str(error))
        case OutOfMemory() | MemoryError():
            return Refusal(503, "insufficient_memory", "there is no memory for this request now", retry_after=1)
        case EngineError():
            return Refusal(500, "engine_failure", "the language engine failed; this request is lost, others are not")
        case TimeoutError():
            return Refusal(504, "timeout", "the request took longer than the server's deadline")
    if "outofmemory" in type(error).__name__.lower() or "out of memory" in str(error)[:400].lower():
        return explain(OutOfMemory())  # as other packages' engines may say it
    return Refusal(500, "internal_error", "an error of ours; tell us the request id")


def _plain(message: str) -> str:
    """Printable text of bounded length: what a client sent is never echoed raw."""
    text = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in message)
    return text if len(text) <= LONGEST_MESSAGE else text[: LONGEST_MESSAGE - 1] + "…"
