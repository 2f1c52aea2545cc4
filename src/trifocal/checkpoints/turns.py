"""Which template a checkpoint's conversations are written with: its recipe's, or the one it brings along."""

from __future__ import annotations

import re

from trifocal.checkpoints.parts import Text
from trifocal.conversation.brought import own_template
from trifocal.conversation.templates import Template, get_template
from trifocal.errors import CheckpointError
from trifocal.source import source_of

__all__ = ["template_of", "turns_of"]

# language models that the original gave turns of their own, by a token of theirs
_TOKENS = (("<|eot_id|>", "llava_llama_3"), ("<|im_start|>", "chatml_direct"))
_ALWAYS = {"qwen2": "qwen_1_5", "gemma": "gemma_instruct", "gemma2": "gemma_instruct"}
_QWEN_2_5 = "You are Qwen, created by Alibaba Cloud."


def template_of(text: Text, *, newer: bool, original: bool = False) -> str:
    """The template of a language model in LLaVA 1.5's design, or in that of 1.6 and later; its own where it differs.

    1.5's recipes (BakLLaVA's too) talk as Vicuna does; from 1.6 on each language model has its own way. An ``original``
    release with Llama 3 begins as the original's programs begin, any other as transformers does.
    """
    recipe = _recipe(text, newer=newer)
    return turns_of(text, f"{recipe}_hf" if recipe == "llava_llama_3" and not original else recipe)


def turns_of(text: Text, recipe: str) -> str:
    """The recipe's template, or ``checkpoint`` where the model brings one along that marks its turns another way.

    The recipe's is what LLaVA's own training wrote, with its system text. A chat template that opens an answer with the
    same words was written for it afterwards; any other is that of a language model which the recipe does not know.
    What is wrong with it is told when it is asked for.
    """
    try:
        own = own_template(*text.homes)
    except CheckpointError:
        return "checkpoint"
    if own is None:
        return recipe
    if recipe == "qwen_1_5" and _QWEN_2_5 in own[0]:
        return "qwen_2_5"
    return recipe if _mark(get_template(recipe)) in own[0] else "checkpoint"


def _recipe(text: Text, *, newer: bool) -> str:
    kind = text.config["model_type"]
    if kind in _ALWAYS:
        return _ALWAYS[kind]
    if kind == "mistral" and newer:
        return "mistral_instruct"
    tokens = _TOKENS if newer else _TOKENS[:1]
    homes = [source_of(home) for home in text.homes]
    return next((template for token, template in tokens if any(home.knows(token) for home in homes)), "llava_v1")


def _mark(template: Template) -> str:
    """The first word that opens an answer, or where that is nothing, a question."""
    opening = (template.answer or template.user_before).strip()
    token = re.match(r"<\|?\w+\|?>", opening)
    return token[0] if token else opening.rstrip(":")
