"""Checkpoints known by name: where their parts come from, and what their files don't say."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.checkpoints.parts import CLIP_TOWER

__all__ = ["KNOWN", "Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the parts of a known checkpoint come from, and what its files don't say."""

    language: str
    tower: str | None = None
    projector: str | None = None
    template: str | None = None
    needs: str = ""


_V0_PROJECTOR = "liuhaotian/LLaVA-{}b-delta-v0/mm_projector.bin"

KNOWN = {
    "wojtab/llava-13b-v0-4bit-128g": Source(
        language="wojtab/llava-13b-v0-4bit-128g",
        tower=CLIP_TOWER,
        projector=_V0_PROJECTOR.format(13),
        template="llava_v0_webui",
        needs="9.5 GB on one GPU, or 8.5 GB with the tower on the CPU",
    ),
    "wojtab/llava-7b-v0-4bit-128g": Source(
        language="wojtab/llava-7b-v0-4bit-128g",
        tower=CLIP_TOWER,
        projector=_V0_PROJECTOR.format(7),
        template="llava_v0_webui",
        needs="5.4 GB on one GPU",
    ),
    "llava-hf/llava-1.5-7b-hf": Source(language="llava-hf/llava-1.5-7b-hf", needs="15 GB on one GPU in float16"),
    "llava-hf/llava-1.5-13b-hf": Source(language="llava-hf/llava-1.5-13b-hf", needs="28 GB on one GPU in float16"),
}
