"""Whose eyes fit a language model: its own folder first, then its shape, its name last."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trifocal.errors import CheckpointError, UsageError
from trifocal.webui.eyes import ModelFacts, whose_eyes


@pytest.mark.parametrize(
    ("name", "hidden", "vocabulary", "eyes"),
    [
        ("llava-13b-v0-4bit-128g", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v0"),
        ("whatever", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v0"),
        ("llava-13b-v1-1", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v1-1"),
        ("mine", 4096, 32004, "liuhaotian/LLaVA-7b-delta-v0"),
        ("mine", 4096, 32000, "liuhaotian/llava-v1.5-7b"),
        ("mine", 5120, 32000, "liuhaotian/llava-v1.5-13b"),
        ("llava-llama-2-13b-chat", 5120, 32000, "liuhaotian/llava-llama-2-13b-chat-lightning-preview"),
        ("llava-v1.6-mistral-7b", 4096, 32000, "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava-v1.6-vicuna-7b", 4096, 32064, "llava-hf/llava-v1.6-vicuna-7b-hf"),
        ("yi", 7168, 64000, "llava-hf/llava-v1.6-34b-hf"),
        ("tiny", 256, 3072, "thimble"),
    ],
)
def test_a_shape_tells_whose_eyes_fit_and_a_name_only_where_shapes_are_alike(
    name: str, hidden: int, vocabulary: int, eyes: str
) -> None:
    assert whose_eyes(ModelFacts(name, hidden, vocabulary)) == eyes


@pytest.mark.parametrize("key", ["mm_vision_tower", "vision_config", "trifocal"])
def test_a_folder_that_tells_of_its_eyes_comes_before_its_shape(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", key: "something"}))
    assert whose_eyes(ModelFacts("mine", 4096, 32000, tmp_path)) == str(tmp_path)


def test_a_plain_folder_leaves_it_to_the_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 4096, "vocab_size": 32000}')
    facts = ModelFacts.of_folder(tmp_path)
    assert (facts.hidden, facts.vocabulary, facts.name) == (4096, 32000, tmp_path.name)
    assert whose_eyes(facts) == "liuhaotian/llava-v1.5-7b"


def test_a_model_of_no_known_shape_is_refused_with_the_setting_that_helps() -> None:
    with pytest.raises(UsageError, match=r"mine \(rows of 123, 456 tokens\): set llava-checkpoint"):
        whose_eyes(ModelFacts("mine", 123, 456))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "wide", "vocab_size": 3}', "\xff"])
def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match="config.json"):
        ModelFacts.of_folder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        ModelFacts.of_folder(tmp_path / "nowhere")
