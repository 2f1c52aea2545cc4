"""The tokenizer that a GGUF file carries in its metadata, as a `tokenizers.Tokenizer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["tokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

# How each family of byte-pair vocabularies cuts text into words before it merges (their own tokenizer.json files).
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CUTS = {
    "default": "",
    "gpt-2": "",
    "mpt": "",
    "qwen2": _WORDS % r"\p{N}",
    "llama-bpe": _WORDS % r"\p{N}{1,3}",
    "llama3": _WORDS % r"\p{N}{1,3}",
}


def tokenizer(file: GgufFile) -> Tokenizer:
    """The file's tokenizer: ``llama`` (SentencePiece with scores) or ``gpt2`` (byte-level merges).

    It begins a text with the file's beginning token where the file says so, as SentencePiece files do by default.
    Control tokens are special, so plain text never becomes one unless the caller asks for that.

    Raises:
        CheckpointError: another kind of tokenizer, or tables that do not go together.
    """
    kind = file.need("tokenizer.ggml.model")
    builders = {"llama": _sentencepiece, "gpt2": _byte_level}
    if kind not in builders:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.model is {kind!r}; can be read: {', '.join(builders)}")
    tokens = _strings(file, "tokens")
    kinds = file.metadata.get("tokenizer.ggml.token_type", [_NORMAL] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{file.path}: {len(tokens)} tokens have {len(kinds)} types")
    try:
        built = builders[kind](file, tokens)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file.path}: the tokenizer can't be built: {error}") from error
    _add_special(built, tokens, kinds)
    _begin(built, file, tokens)
    return built


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.need("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        raise CheckpointError(f"{file.path}: {len(tokens)} tokens have {len(scores)} scores")
    unknown = file.metadata.get("tokenizer.ggml.unknown_token_id", 0)
    if not 0 <= unknown < len(tokens):
        raise CheckpointError(f"{file.path}: the unknown token is {unknown}, of {len(tokens)} tokens")
    vocabulary = _vocabulary(file, tokens)
    model = models.BPE(
        vocabulary, _merges(vocabulary, scores), unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True
    )
    built = Tokenizer(model)
    spaces: list[Any] = [normalizers.Replace(" ", _SPACE)]
    strip: list[Any] = []
    if file.metadata.get("tokenizer.ggml.add_space_prefix", True):
        spaces.insert(0, normalizers.Prepend(_SPACE))
        strip = [decoders.Strip(" ", 1, 0)]
    built.normalizer = normalizers.Sequence(spaces)
    built.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return built


def _merges(vocabulary: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, best score first: the order in which SentencePiece joins."""
    found: list[tuple[float, int, int, str, str]] = []
    for piece, index in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], vocabulary[left], vocabulary[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = file.metadata.get("tokenizer.ggml.pre", "default")
    if cut not in _CUTS:
        raise CheckpointError(f"{file.path}: tokenizer.ggml.pre is {cut!r}; can be read: {', '.join(_CUTS)}")
    merges: list[tuple[str, str]] = []
    for line in _strings(file, "merges"):
        left, space, right = line.partition(" ")
        if not space:
            raise CheckpointError(f"{file.path}: the merge {line!r} is no pair")
        merges.append((left, right))
    built = Tokenizer(models.BPE(_vocabulary(file, tokens), merges))
    if cut == "qwen2":
        built.normalizer = normalizers.NFC()
    if _CUTS[cut]:
        split = pre_tokenizers.Split(Regex(_CUTS[cut]), behavior="isolated")
        byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built.pre_tokenizer = pre_tokenizers.Sequence([split, byte])
    else:
        built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    return built


def _add_special(built: Tokenizer, tokens: list[str], kinds: list[int]) -> None:
    from tokenizers import AddedToken

    added = [
        AddedToken(token, normalized=False, special=kind != _USER)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_UNKNOWN, _CONTROL, _USER)
    ]
    built.add_special_tokens([token for token in added if token.special])
    built.add_tokens([token for token in added if not token.special])


def _begin(built: Tokenizer, file: GgufFile, tokens: list[str]) -> None:
    from tokenizers import processors

    start = file.metadata.get("tokenizer.ggml.bos_token_id")
    spm = file.metadata["tokenizer.ggml.model"] == "llama"
    if start is None or not file.metadata.get("tokenizer.ggml.add_bos_token", spm):
        return
    if not 0 <= start < len(tokens):
        raise CheckpointError(f"{file.path}: the beginning token is {start}, of {len(tokens)} tokens")
    first = tokens[start]
    built.post_processor = processors.TemplateProcessing(single=[first, "$A"], special_tokens=[(first, start)])


def _vocabulary(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise CheckpointError(f"{file.path}: {len(tokens) - len(vocabulary)} tokens stand in the vocabulary twice")
    return vocabulary


def _strings(file: GgufFile, name: str) -> list[str]:
    values = file.need(f"tokenizer.ggml.{name}")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise CheckpointError(f"{file.path}: tokenizer.ggml.{name} is no list of texts")
    return values
