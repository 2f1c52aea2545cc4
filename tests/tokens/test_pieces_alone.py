"""A checkpoint with the files that were released, no tokenizer.json among them: it loads, its prompt is of its day."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import trifocal
from checkpoint_maker import make_v0
from trifocal.images import Image
from trifocal.messages import Message, Sampling

MODEL = Path(__file__).parents[1] / "data" / "tokens" / "llama.model"
EXACT = trifocal.Placement("cpu", "float32")


def test_a_folder_with_tokenizer_model_alone_answers(tmp_path: Path, drawn: Callable[[int], Image]) -> None:
    """As wojtab's four bits of v0 lie: the fork's tokenizer takes `<s>` for the beginning, whatever the strings say."""
    places = make_v0(tmp_path)
    home = places.language
    (home / "tokenizer.json").unlink()
    shutil.copyfile(MODEL, home / "tokenizer.model")
    config = json.loads((home / "config.json").read_text())
    config |= {"vocab_size": 603, "transformers_version": "4.28.0.dev0"}
    for name, value in {
        "config.json": config,
        "added_tokens.json": {"<im_patch>": 600, "<im_start>": 601, "<im_end>": 602},
        "tokenizer_config.json": {"bos_token": "</s>", "tokenizer_class": "LlamaTokenizer"},
    }.items():
        (home / name).write_text(json.dumps(value))
    tensors = load_file(home / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.randn(603, tensors[name].shape[1], generator=torch.Generator().manual_seed(0)) * 0.05
    save_file(tensors, home / "model.safetensors")
    with trifocal.load(
        checkpoint=str(home), tower_from=str(places.tower), projector_from=str(places.projector), tower=EXACT,
        projector=EXACT, language=EXACT
    ) as llava:  # fmt: skip
        tokenizer = llava.engine.tokenizer
        assert tokenizer.encode("", start=True) == [1]
        assert [tokenizer.token(name) for name in ("<im_start>", "<im_end>", "</s>")] == [601, 602, 2]
        assert tokenizer.encode(" a \n", start=False, after="<im_end>", before="<im_start>") == tokenizer.encode(
            "a", start=False
        )
        question = [Message("user", ("What is it?", drawn(1)))]
        reply = llava.complete(question, Sampling(max_tokens=4, ignore_end=True))
        assert (reply.end.completion_tokens, reply.end.image_tokens) == (4, 16)
