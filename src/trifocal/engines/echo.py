"""An engine that says its prompt back: for tests, demos and work on the faces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from trifocal.engines.base import Abilities
from trifocal.engines.batching import Batching, Model
from trifocal.engines.recipe import Recipe
from trifocal.engines.scheduler import Run
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt

__all__ = ["CONTROLS", "Bytes", "Echo", "load"]

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
END = CONTROLS.index("</s>")
VOCABULARY = len(CONTROLS) + 256
ROWS = 64  # requests that are answered together
SURE = 1e4  # a logit that no temperature makes doubtful

ABLE = Abilities(sees=("causal", "images", "prompt"))  # an echo attends to nothing


class Bytes:
    """A tokenizer whose ids are control tokens, then the 256 bytes."""

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        """The bytes of the text in UTF-8, after ``<s>`` at the start of a prompt."""
        ids = [len(CONTROLS) + byte for byte in text.encode("utf-8", "surrogatepass")]
        return [CONTROLS.index("<s>"), *ids] if start else ids

    def decode(self, ids: list[int]) -> str:
        """The text of the ids that are bytes."""
        return bytes(i - len(CONTROLS) for i in ids if i >= len(CONTROLS)).decode("utf-8", "replace")

    def token(self, name: str) -> int | None:
        """The id of a control token."""
        return CONTROLS.index(name) if name in CONTROLS else None


class Echo(Batching):
    """Says the text of the prompt back, and of every picture its rows and their mean; then ends, or begins again.

    The mean makes it see: two pictures give two answers. ``delay`` seconds pass before each step, so
    that cancelling can be watched.
    """

    def __init__(self, *, hidden: int = 8, context: int = 4096, delay: float = 0.0) -> None:
        self._runner = runner = _Runner(Bytes(), ROWS * context, delay)
        model = Model(
            runner=runner,
            tokenizer=runner.tokenizer,
            hidden=hidden,
            context=context,
            end_ids=frozenset({END}),
            able=ABLE,
            rows=ROWS,
        )
        super().__init__(lambda: model)

    def say(self, prompt: Prompt) -> str:
        """The prompt as text, its pictures in brackets."""
        return self._runner.say(prompt)


class _Runner:
    """Likes best what comes next of the text to say, and the text's beginning where the end is not allowed."""

    def __init__(self, tokenizer: Bytes, positions: int, delay: float) -> None:
        self.tokenizer, self.positions, self.delay = tokenizer, positions, delay
        self._ids = lru_cache(ROWS)(self._said)

    def forward(self, runs: Sequence[Run[Any]]) -> torch.Tensor:
        """Logits ``[runs that want them, vocabulary]``; of keys and values there are none."""
        if self.delay:
            time.sleep(self.delay)
        asked = [run for run in runs if run.logits]
        logits = torch.zeros(len(asked), VOCABULARY)
        for row, run in zip(logits, asked, strict=True):
            ids = self._ids(run.prompt)
            at = run.start + run.count - len(run.prompt)
            if at < len(ids):
                row[ids[at]] = SURE
            else:
                row[END] = SURE
                row[ids[at % len(ids)] if ids else 0] = SURE / 2
        return logits

    def say(self, prompt: Prompt) -> str:
        """The prompt as text."""
        return "".join(
            f"[picture: {len(span)} positions, mean {float(span.features.float().mean()):.6f}]"
            if isinstance(span, ImageSpan)
            else self.tokenizer.decode(list(span.ids))
            for span in prompt.spans
        )

    def _said(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(self.say(prompt), start=False)


def load(recipe: Recipe, placement: Placement, *, hidden: int = 0, context: int = 4096, delay: float = 0.0) -> Echo:
    """An echo as wide as the checkpoint's language model, unless told otherwise; no weight is read."""
    return Echo(hidden=hidden or int(recipe.config.get("hidden_size", 8)), context=context, delay=delay)
