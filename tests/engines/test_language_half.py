"""What a language half's files say beside its tensors: what ends an answer, and ids that nobody asks for."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines.language import end_ids, open_language
from trifocal.engines.transformers import load
from trifocal.errors import CheckpointError
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan

GENERATION = "generation_config.json"


@pytest.fixture
def home(hf15: Path, tmp_path: Path) -> Path:
    """A copy of llava-hf's layout whose configurations may be written anew."""
    return shutil.copytree(hf15, tmp_path / "home")


def says(home: Path, outer: dict[str, Any], inner: dict[str, Any], generation: dict[str, Any] | None = None) -> None:
    """Writes keys into ``config.json`` and its ``text_config``, and the generation settings or none."""
    config = json.loads((home / "config.json").read_text())
    inside = {key: value for key, value in config["text_config"].items() if not key.endswith("_token_id")}
    (home / "config.json").write_text(json.dumps({**config, **outer, "text_config": {**inside, **inner}}))
    (home / GENERATION).unlink()
    if generation is not None:
        (home / GENERATION).write_text(json.dumps(generation))


@pytest.mark.parametrize(
    ("outer", "inner", "generation", "ends"),
    [  # as `generate` of transformers has it, but for the last: there nothing would end an answer
        (5, 6, 9, {9}),
        (None, [7, 8], [10, 11], {10, 11}),
        (5, 99_999, [10, 99_999], {10}),
        (None, None, [9], {9}),  # and not the 2 of LlamaConfig, a letter in Llama 3's vocabulary
        (5, 6, None, {5}),
        (None, [6, 7], None, {6, 7}),
        (5, 6, {}, {5}),
    ],
)
def test_what_ends_an_answer_where_files_contradict_each_other(
    home: Path, outer: Any, inner: Any, generation: Any, ends: set[int]
) -> None:
    keys = [{} if each is None else {"eos_token_id": each} for each in (outer, inner)]
    told = generation if generation in (None, {}) else {"eos_token_id": generation}
    says(home, keys[0], keys[1], told)
    assert end_ids(open_language(language_recipe(from_folder(home))), 64) == ends


def test_an_end_that_no_word_has_is_told_where_there_is_no_other(home: Path) -> None:
    says(home, {}, {"eos_token_id": 2}, {"eos_token_id": [99_999, 100_000]})
    with pytest.raises(CheckpointError, match=f"{GENERATION}: eos_token_id is 99999, 100000, an id below 64"):
        end_ids(open_language(language_recipe(from_folder(home))), 64)


def test_ids_that_nobody_asks_for_may_be_any(home: Path, hf15: Path) -> None:
    """Nothing is padded, and the beginning is the tokenizer's own: the answer is that of a sound configuration."""
    ids = {"pad_token_id": 99_999, "bos_token_id": None, "eos_token_id": 2}
    says(home, {}, ids, {"eos_token_id": 2, "pad_token_id": 99_999})
    prompt = Prompt([TokenSpan((1, 40, 50))])
    place, wanted = Placement("cpu", "float32"), Sampling(max_tokens=4, temperature=0, ignore_end=True)
    answers = []
    for folder in (home, hf15):
        with closing(load(language_recipe(from_folder(folder)), place)) as engine:
            answers.append([token.id for token in engine.stream(prompt, wanted)])
            assert engine.tokenizer.encode("", start=True) == [1]
    assert answers[0] == answers[1]
