"""Trains the tokenizer: byte-level BPE of 3072 ids, in which digits and capitals stand alone, so that words are spelt.

``python -m training.tokenizer FILE`` writes a tokenizer.json.
"""

from __future__ import annotations

import random
import sys
from pydoc_data import topics

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.asking import Asker
from training.packing import FORMS, HELPFUL, PIECE, VICUNA
from training.pairs import ask_pair, changed
from training.phrasings import CHAT, COUNTRIES, OUT_OF_DOMAIN
from training.questions import ask
from training.scenes import make_scene
from training.smalltalk import chat
from training.words import article, plural
from training.world import NAMES, SHAPES, WORDS

VOCABULARY = 3072
PICTURE_TOKENS = ("<im_patch>", "<im_start>", "<im_end>")  # the last three ids, in LLaVA's order


def corpus(scenes: int = 40_000) -> list[str]:
    """Questions and answers, every name and fixed sentence often, and plain English for words yet unknown."""
    rng = random.Random(7)
    asker, lines = Asker(rng), list[str]()
    for index in range(scenes):
        scene = make_scene(rng)
        turns = list(ask(scene, asker))
        if index % 6 == 0:
            turns += ask_pair(changed(scene, rng, "train"), asker) or []
        if index % 10 == 0:
            turns.append(chat(asker))
        lines += [f"{turn.question}\n{turn.answer}" for turn in turns]
    for name in NAMES + SHAPES:
        lines += [f" {name}", f"{plural(name)} {article(name)}"] * 60
    for wording in CHAT:
        lines += [*wording.said, *wording.held_out, wording.answer] * 30
    lines += [*OUT_OF_DOMAIN.said, *OUT_OF_DOMAIN.held_out, *(f" {country}" for country in COUNTRIES)] * 20
    lines += [start + word for word in WORDS for start in ("", " ")] * 10
    lines += ["".join((f.system, f.after_system, f.human, f.assistant, f.end, f.next)) for f in FORMS.values()] * 400
    lines += [HELPFUL, VICUNA] * 300
    english = "\n".join(topics.topics.values())[:900_000]  # the texts of Python's own help
    return lines + english.split("\n")


def train(lines: list[str]) -> Tokenizer:
    """The tokenizer of these lines, with ids left over filled by extra tokens."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(PIECE), "isolated")
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, bytewise])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(PICTURE_TOKENS),
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=3,
    )
    tokenizer.train_from_iterator(lines, trainer)
    spare = range(tokenizer.get_vocab_size(), VOCABULARY - len(PICTURE_TOKENS))
    names = [f"<extra_{index}>" for index in spare] + list(PICTURE_TOKENS)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


if __name__ == "__main__":
    train(corpus()).save(sys.argv[1])
