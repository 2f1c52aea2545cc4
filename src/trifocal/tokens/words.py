"""What a tokenizer's files say, whatever their format: every token by its id, and how text is cut into them."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Protocol

from trifocal.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

__all__ = ["GUARDED", "Added", "Coder", "Whole", "Words", "add", "coded", "kept", "named", "panicked"]

# what templates and composers write, and what only they may write: where a file calls one of these an ordinary token,
# typing it would open a turn or a picture
GUARDED = frozenset(
    {"<s>", "</s>", "<bos>", "<image>", "<video>", "<im_patch>", "<im_start>", "<im_end>"}
    | {"<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|begin_of_text|>"}
    | {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"}
)
_WIDEST_GAP = 1 << 20
# what `\s` and Rust mean by white space, which is not all that `str.strip` takes away
_SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class Coder(Protocol):
    """Plain text to ids."""

    def encode(self, text: str, *, new: bool, after: str | None, before: str | None) -> list[int]:
        """Ids of a run of text.

        ``new`` says that it is a text of its own, as at the beginning of a prompt; else it goes on behind a token.
        ``after`` and ``before`` name the tokens right beside it, where there are any.
        """
        ...


@dataclass(frozen=True, slots=True)
class Added:
    """A token that is no piece of the model, or has a meaning of its own; its flags are those of tokenizer.json.

    ``left`` and ``right`` say that it takes the white space on that side of it away.
    """

    content: str
    id: int
    special: bool = True
    left: bool = False
    right: bool = False

    @property
    def guarded(self) -> bool:
        """Whether typed text never becomes it."""
        return self.special or self.content in GUARDED


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """A tokenizer as its files tell it.

    ``backend`` knows every token by its id and makes text of them, ``coder`` makes ids of plain text, ``added`` are
    the tokens with a name, ``start`` is what the files put in front of a prompt.
    """

    backend: Backend
    coder: Coder
    added: Mapping[str, Added] = field(default_factory=dict)
    start: tuple[int, ...] = ()


class Whole:
    """Text by the rules of a ``tokenizer.json``, or what is built in its likeness.

    Two copies work together, both without the tokens that only templates write. One is for texts of their own, the
    other for text that goes on: where a space is put before the first word alone (``prepend_scheme: first``), it puts
    none. The older ``Prepend`` puts one before every piece, as the LLaMA tokenizer of LLaVA's day did.
    """

    def __init__(self, made: Mapping[str, Any], added: Mapping[str, Added]) -> None:
        guarded = {name for name, token in added.items() if token.guarded}
        self._new = _backend(_unspellable(made, guarded))
        self._later = _backend(_unspellable(_never_prepending(made), guarded))
        self._added = added

    def encode(self, text: str, *, new: bool, after: str | None, before: str | None) -> list[int]:
        """See `Coder.encode`."""
        text = _trimmed(text, self._added.get(after or ""), self._added.get(before or ""), _SPACES)
        return coded(self._new if new else self._later, text)


def coded(backend: Backend, text: str) -> list[int]:
    """The ids of a text by a tokenizer of the library.

    As a batch of one: only a batch lets other threads run meanwhile, and a long text takes seconds.

    Raises:
        UsageError: the library panics at it, as at an added token that the tokenizer's normaliser takes away whole.
    """
    try:
        (read,) = backend.encode_batch_fast([text], add_special_tokens=False)
    except BaseException as error:
        if not panicked(error):
            raise
        said = " ".join(str(error).split())[:200]
        raise UsageError(f"this model's tokenizer can't read that text: its library fails ({said})") from error
    ids: list[int] = read.ids
    return ids


def panicked(error: BaseException) -> bool:
    """Whether it is a panic of Rust's, which is no `Exception`."""
    return type(error).__name__ == "PanicException"


def _trimmed(text: str, after: Added | None, before: Added | None, spaces: str | None = None) -> str:
    text = text.lstrip(spaces) if after is not None and after.right else text
    return text.rstrip(spaces) if before is not None and before.left else text


def _backend(made: Mapping[str, Any]) -> Backend:
    from tokenizers import Tokenizer as Backend

    return Backend.from_str(json.dumps(made))


def kept(made: dict[str, Any]) -> dict[str, Any]:
    """The text of a tokenizer.json whose tokens all keep the ids that it gives them.

    The library numbers added tokens as they come, so a gap or another order would move them: gaps are filled with
    names that nobody can type. Where an added token has the id of a piece, it takes that piece's place.
    """
    model = made["model"]
    pieces: dict[str, int] = model["vocab"] if isinstance(model["vocab"], dict) else {}
    names = {at: piece for piece, at in pieces.items()}
    for token in made["added_tokens"]:
        held = names.get(token["id"])
        if held is not None and held != token["content"] and token["content"] not in pieces:
            model = _renamed(model, {held: token["content"]})
    first = len(model["vocab"])
    later = {int(token["id"]): token for token in made["added_tokens"] if int(token["id"]) >= first}
    inside = [token for token in made["added_tokens"] if int(token["id"]) < first]
    _check_gap(first + len(later), max(later, default=0))
    filled = [later.get(at) or _filler(at) for at in range(first, max(later, default=-1) + 1)]
    return {**made, "model": model, "added_tokens": [*inside, *filled]}


def _check_gap(tokens: int, last: int) -> None:
    """Refuses an id so far behind the others that filling the gap would take all memory."""
    if last > tokens + _WIDEST_GAP:
        raise ValueError(f"an added token has the id {last}, of {tokens} tokens")


def _filler(at: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": at, "content": _nobody(), **flags, "special": True}


def _nobody() -> str:
    """A name that nobody can guess, so that no text is it."""
    return f"\N{NULL}{secrets.token_hex(16)}"


def _unspellable(made: Mapping[str, Any], guarded: Iterable[str]) -> dict[str, Any]:
    """The same tokenizer, ids and all, in which these tokens have names that no text can be."""
    secret = {name: _nobody() for name in guarded}
    tokens = [{**token, "content": secret.get(token["content"], token["content"])} for token in made["added_tokens"]]
    changes = {"added_tokens": tokens, "post_processor": None, "truncation": None, "padding": None}
    return {**made, **changes, "model": _renamed(made["model"], secret)}


def _renamed(model: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A model some of whose pieces have other names; no merge makes those."""
    vocabulary = model["vocab"]
    changed: dict[str, Any] = {**model}
    if isinstance(vocabulary, dict):
        changed["vocab"] = {names.get(piece, piece): at for piece, at in vocabulary.items()}
    else:
        changed["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if isinstance(model.get("unk_token"), str):
        changed["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        changed["merges"] = [merge for merge in model["merges"] if not _makes(merge, names)]
    return changed


def _makes(merge: Any, names: Mapping[str, str]) -> bool:
    left, right = merge if isinstance(merge, list) else str(merge).split(" ", 1)
    return bool(names.keys() & {left, right, left + right})


def _never_prepending(made: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer for text that goes on: where only the first word gets a space, none does."""

    def changed(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: "never" if (k, v) == ("prepend_scheme", "first") else changed(v) for k, v in value.items()}
        return [changed(item) for item in value] if isinstance(value, list) else value

    return {**made, "pre_tokenizer": changed(made.get("pre_tokenizer"))}


def add(backend: Backend, added: Iterable[Added], *, normalized: bool = False) -> None:
    """Gives a tokenizer that was built from a vocabulary its named tokens, each at its own id.

    ``normalized`` says that they are found in the text as the tokenizer's normaliser leaves it.
    """
    from tokenizers import AddedToken

    ordered: list[Added] = []
    at = backend.get_vocab_size()
    added = list(added)
    _check_gap(at + len(added), max((token.id for token in added), default=0))
    for token in sorted(added, key=lambda token: token.id):
        ordered += [Added(_nobody(), gap) for gap in range(at, token.id)]
        ordered.append(token)
        at = max(at, token.id + 1)
    for special, group in groupby(ordered, key=lambda token: token.special):
        tokens = [AddedToken(t.content, normalized=normalized, lstrip=t.left, rstrip=t.right) for t in group]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)


def named(names: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds these names in a text, the longest first; it finds nothing where there are none.

    It goes letter by letter, so that a thousand names cost a text no more than one.
    """
    return re.compile(_spelled({name for name in names if name}) or r"(?!)", re.DOTALL)


def _spelled(names: Iterable[str]) -> str:
    rests: dict[str, set[str]] = {}
    for name in names:
        if name:
            rests.setdefault(name[0], set()).add(name[1:])
    branches = []
    for letter, ends in sorted(rests.items()):
        more = _spelled(ends)
        branches.append(re.escape(letter) + (f"(?:{more}){'?' if '' in ends else ''}" if more else ""))
    return "|".join(branches)
