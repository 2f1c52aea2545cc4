"""A checkpoint's tensors under canonical names, read from disk when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object
from trifocal.source import source_of
from trifocal.weights.headers import read_header
from trifocal.weights.names import LANGUAGE_OF_WHOLE, LEFT_OUT, canonical
from trifocal.weights.pickles import pickled_words, unpickled

if TYPE_CHECKING:
    import torch

    from trifocal.gguf.language import GgufLanguage
    from trifocal.gguf.mmproj import MmprojPart

__all__ = [
    "GgufWeights",
    "Weights",
    "part_weights",
    "stored_names",
    "weight_files",
    "whole_language",
]

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# what may lie beside a model's weights: the same again under Mistral's own names, and pieces of training
BESIDE = ("consolidated", "adapter_model", "mm_projector", "non_lora_trainables", "optimizer", "training_args")
_SPELLINGS = {
    "float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32", "float16": "F16", "bfloat16": "BF16",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


class Weights(Mapping[str, "torch.Tensor"]):
    """Tensors of some files under names of one's choosing; each is read anew when asked for.

    ``rename`` maps a stored name to the one it is known by here, or None to leave it out.
    Safetensors files are checked against their own header before anything is read; ``.bin`` files
    are pickles, read only with ``allow_pickle``, and even then without running code.

    Raises:
        CheckpointError: a file is missing, cut short, damaged or a pickle that is not allowed.
    """

    def __init__(
        self, files: Iterable[Path], rename: Callable[[str], str | None], *, allow_pickle: bool = False
    ) -> None:
        self._places: dict[str, tuple[Path, str]] = {}
        self._headers: dict[Path, dict[str, Any]] = {}
        self._pickles: dict[Path, Mapping[str, torch.Tensor] | None] = {}
        self._allow_pickle = allow_pickle
        for file in files:
            for stored in self._names(file):
                name = rename(stored)
                if name is None:
                    continue
                if name in self._places:
                    raise CheckpointError(
                        f"{file} holds {stored}, which {self._places[name][0].name} holds too; take one of them away"
                    )
                self._places[name] = (file, stored)

    def __getitem__(self, name: str) -> torch.Tensor:
        file, stored = self._places[name]
        if file in self._pickles:
            return self._pickle(file)[stored]
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, framework="pt") as opened:
                tensor: torch.Tensor = opened.get_tensor(stored)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: {stored} can't be read ({error})") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def where(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._places[name][0]

    @property
    def files(self) -> set[Path]:
        """The files that hold any of these tensors."""
        return {file for file, _ in self._places.values()}

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type (as safetensors spells it) and shape of a tensor, without reading it."""
        file, stored = self._places[name]
        if file in self._pickles:
            tensor = self._pickle(file)[stored]
            return _SPELLINGS[str(tensor.dtype).removeprefix("torch.")], tuple(tensor.shape)
        entry = self._header(file)[stored]
        return entry["dtype"], tuple(entry["shape"])

    def release(self) -> None:
        """Lets go of the pages of ``.bin`` files that were read; they are mapped anew when they are needed."""
        self._pickles = dict.fromkeys(self._pickles)

    def _names(self, file: Path) -> Iterable[str]:
        if file.suffix == ".safetensors":
            return [name for name in self._header(file) if name != "__metadata__"]
        self._pickles[file] = None
        return list(self._pickle(file))

    def _header(self, file: Path) -> dict[str, Any]:
        if file not in self._headers:
            self._headers[file] = read_header(file)
        return self._headers[file]

    def _pickle(self, file: Path) -> Mapping[str, torch.Tensor]:
        held = self._pickles[file]
        if held is None:
            held = self._pickles[file] = unpickled(file, self._allow_pickle)
        return held


class GgufWeights(Weights):
    """One part of a GGUF file: the language model, or the tower or projector of a ``mmproj`` file.

    Quantised tensors come dequantised, as float32.
    """

    def __init__(self, file: Path, part: GgufLanguage | MmprojPart) -> None:
        super().__init__((), lambda name: None)
        self._part = part
        self._places = {name: (file, name) for name in self._part}

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._part[name]

    def spec(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Type and shape of a tensor as it will be read."""
        info = self._part.info(name)
        return info.kind.name if info.kind.name in ("F16", "BF16") else "F32", info.shape


def weight_files(folder: Path) -> list[Path]:
    """The files of a folder that hold weights, those that transformers would read where it has more than one set.

    That is ``model.safetensors``, else what an index lists, else the same of ``pytorch_model.bin``; else every
    safetensors file, or every ``.bin`` file. A folder with nothing but ``mm_projector.bin`` is a projector's.

    Raises:
        CheckpointError: there are none, or the index names one that is not there.
    """
    files = _chosen(folder)
    if isinstance(files, list):
        if not files:
            raise CheckpointError(f"{folder}: no weights there (*.safetensors or pytorch_model*.bin)")
        return files
    named = sorted(set(_weight_map(files).values()))
    absent = [name for name in named if not (folder / name).is_file()]
    if absent:
        raise CheckpointError(f"{files} names {absent[0]}, which is not there ({len(absent)} are missing)")
    return [folder / name for name in named]


def _chosen(folder: Path) -> Path | list[Path]:
    """The index that lists a folder's weights, or the files themselves."""
    found = sorted(folder.glob("*.safetensors"))
    usual = [file for file in found if not file.name.startswith(BESIDE)]
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    for whole, index, loose in (("model.safetensors", INDEXES[0], usual), ("pytorch_model.bin", INDEXES[1], pickles)):
        listed = folder / index
        if (folder / whole).is_file() and not (listed.is_file() and whole in _weight_map(listed).values()):
            return [folder / whole]
        if listed.is_file() or loose:
            return listed if listed.is_file() else loose
    return found or sorted(folder.glob("mm_projector*.bin"))


def part_weights(source: Path, part: str, *, allow_pickle: bool = False) -> Weights:
    """One part's tensors (``tower``, ``projector`` or ``language``) out of a file or folder.

    The tower's are named as in ``CLIPVisionModel`` without its prefix, the projector's by layer
    (``weight`` or ``0.weight``, ``2.bias``), the language model's as in ``LlamaForCausalLM``. GGUF
    files, ``mmproj`` ones among them, are read too.
    """

    strangers: list[str] = []

    def rename(stored: str) -> str | None:
        found = canonical(stored)
        if found is None and not LEFT_OUT.search(stored):
            strangers.append(stored)
        return found[1] if found and found[0] == part else None

    if (held := source_of(source).part(part)) is not None:
        return GgufWeights(source, held)
    files = [source] if source.is_file() else weight_files(source)
    weights = Weights(files, rename, allow_pickle=allow_pickle)
    if strangers:
        home = ", ".join(map(str, files))
        raise CheckpointError(f"{home}: {strangers[0]} belongs to no part: tower, projector or language model")
    if source.is_dir():
        _check_index(source, weights, rename)
    return weights


def whole_language(folder: Path) -> Weights:
    """The language half's tensors out of a checkpoint that transformers sees for, however its class names its parts."""

    def rename(stored: str) -> str | None:
        if stored.endswith("lm_head.weight"):
            return "lm_head.weight"
        found = LANGUAGE_OF_WHOLE.match(stored)
        return f"model.{stored[found.end() :]}" if found else None

    return Weights(weight_files(folder), rename)


def _check_index(folder: Path, weights: Weights, rename: Callable[[str], str | None]) -> None:
    """Each of these tensors is in the file that the folder's index names for it."""
    index = _chosen(folder)
    for stored, file in _weight_map(index).items() if isinstance(index, Path) else ():
        name = rename(stored)
        if name is not None and (name not in weights or weights.where(name) != folder / file):
            raise CheckpointError(f"{index}: {stored} should be in {file}, which does not hold it")


def stored_names(folder: Path) -> list[str]:
    """The names of a folder's or file's tensors: from an index, headers, or the words in a pickle, which is not run.

    Raises:
        CheckpointError: a file whose names can't be read.
    """
    files = [folder] if folder.is_file() else _chosen(folder)
    if isinstance(files, Path):
        return list(_weight_map(files))
    return [
        name for file in files for name in (read_header(file) if file.suffix == ".safetensors" else pickled_words(file))
    ]


def _weight_map(index: Path) -> dict[str, str]:
    try:
        names = read_object(index)["weight_map"]
        assert isinstance(names, dict)
        assert names
    except (CheckpointError, KeyError, AssertionError) as error:
        raise CheckpointError(f"{index}: this is no index of weights") from error
    for name in names.values():
        if not isinstance(name, str) or os.path.basename(name) != name or name in (".", "..", ""):
            raise CheckpointError(f"{index}: {name!r} is no file beside the index")
    return names
