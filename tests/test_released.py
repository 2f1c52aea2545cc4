"""Folders with the files that the releases have, no others: whole and taken apart, against the original."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_generations import TEXTS, Slow, folder

from families import Pair
from layouts import family, save_original
from seeing import prompt_of
from trifocal import Message, Sampling, load
from trifocal.checkpoints import find_checkpoint
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.tools.convert import split

EXACT = dict.fromkeys(("tower", "projector", "language"), Placement("cpu", "float32"))
# what each was saved by, as it is in its configuration
RELEASES = {"1.5": "4.31.0", "1.6-vicuna": "4.37.2", "1.6-mistral": "4.37.2"}
OPENING = {
    "1.5": (
        "A chat between a curious human and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the human's questions. USER: ",
        "\nWhat? ASSISTANT: A cat.</s>USER: Why? ASSISTANT:",
    ),
    "1.6-mistral": ("[INST] ", "\nWhat? [/INST] A cat. </s>[INST] Why? [/INST]"),
}
OPENING["1.6-vicuna"] = OPENING["1.5"]


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.parametrize("parts", ["as released", "taken apart"])
def test_a_release_answers_what_the_original_answers(
    name: str, parts: str, tmp_path: Path, drawn: Callable[..., Image]
) -> None:
    made = family(name, vocab_size=608)
    where = save_original(
        made, tmp_path / "one", tower=tmp_path / "clip" if name == "1.5" else None, pickle=name == "1.5"
    )
    config = {**json.loads((where / "config.json").read_text()), "transformers_version": RELEASES[name]}
    for file in where.glob("*token*"):
        file.unlink()
    folder(where, RELEASES[name], legacy=False, plain=False)
    (where / "config.json").write_text(json.dumps(config))
    assert not (where / "tokenizer.json").exists()
    places = {"checkpoint": str(where)}
    if parts == "taken apart":
        split(find_checkpoint(str(where)), tmp_path / "parts", allow_pickle=True)
        homes = {f"{half}_from": str(tmp_path / "parts" / half) for half in ("tower", "projector")}
        places = {"checkpoint": str(tmp_path / "parts" / "language"), **homes}
    slow, image = Slow(RELEASES[name], legacy=False, plain=False), drawn(1, 130, 70)
    with load(**places, allow_pickle=True, **EXACT) as llava:
        for text in TEXTS:
            prompt = prompt_of(llava.composer, (text, image, text))
            assert list(prompt.token_ids) == [1, *slow.encode(text), *slow.encode(text)], text
        talk = [llava.question("What?", [image]), Message("assistant", "A cat."), Message("user", "Why?")]
        prompt = prompt_of(llava.composer, llava.template.render(talk))
        before, after = (slow.encode(text) for text in OPENING[name])
        assert list(prompt.token_ids) == [1, *before, *after]
        (rows,) = Pair(made, llava, pad=name == "1.5").reference_rows([image])
        table = made.model.get_input_embeddings()
        theirs = torch.cat([table(torch.tensor([1, *before])), rows.flatten(0, -2), table(torch.tensor(after))])
        ours = prompt.splice(llava.engine.embed)
        assert (ours - theirs).abs().max() < 1e-5
        said = made.model.generate(inputs_embeds=theirs[None], max_new_tokens=32, min_new_tokens=32, do_sample=False)
        answer = [token.id for token in llava.engine.stream(prompt, Sampling(max_tokens=32, ignore_end=True))]
        assert answer == said[0].tolist()
