"""LoRA checkpoints: a base language model, and the low-rank changes that make a LLaVA of it.

Layout: peft's ``adapter_config.json`` and ``adapter_model``, and original LLaVA's ``non_lora_trainables`` with the
projector and whatever else was trained whole. A changed weight is ``W + (alpha / r) * B @ A`` (arXiv 2106.09685),
``alpha / sqrt(r)`` with rslora, summed in float32 and given in the base's own type when it is read.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.weights.tensors import Weights, canonical

if TYPE_CHECKING:
    import torch

__all__ = ["ADAPTER", "LoraWeights", "base_of", "trained_file"]

ADAPTER = "adapter_config.json"
_PAIR = re.compile(r"^(?P<layer>.+)\.lora_(?P<half>[AB])(?:\.default)?\.weight$")
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)")


def base_of(folder: Path) -> str:
    """The base language model that an adapter names: a hub id or a folder.

    Raises:
        CheckpointError: it names none.
    """
    name = _settings(folder).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{folder / ADAPTER}: base_model_name_or_path is {name!r}; "
            "name the base with language_from (--language-from)"
        )
    return name


def trained_file(folder: Path) -> Path | None:
    """The file of what was trained whole, the projector above all; None where there is none."""
    return _first(folder, "non_lora_trainables")


class LoraWeights(Weights):
    """A language model's tensors with an adapter's changes; each sum is made when it is asked for.

    Raises:
        CheckpointError: an adapter of a kind that is not plain LoRA, tensors that have no place in the base, half a
            pair, or shapes that don't fit.
    """

    def __init__(self, base: Weights, folder: Path, *, allow_pickle: bool = False) -> None:
        super().__init__((), lambda name: None)
        settings = _settings(folder)
        _check_plain(folder, settings)
        file = _first(folder, "adapter_model")
        if file is None:
            raise CheckpointError(f"{folder}: there is no adapter_model.safetensors or adapter_model.bin in it")
        self._base, self._settings = base, settings
        self._adapter = Weights([file], lambda name: name, allow_pickle=allow_pickle)
        whole = trained_file(folder)
        self._whole = Weights([whole] if whole else (), _language, allow_pickle=allow_pickle)
        self._saved: dict[str, str] = {}
        self._pairs: dict[str, dict[str, str]] = {}
        for stored in self._adapter:
            self._place(stored)
        self._places = {**base._places, **self._whole._places}
        for name, pair in self._pairs.items():
            self._check_pair(name, pair)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self._saved:
            return self._adapter[self._saved[name]]
        tensor = self._whole[name] if name in self._whole else self._base[name]
        pair = self._pairs.get(name)
        if pair is None:
            return tensor
        down, up = (self._adapter[pair[half]].float() for half in ("A", "B"))  # [r, in], [out, r]
        return (tensor.float() + self._scale(name, len(down)) * (up @ down)).to(tensor.dtype)

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor as it will be read."""
        if name in self._saved:
            return self._adapter.spec(self._saved[name])
        return self._whole.spec(name) if name in self._whole else self._base.spec(name)

    def release(self) -> None:
        """Lets go of the pages of all ``.bin`` files."""
        for weights in (self._base, self._adapter, self._whole):
            weights.release()

    def _place(self, stored: str) -> None:
        pair = _PAIR.match(stored)
        name = _language(f"{pair['layer']}.weight" if pair else _SAVED.sub("", stored))
        if name is None or name not in self._base or not (pair or _SAVED.search(stored)):
            raise CheckpointError(
                f"{self._adapter.where(stored)}: {stored} changes nothing that the base has: "
                "the adapter belongs to another model, or is no plain LoRA"
            )
        if pair:
            self._pairs.setdefault(name, {})[pair["half"]] = stored
        else:
            self._saved[name] = stored

    def _check_pair(self, name: str, pair: dict[str, str]) -> None:
        file = self._adapter.where(next(iter(pair.values())))
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{file}: of {name} there is lora_{''.join(pair)} alone; A and B were expected")
        down, up = (self._adapter.spec(pair[half])[1] for half in ("A", "B"))
        shape = self.spec(name)[1]
        if len(down) != 2 or len(up) != 2 or not down[0] or down[0] != up[1] or (up[0], down[1]) != shape:
            raise CheckpointError(
                f"{file}: lora_A {list(down)} and lora_B {list(up)} of {name} make no change of {list(shape)}"
            )

    def _scale(self, name: str, rank: int) -> float:
        layer = name.removesuffix(".weight")
        patterns = self._settings.get("alpha_pattern") or {}
        alpha = next(
            (value for key, value in patterns.items() if re.fullmatch(rf"(?:.*\.)?{key}", layer)),
            self._settings.get("lora_alpha", rank),
        )
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)


def _language(stored: str) -> str | None:
    found = canonical(stored)
    return found[1] if found and found[0] == "language" else None


def _first(folder: Path, stem: str) -> Path | None:
    return next((path for ending in ("safetensors", "bin") if (path := folder / f"{stem}.{ending}").is_file()), None)


def _settings(folder: Path) -> dict[str, Any]:
    try:
        value = json.loads((folder / ADAPTER).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / ADAPTER}: this is no JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / ADAPTER}: a JSON object was expected")
    return value


def _check_plain(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses what is called an adapter too, and is computed in another way."""
    where = folder / ADAPTER
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; LORA can be read")
    for key in ("use_dora", "fan_in_fan_out", "lora_bias", "layer_replication", "megatron_config"):
        if settings.get(key):
            raise CheckpointError(f"{where}: {key} is {settings[key]!r}, which is not supported; merge it with peft")
    if settings.get("bias", "none") != "none":
        raise CheckpointError(f"{where}: bias is {settings['bias']!r}; 'none' is supported; merge it with peft")
    alpha, patterns = settings.get("lora_alpha", 1), settings.get("alpha_pattern") or {}
    values = [alpha, *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        raise CheckpointError(f"{where}: lora_alpha is {alpha!r} (alpha_pattern {patterns!r}), numbers were expected")
