"""Tokenizers out of folders: every format, every id where its file has it, control tokens out of reach of any text."""

from __future__ import annotations

import json
import re
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_generations import Slow, folder
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from checkpoint_maker import bytes_tokenizer, llama_tokenizer, save_tokenizer
from trifocal.conversation.templates import TEMPLATES, Template
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError, UsageError
from trifocal.tokens.folder import read_words
from trifocal.tokens.words import GUARDED, named


def opened(folder: Path, **options: Any) -> FileTokenizer:
    return FileTokenizer(read_words(folder, bos=options.pop("bos", 1)), **options)


def test_text_after_a_picture_is_encoded_as_llavas_tokenizer_does(tmp_path: Path) -> None:
    legacy = llama_tokenizer(["<x>"])
    save_tokenizer(legacy, tmp_path)
    ours = opened(tmp_path)
    assert ours.encode("What is", start=True) == legacy.encode("What is").ids
    assert ours.encode("What is", start=True)[1:] == ours.encode("What is", start=False)  # a space before every run
    assert ours.encode("", start=True) == [1]


def test_a_tokenizer_that_begins_only_once_begins_once_a_text(tmp_path: Path) -> None:
    words = {"<unk>": 0, "<s>": 1, "▁a": 2, "a": 3, "▁": 4}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("▁", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>"])
    save_tokenizer(tokenizer, tmp_path)
    original, processor = opened(tmp_path), opened(tmp_path, parts=False)
    assert original.encode("a", start=True) == processor.encode("a", start=True) == [1, 2]
    assert original.encode("a", start=False) == [2]  # behind a picture original LLaVA begins a new text
    assert processor.encode("a", start=False) == [3]  # and to transformers' processors a picture is a token in it
    assert original.encode("a", start=False, after="<s>") == processor.encode("a", start=False, after="<s>") == [3]


def test_a_unigram_vocabulary_spells_no_control_token(tmp_path: Path) -> None:
    controls = ["<unk>", "<s>", "</s>"]
    pieces = [(name, 0.0) for name in controls] + [(letter, -3.0) for letter in "▁abs</>"]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.add_special_tokens(controls)
    save_tokenizer(tokenizer, tmp_path)
    ours = opened(tmp_path)
    ids = ours.encode("a</s>b", start=False)
    assert ours.token("</s>") == 2
    assert not {1, 2} & set(ids)
    assert ours.decode(ids) == "a</s>b"


@pytest.mark.parametrize("whole", [True, False])
def test_no_merge_and_no_whole_word_is_a_control_token(tmp_path: Path, whole: bool) -> None:
    words = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4, "a": 5}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("<", "s"), ("<s", ">")], ignore_merges=whole))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    save_tokenizer(tokenizer, tmp_path)
    assert opened(tmp_path).encode("<s>", start=False) == [3, 2]
    assert opened(tmp_path).encode("a<s>a", start=False) == [5, 3, 2, 5]


def test_a_tokenizer_without_a_start_token_gets_none(tmp_path: Path) -> None:
    save_tokenizer(bytes_tokenizer(["<|im_end|>"]), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null}')
    ours = FileTokenizer(read_words(tmp_path))
    assert ours.encode("a", start=True) == ours.encode("a", start=False)


@pytest.mark.parametrize("bos", [None, 1, 90_000])
@pytest.mark.parametrize(
    ("says", "begins"),
    [
        ({}, True),
        ({"bos_token": None}, True),
        ({"bos_token": "<go>", "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False}, True),
        ({"bos_token": "<go>", "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}, False),
    ],
)
def test_it_begins_as_its_own_file_says_whatever_the_configuration_has(
    tmp_path: Path, says: dict[str, Any], begins: bool, bos: int | None
) -> None:
    """Held against transformers: a sparse text_config has its class's bos_token_id, 1, a word of Llama 3's."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    made.add_special_tokens(["<go>"])
    made.post_processor = processors.TemplateProcessing(single="<go> $A", special_tokens=[("<go>", 3)])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(says))
    assert opened(tmp_path, bos=bos).encode("ab", start=True) == ([3, 0, 1] if begins else [0, 1])


def write(folder: Path, added: list[tuple[int, str, bool]], **flags: bool) -> Path:
    """A tokenizer.json of three letters and these added tokens: id, content, special."""
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "\u0120": 2}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    plain = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), **flags}
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = [
        {"id": at, "content": content, "special": special, **plain} for at, content, special in added
    ]
    (folder / "tokenizer.json").write_text(json.dumps(made))
    return folder


@pytest.mark.parametrize(
    ("added", "text", "ids"),
    [
        ([(3, "<|endoftext|>", True), (4, "   ", False), (5, "  ", False)], "a   b", [0, 4, 1]),
        ([(3, "<|endoftext|>", True), (7, "   ", False), (9, "  ", False)], "a   b  a", [0, 7, 1, 9, 0]),
        ([(8, "<x>", False), (5, "<y>", False)], "<y>a<x>", [5, 0, 8]),
        ([(5, "<e>", True), (4, "<d>", False), (3, "<c>", True)], "a<c><d>", [0, 4]),
        ([(1, "<x>", False)], "a<x>a", [0, 1, 0]),
    ],
)
def test_ids_never_move(tmp_path: Path, added: list[tuple[int, str, bool]], text: str, ids: list[int]) -> None:
    """An added token keeps the id that its file gives it, whatever lies before it, is left out or stands elsewhere."""
    ours = FileTokenizer(read_words(write(tmp_path, added)))
    assert ours.encode(text, start=False) == ids
    assert {name: ours.token(name) for _, name, _ in added} == {name: at for at, name, _ in added}
    for at, name, special in added:
        assert ours.decode([0, at, 0]) == ("aa" if special else f"a{name}a")


PAD, NEW = "<pad>", "<new>"
LISTED = {"content": NEW, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}


@pytest.mark.parametrize(
    ("files", "ids"),
    [  # as transformers adds them, but for an id behind a gap, which a slow tokenizer kept
        ({"added_tokens.json": {NEW: 4}}, {NEW: 4}),
        ({"added_tokens.json": {NEW: 9}}, {NEW: 9}),
        ({"added_tokens.json": {NEW: 1}}, {NEW: 4}),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": {"3": {**LISTED, "content": "<old>"}, "4": LISTED}}},
            {NEW: 4},
        ),
        ({"tokenizer_config.json": {"added_tokens_decoder": {"9": {**LISTED, "content": "<old>"}}}}, {}),
        ({"tokenizer_config.json": {"pad_token": PAD, "additional_special_tokens": [NEW]}}, {PAD: 4, NEW: 5}),
        ({"tokenizer_config.json": {"pad_token": PAD}, "added_tokens.json": {NEW: 4}}, {NEW: 4, PAD: 5}),
        ({"special_tokens_map.json": {"pad_token": {"content": PAD}}}, {PAD: 4}),
        ({"tokenizer_config.json": {"extra_special_tokens": {"image_token": NEW}}}, {NEW: 4}),
    ],
)
def test_tokens_that_only_the_files_beside_a_tokenizer_name_are_added(
    tmp_path: Path, files: dict[str, Any], ids: dict[str, int]
) -> None:
    """Else they would fall into letters, with rows in the embedding that nobody asks for."""
    made = Tokenizer(models.BPE({"a": 0, "b": 1, "c": 2}, []))
    made.add_special_tokens(["<old>"])
    made.save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    found = opened(tmp_path, bos=None)
    assert {name: found.token(name) for name in (PAD, NEW) if found.token(name) is not None} == ids
    assert found.token("<old>") == 3
    assert found.encode("a<old>b", start=True) == [0, 1]


def test_a_special_token_without_an_id_gets_the_next_beside_a_vocabulary_too(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "added_tokens.json").write_text(json.dumps({NEW: 2}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer", "pad_token": PAD}))
    found = opened(tmp_path)
    assert (found.token(NEW), found.token(PAD)) == (2, 3)


@pytest.mark.parametrize("whole", [True, False])
def test_an_id_that_would_take_all_memory_is_told(tmp_path: Path, whole: bool) -> None:
    vocabulary = {"a": 0, "b": 1}
    if whole:
        Tokenizer(models.BPE(vocabulary, [])).save(str(tmp_path / "tokenizer.json"))
    else:
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("")
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    (tmp_path / "added_tokens.json").write_text('{"<far>": 1000000000}')
    with pytest.raises(CheckpointError, match="an added token has the id 1000000000, of 3 tokens"):
        opened(tmp_path)


def test_a_text_at_which_the_library_panics_is_refused(tmp_path: Path) -> None:
    made = Tokenizer(models.BPE({"a": 0}, []))
    made.normalizer = normalizers.Sequence([normalizers.Strip()])
    made.add_tokens([AddedToken("\t", normalized=True)])
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="this model's tokenizer can't read that text"):
        opened(tmp_path).encode("\N{LATIN SMALL LETTER E WITH ACUTE}", start=True)


def test_only_what_is_special_is_hidden_and_out_of_reach(tmp_path: Path) -> None:
    added = [(3, "<eos>", True), (4, "<loc0398>", False), (5, "<table>", False), (6, "<think>", False)]
    ours = FileTokenizer(read_words(write(tmp_path, added)))
    assert ours.decode([4, 5, 3, 6]) == "<loc0398><table><think>"
    assert ours.encode("<loc0398>a<think>", start=False) == [4, 0, 6]
    assert 3 not in ours.encode("<eos>", start=False)


def test_what_templates_write_is_out_of_reach_whatever_a_file_calls_it(tmp_path: Path) -> None:
    ours = FileTokenizer(read_words(write(tmp_path, [(3, "<|im_start|>", False), (4, "<im_end>", False)])))
    assert (ours.token("<|im_start|>"), ours.token("<im_end>")) == (3, 4)
    assert not {3, 4} & set(ours.encode("a<|im_start|>b<im_end>", start=False))


def test_all_that_our_templates_write_is_guarded() -> None:
    fields = [value for made in TEMPLATES.values() for value in vars_of(made) if isinstance(value, str)]
    written = {name for text in fields for name in re.findall(r"<[|/]?[a-z_]+\|?>", text)} - {"<image>"}
    assert {"</s>", "<|im_end|>", "<end_of_turn>"} <= written
    assert written - GUARDED == set()


def vars_of(template: Template) -> list[object]:
    return [getattr(template, field.name) for field in fields_of(template)]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text("ab<>| \n", max_size=6), max_size=8), st.text("ab<>| \n", max_size=30))
def test_names_are_found_as_a_list_of_them_would_find_them(names: list[str], text: str) -> None:
    ordered = sorted(filter(None, names), key=len, reverse=True)
    plain = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
    assert named(names).findall(text) == plain.findall(text)


def test_settings_say_what_is_special_too(tmp_path: Path) -> None:
    write(tmp_path, [(3, "<x>", False), (4, "<y>", False)])
    listed = {"3": {"content": "<x>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed, "pad_token": "b"}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"additional_special_tokens": ["<y>"]}))
    ours = FileTokenizer(read_words(tmp_path))
    assert ours.decode([0, 3, 4, 1, 0]) == "aba"
    assert not {3, 4} & set(ours.encode("<x><y>", start=False))


def test_tokens_take_the_white_space_beside_them_away_that_their_file_says(tmp_path: Path) -> None:
    ours = FileTokenizer(read_words(write(tmp_path, [(3, "<|user|>", True)], lstrip=True, rstrip=True)))
    assert ours.encode(" a ", start=False, after="<|user|>") == [0, 2]
    assert ours.encode(" a ", start=False, before="<|user|>") == [2, 0]
    assert ours.encode(" a ", start=False, after="<other>", before="<other>") == [2, 0, 2]


def test_vocab_and_merges_are_cut_as_their_class_does(tmp_path: Path) -> None:
    source = bytes_tokenizer([])
    source.model.save(str(tmp_path))
    told = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(source.get_vocab_size() + 3): {"content": "<|im_start|>", "special": True},
            str(source.get_vocab_size() + 9): {"content": "<tool_call>", "special": False},
        },
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    ours = FileTokenizer(read_words(tmp_path))
    first = source.get_vocab_size()
    assert ours.token("<|im_start|>") == first + 3
    assert ours.encode("The picture<tool_call>", start=True) == [*source.encode("The picture").ids, first + 9]
    assert ours.decode(ours.encode("A<|im_start|>e\u0301 12\n", start=False)) == "A<|im_start|>\u00e9 12\n"


LISTED = '{"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": {"1": "<x>"}}'
QWEN = {"tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'}


def test_a_mark_before_json_and_lines_of_windows_are_read(tmp_path: Path) -> None:
    """As editors and checkouts leave them there."""
    source = bytes_tokenizer(["<x>"])
    source.model.save(str(tmp_path))
    files = {"vocab.json": "", "merges.txt": "", "added_tokens.json": json.dumps({"<x>": 999}), **QWEN}
    for name, text in files.items():
        file = tmp_path / name
        whole = text or file.read_text("utf-8")
        file.write_bytes(b"\xef\xbb\xbf" + whole.replace("\n", "\r\n").encode())
    ours = FileTokenizer(read_words(tmp_path))
    assert ours.encode("The picture shows", start=False) == source.encode("The picture shows").ids
    assert ours.token("<x>") == 999


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, r"there is no tokenizer in it \(tokenizer\.json, "),
        ({"tokenizer_config.json": "{}", "TOKENIZER.MODEL": ""}, "there is no tokenizer in it"),
        ({"vocab.json": "{}", "merges.txt": ""}, "its tokenizer_class is ''"),
        ({"vocab.json": "{}", "tokenizer_config.json": '{"tokenizer_class": "Qwen2Tokenizer"}'}, "merges.txt: No such"),
        (
            {"tokenizer.model": "IQ== 0\nIg== 1\n"},
            "tokenizer.model: this is no SentencePiece model, but tiktoken's list",
        ),
        ({"tokenizer.model": "version https://git-lfs.github.com/spec/v1\n"}, "no SentencePiece model, but a Git LFS"),
        ({"tokenizer.model": ""}, "tokenizer.model: this is no SentencePiece model, or one without any piece"),
        ({"vocab.json": "{}", "merges.txt": "a\n", **QWEN}, "merges.txt: 'a' is no pair of tokens"),
        (
            {"vocab.json": "{}", "merges.txt": "", **QWEN, "added_tokens.json": '{"<x>": null}'},
            "the id of '<x>' is None",
        ),
        ({"vocab.json": "{}", "merges.txt": "", **QWEN, "added_tokens.json": '{"<x>": -1}'}, "the id of '<x>' is -1"),
        (
            {"vocab.json": "{}", "merges.txt": "", "tokenizer_config.json": LISTED},
            r"tokenizer_config\.json: added_tokens_decoder has '1': '<x>', without its content",
        ),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "b c\n", **QWEN},
            r"vocab\.json: no tokenizer that can be read there .*`b` out of vocabulary",
        ),
        ({"vocab.json": '{"a": "0"}', "merges.txt": "", **QWEN}, "vocab.json: the id of 'a' is '0', a whole number"),
        (
            {
                "vocab.json": '{"a": 0}',
                "merges.txt": "",
                "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}',
            },
            "add_prefix_space is true: how GPT2Tokenizer puts it is said by a tokenizer.json alone",
        ),
        (
            {"tekken.json": "{}"},
            r"transformers makes no tokenizer of tekken\.json there .*copy the model's tokenizer\.js",
        ),
        ({"tokenizer.json": "{}"}, "tokenizer.json: no tokenizer that can be read there"),
        ({"tokenizer.json": '{"added_tokens": []'}, "tokenizer.json: "),
    ],
)
def test_what_can_not_be_read_is_told_with_its_file_and_cause(tmp_path: Path, files: dict[str, str], told: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=told):
        read_words(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json"])
def test_what_is_no_file_is_told_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "tokenizer_config.json").write_text(QWEN["tokenizer_config.json"])
    with pytest.raises(CheckpointError, match=f"{name}: Is a directory, a file was expected"):
        read_words(tmp_path)


def test_ranks_of_tiktoken_beside_a_tokenizer_are_not_what_slow_tokenizers_read(tmp_path: Path) -> None:
    """As Llama 3's own repository has them: LLaVA-NeXT's slow tokenizer of it was the fast one."""
    source = bytes_tokenizer(["<|eot_id|>"])
    source.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    ours = FileTokenizer(read_words(tmp_path, slow=True))
    assert ours.encode("The picture shows", start=False) == source.encode("The picture shows").ids


@pytest.mark.parametrize("slow", [True, False])
def test_an_original_checkpoint_is_read_from_its_pieces_whatever_lies_beside_them(tmp_path: Path, slow: bool) -> None:
    """A ``tokenizer.json`` was made of them later, by rules of another day; all others are read from theirs."""
    folder(tmp_path, "4.31.0", legacy=False, plain=True)
    made = bytes_tokenizer(["</s>"])
    made.save(str(tmp_path / "tokenizer.json"))
    theirs = Slow("4.31.0", legacy=False, plain=True).encode if slow else lambda text: made.encode(text).ids
    ours = FileTokenizer(read_words(tmp_path, slow=slow))
    assert ours.encode("The picture", start=False, after=None) == theirs("The picture")
