"""Whose eyes a bare language model has: which checkpoint's tower and projector were trained with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from trifocal.errors import CheckpointError, UsageError

__all__ = ["ModelFacts", "whose_eyes"]

# rows of the language model, its tokens, a hint in its name: the first line that matches.
# Widths and vocabularies are those of the released checkpoints; a name decides only where they are alike.
_BY_SHAPE: tuple[tuple[int, tuple[int, ...], str, str], ...] = (
    (256, (3072,), "", "thimble"),
    (5120, (32003,), r"v1[.-]1", "liuhaotian/LLaVA-13b-delta-v1-1"),
    (5120, (32003,), "", "liuhaotian/LLaVA-13b-delta-v0"),
    (4096, (32003,), "", "liuhaotian/LLaVA-Lightning-7B-delta-v1-1"),
    (4096, (32004,), "", "liuhaotian/LLaVA-7b-delta-v0"),
    (5120, (32000, 32064), r"1\.6|next", "llava-hf/llava-v1.6-vicuna-13b-hf"),
    (4096, (32000, 32064), r"mistral.*(1\.6|next)|(1\.6|next).*mistral", "llava-hf/llava-v1.6-mistral-7b-hf"),
    (4096, (32000, 32064), r"1\.6|next", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    (5120, (32000,), r"llama-?2", "liuhaotian/llava-llama-2-13b-chat-lightning-preview"),
    (5120, (32000, 32064), "", "liuhaotian/llava-v1.5-13b"),
    (4096, (32000, 32064), "", "liuhaotian/llava-v1.5-7b"),
    (7168, (64000, 64064), "", "llava-hf/llava-v1.6-34b-hf"),
)
_TELLING = ("trifocal", "mm_vision_tower", "vision_config")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A language model's name, the width of its rows, how many tokens it has, and its folder if it is known."""

    name: str
    hidden: int
    vocabulary: int
    folder: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> ModelFacts:
        """From a model's ``config.json``.

        Raises:
            CheckpointError: it is missing or damaged, or says no width.
        """
        try:
            config = json.loads((folder / "config.json").read_text("utf-8"))
            text = config.get("text_config") or config
            return cls(folder.name, int(text["hidden_size"]), int(text["vocab_size"]), folder)
        except OSError as error:
            raise CheckpointError(f"{folder}/config.json: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}/config.json is no language model's ({error!r})") from error


def whose_eyes(model: ModelFacts) -> str:
    """The checkpoint (a folder, a hub id or a known name) that this model is the language half of.

    The model's own folder is asked first, since a LLaVA that was turned into a language model by its
    ``model_type`` alone still says so there; then width and vocabulary are looked up.

    Raises:
        UsageError: nobody knows; says which setting names it.
    """
    if model.folder is not None and _tells(model.folder):
        return str(model.folder)
    for hidden, tokens, hint, checkpoint in _BY_SHAPE:
        if model.hidden == hidden and model.vocabulary in tokens and re.search(hint, model.name.lower()):
            return checkpoint
    raise UsageError(
        f"nobody knows whose eyes fit {model.name} (rows of {model.hidden}, {model.vocabulary} tokens): "
        "set llava-checkpoint to the folder or hub id of the LLaVA that this language model is a part of"
    )


def _tells(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and any(key in config for key in _TELLING)
