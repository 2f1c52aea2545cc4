"""Which tokens of a GGUF file end an answer: those that it names by a key, and names that llama.cpp knows.

Source: llama.cpp ``llama-vocab.cpp`` (``special_eog_ids``).
"""

from __future__ import annotations

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile
from trifocal.tokens.pieces import NORMAL

__all__ = ["ENDING", "end_tokens"]

_KEYS = ("eos", "eot", "eom")
_BAR, _GAP = "\N{FULLWIDTH VERTICAL LINE}", "\N{LOWER ONE EIGHTH BLOCK}"
_NAMES = """<|eot_id|> <|eom_id|> <|im_end|> <|end|> <|return|> <|call|> <|calls|> <|flush|> <end_of_turn> <|endoftext|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> </s> <turn|> <|tool_response> [e~["""
ENDING = frozenset((*_NAMES.split(), f"<{_BAR}end{_GAP}of{_GAP}sentence{_BAR}>"))
# what stands between files of code: by a key, or where there is none by one of these names
_BETWEEN = {
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
# families in which one of the names only parts what is said: the name, and what they have beside it
_PARTING = (
    ("<|end|>", {"<|return|>", "<|call|>"}),
    ("<|end|>", {"<|return|>", "<|calls|>"}),
    ("<|end|>", {"<|flush|>", "<|call|>"}),
    ("<|end|>", {"<|flush|>", "<|calls|>"}),
    ("</s>", {"<|tool_response>"}),
)


def end_tokens(file: GgufFile) -> list[int]:
    """The ids that end an answer, the file's own end first (2 in a SentencePiece file that names none).

    A name counts where it is a token of its own. llama.cpp also takes one that is a mere word of the vocabulary
    (``</s>`` in Qwen's, which is what strikes a text out on a page); here it stays a word.

    Raises:
        CheckpointError: an id that is no whole number.
    """
    tokens, kinds = (file.metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    named: dict[str, int] = {}
    if isinstance(tokens, list) and isinstance(kinds, list):  # whoever builds the tokenizer tells what is wrong else
        named = {str(token): at for at, (token, kind) in enumerate(zip(tokens, kinds, strict=False)) if kind != NORMAL}
    default = 2 if file.metadata.get("tokenizer.ggml.model") == "llama" else None
    told = [_told(file, key, default if key == "eos" else None) for key in _KEYS]
    told += [
        _told(file, key, next((named[name] for name in names if name in named), None))
        for key, names in _BETWEEN.items()
    ]
    found = [*told, *(named[name] for name in sorted(ENDING & named.keys()))]
    parting = {named[name] for name, beside in _PARTING if name in named and beside <= named.keys()}
    return [at for at in dict.fromkeys(found) if at is not None and at not in parting]


def _told(file: GgufFile, key: str, default: int | None) -> int | None:
    name = f"tokenizer.ggml.{key}_token_id"
    value = file.metadata.get(name, default)
    if value is not None and type(value) is not int:
        raise CheckpointError(f"{file.path}: {name} is {value!r}, a whole number was expected")
    return value
