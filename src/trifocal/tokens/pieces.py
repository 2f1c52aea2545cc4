"""SentencePiece: a vocabulary of pieces with scores, read from ``tokenizer.model`` or a GGUF file's metadata."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, read_bytes
from trifocal.tokens.generations import Manner
from trifocal.tokens.words import Added, add, coded, named

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["BYTE", "CONTROL", "NORMAL", "SPACE", "UNKNOWN", "USER", "PieceCoder", "Pieces", "read_pieces"]

NORMAL, UNKNOWN, CONTROL, USER, _UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_UNIGRAM, _BPE = 1, 2
_WORST = 1000.0  # below every score: more than those of any letters that stand in a byte's name


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """A SentencePiece model.

    ``kinds`` are its own numbers for what a piece is. ``prefix`` says that it puts a space before every text,
    ``strip`` that it takes white space at both ends and doubled spaces away; ``charsmap`` is its table of letters that
    it writes as others.
    """

    names: list[str]
    scores: list[float]
    kinds: list[int]
    unigram: bool = False
    fallback: bool = True
    prefix: bool = True
    strip: bool = False
    charsmap: bytes = b""
    unknown: int = 0

    @property
    def user(self) -> frozenset[str]:
        """The pieces that its maker defined: found in a text whole, before anything else."""
        return frozenset(name for name, kind in zip(self.names, self.kinds, strict=True) if kind == USER)

    @property
    def joined(self) -> frozenset[str]:
        """The pieces that come of joining two: also those that are not used, and fall apart again in the end."""
        return frozenset(name for name, kind in zip(self.names, self.kinds, strict=True) if kind in (NORMAL, _UNUSED))

    @property
    def unused(self) -> frozenset[int]:
        """The ids that only stand for the pieces that they were joined of."""
        return frozenset(at for at, kind in enumerate(self.kinds) if kind == _UNUSED)

    def added(self) -> dict[str, Added]:
        """The pieces that no text becomes, and those that its maker defined."""
        kinds = {UNKNOWN: True, CONTROL: True, USER: False}
        return {
            name: Added(name, at, special=kinds[kind])
            for at, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True))
            if kind in kinds
        }

    def backend(self, hidden: Container[int] = ()) -> Backend:
        """The tokenizer of these pieces, without any named token and without the space before a text.

        No text becomes a ``hidden`` piece, by its id; whatever it is called, its id stays.
        """
        from tokenizers import Regex, Tokenizer, decoders, normalizers

        names = [f"\N{NULL}{at}" if at in hidden else name for at, name in enumerate(self.names)]
        built = Tokenizer(self._unigram(names) if self.unigram else self._byte_pairs(names))
        first: list[Any] = [normalizers.Precompiled(self.charsmap)] if self.charsmap else []
        if self.strip:
            first.append(normalizers.Replace(Regex(" {2,}"), " "))
        built.normalizer = normalizers.Sequence([*first, normalizers.Replace(" ", SPACE)])
        last: list[Any] = [decoders.Strip(" ", 1, 0)] if self.prefix else []
        built.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
        )
        return built

    def _byte_pairs(self, names: list[str]) -> Any:
        from tokenizers import models

        vocabulary = {name: at for at, name in enumerate(names)}
        return models.BPE(
            vocabulary,
            list(self._merges(vocabulary)),
            unk_token=names[self.unknown],
            fuse_unk=True,
            byte_fallback=self.fallback,
        )

    def _unigram(self, names: list[str]) -> Any:
        """A typed ``<0x41>`` is no byte: letters of a score that no other piece has are always the better way."""
        from tokenizers import models

        low = min(self.scores) - _WORST
        told = zip(names, self.scores, self.kinds, strict=True)
        pieces = [(name, low if kind == BYTE else score) for name, score, kind in told]
        return models.Unigram(pieces, self.unknown, self.fallback)

    def _merges(self, vocabulary: Mapping[str, int]) -> Iterator[tuple[str, str]]:
        """Every way to join two pieces to a third, best score first: the order in which SentencePiece joins."""
        normal = self.joined
        found: list[tuple[float, int, int, str, str]] = []
        for piece in normal:
            for cut in range(1, len(piece)):
                left, right = piece[:cut], piece[cut:]
                if left in normal and right in normal:
                    found.append((-self.scores[vocabulary[piece]], vocabulary[left], vocabulary[right], left, right))
        found.sort()
        return ((left, right) for *_, left, right in found)


class PieceCoder:
    """Text to SentencePiece's ids, as a slow tokenizer of some generation cut it up.

    That one looked for its added tokens first and gave SentencePiece what stood between them. Pieces of the model's
    maker are found by SentencePiece itself (``inner``), so that text behind one is still the same text.
    """

    def __init__(self, pieces: Pieces, added: Mapping[str, Added], manner: Manner, *, inner: bool = True) -> None:
        self._added, self._manner = added, manner
        self._inner = pieces.user & added.keys() if inner else frozenset[str]()
        self._strip = pieces.strip
        self._typed = named(name for name, token in added.items() if not token.guarded and name not in self._inner)
        typed = {NORMAL, BYTE} if pieces.unigram else {NORMAL, BYTE, UNKNOWN, _UNUSED}
        # with a space in its name none is found: there are none where SentencePiece looks for it
        found = {name for name in self._inner if not added[name].guarded and " " not in name}
        self._backend = pieces.backend(
            frozenset(
                at
                for at, (name, kind) in enumerate(zip(pieces.names, pieces.kinds, strict=True))
                if kind not in typed and name not in found
            )
        )
        add(self._backend, (added[name] for name in found), normalized=True)
        self._ids = {name: at for at, name in enumerate(pieces.names)}
        self._unknown = pieces.unknown
        self._unused = {} if pieces.unigram else {at: pieces.names[at] for at in pieces.unused}
        self._apart: dict[int, list[int]] = {}
        self._fallback = pieces.fallback
        joined = pieces.joined if self._unused else frozenset[str]()
        self._order = {name: -pieces.scores[self._ids[name]] for name in joined}

    def encode(self, text: str, *, new: bool, after: str | None, before: str | None) -> list[int]:
        """See `Coder.encode`."""
        if self._manner.within != "put":  # then a typed space mark was written as the space it stands for, before all
            text = text.replace(SPACE, " ")
        ids: list[int] = []
        at = 0
        for found in self._typed.finditer(text):
            ids += self._piece(text[at : found.start()], new and at == 0, after, found[0])
            ids.append(self._added[found[0]].id)
            at, after = found.end(), found[0]
        return ids + self._piece(text[at:], new and at == 0, after, before)

    def _piece(self, text: str, new: bool, after: str | None, before: str | None) -> list[int]:
        """Ids of what stands between two added tokens."""
        left, right = self._added.get(after or ""), self._added.get(before or "")
        text = text.lstrip() if left is not None and left.right else text
        text = text.rstrip() if right is not None and right.left else text
        space = self._manner.begins if new else "keep" if after in self._inner else self._manner.within
        if self._strip:
            text = text.strip(" ")
        if text:
            return self._cut(text, space)
        return [self._ids[SPACE]] if SPACE in self._ids and self._alone(right, new, space) else []

    def _alone(self, before: Added | None, new: bool, space: str) -> bool:
        """Whether the space before a text stays where the text begins with a token."""
        if before is None or space != "put":
            return False
        return before.content in self._inner or (new and self._manner.alone and not before.special)

    def _cut(self, text: str, space: str) -> list[int]:
        if space == "keep":
            return self._coded(text)
        ids = self._coded(SPACE + text)
        if space == "put" or text.startswith((" ", SPACE)):
            return ids
        first = str(self._backend.id_to_token(ids[0]))
        if not first.startswith(SPACE):
            return ids
        return [*([self._ids.get(first[1:], self._unknown)] if len(first) > 1 else []), *ids[1:]]

    def _coded(self, text: str) -> list[int]:
        ids = coded(self._backend, text)
        return [part for one in ids for part in self._parts(one)] if self._unused else ids

    def _parts(self, one: int) -> list[int]:
        """The ids that a piece stands for: itself, what it was joined of where it is not used, or a letter's bytes."""
        name = self._unused.get(one)
        if name is None:
            return [one]
        if one not in self._apart:
            if len(name) > 1:
                halves = (self._ids.get(half, self._unknown) for half in _halves(name, self._order))
                self._apart[one] = [part for half in halves for part in self._parts(half)]
            elif self._fallback:
                self._apart[one] = [self._ids.get(f"<0x{byte:02X}>", self._unknown) for byte in name.encode()]
            else:
                self._apart[one] = [self._unknown]
        return self._apart[one]


def _halves(name: str, order: Mapping[str, float]) -> list[str]:
    """The two pieces of which SentencePiece joins this one in the end; ``order`` is that of the joints."""
    parts = list(name)
    while len(parts) > 2:
        pairs = [(order[both], at) for at in range(len(parts) - 1) if (both := "".join(parts[at : at + 2])) in order]
        if not pairs:
            break
        at = min(pairs)[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return parts


def read_pieces(file: Path) -> Pieces:
    """The pieces in a ``tokenizer.model``.

    Raises:
        CheckpointError: it is no SentencePiece model, or of a kind that can't be read.
    """
    data = read_bytes(file)
    other = other_kind(data[:64])
    try:
        fields = list(_fields(data))
        pieces = [dict(_fields(_bytes(value))) for key, value in fields if key == 1]
        trained = dict(one for key, value in fields if key == 2 for one in _fields(_bytes(value)))
        rules = dict(one for key, value in fields if key == 3 for one in _fields(_bytes(value)))
        names = [_bytes(piece[1]).decode() for piece in pieces]
        scores = [float(struct.unpack("<f", _bytes(piece.get(2, bytes(4))))[0]) for piece in pieces]
        kinds = [_whole(piece.get(3, NORMAL)) for piece in pieces]
        kind = _whole(trained.get(3, _UNIGRAM))
        charsmap = _bytes(rules.get(2, b""))
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise CheckpointError(f"{file}: this is no SentencePiece model{other and f', but {other}'}") from error
    if not names:
        what = f"but {other}" if other else "or one without any piece"
        raise CheckpointError(f"{file}: this is no SentencePiece model, {what}")
    if kind not in (_UNIGRAM, _BPE) or trained.get(24):
        raise CheckpointError(f"{file}: a SentencePiece model of words or letters; byte pairs and unigrams can be read")
    if len(set(names)) != len(names):
        raise CheckpointError(f"{file}: {len(names) - len(set(names))} pieces stand in the vocabulary twice")
    return Pieces(
        names,
        scores,
        kinds,
        unigram=kind == _UNIGRAM,
        fallback=bool(trained.get(35, 0)),
        prefix=bool(rules.get(3, 1)),
        strip=bool(rules.get(4, 1)),
        charsmap=charsmap,
        unknown=kinds.index(UNKNOWN) if UNKNOWN in kinds else 0,
    )


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > len(data):
            raise ValueError("a field ends after the file")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number that has no end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes were expected")
    return value


def _whole(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes where a number was expected")
    return value
