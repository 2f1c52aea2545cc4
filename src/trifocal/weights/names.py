"""What tensors are called: every spelling of a checkpoint's files, and the name and part that each stands for."""

from __future__ import annotations

import re

__all__ = ["LANGUAGE_OF_WHOLE", "LEFT_OUT", "canonical"]

# buffers; faster_token is LLaVA-Video's vector between frames of two sizes, which its own loader has no place for
_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|\.position_ids|logit_scale|\bfaster_token)$")
# peft's words around a module that was trained whole, or that a change is added to
_TRAINED = re.compile(r"\.(?:modules_to_save(?:\.default)?|(?:token_adapter\.)?base_layer)(?=\.)")
_WRAPPED = re.compile(r"^(?:base_model\.)?model\.(?=model\.|lm_head\b|transformer\.)|^base_model\.")
LEFT_OUT = re.compile(rf"{_BUFFERS.pattern}|^(?:text_model|text_projection|visual_projection)\.|^logit_bias$")
_NESTED = re.compile(r"^model\.(?=(?:language_model|vision_tower|multi_modal_projector|image_newline)\b)")
# what stands before a language model's tensors in checkpoints that transformers sees for
LANGUAGE_OF_WHOLE = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.(?:model\.)?")
# what stands in front of a name -> the part it belongs to and what its canonical name begins with
_RULES = [
    (re.compile(r"^language_model\.lm_head\."), "language", "lm_head."),
    (re.compile(r"^language_model\.(?:model\.)?"), "language", "model."),
    (re.compile(r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?"), "tower", ""),
    (re.compile(r"^vision_model\."), "tower", ""),
    (re.compile(r"^(?=(?:embeddings|pre_layrnorm|encoder|post_layernorm)\.)"), "tower", ""),
    (re.compile(r"^(?:model\.)?mm_projector\."), "projector", ""),
    (re.compile(r"^multi_modal_projector\.linear_1\."), "projector", "0."),
    (re.compile(r"^multi_modal_projector\.linear_2\."), "projector", "2."),
    (re.compile(r"^multi_modal_projector\."), "projector", ""),
    (re.compile(r"^(?:model\.)?image_newline$"), "projector", "image_newline"),
    (re.compile(r"^lm_head\."), "language", "lm_head."),
    (re.compile(r"^transformer\.mm_projector\."), "projector", ""),
    (re.compile(r"^transformer\."), "language", "transformer."),  # MPT's names
    (re.compile(r"^model\."), "language", "model."),
]


def canonical(name: str) -> tuple[str, str] | None:
    """The part (tower, projector, language) that a stored tensor belongs to, and its name there.

    Every spelling of the original and the llava-hf layouts is known. None for buffers that old files
    carry and for what is no part of LLaVA (CLIP's text half).
    """
    if _BUFFERS.search(name) or name.startswith(("text_model.", "text_projection.", "visual_projection.")):
        return None
    name = _NESTED.sub("", _WRAPPED.sub("", _TRAINED.sub("", name)))
    for pattern, part, prefix in _RULES:
        match = pattern.match(name)
        if match:
            return part, prefix + name[match.end() :]
    return None
