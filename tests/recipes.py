"""Recipes of language models that stand nowhere yet: written into a folder of their own, as an engine finds them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trifocal.engines.recipe import Recipe

_numbers = itertools.count()


def written(
    tokens: Path, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], home: Path, **facts: Any
) -> Recipe:
    """A recipe of these tensors in a new folder of ``home``, beside the tokenizer's files of ``tokens``."""
    folder = home / f"language {next(_numbers)}"
    folder.mkdir()
    for file in tokens.iterdir():
        if file.is_file() and "token" in file.name:
            (folder / file.name).symlink_to(file.resolve())
    save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    return Recipe(source=str(folder), config=dict(config), **facts)
