"""The tokenizer in a checkpoint's folder, in whichever of its forms it was released."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.files import other_kind, read_object, read_text
from trifocal.quiet import quiet
from trifocal.tokens.bytelevel import CLASSES, byte_level
from trifocal.tokens.generations import Manner, manner
from trifocal.tokens.pieces import PieceCoder, read_pieces
from trifocal.tokens.words import Added, Whole, Words, add, kept, panicked

__all__ = ["grown", "read_words"]

_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_OTHERS = ("*vocab*", "*.tiktoken", "*.model", "*.spm", "tekken.json")  # what transformers may make one of
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MORE = "additional_special_tokens"
_DEAF = ("PreTrainedTokenizerFast", "TokenizersBackend")  # what they begin with is said by the tokenizer.json alone
# a word of the vocabulary that settings call special is one if it looks it: some take "!" to pad with
_MARK = re.compile(r"<.+>|\[.+\]")


def read_words(
    folder: Path, *, bos: int | None = None, slow: bool = False, day: object = None, more: Sequence[Added] = ()
) -> Words:
    """What the files in a folder say of its tokenizer.

    ``bos`` is the id that starts a prompt, where the configuration names it. ``slow`` says that the checkpoint was
    used with transformers' slow tokenizers, as every original LLaVA was: then ``tokenizer.model`` counts where there is
    a ``tokenizer.json``, too, since the one was made from the other by rules of another day. ``day`` is the version of
    transformers that it was used with, where another configuration than the folder's own tells it: a LoRA's, over a
    base that was saved before. ``more`` are tokens that are added to those of the files.

    Raises:
        CheckpointError: there is no tokenizer in the folder, or it can't be read.
    """
    found = _Files(folder, more)
    pieces = next((folder / name for name in _PIECES if (folder / name).exists()), None)
    whole, vocabulary = folder / "tokenizer.json", folder / "vocab.json"
    if pieces is not None and whole.exists() and not (slow and _is_slow(pieces)):
        pieces = None
    try:
        if pieces is not None:
            return _from_pieces(pieces, found, bos, day)
        if whole.exists():
            return _from_whole(whole, read_text(whole), found, bos)
        if vocabulary.exists():
            return _from_merges(vocabulary, found, bos)
        if not any(file for pattern in _OTHERS for file in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder}: there is no tokenizer in it (tokenizer.json, tokenizer.model, or vocab.json and "
                "merges.txt): copy the files there from where the model comes from"
            )
        return _from_transformers(folder, found, bos)
    except CheckpointError:
        raise
    except BaseException as error:  # the library's bare Exception or panic, and whatever odd values in JSON come to
        if not isinstance(error, Exception) and not panicked(error):
            raise
        file = pieces or next((file for file in (whole, vocabulary) if file.exists()), folder)
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{file}: no tokenizer that can be read there ({said})") from error


def grown(base: Words, home: Path, adapter: Path) -> tuple[Added, ...]:
    """The tokens that a LoRA's own tokenizer has beyond its base's, the one in ``home``: its trainer saved it so.

    Raises:
        CheckpointError: it is another tokenizer, or can't be read.
    """
    names = [*_PIECES, "tokenizer.json", "vocab.json"]
    if not any((adapter / name).exists() for name in names):
        return ()
    words = read_words(adapter)
    own, below = (_ids(each) for each in (words, base))
    odd = next((name for name, at in own.items() if below.get(name, at) != at), None)
    if odd is not None:
        raise CheckpointError(
            f"{adapter}: its tokenizer gives {odd!r} the id {own[odd]}, that of its base {home} {below[odd]}: they "
            "don't belong together; name the base that it was trained over with language_from (--language-from)"
        )
    new, taken = own.keys() - below.keys(), set(below.values())
    odd = next((name for name in sorted(new) if name not in words.added or own[name] in taken), None)
    if odd is not None:
        raise CheckpointError(
            f"{adapter}: its tokenizer has {odd!r} under the id {own[odd]}, which is no token added to those of its "
            f"base {home}; name the base that it was trained over with language_from (--language-from)"
        )
    return tuple(sorted((words.added[name] for name in new), key=lambda token: token.id))


def _ids(words: Words) -> dict[str, int]:
    """Every token with its id, but for those that fill a gap."""
    return {name: at for name, at in words.backend.get_vocab().items() if not name.startswith("\N{NULL}")}


def _is_slow(pieces: Path) -> bool:
    """Whether there is a slow tokenizer of this file; of tiktoken's ranks, as Llama 3 has them, there never was one."""
    if not pieces.is_file():
        return True  # whoever reads it tells what it is
    with pieces.open("rb") as file:
        return "tiktoken" not in other_kind(file.read(64))


class _Files:
    """The small files beside a vocabulary: which tokens have names, and what they do to the text beside them."""

    def __init__(self, folder: Path, more: Sequence[Added] = ()) -> None:
        self.folder, self.more = folder, more
        self.settings = self._read("tokenizer_config.json")
        self.map = self._read("special_tokens_map.json")
        self.ids = self._read("added_tokens.json")
        self.listed = self.settings.get("added_tokens_decoder")

    def _read(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        return read_object(file) if file.exists() else {}

    def manner(self, day: object) -> Manner:
        """How the slow tokenizer of that day, or of these files', cut a prompt up."""
        settings = self.settings
        return manner(
            day or self._read("config.json").get("transformers_version"),
            legacy=settings.get("legacy") is not False,
            named=isinstance(self.listed, dict),
            prefix=settings.get("add_prefix_space"),
        )

    def named(self, key: str) -> str | None:
        """The token under ``bos_token`` and the like.

        Raises:
            CheckpointError: it has no content.
        """
        for file, values in (("special_tokens_map.json", self.map), ("tokenizer_config.json", self.settings)):
            value = values.get(key)
            if isinstance(value, dict) and not isinstance(value.get("content"), str):
                raise CheckpointError(f"{self.folder / file}: {key} is {value!r}, without its content")
            if value is not None:
                return str(value["content"] if isinstance(value, dict) else value)
        return None

    def special(self) -> dict[str, Mapping[str, Any] | None]:
        """The special tokens with the flags that the files give each.

        None is for one that only a plain string in ``special_tokens_map.json`` names, or a list of further tokens: a
        slow tokenizer learned those last and as plain strings, which took white space away up to 4.33.
        """
        told: list[tuple[Any, Mapping[str, Any] | None]] = []
        for key in _NAMES:
            late = self.map.get(key) is not None
            told.append((self.map[key] if late else self.settings.get(key), None if late else {}))
        more = self.map.get(_MORE) or self.settings.get(_MORE)
        told += [(one, None) for one in (more if isinstance(more, list) else ())]
        found: dict[str, Mapping[str, Any] | None] = {}
        for value, plain in told:
            name, flags = (value.get("content"), value) if isinstance(value, dict) else (value, plain)
            if isinstance(name, str) and found.get(name) is None:
                found[name] = flags
        return found

    def added(self, known: Mapping[str, int], *, trims: bool = False) -> Iterator[Added]:
        """The tokens with a name and an id; ``known`` are the vocabulary's own, ``trims`` see `Manner`."""
        special = self.special()
        listed = self.listed if isinstance(self.listed, dict) else {}
        told = set()
        for at, flags in listed.items():
            if not isinstance(flags, dict) or not isinstance(flags.get("content"), str):
                where = self.folder / "tokenizer_config.json"
                raise CheckpointError(f"{where}: added_tokens_decoder has {at!r}: {flags!r}, without its content")
            told.add(flags["content"])
            number = self._id("tokenizer_config.json", flags["content"], at)
            yield _flagged(flags["content"], number, flags, special=bool(flags.get("special")))
        for name, at in {**{name: known[name] for name in special if name in known}, **self.ids}.items():
            if name not in told:
                said = special.get(name)
                bare = trims and said is None
                flags = {"lstrip": bare, "rstrip": bare} if said is None else said
                yield _flagged(name, self._id("added_tokens.json", name, at), flags, special=name in special)
        yield from self.more

    def absent(self, known: Mapping[str, int]) -> list[Added]:
        """The tokens that only these files name, behind those of a ``tokenizer.json``, where transformers adds them.

        One keeps the id that it has here, if nothing else has that; special tokens without any get the next.
        """
        taken = set(known.values())
        told = {token.content: token for token in self.added({}) if token.content not in known}
        names = [name for name in (*self.special(), *self._extra()) if name not in known]
        first = max((*taken, *(token.id for token in told.values())), default=-1) + 1
        free = count(first)
        found = [token if token.id not in taken else replace(token, id=next(free)) for token in told.values()]
        return found + [Added(name, next(free)) for name in dict.fromkeys(names) if name not in told]

    def _extra(self) -> Iterator[str]:
        """Special tokens that a processor asks for by a key of its own (``image_token``)."""
        extra = self.settings.get("extra_special_tokens")
        for one in extra.values() if isinstance(extra, dict) else extra if isinstance(extra, list) else ():
            name = one.get("content") if isinstance(one, dict) else one
            if isinstance(name, str):
                yield name

    def _id(self, file: str, name: str, at: object) -> int:
        """A token's id, which is the text of a key in one of the files."""
        if type(at) is int and at >= 0:
            return at
        if isinstance(at, str) and at.isdecimal() and at.isascii():
            return int(at)
        raise CheckpointError(f"{self.folder / file}: the id of {name!r} is {at!r}, a whole number was expected")

    @property
    def denies_start(self) -> bool:
        """Whether the settings take away the beginning that a tokenizer.json has; not every class hears that."""
        return self.settings.get("add_bos_token") is False and self.settings.get("tokenizer_class") not in _DEAF

    def start(self, added: Mapping[str, Added], bos: int | None, asked: bool) -> tuple[int, ...]:
        """The beginning token, where the settings want one; ``asked`` is what they mean by saying nothing."""
        held = added.get(self.named("bos_token") or "<s>")
        wanted = bos if bos is not None else held.id if held is not None else None
        says = self.settings.get("add_bos_token")
        return (wanted,) if wanted is not None and (asked if says is None else says) else ()


def _flagged(name: str, at: int, flags: Mapping[str, Any], *, special: bool) -> Added:
    return Added(name, at, special, bool(flags.get("lstrip")), bool(flags.get("rstrip")))


def _from_pieces(file: Path, found: _Files, bos: int | None, day: object) -> Words:
    """A SentencePiece model, as the slow tokenizer of its day used it."""
    pieces = read_pieces(file)
    rules = found.manner(day)
    if not pieces.prefix:
        rules = Manner("keep", "keep", rules.trims)
    added = pieces.added()
    known = {name: at for at, name in enumerate(pieces.names)}
    added |= {token.content: token for token in found.added(known, trims=rules.trims)}
    added |= _unlisted(found, known, added)
    backend = pieces.backend()
    add(backend, added.values())
    start = found.start(added, bos, asked=True)
    return Words(backend, PieceCoder(pieces, added, rules), added, start)


def _unlisted(found: _Files, known: Mapping[str, int], added: Mapping[str, Added]) -> dict[str, Added]:
    """The special tokens that have no id anywhere: slow tokenizers, too, gave them the next."""
    held = {**known, **{name: token.id for name, token in added.items()}}
    return {token.content: token for token in found.absent(held)}


def _from_whole(file: Path, text: str, found: _Files, bos: int | None) -> Words:
    """A ``tokenizer.json``, as it stands."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(text)
    told = json.loads(backend.to_str())
    listed = json.loads(text).get("added_tokens") or []
    beside = {token.content: token for token in (*found.absent(backend.get_vocab()), *found.more)}
    made = kept({**told, "added_tokens": [*listed, *map(_as_listed, beside.values())]})
    if made["added_tokens"] != told["added_tokens"] or made["model"] is not told["model"]:
        backend = Backend.from_str(json.dumps(made))
    added = _held(backend, made)
    vocabulary = backend.get_vocab()
    for token in found.added(vocabulary):
        held = added.get(token.content)
        if held is not None:
            added[token.content] = replace(held, special=held.special or token.special)
        elif vocabulary.get(token.content) == token.id and _MARK.fullmatch(token.content):
            added[token.content] = token
    return _words(backend, made, added, found, bos)


def _as_listed(token: Added) -> dict[str, Any]:
    """A token as a ``tokenizer.json`` lists it."""
    flags = {"single_word": False, "lstrip": token.left, "rstrip": token.right, "normalized": False}
    return {"id": token.id, "content": token.content, **flags, "special": token.special}


def _held(backend: Any, made: Mapping[str, Any]) -> dict[str, Added]:
    """The named tokens of a tokenizer.json, each with the id that it has in the end."""
    return {
        one["content"]: _flagged(
            one["content"], backend.token_to_id(one["content"]), one, special=bool(one.get("special"))
        )
        for one in made["added_tokens"]
    }


def _words(backend: Any, made: dict[str, Any], added: dict[str, Added], found: _Files, bos: int | None) -> Words:
    # the configuration's beginning is often its class's own, a word of another vocabulary
    held = added.get(found.named("bos_token") or "")
    own = held.id if held is not None else bos
    put = () if found.denies_start else _put(backend)
    return Words(backend, Whole(made, added), added, put or found.start(added, own, asked=False))


def _put(backend: Any) -> tuple[int, ...]:
    """What its post-processor puts in front of a text."""
    read = backend.encode("a")
    return tuple(read.ids[: sum(1 for _ in takewhile(bool, read.special_tokens_mask))])


def _from_merges(file: Path, found: _Files, bos: int | None) -> Words:
    """``vocab.json`` and ``merges.txt``: a slow byte-level tokenizer."""
    kind = str(found.settings.get("tokenizer_class") or _class_of(found.folder)).removesuffix("Fast")
    if kind not in CLASSES:
        raise CheckpointError(
            f"{found.folder}: tokenizer_config.json says how vocab.json is used: its tokenizer_class is {kind!r}, "
            f"known are {', '.join(CLASSES)}, any other needs its tokenizer.json"
        )
    if found.settings.get("add_prefix_space") and not kind.startswith(("Qwen", "Llama")):  # those don't hear it
        raise CheckpointError(
            f"{found.folder / 'tokenizer_config.json'}: add_prefix_space is true: how {kind} puts it is said by a "
            "tokenizer.json alone; copy that file there from where the model comes from"
        )
    vocabulary = read_object(file)
    odd_id = next((name for name, at in vocabulary.items() if type(at) is not int or at < 0), None)
    if odd_id is not None:
        raise CheckpointError(f"{file}: the id of {odd_id!r} is {vocabulary[odd_id]!r}, a whole number was expected")
    lines = read_text(found.folder / "merges.txt").splitlines()
    pairs = [tuple(line.split(" ", 1)) for line in lines if line.strip() and not line.startswith("#version")]
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd:
        raise CheckpointError(f"{found.folder / 'merges.txt'}: {odd[0]!r} is no pair of tokens")
    backend = byte_level(vocabulary, [(pair[0], pair[1]) for pair in pairs], CLASSES[kind])
    added = {token.content: token for token in found.added(vocabulary)}
    added |= _unlisted(found, vocabulary, added)
    add(backend, added.values())
    return Words(backend, Whole(json.loads(backend.to_str()), added), added, found.start(added, bos, asked=False))


def _class_of(folder: Path) -> str:
    """The class that a language model's own kind goes with, where no settings name one."""
    file = folder / "config.json"
    told = json.dumps(read_object(file)).lower() if file.is_file() else ""
    return "Qwen2Tokenizer" if "qwen" in told else ""


def _from_transformers(folder: Path, found: _Files, bos: int | None) -> Words:
    """What transformers itself can make of the folder: older formats of families that LLaVA has not met."""
    from transformers import AutoTokenizer

    files = sorted({file.name for pattern in _OTHERS for file in folder.glob(pattern)})
    try:
        with quiet():
            read = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever its classes make of a stranger's files
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{folder}: transformers makes no tokenizer of {', '.join(files)} there ({said}): copy the model's "
            "tokenizer.json, tokenizer.model, or vocab.json and merges.txt there"
        ) from error
    add(read.backend_tokenizer, found.more)
    made = json.loads(read.backend_tokenizer.to_str())
    return _words(read.backend_tokenizer, made, _held(read.backend_tokenizer, made), found, bos)
