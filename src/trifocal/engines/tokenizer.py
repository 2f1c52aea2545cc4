"""A checkpoint's own tokenizer, made safe: no text ever becomes a control token."""

from __future__ import annotations

import json
import os
import re
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["FileTokenizer"]

_LOOKS_LIKE_CONTROL = re.compile(r"<\S+>|\[[A-Z_/]+\]")


class FileTokenizer:
    """The tokenizer in a folder: ``tokenizer.json``, or whatever transformers can read there.

    Three copies of it work together. The *whole* one decodes and knows the control tokens. The
    *plain* one has forgotten them and encodes. The third encodes text that stands after a control
    token or a picture: SentencePiece puts a space before the first word of a text, and whether it
    does so again further on is the tokenizer's own rule (``prepend_scheme``; the older ``Prepend``
    normalizer does it every time, as the LLaMA tokenizer of LLaVA's day did).

    ``bos`` is the id that starts a prompt, where the configuration names it; ``backend`` is the
    tokenizer itself, where it is read already. ``rows`` is how many ids have a row in the embedding:
    a control token beyond them can't be put into a prompt, so nobody is told of it. ``begins`` is
    False where a template says where the beginning token stands, and none is ever put in front.

    Raises:
        CheckpointError: there is no tokenizer in the folder, or it can't be read.
    """

    def __init__(
        self,
        folder: Path,
        *,
        bos: int | None = None,
        backend: Backend | None = None,
        rows: int | None = None,
        begins: bool = True,
    ) -> None:
        self._whole = _read(folder) if backend is None else backend
        made: dict[str, Any] = json.loads(self._whole.to_str())
        self._controls = {
            token["content"]: int(token["id"])
            for token in made["added_tokens"]
            if token["special"] or _LOOKS_LIKE_CONTROL.fullmatch(token["content"])
        }
        self._plain = _without_controls(made, self._controls)
        self._later = _without_controls(_never_prepending(made), self._controls)
        self._start = self._starting_ids(folder, bos) if begins else []
        self._hidden = set(self._controls.values())
        self._rows = rows

    @property
    def largest(self) -> int:
        """The largest id that plain text can become."""
        return max((i for token, i in self._whole.get_vocab().items() if token not in self._controls), default=-1)

    @property
    def definition(self) -> str:
        """The tokenizer as the text of a ``tokenizer.json``."""
        text: str = self._whole.to_str()
        return text

    def encode(self, text: str, *, start: bool) -> list[int]:
        """Ids of plain text; see `trifocal.engines.base.Tokenizer.encode`."""
        coder = self._plain if start else self._later
        # as a batch of one: only a batch lets other threads run meanwhile, and a long text takes seconds
        (read,) = coder.encode_batch_fast([text.encode("utf-8", "replace").decode()], add_special_tokens=False)
        ids: list[int] = read.ids
        return [*self._start, *ids] if start else ids

    def decode(self, ids: list[int]) -> str:
        """The text of the ids that are no control tokens."""
        text: str = self._whole.decode([i for i in ids if i not in self._hidden], skip_special_tokens=False)
        return text

    def token(self, name: str) -> int | None:
        """The id of a control token."""
        token = self._controls.get(name)
        return token if token is None or self._rows is None or token < self._rows else None

    def _starting_ids(self, folder: Path, bos: int | None) -> list[int]:
        """What goes in front of a prompt: what the post-processor puts there, else what the settings say."""
        settings = _settings(folder)
        name = settings.get("bos_token")
        if isinstance(name, dict) and "content" not in name:
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: bos_token is {name!r}, without its content")
        named = self._controls.get(str(name["content"] if isinstance(name, dict) else name))
        wanted = bos if bos is not None else named
        if settings.get("add_bos_token") is False or wanted is None:
            return []
        added: list[int] = self._whole.encode("").ids
        return [wanted] if added[:1] in ([wanted], [named]) or settings.get("add_bos_token") else []


def _settings(folder: Path) -> dict[str, Any]:
    file = folder / "tokenizer_config.json"
    return read_object(file) if file.is_file() else {}


def _read(folder: Path) -> Backend:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it is asked for one text at a time
    from tokenizers import Tokenizer as Backend

    file = folder / "tokenizer.json"
    try:
        if file.is_file():
            return Backend.from_file(str(file))
        from transformers import AutoTokenizer

        read = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return read.backend_tokenizer
    except Exception as error:
        where = file if file.is_file() else folder
        raise CheckpointError(f"{where}: no tokenizer that can be read there ({type(error).__name__})") from error


def _without_controls(made: dict[str, Any], controls: dict[str, int]) -> Backend:
    from tokenizers import Tokenizer as Backend

    kept = [token for token in made["added_tokens"] if token["content"] not in controls]
    changes = {"added_tokens": kept, "post_processor": None, "truncation": None, "padding": None}
    return Backend.from_str(json.dumps({**made, **changes, "model": _unspellable(made["model"], controls)}))


def _unspellable(model: dict[str, Any], controls: dict[str, int]) -> dict[str, Any]:
    """A Unigram model finds every piece of its vocabulary in a text: its control pieces get names nobody can guess."""
    if model.get("type") != "Unigram":
        return model
    secret = secrets.token_hex(16)
    return {**model, "vocab": [[piece + secret if piece in controls else piece, to] for piece, to in model["vocab"]]}


def _never_prepending(made: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer for text further on: where only the first word gets a space, none does."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: "never" if (k, v) == ("prepend_scheme", "first") else changed(v) for k, v in value.items()}
        return [changed(item) for item in value] if isinstance(value, list) else value

    return {**made, "pre_tokenizer": changed(made.get("pre_tokenizer"))}
