"""Slow tokenizers' rules, held against sentencepiece's own library and against ids that old releases gave.

`slow` is a second telling of what transformers' slow LLaMA tokenizer did, written over sentencepiece itself. It is held
against `tests/data/tokens/slow.json`: ids from transformers 4.28.1, 4.31.0, 4.33.3, 4.34.1, 4.37.2 and 4.40.2
(4.32.1 fails on some of the texts).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from odd_texts import ODD

from trifocal.engines.tokenizer import FileTokenizer
from trifocal.tokens.folder import read_words

DATA = Path(__file__).parents[1] / "data" / "tokens"
MODEL = DATA / "llama.model"  # 600 byte pairs, as LLaMA's: identity, a space before every text, bytes for the rest
KNOWN = json.loads((DATA / "slow.json").read_text("utf-8"))
VERSIONS = ["4.28.1", "4.31.0", "4.32.1", "4.33.3", "4.34.1", "4.37.2", "4.40.2"]
MARKS = ("<unk>", "<s>", "</s>", "<im_start>", "<im_end>")
ADDED = {"<im_start>": 600, "<im_end>": 601}
WAYS = [(True, True), (True, False), (False, True), (False, False)]  # legacy, special tokens as plain strings
# what stands before and after a text: an end or a picture, a control token, a token that was added
PLACES = [(None, None), ("</s>", None), (None, "</s>"), ("</s>", "</s>"), ("<im_start>", "<im_end>")]
BARE = b"\x1a\x02\x18\x00"
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def unmarked(text: str, marks: Sequence[str] = MARKS) -> str:
    """The text without the names that a slow tokenizer would take for tokens, and without half characters."""
    for mark in marks:
        text = text.replace(mark, "")
    return text.encode("utf-8", "replace").decode()


TEXTS = list(dict.fromkeys(map(unmarked, ODD)))


def folder(where: Path, version: str, legacy: bool, plain: bool, added: Mapping[str, int] = ADDED) -> Path:
    """A folder as those releases saved it: no tokenizer.json; special tokens as plain strings or with their flags."""
    shutil.copyfile(MODEL, where / "tokenizer.model")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    special: dict[str, Any] = {key: name if plain else {"content": name, **flags} for key, name in names.items()}
    write(where / "special_tokens_map.json", special)
    write(where / "tokenizer_config.json", {"add_bos_token": True, "legacy": legacy, **special})
    if added:
        write(where / "added_tokens.json", added)
    write(where / "config.json", {"transformers_version": version, "bos_token_id": 1})
    return where


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), "utf-8")


def ours(tokenizer: FileTokenizer, text: str, after: str | None, before: str | None) -> list[int]:
    """The ids as `Composer` puts them together, without a beginning token."""
    ids: list[int | None] = []
    if after:
        ids += [*tokenizer.encode("", start=False, before=after), tokenizer.token(after)]
    ids += tokenizer.encode(text, start=False, after=after, before=before)
    return [at for at in [*ids, tokenizer.token(before) if before else None] if at is not None]


class Slow:
    """What the slow tokenizer of a version did, over sentencepiece itself; ``marks`` are the tokens that it looks for.

    ``model`` is another ``tokenizer.model``, ``added`` are the tokens of ``added_tokens.json``.
    """

    def __init__(
        self,
        version: str,
        legacy: bool,
        plain: bool,
        added: Mapping[str, int] = ADDED,
        model: bytes = MODEL.read_bytes(),
        marks: Sequence[str] = MARKS,
    ) -> None:
        self.since = tuple(int(part) for part in version.split(".")[:2])
        self.new = not legacy and self.since >= (4, 31)
        self.whole = sentencepiece.SentencePieceProcessor(model_proto=model)
        # a message's fields may come again: normalizer_spec with add_dummy_prefix false
        self.bare = sentencepiece.SentencePieceProcessor(model_proto=model + BARE)
        self.added, self.marks = added, marks
        early = self.since < (4, 34)
        self.trimming = {*(added if early else ()), *(("<s>", "</s>", "<unk>") if early and plain else ())}

    def encode(self, text: str) -> list[int]:
        if self.new:
            text = SPACE + text.replace(SPACE, " ") if text or self.since == (4, 31) else ""
        pieces = re.split("(" + "|".join(map(re.escape, self.marks)) + ")", text)
        for at, piece in enumerate(pieces):
            if piece in self.trimming:
                pieces[at - 1], pieces[at + 1] = pieces[at - 1].rstrip(), pieces[at + 1].lstrip()
        pieces = [piece for piece in pieces if piece]
        if self.new and self.since >= (4, 32) and pieces[:1] == [SPACE] and pieces[1:2] in (["</s>"], ["<s>"]):
            pieces = pieces[1:]
        return [at for piece in pieces for at in ([self.id(piece)] if piece in self.marks else self.piece(piece))]

    def id(self, name: str) -> int:
        return self.added[name] if name in self.added else int(self.whole.piece_to_id(name))

    def piece(self, text: str) -> list[int]:
        if not self.new:
            return list(self.whole.encode(text))
        if self.since == (4, 31):
            first = text.startswith(SPACE)
            tokens = self.whole.encode(text[1:] if first else text, out_type=str)
            if not first and not text.startswith(" ") and tokens[0].startswith(SPACE):
                tokens = ([tokens[0][1:]] if len(tokens[0]) > 1 else []) + tokens[1:]
        elif text.startswith((SPACE, " ")):
            skipped = len(self.bare.encode("<unk>"))
            tokens = self.bare.encode("<unk>" + text, out_type=str)[skipped:]
        else:
            tokens = self.bare.encode(text, out_type=str)
        return [int(self.whole.piece_to_id(token)) for token in tokens]


@pytest.mark.parametrize(("legacy", "plain"), WAYS)
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_are_those_of_the_day(tmp_path: Path, version: str, legacy: bool, plain: bool) -> None:
    """Several hundred odd texts at the beginning, behind and before control tokens and added ones."""
    tokenizer = FileTokenizer(read_words(folder(tmp_path, version, legacy, plain), bos=1, slow=True))
    slow = Slow(version, legacy, plain)
    for text in TEXTS:
        for after, before in PLACES:
            theirs = slow.encode(f"{after or ''}{text}{before or ''}")
            assert ours(tokenizer, text, after, before) == theirs, (text, after, before)
        assert tokenizer.encode(text, start=True) == [1, *slow.encode(text)]


@pytest.mark.parametrize(("legacy", "plain"), WAYS)
@pytest.mark.parametrize("version", [one for one in VERSIONS if one != "4.32.1"])
def test_ids_are_those_that_the_release_gave(tmp_path: Path, version: str, legacy: bool, plain: bool) -> None:
    """The same releases themselves, asked once: ours and the second telling both give what they gave."""
    tokenizer = FileTokenizer(read_words(folder(tmp_path, version, legacy, plain), bos=1, slow=True))
    slow = Slow(version, legacy, plain)
    told = KNOWN["ids"][KNOWN["same"][f"{version} {legacy} {plain}"]]
    for text, row in zip(KNOWN["texts"], told, strict=True):
        for (after, before), theirs in zip(PLACES, row, strict=True):
            assert slow.encode(f"{after or ''}{text}{before or ''}") == theirs
            assert ours(tokenizer, text, after, before) == theirs


def test_what_is_decoded_is_what_sentencepiece_decodes(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(read_words(folder(tmp_path, "4.31.0", True, False), bos=1, slow=True))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(MODEL))
    for text in TEXTS:
        ids = theirs.encode(text)
        assert tokenizer.decode(ids) == theirs.decode(ids)
        assert tokenizer.decode([1, *ids, 2]) == theirs.decode(ids)


def test_marks_that_are_typed_stay_letters(tmp_path: Path) -> None:
    tokenizer = FileTokenizer(read_words(folder(tmp_path, "4.37.2", False, False), bos=1, slow=True))
    for text in ODD:
        for after, before in PLACES:
            ids = tokenizer.encode(text, start=False, after=after, before=before)
            assert not {0, 1, 2, 600, 601} & set(ids)
