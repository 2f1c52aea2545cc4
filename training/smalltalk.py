"""Talk that no picture is needed for: greetings, who the model is, what it can't do, and what makes no sense."""

from __future__ import annotations

import random
import re

from training.asking import Asker, Turn
from training.phrasings import CHAT, COUNTRIES, OUT_OF_DOMAIN, is_held_out

UNKNOWN = "I am a very small model and I don't know that. I can only answer questions about simple pictures."
NOT_UNDERSTOOD = (
    "I don't understand the question. "
    "You can ask me about the objects, colors, positions, sizes, and words in a picture."
)
GREETING = Turn("chat", "Hi!", "Hi there! How can I help you today?")

_SYLLABLES = [
    "ba",
    "bli",
    "dor",
    "fen",
    "gra",
    "hox",
    "ji",
    "kel",
    "lum",
    "mip",
    "nok",
    "pra",
    "quo",
    "rif",
    "sno",
    "tav",
    "urg",
    "vex",
    "wib",
    "yad",
    "zon",
]
_FRAMES = [
    "What %s the %s?",
    "Is %s %s?",
    "How %s does %s?",
    "Please %s my %s.",
    "Why %s?",
    "Where %s %s of %s?",
    "The %s.",
    "Could you %s the %s?",
]
_FRAGMENTS = [
    "???",
    "...",
    "?",
    "hm",
    "asdf",
    "qwerty",
    "of the",
    "and",
    "because",
    "whatever then",
    "if so",
    "blah blah",
    "lorem ipsum",
    "1 2 3 4",
    "x y z",
    "the the the",
]


def chat(asker: Asker) -> Turn:
    """Something said beside the picture."""
    rng = asker.rng
    if rng.random() < 0.12:
        return _nonsense(rng)
    if rng.random() < 0.3:
        return _out_of_domain(asker)
    subject = rng.choice(CHAT)
    question = ""
    if not asker.held_out and rng.random() < 0.6:
        question = asker.trained(subject.grammar)
        if is_held_out(question):
            question = ""
    question = question or rng.choice(subject.held_out if asker.held_out else subject.said)
    return Turn("chat", question if rng.random() < 0.7 else question.lower(), subject.answer)


def _out_of_domain(asker: Asker) -> Turn:
    rng = asker.rng
    if not asker.held_out and rng.random() < 0.6:
        question = asker.trained(OUT_OF_DOMAIN.grammar)
    else:
        question = rng.choice(OUT_OF_DOMAIN.held_out if asker.held_out else OUT_OF_DOMAIN.said)
    question = question.replace("%c", rng.choice(COUNTRIES))
    while "%d" in question:
        question = question.replace("%d", str(rng.randrange(2, 100)), 1)
    return Turn("chat_ood", asker.styled(question), UNKNOWN)


def _nonsense(rng: random.Random) -> Turn:
    def word() -> str:
        return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(1, 3)))

    drawn = rng.random()
    if drawn < 0.4:
        question = " ".join(word() for _ in range(rng.randint(1, 5)))
    elif drawn < 0.6:
        letters = "abcdefghijklmnopqrstuvwxyz ;,.'"
        question = "".join(rng.choice(letters) for _ in range(rng.randint(4, 24))).strip() or "x"
    elif drawn < 0.8:
        frame = rng.choice(_FRAMES)
        question = "".join(word() if part == "%s" else part for part in re.split("(%s)", frame))
    else:
        question = rng.choice(_FRAGMENTS)
    return Turn("not_understood", question if rng.random() < 0.8 else question.capitalize(), NOT_UNDERSTOOD)
