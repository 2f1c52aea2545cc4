"""How a server of vLLM is asked: plain completions, whose prompt may be what ``torch.save`` writes of embeddings."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from trifocal.engines.base import Abilities
from trifocal.engines.closing import held
from trifocal.engines.served import Heard, Score, asked_for
from trifocal.engines.vllm.scopes import salt
from trifocal.errors import PeerError
from trifocal.messages import Sampling
from trifocal.peer import finite

__all__ = ["Completions"]


class Completions:
    """vLLM's ``/v1/completions``."""

    name = "vLLM"
    path = "/v1/completions"
    able = Abilities(logprobs=True, grammar=True)
    start = "--enable-prompt-embeds"

    def prompt(self, given: list[int] | torch.Tensor, scope: str | None) -> dict[str, Any]:
        """Ids as they are, rows as base64 of a file of torch's."""
        if isinstance(given, list):
            return {"prompt": given, **salt(scope)}
        return {"prompt_embeds": _packed(given), **salt(scope)}

    def wanted(self, sampling: Sampling, most: int, ends: Sequence[int]) -> dict[str, Any]:
        """The options of a completion, and that ids are told."""
        told = asked_for(sampling, top_k="top_k", seed="seed")
        if sampling.top_logprobs is not None:
            told |= {"logprobs": max(sampling.top_logprobs, 1), "return_tokens_as_token_ids": True}
        if sampling.schema is not None:
            told["structured_outputs"] = {"json": json.loads(held(sampling.schema))}
        told |= {"max_tokens": most, "temperature": sampling.temperature, "return_token_ids": True}
        return {**told, "ignore_eos": sampling.ignore_end, "stop_token_ids": list(ends)}

    def heard(self, event: Mapping[str, Any], so_far: int, sampling: Sampling) -> Heard:
        """What a piece of a completion tells."""
        choices = event.get("choices")
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise PeerError("vLLM's server answers with what is no completion")
        if not choices:
            return Heard(())
        (choice,) = choices[:1]
        ids = choice.get("token_ids") or []
        if not isinstance(ids, list) or (choice.get("text") and not ids):
            raise PeerError("vLLM's server tells no ids: it takes one of 0.11 or later")
        scores = _scores(choice.get("logprobs"), len(ids), sampling) if sampling.top_logprobs is not None else ()
        return Heard(ids, bool(choice.get("finish_reason")), tuple(scores))


def _scores(told: Any, count: int, sampling: Sampling) -> Iterator[Score]:
    """What the server tells of each id's likelihood: names of tokens are ``token_id:17`` there."""
    try:
        for at in range(count):
            likely = {int(name.removeprefix("token_id:")): value for name, value in told["top_logprobs"][at].items()}
            ranked = sorted(((token, finite(value)) for token, value in likely.items()), key=lambda pair: -pair[1])
            yield finite(told["token_logprobs"][at]), tuple(ranked[: sampling.top_logprobs])
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise PeerError("vLLM's server tells log-probabilities in a way that is not known here") from error


def _packed(rows: torch.Tensor) -> str:
    """Rows as vLLM takes them: base64 of what ``torch.save`` writes."""
    buffer = io.BytesIO()
    torch.save(rows.contiguous().clone(), buffer)
    return base64.b64encode(buffer.getvalue()).decode()
