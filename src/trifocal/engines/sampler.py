"""From the logits of one step to the next token of each request, on the device where the logits are."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch

from trifocal.engines.base import Token
from trifocal.engines.grammar import Constraint
from trifocal.errors import EngineError, TrifocalError
from trifocal.messages import Sampling

__all__ = ["Drawing", "Drawn", "Picked", "filtered", "pick", "pick_along", "put"]

Picked = Token | TrifocalError


class Drawing:
    """How the ids of one answer are drawn, and what of it was drawn already.

    The same seed draws the same answer, whoever is answered beside it. ``prompt_ids`` are those of the prompt's text,
    which a repetition penalty counts too; ``end_ids`` are never drawn when the end is to be ignored. ``constraint``
    excludes ids before the filters look at them.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Iterable[int] = (),
        end_ids: Iterable[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling, self.constraint = sampling, constraint
        self.banned = sorted(end_ids) if sampling.ignore_end else []
        self.penalised = bool(
            sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        )
        self._prompt_ids = sorted(set(prompt_ids)) if self.penalised else []
        # of both signs: Python's own takes the absolute value
        self._random = random.Random(None if sampling.seed is None else sampling.seed % 2**64)
        self._chances: deque[float] = deque()  # drawn, and not used up
        self._banned: torch.Tensor | None = None
        self._times: torch.Tensor | None = None
        self._seen: torch.Tensor | None = None

    def banned_on(self, device: torch.device) -> torch.Tensor:
        """The ids that are never drawn, int64, on a device."""
        if self._banned is None:
            self._banned = put(self.banned, device)
        return self._banned

    @property
    def plain(self) -> bool:
        """Whether nothing but the temperature stands between the logits and the id."""
        s = self.sampling
        filters = s.top_k > 0 or s.top_p < 1 or s.min_p > 0
        return not (filters or self.penalised or self.banned or self.constraint or s.top_logprobs is not None)

    @property
    def remembers(self) -> bool:
        """Whether what may come next depends on the ids that were drawn, but for the logits."""
        return self.penalised or self.constraint is not None

    @property
    def forgets(self) -> bool:
        """Whether an id can be drawn before the one in front of it is known here, and nothing is told beside it."""
        return not self.remembers and self.sampling.top_logprobs is None

    def chance(self, ahead: int = 0) -> float:
        """The random number, from 0 up to 1, that draws the id behind the next ``ahead``.

        There is one for each id that is drawn: `accept` uses the first up.
        """
        while len(self._chances) <= ahead:
            self._chances.append(self._random.random())
        return self._chances[ahead]

    def counted(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How often the answer has each id, and which ids prompt or answer have, ``[vocabulary]`` each."""
        if self._times is None or self._seen is None:
            self._times = torch.zeros(logits.shape[-1], device=logits.device)
            self._seen = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            self._seen[torch.tensor(self._prompt_ids, dtype=torch.long, device=logits.device)] = True
        return self._times, self._seen

    def accept(self, token: int) -> None:
        """Notes the id that was drawn.

        Raises:
            BadSampling, EngineError: see `trifocal.engines.grammar.Constraint.accept`.
        """
        if self._chances:
            self._chances.popleft()
        if self._times is not None and self._seen is not None:
            self._times[token] += 1
            self._seen[token] = True
        if self.constraint:
            self.constraint.accept(token)


def pick(logits: torch.Tensor, rows: Sequence[Drawing]) -> list[Picked]:
    """The next token of each row of ``logits`` ``[rows, vocabulary]``, which stay as they are.

    The order is that of transformers' ``generate``: penalties, temperature, top-k, top-p, min-p. A row whose logits
    are no finite numbers, or whose schema breaks, gets an error in its token's place; the others don't notice.
    """
    tokens = _picked(logits, rows, [0] * len(rows))
    return [_accepted(row, token) for row, token in zip(rows, tokens, strict=True)]


def pick_along(logits: torch.Tensor, rows: Sequence[Drawing], drafts: Sequence[Sequence[int]]) -> list[list[Picked]]:
    """The next tokens of each row, where some ids after the next were guessed: exactly those that `pick` would give.

    ``logits`` ``[rows and drafts, vocabulary]`` are those behind each row and each id of its draft, in order. A token
    follows another as long as that was the one that was guessed; whether the guess was good changes no answer.
    """
    if not any(drafts):
        return [[token] for token in pick(logits, rows)]
    starts = [0, *accumulate(1 + len(draft) for draft in drafts)]
    told: list[list[Picked]] = [[] for _ in rows]
    asked = [
        (at, depth)
        for at, (row, draft) in enumerate(zip(rows, drafts, strict=True))
        for depth in range(1 if row.remembers else 1 + len(draft))
    ]
    while asked:
        own = logits[put([starts[at] + depth for at, depth in asked], logits.device)]
        tokens = _picked(own, [rows[at] for at, _ in asked], [depth - len(told[at]) for at, depth in asked])
        later = []
        for (at, depth), token in zip(asked, tokens, strict=True):
            if not _came(told[at], drafts[at][:depth]):
                continue
            token = _accepted(rows[at], token)
            told[at].append(replace(token, guessed=True) if depth and isinstance(token, Token) else token)
            if rows[at].remembers and depth < len(drafts[at]) and _came(told[at], drafts[at][: depth + 1]):
                later.append((at, depth + 1))
        asked = later
    return told


def _came(told: Sequence[Picked], draft: Sequence[int]) -> bool:
    return [token.id if isinstance(token, Token) else None for token in told] == list(draft)


class Drawn:
    """Ids of rows that remember nothing, drawn on the device and on their way here.

    ``ids`` ``[rows]`` are on the device of the logits, which may be written over as soon as this is made. ``ahead``
    says how many ids of each answer were drawn before these and are not accepted yet.
    """

    def __init__(self, logits: torch.Tensor, rows: Sequence[Drawing], ahead: int = 0) -> None:
        assert all(row.forgets for row in rows), "nobody asks more of these tokens than their ids"
        self._rows = rows
        told = _drawn_ids(logits, rows, [ahead] * len(rows))
        self.ids = told[0]
        self._told = told
        self._there = torch.cuda.Event() if told.is_cuda else None  # type: ignore[no-untyped-call]
        if self._there is not None:
            self._told = torch.empty(told.shape, dtype=told.dtype, pin_memory=True)
            self._told.copy_(told, non_blocking=True)
            self._there.record()

    def tokens(self) -> list[list[Picked]]:
        """The token of each row; see `pick_along`. Waits for them."""
        if self._there is not None:
            self._there.synchronize()
        ids, sound = self._told.tolist()
        return [[_accepted(row, _token(*one))] for row, *one in zip(self._rows, ids, sound, strict=True)]


def _picked(logits: torch.Tensor, rows: Sequence[Drawing], ahead: Sequence[int]) -> list[Picked]:
    """The token of each row of logits ``[rows, vocabulary]``, which is ``ahead`` of the next one of its answer."""
    if not rows:
        return []
    ids, sound = _likeliest(logits, rows) or _drawn_ids(logits, rows, ahead).tolist()  # a device is waited for once
    tokens = _tokens(logits, ids, rows)
    return [token if sane else EngineError(_NOT_FINITE) for token, sane in zip(tokens, sound, strict=True)]


def _likeliest(logits: torch.Tensor, rows: Sequence[Drawing]) -> tuple[list[int], list[bool]] | None:
    """What `_drawn_ids` tells where all rows take the likeliest id, on a CPU; None where it is to be asked itself.

    Nothing of a whole vocabulary is copied or made anew, which costs more than the search itself: what is banned is
    hardly ever the likeliest.
    """
    if logits.device.type != "cpu" or any(row.remembers or not row.sampling.greedy for row in rows):
        return None
    scores = logits.float().numpy()
    ids = scores.argmax(-1).tolist()
    if any(token in row.banned for token, row in zip(ids, rows, strict=True)):
        return None
    return ids, [math.isfinite(row[token]) for token, row in zip(ids, scores, strict=True)]


def _drawn_ids(logits: torch.Tensor, rows: Sequence[Drawing], ahead: Sequence[int]) -> torch.Tensor:
    """Ids, and whether they come from finite logits, ``[2, rows]``, on the device."""
    scores = _allowed(_penalised(logits.float(), rows), rows)
    best, ids = _largest(scores)  # [rows] each
    drawn = [at for at, row in enumerate(rows) if not row.sampling.greedy]
    if drawn:
        where = put(drawn, ids.device)
        chances = [rows[at].chance(ahead[at]) for at in drawn]
        ids[where] = _drawn(scores[where], [rows[at].sampling for at in drawn], chances, ids[where])
    return torch.stack([ids, best.isfinite().long()])


def _token(token: int, sound: int) -> Picked:
    return Token(token) if sound else EngineError(_NOT_FINITE)


def _largest(scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest score of each row of ``[rows, vocabulary]``, and the first id that has it."""
    if scores.device.type != "cpu":
        best, ids = scores.max(-1)
        return best, ids
    ids = torch.from_numpy(scores.numpy().argmax(-1))  # a tenth of the time of torch's own
    return scores.gather(-1, ids[:, None])[:, 0], ids


_MOST = 1e30  # what an extreme penalty makes of a score at most
_NOT_FINITE = "the language model gave no finite logits: its weights or its precision overflow"


def filtered(
    scores: torch.Tensor, top_k: Sequence[int], top_p: Sequence[float], min_p: Sequence[float]
) -> torch.Tensor:
    """Scores ``[rows, vocabulary]`` with all that top-k, top-p and min-p exclude at minus infinity, row by row."""
    size, device = scores.shape[-1], scores.device
    if any(0 < k < size for k in top_k):
        counts = put([k if 0 < k < size else size for k in top_k], device)[:, None]
        most = int(max(k for k in top_k if k < size))
        ordered = scores.topk(most).values
        lowest = ordered.gather(-1, counts.clamp(max=most) - 1)
        scores = scores.masked_fill((scores < lowest) & (counts < size), -math.inf)
    if any(p < 1 for p in top_p):
        rest = put([1 - p if p < 1 else -1.0 for p in top_p], device)[:, None]
        ordered, ids = scores.sort(descending=False)
        below = ordered.softmax(-1).cumsum(-1) <= rest
        below[:, -1] = False
        scores = scores.masked_fill(torch.zeros_like(below).scatter(-1, ids, below), -math.inf)
    if any(p > 0 for p in min_p):
        least = put(min_p, device)[:, None]
        probabilities = scores.softmax(-1)
        scores = scores.masked_fill(probabilities < least * probabilities.amax(-1, keepdim=True), -math.inf)
    return scores


def put(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """Numbers on a device, which is not waited for."""
    here = torch.tensor(values)
    return here.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else here.to(device)


def _penalised(scores: torch.Tensor, rows: Sequence[Drawing]) -> torch.Tensor:
    """The scores ``[rows, vocabulary]`` after bans and penalties; a copy where anything changes."""
    changed = [at for at, row in enumerate(rows) if row.penalised or row.banned]
    if not changed:
        return scores
    scores = scores.clone()
    counted = [at for at in changed if rows[at].penalised]
    if counted:
        where = torch.tensor(counted, device=scores.device)
        scores[where] = _counted(scores[where], [rows[at] for at in counted])
    for at in changed:
        if rows[at].banned:
            scores[at].index_fill_(0, rows[at].banned_on(scores.device), -math.inf)
    return scores


def _counted(scores: torch.Tensor, rows: Sequence[Drawing]) -> torch.Tensor:
    """The scores of rows that all have penalties; however extreme these are, finite ones stay finite."""

    def column(name: str) -> torch.Tensor:
        values = [getattr(row.sampling, name) for row in rows]
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    times, seen = (torch.stack(parts) for parts in zip(*(row.counted(scores) for row in rows), strict=True))
    repetition = column("repetition_penalty")
    old = torch.where(scores < 0, scores * repetition, scores / repetition).clamp(-_MOST, _MOST).to(scores.dtype)
    scores = torch.where(seen & scores.isfinite(), old, scores)
    less = (times > 0) * column("presence_penalty") + times * column("frequency_penalty")
    return scores - less.to(scores.dtype)


def _allowed(scores: torch.Tensor, rows: Sequence[Drawing]) -> torch.Tensor:
    """The scores without what schemas exclude."""
    held = [at for at, row in enumerate(rows) if row.constraint]
    if not held:
        return scores
    scores = scores.clone()
    for at in held:
        constraint = rows[at].constraint
        assert constraint is not None, "asked above"
        scores[at] = constraint.allowed(scores[at])
    return scores


def _drawn(
    scores: torch.Tensor, options: Sequence[Sampling], chances: Sequence[float], best: torch.Tensor
) -> torch.Tensor:
    """Ids ``[rows]`` drawn from scores ``[rows, vocabulary]``, each by one random number of its own answer.

    The first id at which the summed probabilities pass that share; one that has none is never drawn, whatever the sums
    are rounded to.
    """
    heat = put([s.temperature for s in options], scores.device)[:, None]
    kept = filtered(scores / heat, [s.top_k for s in options], [s.top_p for s in options], [s.min_p for s in options])
    probabilities = kept.softmax(-1)
    sums = probabilities.cumsum(-1)
    share = put(chances, scores.device)[:, None] * sums[:, -1:]
    size = scores.shape[-1]
    places = torch.arange(size, device=scores.device)
    first = torch.where((sums > share) & (probabilities > 0), places, size).amin(-1)
    return torch.where(first < size, first, best)


def _tokens(logits: torch.Tensor, ids: Sequence[int], rows: Sequence[Drawing]) -> list[Token]:
    """The tokens of ids that were picked, with log-probabilities where they are asked for."""
    asked = {at: row.sampling.top_logprobs for at, row in enumerate(rows) if row.sampling.top_logprobs is not None}
    if not asked:
        return [Token(token) for token in ids]
    where = torch.tensor(list(asked), device=logits.device)
    logprobs = logits[where].float().log_softmax(-1)  # [asked, vocabulary]
    own = logprobs.gather(-1, torch.tensor([[ids[at]] for at in asked], device=logits.device))[:, 0].tolist()
    best = logprobs.topk(min(max(asked.values()), logits.shape[-1]))
    tops = [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    told = {at: Token(ids[at], own[n], tuple(tops[n][: asked[at]])) for n, at in enumerate(asked)}
    return [told.get(at) or Token(token) for at, token in enumerate(ids)]


def _accepted(row: Drawing, token: Picked) -> Picked:
    if isinstance(token, TrifocalError):
        return token
    try:
        row.accept(token.id)
    except TrifocalError as error:  # of this answer alone: the others of the step go on
        return error
    return token
