"""The tokenizer that a GGUF file carries in its metadata."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import isfinite
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.gguf.ends import ENDING
from trifocal.tokens.bytelevel import PRE, Cut, byte_level
from trifocal.tokens.generations import Manner
from trifocal.tokens.pieces import CONTROL, NORMAL, SPACE, UNKNOWN, USER, PieceCoder, Pieces
from trifocal.tokens.words import Added, Whole, Words, add

__all__ = ["tokenizer"]

# Phi-3's tokens take the white space behind them away, which its files do not say; llama.cpp goes by the model's name
_TRIMMING, _NOT_TRIMMING = ("phi-3", "phi3"), ("<unk>", "<s>", "<|endoftext|>")
_LINES = r"[^\n]+|[\n]+"


def tokenizer(file: GgufFile) -> Words:
    """The file's tokenizer: SentencePiece with scores (``llama``), byte-level merges (``gpt2``), Gemma 4's merges.

    It begins a text with the file's beginning token where the file says so, or where its family does by default.

    Raises:
        CheckpointError: another kind of tokenizer, or tables that do not go together.
    """
    kind = file.need("tokenizer.ggml.model")
    builders = {"llama": _sentencepiece, "gpt2": _byte_level, "gemma4": _lines}
    if not isinstance(kind, str) or kind not in builders:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.model is {kind!r}; can be read: {', '.join(builders)}")
    tokens = _strings(file, "tokens")
    kinds = _numbers(file, "token_type", [NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{file.path}: {len(tokens)} tokens have {len(kinds)} types")
    if len(set(tokens)) != len(tokens):
        twice = len(tokens) - len(set(tokens))
        raise CheckpointError(f"{file.path}: {twice} tokens stand in the vocabulary twice")
    try:
        return builders[kind](file, tokens, kinds)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file.path}: the tokenizer can't be built: {error}") from error


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: list[int]) -> Words:
    scores = _numbers(file, "scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{file.path}: {len(tokens)} tokens have {len(scores)} scores")
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not _is_id(unknown, tokens):
        raise CheckpointError(f"{file.path}: the unknown token is {unknown!r}, of {len(tokens)} tokens")
    prefix = bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True))
    pieces = Pieces(tokens, scores, kinds, prefix=prefix, unknown=unknown)
    added = _added(file, tokens, kinds)
    backend = pieces.backend()
    add(backend, added.values())
    rules = Manner() if prefix else Manner("keep", "keep")
    coder = PieceCoder(pieces, added, rules, inner=False)  # llama.cpp looks for the maker's pieces before the rest
    return Words(backend, coder, added, _start(file, tokens, begins=True))


def _byte_level(file: GgufFile, tokens: list[str], kinds: list[int]) -> Words:
    name = file.metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(name, str) or name not in PRE:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.pre is {name!r}; can be read: {', '.join(sorted(PRE))}")
    cut: Cut = PRE[name]
    return _merged(file, tokens, kinds, byte_level(_numbered(tokens), _merges(file), cut), begins=cut.begins)


def _lines(file: GgufFile, tokens: list[str], kinds: list[int]) -> Words:
    """Gemma 4: merges over letters, line by line, with bytes for the letters that are no pieces."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    built = Tokenizer(models.BPE(_numbered(tokens), _merges(file), byte_fallback=True, fuse_unk=True))
    built.normalizer = normalizers.Replace(" ", SPACE)
    built.pre_tokenizer = pre_tokenizers.Split(Regex(_LINES), behavior="isolated")
    built.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    return _merged(file, tokens, kinds, built, begins=True)


def _merged(file: GgufFile, tokens: list[str], kinds: list[int], built: Any, *, begins: bool) -> Words:
    added = _added(file, tokens, kinds)
    add(built, added.values())
    return Words(built, Whole(json.loads(built.to_str()), added), added, _start(file, tokens, begins=begins))


def _added(file: GgufFile, tokens: Iterable[str], kinds: list[int]) -> dict[str, Added]:
    """The tokens with a name: those that no text becomes, and those that are found whole."""
    about = str(file.metadata.get("general.name", "")).lower()
    trims = any(name in about for name in _TRIMMING)
    return {
        token: Added(token, at, special=kind != USER or token in ENDING, right=trims and token not in _NOT_TRIMMING)
        for at, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (UNKNOWN, CONTROL, USER)
    }


def _start(file: GgufFile, tokens: list[str], *, begins: bool) -> tuple[int, ...]:
    """The beginning token, where the file wants one."""
    default = 1 if file.metadata["tokenizer.ggml.model"] == "llama" and len(tokens) > 1 else None  # as in llama.cpp
    start = file.metadata.get("tokenizer.ggml.bos_token_id", default)
    wanted = file.metadata.get("tokenizer.ggml.add_bos_token", begins)
    if not isinstance(wanted, (bool, int)):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.add_bos_token is {wanted!r}, true or false was expected")
    if start is None or not wanted:
        return ()
    if not _is_id(start, tokens):
        raise CheckpointError(f"{file.path}: the beginning token is {start!r}, of {len(tokens)} tokens")
    return (start,)


def _is_id(value: object, tokens: list[str]) -> bool:
    return type(value) is int and 0 <= value < len(tokens)


def _numbers(file: GgufFile, name: str, default: list[int] | None = None) -> Any:
    """A number for each token, which are finite."""
    key = f"tokenizer.ggml.{name}"
    values = file.need(key) if default is None else file.metadata.get(key, default)
    if not isinstance(values, list) or not all(isinstance(one, (int, float)) and isfinite(one) for one in values):
        raise CheckpointError(f"{file.path}: {key} is no list of numbers")
    return values


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: at for at, token in enumerate(tokens)}


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for line in _strings(file, "merges"):
        left, space, right = line.partition(" ")
        if not space:
            raise CheckpointError(f"{file.path}: the merge {line!r} is no pair")
        merges.append((left, right))
    return merges


def _strings(file: GgufFile, name: str) -> list[str]:
    values = file.need(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} is no list of texts")
    return values
