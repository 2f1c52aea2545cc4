"""Tokens that no file of the language model's folder has: the original's loader adds them, or a LoRA brings them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from checkpoint_maker import llama_tokenizer, save_tokenizer
from layouts import Family, family, save_lora, save_original
from trifocal.checkpoints import Checkpoint, from_folder, language_recipe, read_json
from trifocal.conversation.jinja import find_template
from trifocal.conversation.templates import Control
from trifocal.engines.language import open_language, tokenizer_of
from trifocal.engines.recipe import Recipe
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError
from trifocal.messages import Message
from trifocal.tools.convert import split

ROWS = 448  # of the families' embedding: their tokenizers' words and what fills it up to a multiple of 64
TURNS = "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def made() -> Family:
    return family("1.5")


@pytest.fixture
def lora(made: Family, tmp_path: Path) -> Path:
    return save_lora(family("1.5"), tmp_path / "lora", tmp_path / "base")


def words(checkpoint: Checkpoint) -> FileTokenizer:
    recipe = Recipe.from_json(language_recipe(checkpoint).to_json())  # as it comes to another process
    return tokenizer_of(open_language(recipe), ROWS)


def grown(base: Path, folder: Path, *names: str, special: bool = True) -> Tokenizer:
    """The base's tokenizer with these behind its own, saved into the folder as a trainer saves it."""
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokens = [AddedToken(name, special=special, normalized=False) for name in names]
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(tokens)
    save_tokenizer(tokenizer, folder)
    return tokenizer


@pytest.mark.parametrize("patch", [True, False, None])
def test_marks_that_the_tokenizer_lacks_get_the_next_ids(made: Family, tmp_path: Path, patch: bool | None) -> None:
    save_original(made, tmp_path, tower=tmp_path / "clip")
    told = {**read_json(tmp_path / "config.json"), "mm_use_im_start_end": True, "mm_use_im_patch_token": patch}
    if patch is None:
        del told["mm_use_im_patch_token"]  # the original takes it for true
    (tmp_path / "config.json").write_text(json.dumps(told))
    tokenizer = words(from_folder(tmp_path))
    last = made.tokenizer.get_vocab_size()
    marks = ["<im_start>", "<im_end>"] if patch is False else ["<im_patch>", "<im_start>", "<im_end>"]
    assert [tokenizer.token(mark) for mark in marks] == [last + at for at in range(len(marks))]
    assert last + 2 not in tokenizer.encode("<im_start>", start=False)


def test_marks_stay_where_they_are_when_it_is_taken_apart(made: Family, tmp_path: Path) -> None:
    save_original(made, tmp_path / "own", tower=tmp_path / "clip")
    told = {**read_json(tmp_path / "own" / "config.json"), "mm_use_im_start_end": True}
    (tmp_path / "own" / "config.json").write_text(json.dumps({**told, "mm_use_im_patch_token": False}))
    checkpoint = from_folder(tmp_path / "own")
    split(checkpoint, tmp_path / "parts")
    parts = {part: str(tmp_path / "parts" / part) for part in ("tower", "projector")}
    again = from_folder(tmp_path / "parts" / "language", **parts)
    assert words(again).token("<im_start>") == words(checkpoint).token("<im_start>") is not None


@pytest.mark.parametrize("special", [True, False])
def test_a_lora_s_own_tokens_stand_behind_its_base_s(lora: Path, tmp_path: Path, special: bool) -> None:
    theirs = grown(tmp_path / "base", lora, "<region>", "<|eot|>", special=special)
    tokenizer = words(from_folder(lora))
    first = theirs.token_to_id("<region>")
    assert [tokenizer.token("<region>"), tokenizer.token("<|eot|>")] == [first, first + 1]
    assert tokenizer.decode([first]) == ("" if special else "<region>")
    assert (first in tokenizer.encode("a <region>", start=True)) != special
    split(from_folder(lora), tmp_path / "parts")
    parts = {part: str(tmp_path / "parts" / part) for part in ("tower", "projector")}
    assert words(from_folder(tmp_path / "parts" / "language", **parts)).token("<region>") == first


def test_a_lora_s_tokenizer_with_no_more_than_its_base_s_changes_nothing(lora: Path, tmp_path: Path) -> None:
    before = words(from_folder(lora)).definition
    grown(tmp_path / "base", lora)
    assert words(from_folder(lora)).definition == before


@pytest.mark.parametrize(("name", "size"), [("<region>", 330), ("<pad>", 400)])
def test_a_tokenizer_that_is_not_the_base_s_is_told(lora: Path, name: str, size: int) -> None:
    save_tokenizer(llama_tokenizer(["<other>", name], size), lora)
    with pytest.raises(CheckpointError, match=r"its tokenizer .*; name the base .*--language-from"):
        words(from_folder(lora))


def test_the_template_that_a_lora_was_trained_with_is_taken(lora: Path, tmp_path: Path) -> None:
    grown(tmp_path / "base", lora, "<|turn|>")
    (lora / "chat_template.jinja").write_text(TURNS)
    checkpoint = from_folder(lora)
    assert checkpoint.template == "checkpoint"
    found = find_template("checkpoint", *checkpoint.language.homes)
    assert found.render([Message("user", "Why?")]) == (Control("<|turn|>", needed=False), "user: Why?")
