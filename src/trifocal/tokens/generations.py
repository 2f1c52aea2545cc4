"""How transformers' slow tokenizers cut a prompt up, by its version: three rules for a text's first space, as data.

LLaVA's checkpoints were trained and shown with the slow LLaMA tokenizer of their day. It looks for control tokens,
gives SentencePiece what stands between them, and what happens at the borders changed three times:

- up to 4.30 every piece is a text of its own, with a space in front (``put``);
- 4.31 with ``legacy: false`` tokenises a piece that way too and then takes the space off its first token (``cut``),
  which may leave a token that is none: the unknown one;
- from 4.32 on with ``legacy: false`` a piece behind a control token goes on as it stands (``keep``).

Up to 4.33 a control token that its files name by a plain string takes white space on both sides away.
The tests hold each row against ids that those releases gave.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

__all__ = ["GENERATIONS", "Generation", "Manner", "manner"]

Space = Literal["put", "cut", "keep"]


@dataclass(frozen=True, slots=True)
class Manner:
    """What happens at the borders of a piece of text.

    ``begins`` is for a text of its own (at the beginning, behind a picture), ``within`` for one behind a control
    token. ``trims`` says that tokens named by plain strings take white space away, ``alone`` that the space before a
    text stays where that text begins with an added token that is not special.
    """

    begins: Space = "put"
    within: Space = "put"
    trims: bool = False
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """What transformers did from a version on: with ``legacy`` (the default), and with ``legacy: false``."""

    since: tuple[int, int]
    legacy: Manner
    new: Manner


GENERATIONS = (
    Generation((0, 0), Manner(trims=True), Manner(trims=True)),
    Generation((4, 31), Manner(trims=True), Manner(within="cut", trims=True)),
    Generation((4, 32), Manner(trims=True), Manner(within="keep", trims=True, alone=True)),
    Generation((4, 34), Manner(), Manner(within="keep", alone=True)),
)
_PREFIX_ASKED = (4, 39)  # from then on `add_prefix_space` is heard, where `legacy` is false


def manner(version: object, *, legacy: bool, named: bool, prefix: object = None) -> Manner:
    """How a tokenizer of this version of transformers cut text up.

    Files that tell no version tell their day by their shape: ``named`` says that they list their added tokens by id
    (``added_tokens_decoder``), as 4.34 began to; before, ``legacy: false`` came with 4.31.
    """
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version) if isinstance(version, str) else None
    guessed = (4, 34) if named else (4, 31)
    since = (int(found[1]), int(found[2])) if found else guessed
    generation = [one for one in GENERATIONS if one.since <= since][-1]
    chosen = generation.legacy if legacy else generation.new
    if prefix is False and not legacy and since >= _PREFIX_ASKED:
        return replace(chosen, begins="keep")
    return chosen
