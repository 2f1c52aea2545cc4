"""Where it looked: for each word of an answer, how the language model's attention lay over each picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from trifocal.engines.base import Tokenizer
from trifocal.model.decoding import Decoder
from trifocal.prompt import ImageSpan, Prompt
from trifocal.vision import Box, PatchGrid

if TYPE_CHECKING:
    import torch

__all__ = ["ExplainedPicture", "ExplainedWord", "Explanation", "Heatmap", "explanation_of"]

# a word is a run of letters and digits, held together by hyphens and apostrophes; where scripts have no spaces, a sign
_SIGN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_SIGN}]|(?:(?![{_SIGN}])\w)+(?:['’-](?:(?![{_SIGN}])\w)+)*")
DRAWN = 8  # words that are told of a picture


@dataclass(frozen=True, slots=True)
class Heatmap:
    """How one word looked at one picture.

    ``image`` counts the pictures of the prompt from 0. ``grid`` has rows of patches: how much more attention each got
    from this word than from the rest of the answer, 0 to 1; 1 is the most of all words and pictures. ``share`` is the
    picture's part of what all pictures got so; 0 of all where the word looked nowhere more than the rest.
    """

    image: int
    share: float
    grid: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ExplainedWord:
    """A word of the answer, ``answer[start:end]``, and how it looked at each picture."""

    text: str
    start: int
    end: int
    heatmaps: tuple[Heatmap, ...]


@dataclass(frozen=True, slots=True)
class ExplainedPicture:
    """A picture of the prompt, counted from 0, with its grid and the words that it drew most.

    The grid's patches cover ``box`` (left, top, width, height in shares of the picture's sides), which goes beyond
    the picture where it was padded. ``words`` are pairs of a word's number and its weight (the sum of its grid), the
    greatest first; 1 is the greatest of all words and pictures.
    """

    image: int
    rows: int
    columns: int
    box: Box
    words: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where the language model looked while it said each word of ``answer``."""

    answer: str
    words: tuple[ExplainedWord, ...]
    pictures: tuple[ExplainedPicture, ...]


def explanation_of(
    answer: str,
    ids: Sequence[int],
    weights: torch.Tensor,
    prompt: Prompt,
    grids: Sequence[Sequence[PatchGrid]],
    tokenizer: Tokenizer,
) -> Explanation:
    """What the attention of an answer's ids says of its words.

    ``weights`` is ``[ids, positions]``, see `trifocal.engines.base.Attending`; ``grids`` are those of each picture of
    the prompt. A word's attention is the mean over its ids. What all of an answer looks at alike (language models keep
    a few patches to rest on) tells nothing of a word, so that the mean of the other ids is taken off.
    """
    spans = [found.span() for found in _WORD.finditer(answer)]
    rows, others = _of_words(spans, _reaches(answer, ids, tokenizer), weights)  # [words, positions]
    places, boards = _places(prompt), [_common(each) for each in grids]
    more = (rows - others).clamp_min(0)
    maps = [_laid(more[:, at], each, board) for at, each, board in zip(places, grids, boards, strict=True)]
    totals = [each.sum((1, 2)) for each in maps]  # [words] each
    together = sum(totals, start=rows.new_zeros(len(spans))).clamp_min(1e-12)
    most = max((float(each.max()) for each in maps if each.numel()), default=0.0) or 1.0
    heaviest = max((float(each.max()) for each in totals if each.numel()), default=0.0) or 1.0
    words = tuple(
        ExplainedWord(
            answer[start:end],
            start,
            end,
            tuple(
                Heatmap(at, float(totals[at][number] / together[number]), _plain(each[number] / most))
                for at, each in enumerate(maps)
            ),
        )
        for number, (start, end) in enumerate(spans)
    )
    pictures = tuple(
        ExplainedPicture(at, board.rows, board.columns, board.box, _drawn(totals[at] / heaviest))
        for at, board in enumerate(boards)
    )
    return Explanation(answer, words, pictures)


def _reaches(answer: str, ids: Sequence[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """From where to where in the answer each id reaches; the ids of one character all reach over the whole of it."""
    decoder, ends = Decoder(tokenizer), [0]
    for token in ids:
        ends.append(min(ends[-1] + len(decoder.push(token)), len(answer)))
    reaches, last = [], len(answer)
    for start, end in reversed(list(pairwise(ends))):
        last = end if end > start else last
        reaches.append((start, last))
    return reaches[::-1]


def _of_words(
    spans: Sequence[tuple[int, int]], reaches: Sequence[tuple[int, int]], weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``[words, positions]`` twice: the mean over the ids that are part of each word, and over all others."""
    rows = weights.new_zeros(len(spans), weights.shape[1])
    others = rows.clone()
    for number, (start, end) in enumerate(spans):
        own = [at for at, (first, last) in enumerate(reaches) if first < end and last > start]
        rest = [at for at in range(len(reaches)) if at not in own]
        if own:
            rows[number] = weights[own].mean(0)
        if rest:
            others[number] = weights[rest].mean(0)
    return rows, others


def _places(prompt: Prompt) -> list[slice]:
    """Where the pictures stand."""
    places, at = [], 0
    for span in prompt.spans:
        if isinstance(span, ImageSpan):
            places.append(slice(at, at + len(span)))
        at += len(span)
    return places


def _common(grids: Sequence[PatchGrid]) -> PatchGrid:
    """One grid over all that a picture's grids cover, as fine as the finest of them."""
    left, top = min(grid.box[0] for grid in grids), min(grid.box[1] for grid in grids)
    width = max(grid.box[0] + grid.box[2] for grid in grids) - left
    height = max(grid.box[1] + grid.box[3] for grid in grids) - top
    columns = max(round(width / (grid.box[2] / grid.columns)) for grid in grids)
    rows = max(round(height / (grid.box[3] / grid.rows)) for grid in grids)
    return PatchGrid(0, rows, columns, columns, (left, top, width, height))


def _laid(weights: torch.Tensor, grids: Sequence[PatchGrid], board: PatchGrid) -> torch.Tensor:
    """What a picture's rows got, ``[words, rows of the picture]``, laid on one grid: ``[words, rows, columns]``.

    A coarse patch is spread evenly over the fine ones that it covers.
    """
    import torch

    total = weights.new_zeros(len(weights), board.rows, board.columns)
    for grid in grids:
        down = _index(board.box[1], board.box[3], board.rows, grid.box[1], grid.box[3], grid.rows)
        across = _index(board.box[0], board.box[2], board.columns, grid.box[0], grid.box[2], grid.columns)
        inside = (down >= 0)[:, None] & (across >= 0)[None]
        at = grid.start + down.clamp_min(0)[:, None] * grid.step + across.clamp_min(0)[None]  # [rows, columns]
        inside &= at >= 0  # a patch that is left away has no row
        at = at.clamp_min(0)
        copies = torch.bincount(at[inside], minlength=weights.shape[1]).clamp_min(1)
        total += (weights / copies)[:, at] * inside
    return total


def _index(start: float, length: float, count: int, first: float, reach: float, cells: int) -> torch.Tensor:
    """In which of the ``cells`` of one line the middles of ``count`` cells of another lie, ``[count]``; -1 in none."""
    import torch

    middles = start + (torch.arange(count) + 0.5) * (length / count)
    found = ((middles - first) / reach * cells).floor().long()
    return torch.where((found >= 0) & (found < cells), found, -1)


def _drawn(weights: torch.Tensor) -> tuple[tuple[int, float], ...]:
    """The words that a picture drew most, ``[words]``, with their weights."""
    best = weights.topk(min(DRAWN, len(weights)))
    return tuple(zip(best.indices.tolist(), (round(value, 4) for value in best.values.tolist()), strict=True))


def _plain(grid: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(round(value, 4) for value in row) for row in grid.tolist())
