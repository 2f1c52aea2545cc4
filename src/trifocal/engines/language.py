"""A checkpoint's language half, opened: its tensors, what every loader reads beside them, and checks in them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trifocal.engines.base import Attention
from trifocal.engines.recipe import Recipe
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError
from trifocal.files import read_object
from trifocal.source import source_of
from trifocal.tokens.folder import grown, read_words
from trifocal.tokens.words import Added, Words
from trifocal.weights.lora import changed_weights
from trifocal.weights.packed import Located
from trifocal.weights.quantised import open_weights
from trifocal.weights.tensors import whole_language

__all__ = [
    "HEAD",
    "TABLE",
    "Language",
    "check_blocks",
    "check_finite",
    "config_file",
    "end_ids",
    "file_of",
    "open_language",
    "stored_twice",
    "tokenizer_of",
    "unrunnable",
]

TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_BLOCK = re.compile(r"(?:model\.layers|transformer\.blocks)\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Language:
    """The language half that a recipe names.

    ``folder`` holds the tokenizer's files, ``weights`` maps canonical names (``model.embed_tokens.weight``,
    ``lm_head.weight``) to tensors that are read from disk when they are asked for; quantised ones are presented as the
    dense ones they stand for (`trifocal.weights.quantised`). ``tokenizer`` is there where the weights' own file holds
    it (GGUF): then ``folder`` is that file. The rest is that of the `Recipe`.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    tokenizer: Words | None = None
    original: bool = False
    attention: Attention = "causal"
    adapter: Path | None = None
    marks: tuple[str, ...] = ()

    @property
    def config_file(self) -> Path:
        """The file that tells the configuration."""
        return config_file(self.folder)


def open_language(recipe: Recipe) -> Language:
    """Finds a recipe's files; tensors are read when they are asked for.

    Raises:
        CheckpointError: weights missing, damaged, or pickles that are not allowed.
    """
    path, config = recipe.path, recipe.config
    adapter = Path(recipe.adapter) if recipe.adapter is not None else None
    if recipe.whole:
        weights = whole_language(path)
        config = {**config, "tie_word_embeddings": HEAD not in weights}  # whose flag counts, classes differ
    else:
        weights = changed_weights(path, "language", adapter, allow_pickle=recipe.allow_pickle)
    tokenizer = source_of(path).tokenizer()
    if tokenizer is not None:
        return Language(path, config, weights, tokenizer, recipe.original, recipe.attention)
    dense = open_weights(weights, config, path, lambda name: str(weights.where(name)))
    return Language(path, config, dense, None, recipe.original, recipe.attention, adapter, tuple(recipe.marks))


def config_file(source: Path) -> Path:
    """The file that tells the configuration."""
    return source / "config.json" if source.is_dir() else source


def unrunnable(recipe: Recipe, engine: str, reason: str) -> CheckpointError:
    """What is told where an engine can't run a language model, and what may."""
    return CheckpointError(
        f"{config_file(recipe.path)}: the engine {engine} can't run this language model: {reason}; "
        "the engine transformers may"
    )


def file_of(language: Language, name: str) -> Path:
    """The file of a tensor, as near as the weights tell it."""
    return language.weights.where(name) if isinstance(language.weights, Located) else language.folder


def tokenizer_of(language: Language, rows: int) -> FileTokenizer:
    """The tokenizer, each of whose words has its row in the embedding; control tokens may go without."""
    starts = _ids_of(language.config_file, language.config, "bos_token_id")
    if len(starts) > 1:
        raise CheckpointError(f"{language.config_file}: bos_token_id is {sorted(starts)}, one id was expected")
    bos = next(iter(starts), None)
    begins = language.attention != "prompt"
    day = language.config.get("transformers_version") if language.original else None
    words = language.tokenizer or _words(language, bos, day)
    tokenizer = FileTokenizer(words, rows=rows, begins=begins, parts=language.original)
    _check_start(language, tokenizer.start, rows)
    if tokenizer.largest >= rows:
        names = ("tokenizer.json", "tokenizer.model", "vocab.json")
        file = next((language.folder / name for name in names if (language.folder / name).is_file()), language.folder)
        raise CheckpointError(f"{file}: has a token {tokenizer.largest}, the embedding (embed_tokens) has {rows} rows")
    return tokenizer


def _words(language: Language, bos: int | None, day: object) -> Words:
    """The words in a folder, and behind them those that a LoRA's own tokenizer or the original's loader adds."""
    read = partial(read_words, language.folder, bos=bos, slow=language.original, day=day)
    words = read()
    more = grown(words, language.folder, language.adapter) if language.adapter is not None else ()
    held = {*words.added, *(token.content for token in more)}
    first = max((words.backend.get_vocab_size() - 1, *(token.id for token in more))) + 1
    missing = [mark for mark in language.marks if mark not in held]
    more = (*more, *(Added(mark, first + at) for at, mark in enumerate(missing)))
    return read(more=more) if more else words


def _check_start(language: Language, start: Sequence[int], rows: int) -> None:
    """Refuses a beginning that has no row; an id that no prompt begins with may be any."""
    for token in start:
        if token >= rows:
            where = language.config_file if token == language.config.get("bos_token_id") else language.folder
            raise CheckpointError(f"{where}: bos_token_id is {token}, an id below {rows} was expected")


def end_ids(language: Language, rows: int) -> frozenset[int]:
    """All ids that end an answer, as transformers has it.

    Where ``generation_config.json`` names any, the configuration's count no more: it may have its class's own, which is
    a word in another vocabulary. An id beyond the vocabulary is never drawn, and nothing is lost with it beside others.

    Raises:
        CheckpointError: one is no number, or all are beyond the vocabulary.
    """
    file = language.folder / "generation_config.json"
    generation = read_object(file) if file.is_file() else {}
    own = _ids_of(language.config_file, language.config, "eos_token_id")
    told = _ids_of(file, generation, "eos_token_id")
    ids, where = (told, file) if told else (own, language.config_file)
    ends = frozenset(token for token in ids if 0 <= token < rows)
    if ids and not ends:
        raise CheckpointError(f"{where}: eos_token_id is {_listed(ids)}, an id below {rows} was expected")
    return ends


def check_blocks(told: int | None, language: Language) -> None:
    """As many blocks are told as there are: a wrong number may be so large that nobody ever builds them."""
    found = {match[1] for name in language.weights if (match := _BLOCK.match(name))}
    if found and told != len(found):
        raise CheckpointError(
            f"{language.config_file}: num_hidden_layers is {told}, of {len(found)} blocks there are tensors, up to "
            f"{max(found, key=int)}"
        )


def stored_twice(language: Language, *, tied: bool) -> str:
    """Which of head and table is the other one again, or nothing; as transformers has it.

    ``tied`` is what the configuration says. Where one alone is stored, it is the other one that has its name here.
    """
    stored = [name for name in (TABLE, HEAD) if name in language.weights]
    if not tied or not stored:
        return ""
    if len(stored) == 2:
        return HEAD if torch.equal(language.weights[TABLE], language.weights[HEAD]) else ""
    return HEAD if stored == [TABLE] else TABLE


def check_finite(values: torch.Tensor, stored: torch.Tensor, what: str) -> None:
    """Refuses what is no number. The sum is none where any of them is none, and costs one reading of the memory."""
    if bool(torch.isfinite(values.sum(dtype=torch.float32))) or bool(torch.isfinite(values).all()):
        return
    if bool(torch.isfinite(stored.float()).all()):
        raise CheckpointError(f"{what} holds numbers too large for {values.dtype}; place it in float32 or bfloat16")
    raise CheckpointError(f"{what} holds numbers that are not finite")


def _ids_of(file: Path, config: Mapping[str, Any], key: str) -> frozenset[int]:
    """The ids under a key: none, one or several.

    Raises:
        CheckpointError: one is no whole number.
    """
    value = config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if type(token) is not int:
            raise CheckpointError(f"{file}: {key} is {token!r}, a whole number was expected")
    return frozenset(ids)


def _listed(ids: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ids)))
