"""An engine that says its prompt back: for tests, demos and work on the faces."""

from __future__ import annotations

import time
from collections.abc import Generator

from trifocal.engines.base import Language
from trifocal.errors import BadSampling, EngineError, PromptTooLong
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt

__all__ = ["Bytes", "Echo", "load"]

ATTENTION = ("causal", "images", "prompt")  # an echo attends to nothing

CONTROLS = (
    "<unk>",
    "<s>",
    "</s>",
    "<im_patch>",
    "<im_start>",
    "<im_end>",
    "<image>",
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
)


class Bytes:
    """A tokenizer whose ids are control tokens, then the 256 bytes."""

    def encode(self, text: str, *, start: bool) -> list[int]:
        """The bytes of the text in UTF-8, after ``<s>`` at the start of a prompt."""
        ids = [len(CONTROLS) + byte for byte in text.encode("utf-8", "surrogatepass")]
        return [CONTROLS.index("<s>"), *ids] if start else ids

    def decode(self, ids: list[int]) -> str:
        """The text of the ids that are bytes."""
        return bytes(i - len(CONTROLS) for i in ids if i >= len(CONTROLS)).decode("utf-8", "replace")

    def token(self, name: str) -> int | None:
        """The id of a control token."""
        return CONTROLS.index(name) if name in CONTROLS else None


class Echo:
    """Says the text of the prompt back, and of every picture its rows and their mean.

    The mean makes it see: two pictures give two answers. ``delay`` seconds pass before each id, so
    that cancelling can be watched.
    """

    def __init__(self, *, hidden: int = 8, context: int = 4096, delay: float = 0.0) -> None:
        self.tokenizer = Bytes()
        self.hidden, self.context, self.delay = hidden, context, delay
        self._closed = False

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[int, None, None]:
        """The ids of what `say` says of the prompt."""
        if self._closed:
            raise EngineError("the engine is closed")
        if sampling.schema is not None:
            raise BadSampling("schema", "the engine echo can't hold an answer to a JSON schema")
        if len(prompt) >= self.context:
            raise PromptTooLong(len(prompt), prompt.image_positions, 1, self.context)
        room = self.context - len(prompt)
        ids = self.tokenizer.encode(self.say(prompt), start=False)[: min(sampling.max_tokens or room, room)]
        return self._spoken(ids)

    def say(self, prompt: Prompt) -> str:
        """The prompt as text, its pictures in brackets."""
        return "".join(
            f"[picture: {len(span)} positions, mean {float(span.features.float().mean()):.6f}]"
            if isinstance(span, ImageSpan)
            else self.tokenizer.decode(list(span.ids))
            for span in prompt.spans
        )

    def close(self) -> None:
        """Nothing is held; asking again is an error all the same, as with any engine."""
        self._closed = True

    def _spoken(self, ids: list[int]) -> Generator[int, None, None]:
        for token in ids:
            if self.delay:
                time.sleep(self.delay)
            yield token


def load(language: Language, placement: Placement, *, hidden: int = 0, context: int = 4096, delay: float = 0.0) -> Echo:
    """An echo as wide as the checkpoint's language model, unless told otherwise; no weight is read."""
    return Echo(hidden=hidden or int(language.config.get("hidden_size", 8)), context=context, delay=delay)
