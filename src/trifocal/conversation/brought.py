"""What a checkpoint brings along for its conversations: a chat template, names of tokens, marks of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object

__all__ = ["LARGEST", "TOKENS", "own_marks", "own_template", "special_tokens"]

LARGEST = 1 << 20  # bytes of a template's file
TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_IN_GGUF = ("bos", "eos", "unknown", "padding")
_KEY = "tokenizer.chat_template"


def own_template(folder: Path) -> tuple[str, Path] | None:
    """A checkpoint's own Jinja template and the file that holds it; None where it has none.

    It lies in ``chat_template.jinja``, in ``chat_template.json``, in the processor's or tokenizer's configuration or in
    a GGUF file. Of several the one called ``default`` is taken, or the only one.

    Raises:
        CheckpointError: several of which none is the default, or a file that is damaged.
    """
    if folder.suffix == ".gguf":
        source = _chosen(_in_gguf(folder), folder)
        return None if source is None else (source, folder)
    if (folder / "chat_template.jinja").is_file():
        return _read(folder / "chat_template.jinja"), folder / "chat_template.jinja"
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        source = _chosen(_json(folder / name).get("chat_template"), folder / name)
        if source is not None:
            return source, folder / name
    return None


def special_tokens(language: Path) -> dict[str, str]:
    """The names of a tokenizer's beginning and end, as templates ask for them."""
    if language.suffix == ".gguf":
        from trifocal.gguf.container import GgufFile

        metadata = GgufFile(language).metadata
        names = metadata.get("tokenizer.ggml.tokens", [])
        ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in zip(TOKENS, _IN_GGUF, strict=True)}
        return {name: names[at] for name, at in ids.items() if isinstance(at, int) and at < len(names)}
    found = _json(language / "special_tokens_map.json") | _json(language / "tokenizer_config.json")
    named = {name: token.get("content") if isinstance(token := found.get(name), dict) else token for name in TOKENS}
    return {name: token for name, token in named.items() if isinstance(token, str)}


def own_marks(language: Path) -> list[str]:
    """What stands for a picture in the texts of this folder's model, where its tokenizer or processor say so."""
    if language.suffix == ".gguf":
        return []
    files = [_json(language / name) for name in ("tokenizer_config.json", "processor_config.json")]
    inside = [file.get(key) for file in files for key in ("extra_special_tokens", "model_specific_special_tokens")]
    found = [each.get("image_token") for each in (*files, *inside) if isinstance(each, dict)]
    named = [each.get("content") if isinstance(each, dict) else each for each in found]
    return [mark for mark in named if isinstance(mark, str) and mark]


def _in_gguf(file: Path) -> dict[str, Any]:
    """The templates of a GGUF file by name: one without a name, the default, and others behind it."""
    from trifocal.gguf.container import GgufFile

    metadata = GgufFile(file).metadata
    named = {key.removeprefix(_KEY): value for key, value in metadata.items() if key.startswith(_KEY)}
    return {name.removeprefix(".") or "default": value for name, value in named.items() if name[:1] in ("", ".")}


def _chosen(found: Any, file: Path) -> str | None:
    """The template of what a file says: one, or several by name in either of transformers' shapes."""
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
    if isinstance(found, dict):
        named = {str(name): one for name, one in found.items() if isinstance(one, str)}
        if len(named) > 1 and "default" not in named:
            raise CheckpointError(
                f"{file}: it has the chat templates {', '.join(sorted(named))} and none is called default; write "
                "one into a file and name that with template (--template)"
            )
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) and found else None


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise CheckpointError(f"{file}: a template of more than {LARGEST} bytes")
        return file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: this template can't be read: {error}") from error


def _json(file: Path) -> dict[str, Any]:
    return read_object(file) if file.exists() or file.is_symlink() else {}
