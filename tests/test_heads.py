"""Tied and untied heads: what the configuration says, what is stored, and what transformers makes of both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

import trifocal
from checkpoint_maker import tensors_of
from layouts import family, save_hf, save_original
from logits import logits_of
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan

EXACT = Placement("cpu", "float32")
IDS = torch.tensor([[1, 5, 9, 40, 7, 7, 2]])
TABLE, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def write(folder: Path, name: str, outer: bool | None, inner: bool | None, stored: str) -> Path:
    """A llava-hf folder whose configurations say these, and which stores that of head and table."""
    save_hf(family(name), folder)
    config = json.loads((folder / "config.json").read_text())
    for where, said in ((config, outer), (config["text_config"], inner)):
        where.pop("tie_word_embeddings", None)
        if said is not None:
            where["tie_word_embeddings"] = said
    (folder / "config.json").write_text(json.dumps(config))
    tensors = tensors_of(folder)
    if stored == "table":
        tensors.pop(HEAD, None)
    elif stored == "head":
        tensors[HEAD] = tensors.pop(TABLE)
    elif stored == "equal":
        tensors[HEAD] = tensors[TABLE].clone()
    else:
        tensors[HEAD] = torch.randn(tensors[TABLE].shape, generator=torch.manual_seed(7)) / 8
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder: Path) -> torch.Tensor:
    with trifocal.load(checkpoint=str(folder), tower=EXACT, projector=EXACT, language=EXACT) as llava, torch.no_grad():
        answer: torch.Tensor = logits_of(llava.engine, Prompt([TokenSpan(tuple(IDS[0].tolist()))]))[None]
    return answer


@pytest.mark.parametrize("stored", ["table", "head", "equal", "its own"])
@pytest.mark.parametrize(
    ("name", "outer", "inner"),
    [
        ("1.5", True, None),
        ("1.5", None, True),
        ("1.5", True, True),
        ("1.5", True, False),
        ("1.5", False, True),
        ("onevision", True, None),
        ("onevision", None, True),
    ],
)
def test_a_head_is_what_transformers_makes_of_it(
    tmp_path: Path, name: str, outer: bool | None, inner: bool | None, stored: str
) -> None:
    folder = write(tmp_path, name, outer, inner, stored)
    reference = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        theirs = reference.eval()(input_ids=IDS).logits
    torch.testing.assert_close(logits(folder), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("outer", "inner"), [(None, None), (False, False), (False, None)])
def test_nothing_is_tied_where_nothing_says_so(tmp_path: Path, outer: bool | None, inner: bool | None) -> None:
    own = logits(write(tmp_path / "own", "1.5", outer, inner, "its own"))
    tied = logits(write(tmp_path / "tied", "1.5", True, None, "equal"))
    assert not torch.allclose(own, tied, atol=1e-3)
    for stored, absent in (("table", "lm_head"), ("head", "embed_tokens")):
        with pytest.raises(CheckpointError, match=f"missing.*{absent}"):
            logits(write(tmp_path / stored, "1.5", outer, inner, stored))


@pytest.mark.parametrize("pickle", [False, True])
@pytest.mark.parametrize("stored", ["table", "its own"])
def test_an_original_folders_own_head_is_used(tmp_path: Path, stored: str, pickle: bool) -> None:
    made = family("onevision-tied" if stored == "table" else "onevision")
    folder = save_original(made, tmp_path, pickle=pickle)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    parts = {"tower": EXACT, "projector": EXACT, "language": EXACT}
    with (
        trifocal.load(checkpoint=str(folder), allow_pickle=pickle, **parts) as llava,
        torch.no_grad(),
    ):
        theirs = made.model.lm_head(made.model.model.language_model(input_ids=IDS).last_hidden_state)
        torch.testing.assert_close(
            logits_of(llava.engine, Prompt([TokenSpan(tuple(IDS[0].tolist()))]))[None], theirs, atol=1e-5, rtol=0
        )
