"""Prompts, and rows of a batch: one picture, and around it a star of conversations that don't see each other.

A row begins with what all share: system prompt, perhaps some talk, the picture. A dozen conversations follow; each sees
the shared part and itself, and counts its positions from the shared part's end. So every question is trained as if it
came first, at the cost of one picture.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.asking import Asker, Turn
from training.pairs import ask_pair, make_pair
from training.questions import (
    ask,
    ask_caption,
    ask_colour,
    ask_count,
    ask_detail,
    ask_exist,
    ask_list,
    ask_text,
    ask_where,
)
from training.scenes import MOST_SPRITES, Scene, Split, make_scene, pack
from training.smalltalk import GREETING, chat

PATCHES = 256  # of a picture
MODEL = Path(__file__).parent.parent / "src" / "trifocal" / "thimble"

LLAVA_V0 = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab. You are able to understand "
    "the visual content that the user provides, and assist the user with a variety of tasks using natural language. "
    "Follow the instructions carefully and explain your answers in detail."
)
VICUNA = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
HELPFUL = "You are a helpful assistant."


class Form(NamedTuple):
    """How a conversation is written: before a question, between it and the answer, after that, before the next."""

    system: str
    after_system: str
    human: str
    assistant: str
    end: str
    next: str


FORMS = {
    "llava_v0_webui": Form(LLAVA_V0, "\n", "### Human: \n", "\n### Assistant: \n", "\n###", " Human: \n"),
    "llava_v1": Form(VICUNA, " ", "USER: ", " ASSISTANT:", "</s>", "USER: "),
    "llava_v0": Form(LLAVA_V0, "\n", "###Human: ", "\n###Assistant: ", "\n###", "Human: "),
}

PIECE = r" ?[A-Z]?[a-z]+| ?[A-Z]|\d| ?[^\sA-Za-z\d]+|\s+"  # what the tokenizer splits text into first
_SPLIT = re.compile(PIECE)


class Encoder:
    """Text to token ids, as tokenizer.json does it, piece by piece and remembered."""

    def __init__(self, path: Path = MODEL / "tokenizer.json") -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(path))
        self.begin, self.end = self._id("<s>"), self._id("</s>")
        self.patch, self.before, self.after = self._id("<im_patch>"), self._id("<im_start>"), self._id("<im_end>")
        self._known: dict[str, list[int]] = {}

    def _id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        assert isinstance(found, int), token
        return found

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in _SPLIT.findall(text):
            known = self._known.get(piece)
            if known is None:
                known = self.tokenizer.encode(piece, add_special_tokens=False).ids
                if len(self._known) < 200_000:
                    self._known[piece] = known
            ids += known
        return ids


class Span(NamedTuple):
    """Where a row holds an answer: positions ``first`` to ``last - 1`` predict its tokens."""

    kind: str
    first: int
    last: int


@dataclass
class Row:
    """One row of a batch, as it grows.

    ``features`` holds for every token which patch it stands for, or -1; ``conversations`` the number of its
    conversation, 0 for what all share; ``targets`` the positions that predict a token of an answer.
    """

    encode: Encoder
    form: Form
    ids: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    conversations: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def add(self, ids: list[int], conversation: int = 0, position: int | None = None) -> None:
        """Adds tokens, at their place in the row or at the position given."""
        start = len(self.ids) if position is None else position
        self.ids += ids
        self.features += [-1] * len(ids)
        self.conversations += [conversation] * len(ids)
        self.positions += range(start, start + len(ids))

    def say(self, text: str) -> None:
        """Adds text that all conversations share."""
        self.add(self.encode(text))

    def answer_ids(self, answer: str) -> list[int]:
        """The answer with what ends it."""
        if self.form.end == "</s>":
            return [*self.encode(f" {answer}"), self.encode.end]
        return self.encode(answer + self.form.end)

    def answer(self, kind: str, answer: str, conversation: int = 0, position: int | None = None) -> int:
        """Adds an answer to be learnt; returns its length in tokens."""
        ids = self.answer_ids(answer)
        first = len(self.ids) - 1
        self.add(ids, conversation, position)
        self.targets += range(first, first + len(ids))
        self.spans.append(Span(kind, first, first + len(ids)))
        return len(ids)

    def show(self, picture: int, seen: bool = True) -> None:
        """Adds a picture; one that is not ``seen`` has left the context and stays mere placeholders."""
        self.add([self.encode.before])
        start = len(self.ids)
        self.add([self.encode.patch] * PATCHES)
        if seen:
            self.features[start:] = range(picture * PATCHES, (picture + 1) * PATCHES)
        self.add([self.encode.after])

    def cut(self, tokens: int, targets: int, spans: int) -> None:
        """Takes back what was added since the row had these lengths."""
        for column in (self.ids, self.features, self.conversations, self.positions):
            del column[tokens:]
        del self.targets[targets:]
        del self.spans[spans:]


def _before_a_picture(asker: Asker) -> Turn:
    """A question about a picture that has not come yet."""
    scene = make_scene(asker.rng, kind="mixed")
    kinds = [ask_caption, ask_detail, ask_list, ask_exist, ask_where, ask_count, ask_colour, ask_text]
    turns = asker.rng.choice(kinds)(scene, asker)
    question = turns[0].question if turns else "What is in the picture?"
    if "Answer" in question:
        question = "What do you see?"
    return Turn("noimg", question, "I don't see a picture yet. Please send me one.")


def _aside(asker: Asker) -> Turn:
    """Something said before any picture."""
    return chat(asker) if asker.rng.random() < 0.6 else _before_a_picture(asker)


def _opening(row: Row, asker: Asker) -> str:
    """Adds the system prompt and perhaps some talk; returns what stands before the next question."""
    rng, form = asker.rng, row.form
    drawn = rng.random()
    system = form.system if drawn < 0.5 else ("" if drawn < 0.75 else (HELPFUL if drawn < 0.9 else VICUNA))
    before = (system + form.after_system if system else "") + form.human
    if rng.random() < 0.33:
        for _ in range(1 if rng.random() < 0.8 else 2):
            turn = GREETING if rng.random() < 0.3 else _aside(asker)
            row.say(before + turn.question + form.assistant)
            row.answer(turn.kind, turn.answer)
            before = form.next
    return before


Asks = Callable[[], list[Turn] | None]


def _one_picture(row: Row, asker: Asker, before: str, split: Split) -> tuple[list[Scene], Asks, str]:
    """Adds one picture, after its first question or before all; returns what stands before the next question."""
    rng, form = asker.rng, row.form
    scene = make_scene(rng, split)
    if rng.random() < 0.5:
        turn = ask(scene, asker)[0]
        row.say(before + turn.question + ("\n" if form is FORMS["llava_v1"] else rng.choice(["\n", "\n", ": \n", " "])))
        row.show(0)
        row.say(form.assistant)
        row.answer(turn.kind, turn.answer)
        return [scene], lambda: ask(scene, asker), form.next
    row.say(before)
    row.show(0)
    row.say(rng.choice(["\n", "\n", " "]))
    return [scene], lambda: ask(scene, asker), ""


def _two_pictures(row: Row, asker: Asker, before: str, split: Split) -> tuple[list[Scene], Asks, str]:
    """Adds two pictures, in one message or in two; of the latter, the first may have left the context."""
    rng, form = asker.rng, row.form
    pair = make_pair(rng, split)
    scenes = [pair.first, pair.second]
    if rng.random() < 0.5:
        row.say(before)
        row.show(0)
        row.say(rng.choice(["\n", " "]))
        row.show(1)
        row.say("\n")
        return scenes, lambda: ask_pair(pair, asker), ""
    seen = rng.random() < 0.6
    turn = ask(pair.first, asker)[0]
    row.say(before)
    row.show(0, seen)
    row.say("\n" + turn.question + form.assistant)
    if seen:
        row.answer(turn.kind, turn.answer)
    else:
        row.add(row.answer_ids(turn.answer))
    before = ""
    if rng.random() < 0.5:
        row.say(form.next)
        row.show(1)
        row.say("\n")
    else:
        turn = ask(pair.second, asker)[0]
        row.say(form.next + turn.question + "\n")
        row.show(1)
        row.say(form.assistant)
        row.answer(turn.kind, turn.answer)
        before = form.next
    if not seen:
        return scenes, lambda: ask(pair.second, asker), before
    return scenes, lambda: ask_pair(pair, asker) if rng.random() < 0.5 else ask(pair.second, asker), before


def make_row(
    rng: random.Random,
    encode: Encoder,
    tokens: int,
    targets: int,
    two: bool = False,
    split: Split = "train",
    held_out: bool = False,
) -> tuple[list[Scene], Row]:
    """Scenes, and a row about them of at most so many tokens and targets."""
    asker = Asker(rng, held_out)
    drawn = rng.random()
    form = FORMS["llava_v0_webui" if drawn < 0.6 else ("llava_v1" if drawn < 0.85 else "llava_v0")]
    row = Row(encode, form)
    row.add([encode.begin])
    before = _opening(row, asker)
    scenes, asks, before = (_two_pictures if two else _one_picture)(row, asker, before, split)
    if len(row.ids) > tokens or len(row.targets) > targets:
        return make_row(rng, encode, tokens, targets, two, split, held_out)
    shared = len(row.ids)
    conversation = fails = 0
    while fails < 3:
        turns = asks()
        if not turns:
            continue
        texts = [
            encode((before if place == 0 else form.next) + turn.question + form.assistant)
            for place, turn in enumerate(turns)
        ]
        likely = sum(len(turn.answer) // 3 for turn in turns)  # tokens of the answers, a guess
        more_tokens = sum(len(text) for text in texts) + likely + 3 * len(turns)
        if len(row.ids) + more_tokens > tokens or len(row.targets) + likely + 4 * len(turns) > targets:
            fails += 1
            continue
        lengths = len(row.ids), len(row.targets), len(row.spans)
        conversation += 1
        position = shared
        for text, turn in zip(texts, turns, strict=True):
            row.add(text, conversation, position)
            position += len(text)
            position += row.answer(turn.kind, turn.answer, conversation, position)
        if len(row.ids) > tokens or len(row.targets) > targets:
            row.cut(*lengths)
            fails += 1
    return scenes, row


Batch = dict[str, np.ndarray]


def make_batch(
    rng: random.Random,
    encode: Encoder,
    ones: int,
    twos: int,
    tokens: int = 640,
    targets: int = 288,
    split: Split = "train",
    held_out: bool = False,
) -> tuple[Batch, list[list[Span]]]:
    """A batch of ``ones`` rows with one picture and ``twos`` with two, always of the same shape.

    Returns:
        ``ids``, ``features``, ``conversations``, ``positions`` ``[rows, tokens]``, ``targets`` ``[rows, targets]``,
        ``slots`` ``[pictures, 16, 10]``, ``backgrounds`` ``[pictures, 9]``; and the answers' places.
    """
    rows, pictures = ones + twos, ones + 2 * twos
    batch: Batch = {
        "ids": np.zeros((rows, tokens), np.int16),
        "features": np.full((rows, tokens), -1, np.int32),
        "conversations": np.full((rows, tokens), 127, np.int8),
        "positions": np.zeros((rows, tokens), np.int16),
        "targets": np.full((rows, targets), -1, np.int16),
        "slots": np.zeros((pictures, MOST_SPRITES, 10), np.float32),
        "backgrounds": np.zeros((pictures, 9), np.float32),
    }
    spans = []
    for index in range(rows):
        two = index >= ones
        first = ones + 2 * (index - ones) if two else index
        scenes, row = make_row(rng, encode, tokens, targets, two, split, held_out)
        length = len(row.ids)
        features = np.array(row.features)
        batch["ids"][index, :length] = row.ids
        batch["features"][index, :length] = np.where(features >= 0, features + first * PATCHES, -1)
        batch["conversations"][index, :length] = row.conversations
        batch["positions"][index, :length] = row.positions
        batch["targets"][index, : len(row.targets)] = row.targets
        for place, scene in enumerate(scenes):
            batch["slots"][first + place], batch["backgrounds"][first + place] = pack(scene)
        spans.append([_of_two(span) if two else span for span in row.spans])
    return batch, spans


def _of_two(span: Span) -> Span:
    """Marks a question about one of two pictures."""
    return span if span.kind.startswith("two_") else span._replace(kind=f"2:{span.kind}")
