"""A checkpoint's tensors under canonical names, read from disk when they are asked for."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, read_object, size_of
from trifocal.source import source_of

if TYPE_CHECKING:
    import torch

    from trifocal.gguf.language import GgufLanguage
    from trifocal.gguf.mmproj import MmprojPart

__all__ = [
    "GgufWeights",
    "Weights",
    "canonical",
    "part_weights",
    "read_header",
    "stored_names",
    "weight_files",
    "whole_language",
]

HEADER_LIMIT = 16 << 20
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# what may lie beside a model's weights: the same again under Mistral's own names, and pieces of training
BESIDE = ("consolidated", "adapter_model", "mm_projector", "non_lora_trainables", "optimizer", "training_args")
MOST_SIDES = 8
MOST_OPCODES = 1 << 18  # a tensor takes about 50
_OLD_PICKLES = 5  # before torch 1.6: a magic number, a version, the system, the table, the storages' names
_BUFFERS = re.compile(r"(?:rotary_emb\.inv_freq|\.position_ids|logit_scale)$")
# peft's words around a module that was trained whole, or that a change is added to
_TRAINED = re.compile(r"\.(?:modules_to_save(?:\.default)?|base_layer)(?=\.)")
_WRAPPED = re.compile(r"^base_model\.(?:model\.(?=model\.|lm_head\b|transformer\.))?")
_LEFT_OUT = re.compile(rf"{_BUFFERS.pattern}|^(?:text_model|text_projection|visual_projection)\.|^logit_bias$")
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
            held = self._pickles[file] = _unpickled(file, self._allow_pickle)
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


def read_header(file: Path) -> dict[str, Any]:
    """A safetensors file's header: dtype, shape and place of every tensor, checked against the file.

    Raises:
        CheckpointError: the file is missing, cut short, or its header makes no sense.
    """
    try:
        size = size_of(file)
        with file.open("rb") as opened:
            start = opened.read(64)
            if other := other_kind(start):
                raise CheckpointError(f"{file}: this is {other}")
            length = int.from_bytes(start[:8], "little")
            if size < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(
                    f"{file}: its header claims {length} bytes, the file has {size}: cut short, or no safetensors file"
                )
            opened.seek(8)
            header: Any = json.loads(opened.read(length), object_pairs_hook=_once)
    except _Twice as error:
        raise CheckpointError(f"{file}: its header holds {error} twice: the file is damaged") from error
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or 'cannot be read'}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is no JSON: the file is damaged") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{file}: its header is no table of tensors")
    _check_header(file, header, size - 8 - length)
    return header


class _Twice(Exception):
    """A name stands in a header twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return table


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
        if found is None and not _LEFT_OUT.search(stored):
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
        name
        for file in files
        for name in (read_header(file) if file.suffix == ".safetensors" else _pickled_words(file))
    ]


def _pickled_words(file: Path) -> list[str]:
    """All strings in a ``.bin`` file's pickle, tensors' names among them. Its opcodes are read, never followed."""
    _whole_archive(file)
    return [str(word) for name, word in _opcodes(file) if "UNICODE" in name]


def _opcodes(file: Path) -> list[tuple[str, object]]:
    """Names and arguments of the opcodes in a ``.bin`` file's pickles.

    Raises:
        CheckpointError: they can't be read, or are more than a table of tensors needs.
    """
    import pickletools
    import zipfile

    found: list[tuple[str, object]] = []
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
                if not entries or max(entry.file_size for entry in entries) > HEADER_LIMIT:
                    raise CheckpointError(f"{file}: no file of tensors: no table, or one over {HEADER_LIMIT} bytes")
                streams = [io.BytesIO(archive.read(entry)) for entry in entries]
        else:
            with file.open("rb") as opened:
                streams = [io.BytesIO(opened.read(HEADER_LIMIT))] * _OLD_PICKLES
        for stream in streams:
            for opcode, word, _ in pickletools.genops(stream):
                found.append((opcode.name, word))
                if len(found) > MOST_OPCODES:
                    raise CheckpointError(
                        f"{file}: its table takes more than {MOST_OPCODES} steps: no table of tensors"
                    )
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged zip or pickle makes of their readers
        raise CheckpointError(f"{file}: damaged, or a pickle that holds more than tensors; it was not run") from error
    return found


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


_SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip

_SPELLINGS = {
    "float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32", "float16": "F16", "bfloat16": "BF16",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip


def _check_header(file: Path, header: dict[str, Any], room: int) -> None:
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            if entry["dtype"] not in _SIZES:
                raise CheckpointError(f"{file}: {name} is of the type {entry['dtype']!r}; known: {', '.join(_SIZES)}")
            if len(entry["shape"]) > MOST_SIDES or not all(type(side) is int for side in entry["shape"]):
                raise TypeError("no shape")
            size = _SIZES[entry["dtype"]]
            for side in entry["shape"]:
                size *= side
            sound = 0 <= begin <= end and end - begin == size and all(side >= 0 for side in entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: the header's entry for {name} makes no sense") from error
        if not sound:
            raise CheckpointError(f"{file}: {name} should take {size} bytes, its place has {end - begin}")
        if end > room:
            raise CheckpointError(f"{file}: {name} ends at byte {end}, the file has {room}: it is cut short")
    _check_places(file, header, room)


def _check_places(file: Path, header: dict[str, Any], room: int) -> None:
    """Tensors lie one behind the other, from the first byte to the last."""
    at, before = 0, "the header"
    spans = sorted((*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__")
    for begin, end, name in spans:
        if begin != at:
            what = "overlap" if begin < at else f"leave {begin - at} bytes between them"
            raise CheckpointError(f"{file}: {before} and {name} {what}: the file is damaged")
        at, before = end, name
    if at != room:
        raise CheckpointError(f"{file}: {room - at} bytes follow its last tensor: the file is damaged")


def _unpickled(file: Path, allow_pickle: bool) -> Mapping[str, torch.Tensor]:
    if not allow_pickle:
        raise CheckpointError(
            f"{file} is a pickle; say --allow-pickle to read it (no code in it is run), or convert it to safetensors"
        )
    import torch

    size = _whole_archive(file)
    _opcodes(file)
    try:
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception:  # files of before torch 1.6 can't be mapped
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{file}: damaged, or a pickle that holds more than tensors; it was not run") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise CheckpointError(f"{file}: this is no table of tensors")
    for name, tensor in loaded.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise CheckpointError(f"{file}: {name} is no plain tensor with its numbers in the file")
        if tensor.nbytes > size:
            raise CheckpointError(f"{file}: {name} should take {tensor.nbytes} bytes, the whole file has {size}")
    return loaded


def _whole_archive(file: Path) -> int:
    """Bytes of a ``.bin`` file whose content, if it is a zip, is no larger than itself: torch squeezes nothing."""
    import zipfile

    size = size_of(file)
    try:
        with file.open("rb") as opened:
            if other := other_kind(opened.read(64)):
                raise CheckpointError(f"{file}: this is {other}")
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                inside = sum(entry.file_size for entry in archive.infolist())
            if inside > size:
                raise CheckpointError(f"{file}: holds {inside} bytes in {size}: no file of torch is squeezed")
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{file}: damaged, or no file of tensors") from error
    return size
