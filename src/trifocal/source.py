"""Where a part's files are, a folder or a GGUF file, and what they say of it. Only here are the two told apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trifocal.errors import CheckpointError
from trifocal.files import read_bytes, read_object, read_text

if TYPE_CHECKING:
    from trifocal.gguf.container import GgufFile
    from trifocal.gguf.language import GgufLanguage
    from trifocal.gguf.mmproj import MmprojPart
    from trifocal.tokens.words import Words

__all__ = ["TOKENS", "FolderSource", "GgufSource", "Source", "source_of"]

TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_IN_GGUF = ("bos", "eos", "unknown", "padding")
_INSIDE = ("extra_special_tokens", "model_specific_special_tokens")  # what a family's processor asks for by its name
_TEMPLATE = "tokenizer.chat_template"


class Source(Protocol):
    """What the files of a part say, whichever way they say it."""

    @property
    def container(self) -> str:
        """What holds its tensors in a way of its own: ``GGUF``; empty where they are files in a folder."""
        ...

    def config(self) -> dict[str, Any]:
        """The language model's configuration.

        Raises:
            CheckpointError: it is missing or damaged.
        """
        ...

    def part(self, name: str) -> GgufLanguage | MmprojPart | None:
        """The tensors of ``tower``, ``projector`` or ``language`` where a container holds them; None in a folder."""
        ...

    def tokenizer(self) -> Words | None:
        """The tokenizer where the weights' own file holds it; None where it lies in the folder."""
        ...

    def knows(self, token: str) -> bool:
        """Whether the tokenizer has a token of that name."""
        ...

    def special_tokens(self) -> dict[str, str]:
        """A tokenizer's beginning, end and further marks (``image_token``), by the names that templates ask for."""
        ...

    def picture_marks(self) -> list[str]:
        """What stands for a picture in texts, where the tokenizer or the processor say so."""
        ...

    def chat_templates(self) -> Iterator[tuple[Any, Path]]:
        """What is said of chat templates (one, or several by name) and where, in the order of their worth."""
        ...


def source_of(path: Path) -> Source:
    """The files at a path."""
    return GgufSource(path) if path.suffix == ".gguf" else FolderSource(path)


class FolderSource:
    """A folder in the manner of transformers."""

    container = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def config(self) -> dict[str, Any]:
        file = self._folder / "config.json"
        if not file.exists() and not file.is_symlink():
            raise CheckpointError(f"{file} is not there")
        return read_object(file)

    def part(self, name: str) -> None:
        return None

    def tokenizer(self) -> None:
        return None

    def knows(self, token: str) -> bool:
        files = [
            self._folder / name
            for name in ("added_tokens.json", "tokenizer.json", "tokenizer_config.json", "vocab.json")
        ]
        if any(f'"{token}"' in read_text(file) for file in files if file.is_file()):
            return True
        pieces = self._folder / "tokenizer.model"  # each of its pieces begins with a tag and the length of its text
        return pieces.is_file() and bytes((0x0A, len(token))) + token.encode() in read_bytes(pieces)

    def special_tokens(self) -> dict[str, str]:
        found = self._json("special_tokens_map.json") | self._json("tokenizer_config.json")
        for key in _INSIDE:
            found |= inside if isinstance(inside := found.get(key), dict) else {}
        told = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items()}
        return {name: token for name, token in told.items() if name.endswith("_token") and isinstance(token, str)}

    def picture_marks(self) -> list[str]:
        files = [self._json(name) for name in ("tokenizer_config.json", "processor_config.json")]
        inside = [file.get(key) for file in files for key in _INSIDE]
        found = [each.get("image_token") for each in (*files, *inside) if isinstance(each, dict)]
        named = [each.get("content") if isinstance(each, dict) else each for each in found]
        return [mark for mark in named if isinstance(mark, str) and mark]

    def chat_templates(self) -> Iterator[tuple[Any, Path]]:
        for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
            yield self._json(name).get("chat_template"), self._folder / name

    def _json(self, name: str) -> dict[str, Any]:
        file = self._folder / name
        return read_object(file) if file.exists() or file.is_symlink() else {}


class GgufSource:
    """One GGUF file, that of a language model or a ``mmproj`` one."""

    container = "GGUF"

    def __init__(self, file: Path) -> None:
        self._path = file

    def config(self) -> dict[str, Any]:
        from trifocal.gguf.language import language_config

        return language_config(self._opened())

    def part(self, name: str) -> GgufLanguage | MmprojPart:
        from trifocal.gguf.language import GgufLanguage
        from trifocal.gguf.mmproj import Mmproj

        opened = self._opened()
        return GgufLanguage(opened) if name == "language" else Mmproj(opened).parts[name]

    def tokenizer(self) -> Words:
        from trifocal.gguf.tokenizer import tokenizer

        return tokenizer(self._opened())

    def knows(self, token: str) -> bool:
        return token in self._names()

    def special_tokens(self) -> dict[str, str]:
        names, metadata = self._names(), self._metadata()
        ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in zip(TOKENS, _IN_GGUF, strict=True)}
        return {name: names[at] for name, at in ids.items() if isinstance(at, int) and at < len(names)}

    def picture_marks(self) -> list[str]:
        return []

    def chat_templates(self) -> Iterator[tuple[Any, Path]]:
        """One without a name, the default, and others behind it."""
        named = {key.removeprefix(_TEMPLATE): one for key, one in self._metadata().items() if key.startswith(_TEMPLATE)}
        yield (
            {key.removeprefix(".") or "default": one for key, one in named.items() if key[:1] in ("", ".")},
            self._path,
        )

    def _opened(self) -> GgufFile:
        from trifocal.gguf.container import GgufFile

        return GgufFile(self._path)

    def _metadata(self) -> Mapping[str, Any]:
        return self._opened().metadata

    def _names(self) -> list[str]:
        names: list[str] = self._metadata().get("tokenizer.ggml.tokens", [])
        return names
