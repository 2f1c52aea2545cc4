"""Wordings of questions, read from phrasings.toml: which are trained, which are held out, and how they are varied."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass

from training.world import HERE

_CHOICE = re.compile(r"\(([^()]*)\)")
_HERE = "(| in (this|the|that) {P}| here)"  # what <in> stands for


@dataclass(frozen=True)
class Wording:
    """The ways to ask one thing; ``answer`` is set where it is always the same."""

    said: tuple[str, ...]
    held_out: tuple[str, ...]
    grammar: tuple[str, ...]
    answer: str = ""


def _wording(table: dict[str, list[str]], shared: dict[str, dict[str, list[str]]]) -> Wording:
    source = shared[str(table["grammar_of"])] if "grammar_of" in table else table
    grammar = tuple(each.replace("<in>", _HERE) for each in source["grammar"])
    return Wording(
        tuple(table.get("said", ())), tuple(table.get("held_out", ())), grammar, str(table.get("answer", ""))
    )


_TABLE = tomllib.loads((HERE / "phrasings.toml").read_text("utf-8"))
WORDINGS = {key: _wording(table, _TABLE["wording"]) for key, table in _TABLE["wording"].items()}
CHAT = tuple(_wording(table, {}) for table in _TABLE["chat"].values())
OUT_OF_DOMAIN = _wording(_TABLE["out_of_domain"], {})
COUNTRIES: list[str] = _TABLE["out_of_domain"]["countries"]
OPENINGS: list[str] = _TABLE["style"]["openings"]
SHORT_ENDINGS: list[str] = _TABLE["style"]["short_endings"]
PICTURES: list[str] = _TABLE["style"]["pictures"]
RARE_PICTURES: list[str] = _TABLE["style"]["rare_pictures"]
ALIASES: dict[str, list[str]] = _TABLE["alias"]
PORTIONS: dict[str, str] = _TABLE["portion"]
_SLANG: list[list[str]] = _TABLE["slang"]["pairs"]


def _plain(question: str) -> str:
    return question.lower().rstrip("?.! ")


_HELD_OUT = {_plain(each) for w in (*WORDINGS.values(), *CHAT, OUT_OF_DOMAIN) for each in w.held_out}


def is_held_out(question: str) -> bool:
    """Whether a wording is never to be trained."""
    return _plain(question) in _HELD_OUT


def expand(rng: random.Random, grammar: str) -> str:
    """One sentence of the grammar: each (a|b|c) becomes one of its parts, from the inside out."""
    while found := _CHOICE.search(grammar):
        grammar = grammar[: found.start()] + rng.choice(found.group(1).split("|")) + grammar[found.end() :]
    return re.sub(r"  +", " ", grammar).strip()


def slang(rng: random.Random, question: str) -> str:
    """The question with one or two turns of phrase changed."""
    for _ in range(rng.randint(1, 2)):
        before, after = rng.choice(_SLANG)
        for _ in range(12):
            if before in question:
                break
            before, after = rng.choice(_SLANG)
        question = question.replace(before, after, 1)
    return question


def misspelt(rng: random.Random, question: str) -> str:
    """The question with two letters swapped, one left out or one doubled."""
    place, slip = rng.randrange(1, len(question) - 2), rng.randrange(3)
    one, other = question[place], question[place + 1]
    if not (one.isalpha() and other.isalpha()):
        return question
    return question[:place] + (other + one, one, one + one + other)[slip] + question[place + 2 :]
