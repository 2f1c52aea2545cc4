"""LoRA checkpoints: a base, and the low-rank changes that make a LLaVA of it: of its language model, or of any part.

Layout: peft's ``adapter_config.json`` and ``adapter_model``, and original LLaVA's ``non_lora_trainables`` with the
projector and whatever else was trained whole. A changed weight is ``W + (alpha / r) * B @ A`` (arXiv 2106.09685),
``alpha / sqrt(r)`` with rslora, with DoRA (arXiv 2402.09353) each of its rows brought to a trained length; summed in
float32 and given in the base's own type when it is read. What is stored under its own name was trained whole and
replaces the base's: ``modules_to_save``, resized embeddings, biases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object
from trifocal.weights.names import canonical
from trifocal.weights.tensors import Weights, part_weights

if TYPE_CHECKING:
    import torch

__all__ = [
    "ADAPTER",
    "LoraWeights",
    "adapter_file",
    "base_of",
    "changed_part",
    "changed_weights",
    "trained_file",
]

ADAPTER = "adapter_config.json"
ALPHA = 8  # peft's own, where nothing is said
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"
MAGNITUDE, ROWS = "lora_magnitude_vector", "trainable_tokens_delta"
# pieces of a change of a layer's weight; the adapter's own name may stand behind any of them
_PIECE = re.compile(
    r"^(?P<layer>.+?)\.(?:lora_(?:embedding_)?(?P<half>[AB])|(?P<magnitude>lora_magnitude_vector)"
    r"|token_adapter\.trainable_tokens_delta)(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?$"
)
# what stands for a weight where it is quantised, beside integers under its own name
_PACKED = ("qweight", "weight_packed")
_PLAIN = ("F64", "F32", "F16", "BF16")
_AROUND = re.compile(r"^base_model\.model\.")
# other computations that go by the name of LoRA
_OTHER = (
    "lora_bias",
    "layer_replication",
    "megatron_config",
    "target_parameters",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
_KNOWN_USES = ("use_dora", "use_rslora")


def base_of(folder: Path) -> str:
    """The base language model that an adapter names: a hub id or a folder.

    Raises:
        CheckpointError: it names none.
    """
    name = read_object(folder / ADAPTER).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{folder / ADAPTER}: base_model_name_or_path is {name!r}; "
            "name the base with language_from (--language-from)"
        )
    return name


def trained_file(folder: Path) -> Path | None:
    """The file of what was trained whole, the projector above all; None where there is none."""
    return _first(folder, "non_lora_trainables")


def changed_part(stored: str) -> str | None:
    """The part of which a stored tensor changes a layer; None for a module that was trained whole."""
    piece = _PIECE.match(stored)
    return (canonical(f"{piece['layer']}.weight") or ("",))[0] if piece else None


def adapter_file(folder: Path) -> Path | None:
    """The file of the adapter itself, which may hold modules that were trained whole, too."""
    return _first(folder, "adapter_model")


def changed_weights(source: Path, part: str, adapter: Path | None, *, allow_pickle: bool = False) -> Weights:
    """One part's tensors as its files have them, with what the adapter in that folder changes of them.

    Raises:
        CheckpointError: weights missing, damaged, pickles that are not allowed, or a LoRA that does not fit.
    """
    weights = part_weights(source, part, allow_pickle=allow_pickle)
    return weights if adapter is None else LoraWeights(weights, adapter, part, allow_pickle=allow_pickle)


class LoraWeights(Weights):
    """A part's tensors with an adapter's changes; each sum is made when it is asked for.

    What the adapter changes of other parts is theirs.

    Raises:
        CheckpointError: an adapter of a kind that is not LoRA, tensors that have no place in the base, half a
            change, or shapes that don't fit.
    """

    def __init__(self, base: Weights, folder: Path, part: str = "language", *, allow_pickle: bool = False) -> None:
        super().__init__((), lambda name: None)
        self._part = part
        self._settings = read_object(folder / ADAPTER)
        _check_plain(folder, self._settings)
        file = adapter_file(folder)
        if file is None:
            raise CheckpointError(f"{folder}: there is no adapter_model.safetensors or adapter_model.bin in it")
        self._base = base
        self._adapter = Weights([file], lambda name: name, allow_pickle=allow_pickle)
        whole = trained_file(folder)
        self._whole = Weights([whole] if whole else (), self._own, allow_pickle=allow_pickle)
        self._saved: dict[str, str] = {}
        self._changes: dict[str, dict[str, str]] = {}
        for stored in self._adapter:
            self._place(stored)
        saved = {name: (file, stored) for name, stored in self._saved.items()}
        self._places = {**base._places, **self._whole._places, **saved}
        if HEAD not in self._places and (HEAD in self._changes or self._table_left_its_head()):
            self._places[HEAD] = self._places[TABLE]
        for name, change in self._changes.items():
            self._check(name, change)

    def __getitem__(self, name: str) -> torch.Tensor:
        import torch

        tensor, change = self._unchanged(name), self._changes.get(name)
        if change is None:
            return tensor
        values, pieces = tensor.float(), {piece: self._adapter[stored].float() for piece, stored in change.items()}
        if "A" in pieces:
            values = self._summed(name, values, pieces)
        if ROWS in pieces:
            values = values.index_copy(0, torch.tensor(self._trained_rows(name)), pieces[ROWS])
        return values.to(tensor.dtype)

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor as it will be read."""
        if name in self._saved:
            return self._adapter.spec(self._saved[name])
        if name in self._whole or name in self._base:
            return self._whole.spec(name) if name in self._whole else self._base.spec(name)
        return self._base.spec(TABLE) if self._copied else self.spec(TABLE)

    @property
    def files(self) -> set[Path]:
        """The files of the base and those of the adapter."""
        return self._base.files | self._adapter.files | self._whole.files

    def release(self) -> None:
        """Lets go of the pages of all ``.bin`` files."""
        for weights in (self._base, self._adapter, self._whole):
            weights.release()

    def _unchanged(self, name: str) -> torch.Tensor:
        """The tensor that a change is added to: trained whole, or the base's."""
        if name in self._saved:
            return self._adapter[self._saved[name]]
        if name in self._whole or name in self._base:
            return self._whole[name] if name in self._whole else self._base[name]
        return self._base[TABLE] if self._copied else self._unchanged(TABLE)  # a tied head is its table

    @property
    def _copied(self) -> bool:
        """Whether the table was trained whole in a copy, beside the one that the base has."""
        return TABLE in self._saved and any(
            "embed_tokens" in name for name in self._settings.get("modules_to_save") or ()
        )

    def _table_left_its_head(self) -> bool:
        """Whether a tied table was changed and its head not: peft trains them apart unless it is told otherwise."""
        changed = self._copied or "A" in self._changes.get(TABLE, {})
        return changed and not self._settings.get("ensure_weight_tying")

    def _own(self, stored: str) -> str | None:
        found = canonical(stored)
        return found[1] if found and found[0] == self._part else None

    def _place(self, stored: str) -> None:
        piece = _PIECE.match(stored)
        part, name = canonical(f"{piece['layer']}.weight" if piece else stored) or ("", "")
        if (part and part != self._part) or ".original_module." in stored:
            return  # read with that part; the other is what the base has
        known = name in self._base or name in self._whole or (name == HEAD and TABLE in self._base)
        self._check_unpacked(stored, name)
        if not known:
            raise CheckpointError(
                f"{self._adapter.where(stored)}: {stored} changes nothing that the base has: "
                "the adapter belongs to another model, or is no plain LoRA"
            )
        pieces = self._changes.setdefault(name, {}) if piece else self._saved
        key = (piece["half"] or (MAGNITUDE if piece["magnitude"] else ROWS)) if piece else name
        if key in pieces and (piece or not self._alike(stored, pieces[key])):
            raise CheckpointError(f"{self._adapter.where(stored)}: {stored} and {pieces[key]} are both for {name}")
        pieces[key] = stored

    def _alike(self, *stored: str) -> bool:
        """Whether two tensors are one: peft writes resized embeddings that it trained whole down under two names."""
        import torch

        first, second = (self._adapter[name] for name in stored)
        return torch.equal(first, second)

    def _check_unpacked(self, stored: str, name: str) -> None:
        """Refuses a change of a layer that the base has in levels of few bits: its numbers are no weights."""
        layer = name.removesuffix("weight")
        beside = next((f"{layer}{packed}" for packed in _PACKED if f"{layer}{packed}" in self._base), None)
        if beside or (name in self._base and self._base.spec(name)[0] not in _PLAIN):
            raise CheckpointError(
                f"{self._adapter.where(stored)}: {stored} changes a layer that is quantised in "
                f"{self._base.where(beside or name)}; name the same base in full precision with language_from "
                "(--language-from), or merge the adapter with peft"
            )

    def _check(self, name: str, change: Mapping[str, str]) -> None:
        file = self._adapter.where(next(iter(change.values())))
        halves = [half for half in ("A", "B") if half in change]
        words = [f"lora_{piece}" if piece in halves else piece for piece in change]
        if len(halves) == 1 or (MAGNITUDE in change and not halves):
            raise CheckpointError(
                f"{file}: of {name} there is {', '.join(words)} alone; lora_A and lora_B were expected"
            )
        if bool(self._settings.get("use_dora")) != (MAGNITUDE in change) and halves:
            raise CheckpointError(f"{file}: {name} has {', '.join(words)}, use_dora says something else")
        shapes = {piece: self._adapter.spec(stored)[1] for piece, stored in change.items()}
        rows, columns = (*self.spec(name)[1], 0, 0)[:2]
        wide, high = (rows, columns) if self._turned(change) else (columns, rows)
        if halves:
            down, up = shapes["A"], shapes["B"]
            magnitude = math.prod(shapes.get(MAGNITUDE, (high,)))
            if len(down) != 2 or not down[0] or (down[1], *up, magnitude) != (wide, high, down[0], high):
                raise CheckpointError(
                    f"{file}: lora_A {list(down)} and lora_B {list(up)} of {name} make no change of "
                    f"{list(self.spec(name)[1])}"
                )
            told = self._patterned("rank_pattern", "r", name, down[0])
            if told != down[0]:
                raise CheckpointError(f"{file}: {name} is changed with a rank of {down[0]}, {ADAPTER} says {told!r}")
        if ROWS in change:
            trained = self._trained_rows(name)
            if shapes[ROWS] != (len(trained), columns) or not all(0 <= row < rows for row in trained):
                raise CheckpointError(
                    f"{file}: {list(shapes[ROWS])} rows of {name} for {len(trained)} ids in trainable_token_indices, "
                    f"each below {rows}: {trained}"
                )

    def _summed(self, name: str, values: torch.Tensor, pieces: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``W + s * B @ A`` [rows, columns], an embedding's transposed; with DoRA each direction gets its length."""
        turned = self._turned(self._changes[name])
        delta = pieces["B"] @ pieces["A"]
        values = values + self._scale(name, len(pieces["A"])) * (delta.T if turned else delta)
        if MAGNITUDE not in pieces:
            return values
        along = 0 if turned else 1
        lengths: torch.Tensor = pieces[MAGNITUDE].flatten() / values.norm(dim=along)
        return values * lengths.unsqueeze(along)

    def _turned(self, change: Mapping[str, str]) -> bool:
        return "lora_embedding_A" in change.get("A", "")

    def _trained_rows(self, name: str) -> list[int]:
        """The ids whose rows were trained alone."""
        told = self._settings.get("trainable_token_indices")
        if isinstance(told, dict):
            # a head that is its table was trained with it, and may go unnamed
            layers = [self._layer(each) for each in (name, TABLE) if each in self._changes]
            named = (ids for layer in layers for key, ids in told.items() if f".{layer}".endswith(f".{key}"))
            told = next(named, None)
        return told if isinstance(told, list) and all(type(each) is int for each in told) else []

    def _scale(self, name: str, rank: int) -> float:
        alpha = self._patterned("alpha_pattern", "lora_alpha", name, ALPHA)
        return float(alpha) / (math.sqrt(rank) if self._settings.get("use_rslora") else rank)

    def _patterned(self, patterns: str, everywhere: str, name: str, default: int) -> Any:
        """What the first pattern says that fits the layer."""
        layer = self._layer(name)
        told = self._settings.get(patterns) or {}
        found = (value for key, value in told.items() if re.fullmatch(rf"(?:.*\.)?(?:{key})", layer))
        return next(found, self._settings.get(everywhere, default))

    def _layer(self, name: str) -> str:
        """The name that a changed layer had when it was trained, which settings call it by."""
        return _AROUND.sub("", _PIECE.sub(r"\g<layer>", next(iter(self._changes[name].values()))))


def _first(folder: Path, stem: str) -> Path | None:
    return next((path for ending in ("safetensors", "bin") if (path := folder / f"{stem}.{ending}").is_file()), None)


def _check_plain(folder: Path, settings: dict[str, Any]) -> None:
    """Refuses what is called an adapter too, and is computed in another way."""
    where = folder / ADAPTER
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; LORA can be read")
    uses = [key for key in settings if key.startswith("use_") and key not in _KNOWN_USES]
    for key in (*_OTHER, *uses):
        if settings.get(key):
            raise CheckpointError(f"{where}: {key} is {settings[key]!r}, which is not supported; merge it with peft")
    for patterns, everywhere in (("alpha_pattern", "lora_alpha"), ("rank_pattern", "r")):
        value, told = settings.get(everywhere, 1), settings.get(patterns) or {}
        values = [value, *(told.values() if isinstance(told, dict) else [None])]
        if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in values):
            raise CheckpointError(f"{where}: {everywhere} is {value!r} ({patterns} {told!r}), numbers were expected")
        for key in told:
            try:
                re.compile(key)
            except re.error as error:
                raise CheckpointError(f"{where}: {patterns} has {key!r}, which is no pattern ({error})") from error
