"""The figures of a bench as a picture: bars by groups, in SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trifocal.tools.bench import Bench

__all__ = ["plot"]

_BAR, _GAP, _NAMES, _WIDE, _VALUES = 16, 18, 270, 420, 190
_COLOURS = ("#3b6fb6", "#d98032", "#4c9a63", "#b0503f", "#7d6ab0")


def plot(benches: Sequence[Bench]) -> str:
    """One group of bars a figure, one bar an engine; a line where the device's limit is.

    The bars of a group are drawn to the longest of them, so groups can't be compared with each other.
    """
    drawn = [_key(benches)]
    top = 40
    for first in benches[0].figures:
        named = [(bench, next((one for one in bench.figures if one.name == first.name), None)) for bench in benches]
        longest = max(max(one.value, one.limit or 0) for _, one in named if one is not None) or 1
        drawn.append(_text(_NAMES - 10, top + 12, f"{first.name}, {first.unit}", "end"))
        for at, (_, one) in enumerate(named):
            if one is None:
                continue
            wide, y = _WIDE * one.value / longest, top + at * _BAR
            drawn.append(f'<rect x="{_NAMES}" y="{y}" width="{wide:.1f}" height="{_BAR - 2}" fill="{_colour(at)}"/>')
            if one.limit:
                x = _NAMES + _WIDE * one.limit / longest
                drawn.append(f'<path d="M{x:.1f} {y - 1}v{_BAR}" stroke="#222" stroke-width="2"/>')
            reached = f", {one.reached:.0%} of the limit" if one.reached is not None else ""
            drawn.append(_text(_NAMES + _WIDE + 8, y + 12, f"{one.value:.4g}{reached}"))
        top += len(benches) * _BAR + _GAP
    size = f'width="{_NAMES + _WIDE + _VALUES}" height="{top}"'
    style = 'font-family="sans-serif" font-size="12"'
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>', ground, *drawn, "</svg>", ""])


def _key(benches: Sequence[Bench]) -> str:
    told = []
    for at, bench in enumerate(benches):
        x = _NAMES + 150 * at
        told += [f'<rect x="{x}" y="12" width="12" height="12" fill="{_colour(at)}"/>', _text(x + 18, 22, bench.engine)]
    return "".join(told)


def _colour(at: int) -> str:
    return _COLOURS[at % len(_COLOURS)]


def _text(x: float, y: float, words: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
