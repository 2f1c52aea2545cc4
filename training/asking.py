"""The one who asks: picks wordings, varies them, and pairs them with the true answer."""

from __future__ import annotations

import random
from typing import NamedTuple

from training.phrasings import (
    ALIASES,
    OPENINGS,
    PICTURES,
    PORTIONS,
    RARE_PICTURES,
    SHORT_ENDINGS,
    WORDINGS,
    expand,
    is_held_out,
    misspelt,
    slang,
)
from training.words import article, capital, plural
from training.world import COLOURS, SHAPES


class Turn(NamedTuple):
    """A question of one kind, and its one right answer."""

    kind: str
    question: str
    answer: str


def fill(question: str, **names: str) -> str:
    """The question with ``%x`` replaced by the name given for ``x``."""
    for mark, name in names.items():
        question = question.replace("%" + mark, name)
    return question


class Asker:
    """Words questions as training does or, where ``held_out``, in ways that training never does."""

    def __init__(self, rng: random.Random, held_out: bool = False) -> None:
        self.rng = rng
        self.held_out = held_out

    def phrase(self, key: str, extra: tuple[str, ...] = ()) -> str:
        """A wording of that kind, its ``%x`` still open."""
        wording = WORDINGS[key]
        rng = self.rng
        if not self.held_out and wording.grammar and rng.random() < 0.72:
            question = self.trained(wording.grammar)
            while is_held_out(question):
                question = self.trained(wording.grammar)
            if "{P}" not in question:
                return question
            return question.replace("{P}", rng.choice(PICTURES if rng.random() < 0.8 else RARE_PICTURES))
        question = rng.choice((self.held_out and wording.held_out) or wording.said + extra)
        if "{P}" in question:
            question = question.replace("{P}", rng.choice(PICTURES) if rng.random() < 0.93 else "drawing")
        return question

    def trained(self, grammar: tuple[str, ...]) -> str:
        """A sentence of a grammar."""
        return expand(self.rng, self.rng.choice(grammar))

    def styled(self, question: str) -> str:
        """The question as somebody may type it: slang, slips, lower case, no stop, a polite opening."""
        rng = self.rng
        if not self.held_out and rng.random() < 0.3:
            question = slang(rng, question)
        if not self.held_out and rng.random() < 0.04 and len(question) > 12:
            question = misspelt(rng, question)
        drawn = rng.random()
        small = question[0].lower() + question[1:]
        if drawn < 0.62:
            return question
        if drawn < 0.74:
            return small
        if drawn < 0.84:
            return question.rstrip("?.")
        if drawn < 0.90:
            return small.rstrip("?.")
        if drawn < 0.93:
            return question.lower()
        return rng.choice(OPENINGS) + (small if drawn < 0.97 else question)

    def turn(self, kind: str, question: str, answer: str, short: str | None = None) -> Turn:
        """The pair, the question styled; now and then a short answer is asked for, if there is one."""
        question = self.styled(question)
        if short and self.rng.random() < 0.08:
            stop = "" if question.rstrip()[-1] in "?.:" else "."
            question = question.rstrip() + stop + self.rng.choice(SHORT_ENDINGS)
            return Turn(kind + "_short", question, capital(short) + ".")
        return Turn(kind, question, answer)

    def alias(self, name: str) -> str:
        """The name, or another word for it."""
        rng = self.rng
        if self.held_out or rng.random() > 0.2:
            return name
        colour, _, shape = name.partition(" ")
        if colour in COLOURS and shape in ALIASES and shape in SHAPES:
            return f"{colour} {rng.choice(ALIASES[shape])}"
        return rng.choice(ALIASES[name]) if name in ALIASES else name

    def loosely(self, name: str) -> str:
        """The name, another word for it, or ``scissors`` for a pair of scissors."""
        if not self.held_out and name in PORTIONS and self.rng.random() < 0.35:
            return PORTIONS[name]
        return self.alias(name)

    def whether_there_is(self, name: str) -> str:
        """Asks whether something is in the picture."""
        rng = self.rng
        if not self.held_out and name in PORTIONS and rng.random() < 0.35:
            for _ in range(9):
                question = self.phrase("exist")
                if "%p" in question:
                    return question.replace("%p", PORTIONS[name])
            return f"Is there any {PORTIONS[name]}?"
        other = self.alias(name)
        return fill(self.phrase("exist"), a=article(other), p=plural(other))
