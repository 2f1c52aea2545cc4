"""Which engine ``auto`` is, and why: what was measured decides, and `trifocal inspect` tells it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trifocal.engines.recipe import Recipe
from trifocal.engines.shape import unfit, unfit_for_gguf
from trifocal.errors import TrifocalError
from trifocal.source import source_of
from trifocal.weights.quantised import described

__all__ = ["Choice", "choices"]

_LLAMACPP_OPTIONS = ("gpu_layers", "quantise")  # which no other engine has
_SHARED_OPTIONS = ("context", "positions", "threads", "speculate")
_UNFIT_DTYPES = ("float32",)  # llama.cpp rounds activations to 8 bits where weights have few


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine, and why it was chosen, as half a sentence."""

    engine: str
    why: str


def choices(recipe: Recipe) -> list[Choice]:
    """The engines that can run a language model, the fastest first; the last one can run all."""
    last = Choice("transformers", "it can run every language model that transformers can")
    if recipe.attention != "causal":
        return [last]
    found = []
    if (why := _llamacpp(recipe)) is not None:
        found.append(Choice("llamacpp", why))
    if (reason := unfit(recipe.config)) is None:
        found.append(Choice("native", "the fastest of ours that is sure to run it"))
    return [*found, Choice("transformers", f"native can't: {reason}") if reason else last]


def _llamacpp(recipe: Recipe) -> str | None:
    """Why llama.cpp is the fastest, if it is; see docs/engines.md for what was measured."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    if wanted := [name for name in recipe.options if name in _LLAMACPP_OPTIONS]:
        return f"it alone has the option {wanted[0]}"
    if any(name not in _SHARED_OPTIONS for name in recipe.options) or recipe.dtype in _UNFIT_DTYPES:
        return None
    if source_of(recipe.path).container and recipe.adapter is None:
        why: str | None = "on a CPU it is the fastest with the weights of a GGUF file"
    else:
        why = _four_bits(recipe)
    return why if why and _on_cpu(recipe) else None


def _four_bits(recipe: Recipe) -> str | None:
    told, method = described(recipe.config, recipe.path)[:2]
    if method not in ("gptq", "awq") or _bits(told) != 4 or told.get("desc_act") or unfit_for_gguf(recipe.config):
        return None
    return "on a CPU it is the fastest with 4 bits; the weights become a GGUF file once, with the same levels"


def _bits(told: Mapping[str, Any]) -> Any:
    return told.get("bits", told.get("w_bit", 4))


def _on_cpu(recipe: Recipe) -> bool:
    try:
        return recipe.placement.resolve()[0].type == "cpu"
    except TrifocalError:
        return False  # which the engine's loader tells
