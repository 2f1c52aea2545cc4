"""The logits of every position of a prompt, from whichever of our engines was loaded."""

from __future__ import annotations

from typing import Any

import torch

from trifocal.engines.native import Native
from trifocal.prompt import Prompt

__all__ = ["ends_of", "logits_of"]


@torch.inference_mode()
def logits_of(engine: Any, prompt: Prompt, **inputs: Any) -> torch.Tensor:
    """``[positions, vocabulary]``; ``inputs`` are more arguments of a transformers model, such as masks."""
    rows = prompt.splice(engine.embed)
    if isinstance(engine, Native):
        assert not inputs, "the native engine attends in one way"
        return engine.runner.logits(rows)
    logits: torch.Tensor = engine.model(inputs_embeds=rows[None], **inputs).logits[0]
    return logits


def ends_of(engine: Any) -> list[int]:
    """The ids that end its answers."""
    return sorted(engine.facts.end_ids if isinstance(engine, Native) else engine.loaded.end_ids)
