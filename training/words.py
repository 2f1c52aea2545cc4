"""English for names: plurals, articles, lists."""

from __future__ import annotations

from collections.abc import Sequence

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

_IRREGULAR = {
    **{name: name for name in ("sheep", "deer", "fish", "pufferfish", "thumbs up", "shrimp", "squid")},
    "mouse": "mice",
    "die": "dice",
    "loaf": "loaves",
    "maple leaf": "maple leaves",
    "tooth": "teeth",
    "knife": "knives",
    "bow and arrow": "bows and arrows",
    "candy": "candies",
    "policeman": "policemen",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "volcano": "volcanoes",
    "tornado": "tornadoes",
}


def plural(name: str) -> str:
    """``glass of milk`` becomes ``glasses of milk``."""
    if " of " in name:
        head, tail = name.split(" of ", 1)
        return f"{plural(head)} of {tail}"
    if name in _IRREGULAR:
        return _IRREGULAR[name]
    if name.endswith(("s", "x", "ch", "sh")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def article(name: str) -> str:
    """The name with its indefinite article."""
    return ("an " if name[0] in "aeiou" and not name.startswith("unicorn") else "a ") + name


def quantity(count: int, name: str) -> str:
    """``a dog``, ``two dogs``."""
    return article(name) if count == 1 else f"{NUMBERS[count]} {plural(name)}"


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b, and c``."""
    if len(names) < 3:
        return " and ".join(names)
    return ", ".join(names[:-1]) + ", and " + names[-1]


def capital(sentence: str) -> str:
    """The sentence with its first letter large."""
    return sentence[0].upper() + sentence[1:]
