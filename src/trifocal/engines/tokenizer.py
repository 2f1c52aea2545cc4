"""A checkpoint's own tokenizer, made safe: no text ever becomes a control token."""

from __future__ import annotations

import os

from trifocal.tokens.words import Words

__all__ = ["FileTokenizer"]


class FileTokenizer:
    """The tokenizer of a checkpoint's files, whatever their format; see `trifocal.tokens.words.Words`.

    ``rows`` is how many ids have a row in the embedding: a control token beyond them can't be put into a prompt, so
    nobody is told of it. ``begins`` is False where a template says where the beginning token stands, and none is ever
    put in front; ``start`` is what is. ``parts`` says that a picture parts the text, so that what stands behind it is a
    text of its own, as original LLaVA has it; without it a picture is a token in the text, as transformers' processors
    have it.
    """

    def __init__(self, words: Words, *, rows: int | None = None, begins: bool = True, parts: bool = True) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it is asked for one text at a time
        self._words = words
        self.start = list(words.start) if begins else []
        self._hidden = {token.id for token in words.added.values() if token.special}
        self.rows = rows
        self._parts = parts

    @property
    def largest(self) -> int:
        """The largest id that plain text can become."""
        guarded = {name for name, token in self._words.added.items() if token.guarded}
        return max((i for token, i in self._words.backend.get_vocab().items() if token not in guarded), default=-1)

    @property
    def definition(self) -> str:
        """The tokenizer as the text of a ``tokenizer.json``."""
        text: str = self._words.backend.to_str()
        return text

    def encode(self, text: str, *, start: bool, after: str | None = None, before: str | None = None) -> list[int]:
        """Ids of plain text; see `trifocal.engines.base.Tokenizer.encode`."""
        new = start or (self._parts and after is None)
        clean = text.encode("utf-8", "replace").decode()
        ids = self._words.coder.encode(clean, new=new, after=after, before=before)
        return [*self.start, *ids] if start else ids

    def decode(self, ids: list[int]) -> str:
        """The text of the ids that are no control tokens."""
        shown = [i for i in ids if i not in self._hidden]
        text: str = self._words.backend.decode(shown, skip_special_tokens=False)
        return text

    def token(self, name: str) -> int | None:
        """The id of a control token."""
        token = self._words.added.get(name)
        return token.id if token is not None and (self.rows is None or token.id < self.rows) else None
