"""A prompt is a row of spans: runs of token ids, and pictures as rows of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trifocal.errors import PromptTooLong

if TYPE_CHECKING:
    import torch

__all__ = ["ImageSpan", "Prompt", "Scope", "Span", "TokenSpan"]


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A run of token ids."""

    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def key(self) -> tuple[int, ...]:
        """What two spans share when a cache may take one for the other."""
        return self.ids


@dataclass(frozen=True, slots=True, eq=False)
class ImageSpan:
    """A picture as the language model meets it: rows of its embedding space.

    ``features`` is ``[positions, hidden]``; ``digest`` names picture, preprocessing and weights, so
    two spans with one digest are equal.
    """

    features: torch.Tensor
    digest: str

    def __len__(self) -> int:
        return int(self.features.shape[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSpan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def key(self) -> str:
        """What two spans share when a cache may take one for the other."""
        return self.digest


Span = TokenSpan | ImageSpan
Scope = str | None  # in which something is found again; None where it is not asked a second time


@dataclass(frozen=True, slots=True)
class Prompt:
    """What every engine takes: ``(TokenSpan | ImageSpan)*``. Its length is its positions.

    What an engine keeps of a prompt it finds again for prompts of the same ``scope`` alone: nobody learns by the
    time of an answer what others asked. Without one nothing is kept or found.
    """

    spans: tuple[Span, ...]
    scope: Scope = ""

    def __init__(self, spans: Iterable[Span], scope: Scope = "") -> None:
        object.__setattr__(self, "spans", tuple(_joined(span for span in spans if len(span))))
        object.__setattr__(self, "scope", scope)

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def images(self) -> tuple[ImageSpan, ...]:
        """The pictures, in order."""
        return tuple(span for span in self.spans if isinstance(span, ImageSpan))

    @property
    def image_positions(self) -> int:
        """How many positions are pictures."""
        return sum(len(span) for span in self.images)

    @property
    def token_ids(self) -> list[int]:
        """The ids of the text alone, in order: what a repetition penalty looks at."""
        return [i for span in self.spans if isinstance(span, TokenSpan) for i in span.ids]

    def part(self, start: int, stop: int) -> Prompt:
        """The positions from ``start`` up to ``stop``. A piece of a picture says in its digest which rows it has."""
        spans: list[Span] = []
        at = 0
        for span in self.spans:
            first, last = max(start - at, 0), min(stop - at, len(span))
            at += len(span)
            if first >= last:
                continue
            if last - first == len(span):
                spans.append(span)
            elif isinstance(span, TokenSpan):
                spans.append(TokenSpan(span.ids[first:last]))
            else:
                spans.append(ImageSpan(span.features[first:last], f"{span.digest}[{first}:{last}]"))
        return Prompt(spans)

    def fit(self, context: int, max_tokens: int) -> Prompt:
        """Itself, if an answer of ``max_tokens`` still fits into ``context`` positions.

        Raises:
            PromptTooLong: it does not fit. A prompt is never cut: pictures are whole or absent,
                and which turns to leave out is decided where turns are known.
        """
        if len(self) + max_tokens > context:
            raise PromptTooLong(len(self), self.image_positions, max_tokens, context)
        return self

    def ids(self, placeholder: int) -> list[int]:
        """One id a position, with ``placeholder`` where pictures stand: for hosts that want ids too."""
        return [
            i for span in self.spans for i in (span.ids if isinstance(span, TokenSpan) else [placeholder] * len(span))
        ]

    def splice(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """The prompt as one matrix of input embeddings, ``[positions, hidden]``.

        ``embed`` maps int64 ids ``[n]`` to rows ``[n, hidden]``; pictures are moved to its device
        and dtype. Text is embedded in one call, so a remote or quantised table is asked once.
        """
        import torch

        table = embed(torch.tensor(self.token_ids, dtype=torch.long))  # [text positions, hidden]
        rows, at = [], 0
        for span in self.spans:
            if isinstance(span, ImageSpan):
                if span.features.shape[-1] != table.shape[-1]:
                    raise ValueError(
                        f"a picture has rows of {span.features.shape[-1]}, the language model of {table.shape[-1]}: "
                        "this projector belongs to another language model"
                    )
                rows.append(span.features.to(table))
            else:
                rows.append(table[at : at + len(span)])
                at += len(span)
        return torch.cat(rows) if rows else table


def _joined(spans: Iterable[Span]) -> Iterable[Span]:
    """Neighbouring token spans made one, so that equal prompts are equal however they were built."""
    last: TokenSpan | None = None
    for span in spans:
        if isinstance(span, TokenSpan):
            last = TokenSpan(last.ids + span.ids) if last else span
        else:
            if last:
                yield last
                last = None
            yield span
    if last:
        yield last
