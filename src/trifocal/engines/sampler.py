"""From the logits of one position to the next id."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from trifocal.engines.grammar import Constraint
from trifocal.errors import EngineError
from trifocal.messages import Sampling

__all__ = ["Sampler"]


class Sampler:
    """Draws the ids of one answer, one after the other.

    The order is that of transformers' ``generate``: penalties, temperature, top-k, top-p, min-p.
    The same seed draws the same answer. ``prompt_ids`` are those of the prompt's text, which a
    repetition penalty counts too; ``end_ids`` are never drawn when the end is to be ignored.
    ``constraint`` excludes ids before the filters look at them.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Iterable[int],
        end_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self._sampling = sampling
        self._constraint = constraint
        self._seen = set(prompt_ids)
        self._counts: dict[int, int] = {}
        self._banned = list(end_ids) if sampling.ignore_end else []
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def pick(self, logits: torch.Tensor) -> int:
        """The next id from ``logits`` ``[vocabulary]``.

        Raises:
            EngineError: no logit is a finite number, or one is not a number at all.
        """
        scores = self._penalised(logits.float().cpu())
        if self._constraint:
            scores = self._constraint.allowed(scores)
        if self._sampling.greedy:
            token = int(scores.argmax())
            _check(float(scores[token]))
        else:
            token = self._drawn(scores)
        if self._constraint:
            self._constraint.accept(token)
        self._seen.add(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores ``[vocabulary]`` after bans and penalties."""
        s = self._sampling
        if self._banned:
            scores[self._banned] = -math.inf
        if s.repetition_penalty != 1.0 and self._seen:
            ids = torch.tensor(sorted(self._seen))
            old = scores[ids]
            scores[ids] = torch.where(old < 0, old * s.repetition_penalty, old / s.repetition_penalty)
        if self._counts and (s.presence_penalty or s.frequency_penalty):
            ids = torch.tensor(list(self._counts))
            times = torch.tensor([float(n) for n in self._counts.values()])
            scores[ids] -= s.presence_penalty + s.frequency_penalty * times
        return scores

    def _drawn(self, scores: torch.Tensor) -> int:
        _check(float(scores.max()))
        probabilities = torch.softmax(filtered(scores / self._sampling.temperature, self._sampling), -1)
        _check(float(probabilities.sum()))
        return int(torch.multinomial(probabilities, 1, generator=self._random))


def filtered(scores: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The scores ``[vocabulary]`` with all that top-k, top-p and min-p exclude at minus infinity."""
    if 0 < sampling.top_k < len(scores):
        lowest = scores.topk(sampling.top_k).values[-1]
        scores = scores.masked_fill(scores < lowest, -math.inf)
    if sampling.top_p < 1:
        ordered, ids = scores.sort(descending=False)
        below = ordered.softmax(-1).cumsum(-1) <= 1 - sampling.top_p
        below[-1] = False
        scores = scores.masked_fill(torch.zeros_like(below).scatter(0, ids, below), -math.inf)
    if sampling.min_p > 0:
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < sampling.min_p * probabilities.max(), -math.inf)
    return scores


def _check(score: float) -> None:
    if not math.isfinite(score):
        raise EngineError("the language model gave no finite logits: its weights or its precision overflow")
