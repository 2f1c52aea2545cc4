"""The logits of every position of a prompt, from whichever of our engines was loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trifocal.engines.native import Native
from trifocal.prompt import Prompt

__all__ = ["ends_of", "greedy", "logits_along", "logits_of"]


@torch.inference_mode()
def logits_of(engine: Any, prompt: Prompt, **inputs: Any) -> torch.Tensor:
    """``[positions, vocabulary]``; ``inputs`` are more arguments of a transformers model, such as masks."""
    rows = prompt.splice(engine.embed)
    if isinstance(engine, Native):
        assert not inputs, "the native engine attends in one way"
        return engine.runner.logits(rows)
    logits: torch.Tensor = engine.model(inputs_embeds=rows[None], **inputs).logits[0]
    return logits


def greedy(model: Any, said: list[int], ends: Sequence[int], **inputs: torch.Tensor) -> list[int]:
    """What a transformers model says greedily after a prompt, held along ``said``: its own choice before each of them.

    Where all that was said before is its own choice, so is this: it equals ``said`` just if generating gives ``said``.
    That takes two runs of the model instead of one for each token. ``ends`` are forbidden; ``inputs`` are the prompt's.
    """
    return list(logits_along(model, said, ends, **inputs).argmax(-1).tolist())


@torch.no_grad()
def logits_along(model: Any, said: list[int], ends: Sequence[int], **inputs: torch.Tensor) -> torch.Tensor:
    """``[said, vocabulary]``: what a transformers model gives each token before each of ``said``, see `greedy`."""
    begun = model(**inputs, use_cache=True)
    more = torch.tensor([said[:-1]])
    on = {} if "attention_mask" not in inputs else {"attention_mask": ones(inputs["attention_mask"], len(said) - 1)}
    rest = model(input_ids=more, past_key_values=begun.past_key_values, **on)
    logits = torch.cat([begun.logits[0, -1:], rest.logits[0]])
    logits[:, list(ends)] = -torch.inf
    return logits


def ones(mask: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of so many more positions."""
    return torch.nn.functional.pad(mask, (0, count), value=1)


def ends_of(engine: Any) -> list[int]:
    """The ids that end its answers."""
    return sorted(engine.facts.end_ids if isinstance(engine, Native) else engine.loaded.end_ids)
