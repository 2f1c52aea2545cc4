"""A family that transformers' classes see for: their whole model and the same weights loaded by us, side by side."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import trifocal
from foreign_models import make_foreign
from logits import ends_of, greedy, logits_of
from trifocal.conversation.templates import Piece, get_template
from trifocal.engines.native import Native
from trifocal.engines.transformers.alone import masks_of
from trifocal.images import Image
from trifocal.messages import Message
from trifocal.model.llava import Llava
from trifocal.placement import Placement
from trifocal.prompt import Prompt

EXACT = Placement(os.environ.get("TRIFOCAL_DEVICE", "cpu"), "float32")


@dataclass(frozen=True)
class ForeignPair:
    kind: str
    llava: Llava
    model: Any
    processor: Any

    def theirs(self, parts: list[str | Image]) -> dict[str, Any]:
        """What transformers makes of the parts."""
        mark = self.processor.image_token
        text = "".join(mark if isinstance(part, Image) else part for part in parts)
        images = [part.pixels for part in parts if isinstance(part, Image)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # PaliGemma's makes labels by way of NumPy
            found = dict(self.processor(text=text, images=images, return_tensors="pt"))
        found.pop("labels", None)
        return found

    def ours(self, parts: list[str | Image]) -> tuple[Piece, ...]:
        """The parts with what the family's processor puts around them besides."""
        if "paligemma" in self.kind:
            return get_template("paligemma").render([Message("user", tuple(parts))])
        return tuple(parts)

    @torch.no_grad()
    def rows(self, inputs: dict[str, Any]) -> torch.Tensor:
        """The rows that transformers makes of all pictures of a prompt, ``[positions, hidden]``."""
        see = getattr(self.model, "get_image_features", None) or self.model.model.get_image_features
        taken = inspect.signature(see).parameters
        seen = see(**{name: value for name, value in inputs.items() if name in taken})
        rows = getattr(seen, "pooler_output", seen)
        rows = torch.cat(list(rows)) if isinstance(rows, (list, tuple)) else rows
        return rows.flatten(0, -2)

    @torch.no_grad()
    def logits(self, prompt: Prompt) -> torch.Tensor:
        """Our logits of a whole prompt, ``[positions, vocabulary]``."""
        engine = self.llava.engine
        masks = {} if isinstance(engine, Native) else masks_of(engine.loaded, prompt, 0)
        return logits_of(engine, prompt, **masks).cpu()

    @torch.no_grad()
    def greedy(self, inputs: dict[str, Any], said: list[int]) -> list[int]:
        """What transformers says where we said that, with the end tokens forbidden."""
        return greedy(self.model, said, ends_of(self.llava.engine), **inputs)


@contextmanager
def load_foreign(kind: str, folder: Path) -> Iterator[ForeignPair]:
    """A family saved as transformers saves it, loaded in float32."""
    model, processor = make_foreign(kind, folder)
    places = dict.fromkeys(("tower", "projector", "language"), EXACT)
    with trifocal.load(checkpoint=str(folder), template="plain", **places) as llava:
        yield ForeignPair(kind, llava, model, processor)
