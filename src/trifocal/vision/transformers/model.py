"""transformers' own model with the stored vision half and hardly any language half."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trifocal.checkpoints.reading import LARGEST
from trifocal.errors import CheckpointError
from trifocal.quiet import quiet

__all__ = ["build"]

_SIZES = ("hidden_size", "intermediate_size", "image_size", "patch_size", "num_attention_heads", "num_hidden_layers")
_BLOCK = re.compile(r"\.layers?\.(\d+)\.")
# widths within a block of a language model
_WIDTHS = ("intermediate_size", "intermediate_size_mlp", "moe_intermediate_size")


def build(folder: Path, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """The model of a folder with its vision half's tensors; its language half has a block and eight words.

    Raises:
        CheckpointError: transformers can't make it, or tensors are missing.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        with quiet():  # hardly any of the language half is there, of which it would make a long table
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            _check_sizes(folder, config.vision_config, state)
            small = copy.deepcopy(config)
            # which kernels computed it where it was trained is nothing of the model
            small._attn_implementation = small._experts_implementation = None
            _shrink(small.text_config)
            kind: Any = AutoModelForImageTextToText._model_mapping[type(config)]
            model, told = kind.from_pretrained(
                None,
                config=small,
                state_dict=dict(state),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever wrong values make of the code that computes with them
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{folder}: transformers can't make the vision half of it ({said})") from error
    eyes = [name for name in told["missing_keys"] if not _is_language(name)]
    if eyes or told["mismatched_keys"]:
        wrong = eyes[:3] or [str(entry) for entry in told["mismatched_keys"]][:3]
        raise CheckpointError(
            f"{folder}: tensors of the vision half are missing or of another shape: {', '.join(wrong)}"
        )
    return model


def _check_sizes(folder: Any, config: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Sizes that a tower can have, and no more blocks than there are: nobody ever finishes building more."""
    for key, value in config.to_dict().items():
        least = 1 if key in _SIZES else -LARGEST
        if isinstance(value, int) and not least <= value <= LARGEST:
            raise CheckpointError(f"{folder / 'config.json'}: {key} of the tower is {value}: no tower has that")
    found = {match[1] for name in state if (match := _BLOCK.search(name))}
    told = getattr(config, "num_hidden_layers", len(found))
    if told > len(found):
        raise CheckpointError(
            f"{folder / 'config.json'}: num_hidden_layers of the tower is {told}, {len(found)} blocks are there"
        )


def _is_language(name: str) -> bool:
    return any(part in name.split(".") for part in ("language_model", "text_model", "lm_head"))


def _shrink(text: Any) -> None:
    """One narrow block and a few words: the language half is another part's affair."""
    blocks = text.num_hidden_layers
    for key, value in vars(text).items():
        if isinstance(value, list) and len(value) == blocks:  # something a block
            setattr(text, key, value[:1])
    for key in _WIDTHS:
        if hasattr(text, key):
            setattr(text, key, 8)
    text.num_hidden_layers, text.vocab_size, text.pad_token_id = 1, 8, 0
