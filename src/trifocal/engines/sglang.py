"""A server of SGLang as a language engine: its own ``/generate`` takes a prompt's rows as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trifocal.engines.base import Abilities, Engine
from trifocal.engines.closing import held
from trifocal.engines.recipe import Recipe
from trifocal.engines.served import Heard, Score, Served, asked_for
from trifocal.errors import PeerError, UsageError
from trifocal.messages import Sampling
from trifocal.peer import finite
from trifocal.placement import Placement

__all__ = ["Generate", "load"]


class Generate:
    """SGLang's ``/generate``, by the sources of 0.5.23. It takes rows only where it keeps nothing of prompts."""

    name = "SGLang"
    path = "/generate"
    able = Abilities(logprobs=True, grammar=True)
    start = "--disable-radix-cache"

    def prompt(self, given: list[int] | torch.Tensor, scope: str | None) -> dict[str, Any]:
        """Ids as they are, rows as lists of numbers."""
        if isinstance(given, list):
            return {"input_ids": given}
        return {"input_embeds": given.float().tolist()}

    def wanted(self, sampling: Sampling, most: int, ends: Sequence[int]) -> dict[str, Any]:
        """The options of an answer, in an object of their own."""
        told = asked_for(sampling, seed="sampling_seed")
        told |= {"max_new_tokens": most, "temperature": sampling.temperature, "ignore_eos": sampling.ignore_end}
        told |= {"stop_token_ids": list(ends), "top_k": sampling.top_k or -1}
        if sampling.schema is not None:
            told["json_schema"] = held(sampling.schema)
        scored = {"return_logprob": True, "top_logprobs_num": max(sampling.top_logprobs or 0, 1)}
        return {"sampling_params": told, **(scored if sampling.top_logprobs is not None else {})}

    def heard(self, event: Mapping[str, Any], so_far: int, sampling: Sampling) -> Heard:
        """What an event tells: all ids so far, or with another option of the server's the new ones alone."""
        ids, facts = event.get("output_ids"), event.get("meta_info")
        if not isinstance(ids, list) or not isinstance(facts, dict):
            raise PeerError("SGLang's server answers with what is no answer")
        new = ids[so_far:] if len(ids) == facts.get("completion_tokens") else ids
        scores = _scores(facts, so_far, len(new), sampling) if sampling.top_logprobs is not None else ()
        return Heard(new, bool(facts.get("finish_reason")), tuple(scores))


def load(
    recipe: Recipe,
    placement: Placement,
    *,
    url: str = "",
    key: str = "",
    model: str = "",
    context: int = 0,
    first_seconds: float = 300.0,
    next_seconds: float = 60.0,
) -> Engine:
    """The language model behind the server of SGLang at ``url``; docs/engines.md tells the options.

    Raises:
        UsageError: no address, or a server that has another model or takes no rows.
        PeerError: the server can't be asked.
    """
    if not url:
        raise UsageError("-e url=ADDRESS: SGLang is asked as a server; say where it is")
    seconds = (first_seconds, next_seconds)
    return Served(recipe, url, Generate(), key=key, model=model, context=context, seconds=seconds)


def _scores(facts: Mapping[str, Any], so_far: int, count: int, sampling: Sampling) -> Iterator[Score]:
    """Each new id's likelihood: entries are a log-probability, an id and a text."""
    try:
        chosen, tops = facts["output_token_logprobs"], facts["output_top_logprobs"]
        start = so_far if len(chosen) >= so_far + count else 0
        for at in range(start, start + count):
            ranked = sorted(((int(entry[1]), finite(entry[0])) for entry in tops[at]), key=lambda pair: -pair[1])
            yield finite(chosen[at][0]), tuple(ranked[: sampling.top_logprobs])
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PeerError("SGLang's server tells log-probabilities in a way that is not known here") from error
