"""The chat template that a checkpoint brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.source import source_of

__all__ = ["LARGEST", "TOOLS", "own_template", "tool_template"]

LARGEST = 1 << 20  # bytes of a template's file
TOOLS = Path("additional_chat_templates", "tool_use.jinja")


def own_template(*homes: Path) -> tuple[str, Path] | None:
    """A checkpoint's own Jinja template and the file that holds it, of the first home that has one; None without any.

    It lies in ``chat_template.jinja``, in ``chat_template.json``, in the processor's or tokenizer's configuration or in
    a GGUF file. Of several the one called ``default`` is taken, or the only one.

    Raises:
        CheckpointError: several of which none is the default, or a file that is damaged.
    """
    for home in homes:
        file = home / "chat_template.jinja"
        if file.is_file() and (source := _read(file)).strip():
            return source, file
        for found, file in source_of(home).chat_templates():
            if (chosen := _chosen(found, file)) is not None:
                return chosen, file
    return None


def tool_template(file: Path) -> str | None:
    """The template called ``tool_use``, for conversations with tools, beside the one that `own_template` found there.

    Raises:
        CheckpointError: a file that is damaged.
    """
    if file.name == "chat_template.jinja":
        return _read(file.parent / TOOLS) if (file.parent / TOOLS).is_file() else None
    home = file if source_of(file).container else file.parent
    said = [_named(found) for found, where in source_of(home).chat_templates() if where == file]
    return next((each["tool_use"] for each in said if each is not None and "tool_use" in each), None)


def _named(found: Any) -> dict[str, str] | None:
    """Several templates by name, in either of transformers' shapes; None where there is one without."""
    if isinstance(found, list):
        found = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
    return {str(name): one for name, one in found.items() if isinstance(one, str)} if isinstance(found, dict) else None


def _chosen(found: Any, file: Path) -> str | None:
    """The template of what a file says: one, or the default of several."""
    if (named := _named(found)) is not None:
        if len(named) > 1 and "default" not in named:
            raise CheckpointError(
                f"{file}: it has the chat templates {', '.join(sorted(named))} and none is called default; write "
                "one into a file and name that with template (--template)"
            )
        found = named.get("default", next(iter(named.values()), None))
    return found if isinstance(found, str) and found.strip() else None


def _read(file: Path) -> str:
    try:
        if file.stat().st_size > LARGEST:
            raise CheckpointError(f"{file}: a template of more than {LARGEST} bytes")
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file}: this template can't be read: {error}") from error
