"""llama.cpp as an engine, held against the engine over transformers: the same weights, the same ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import gguf_maker as maker
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import needs
import small_languages
from checkpoint_maker import llama_tokenizer, save_tokenizer
from recipes import written
from trifocal.engines.base import Engine
from trifocal.engines.llamacpp import MOST_POSITIONS, LlamaCpp, library, load
from trifocal.engines.recipe import Recipe
from trifocal.engines.transformers import load as load_transformers
from trifocal.errors import CheckpointError, EngineError, OutOfMemory, UnknownName, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, TokenSpan
from trifocal.source import source_of
from waiting import PATIENCE

pytestmark = needs.engine("llamacpp", "llama_cpp")

SIZES: dict[str, Any] = {**small_languages.SIZES, "num_hidden_layers": 2, "vocab_size": 401}
KINDS: dict[str, dict[str, Any]] = {
    **small_languages.KINDS,
    "qwen3, tied": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True},
}
LONG = Sampling(max_tokens=32, ignore_end=True)
CPU = Placement("cpu", "float32")


def picture(seed: int, rows: int = 5, hidden: int = 64) -> ImageSpan:
    return ImageSpan(torch.randn(rows, hidden, generator=torch.Generator().manual_seed(seed)) / 20, f"{seed} of {rows}")


def text(*ids: int) -> TokenSpan:
    return TokenSpan(ids)


PROMPTS = [
    Prompt([text(1, 9, 10), picture(1), text(5, 6, 7)]),
    Prompt([text(1, 9, 10), picture(1), picture(2), text(8), picture(3)]),
    Prompt([text(*range(3, 180))]),
    Prompt([text(1)]),
    Prompt([picture(4)]),
]


def ids_of(engine: Engine, prompt: Prompt, sampling: Sampling = LONG) -> list[int]:
    return [token.id for token in engine.stream(prompt, sampling)]


def together(engine: Engine, prompts: list[Prompt]) -> list[list[int]]:
    """The answers to prompts that are asked at the same time."""
    found: list[list[int]] = [[] for _ in prompts]

    def ask(at: int) -> None:
        found[at] = ids_of(engine, prompts[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(llama_tokenizer(["<x>"]), made)
    return made


@torch.no_grad()
def random_language(folder: Path, **config: Any) -> Recipe:
    """A small random language half of a family, in float32."""
    torch.manual_seed(0)
    told = {**SIZES, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**told), dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(4)
        else:
            parameter.add_(torch.randn_like(parameter) / 4)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if told.get("tie_word_embeddings"):
        del weights["lm_head.weight"]
    return written(folder, model.config.to_dict(), weights, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers_alone_and_together(kind: str, folder: Path) -> None:
    language = random_language(folder, **KINDS[kind])
    reference, engine = load_transformers(language, CPU), load(language, CPU, threads=1)
    wanted = [ids_of(reference, prompt) for prompt in PROMPTS]
    assert [ids_of(engine, prompt) for prompt in PROMPTS] == wanted
    assert together(engine, PROMPTS + PROMPTS) == wanted + wanted
    reference.close()
    engine.close()


@pytest.fixture(scope="module")
def language(folder: Path) -> Recipe:
    return random_language(folder, model_type="llama")


@pytest.fixture(scope="module")
def engine(language: Recipe) -> Iterator[LlamaCpp]:
    made = load(language, CPU, threads=1)
    yield made
    made.close()


def test_log_probabilities_are_those_of_transformers(engine: LlamaCpp, language: Recipe) -> None:
    reference = load_transformers(language, CPU)
    asked = Sampling(max_tokens=6, ignore_end=True, top_logprobs=3)
    for prompt in PROMPTS:
        ours, theirs = list(engine.stream(prompt, asked)), list(reference.stream(prompt, asked))
        for one, other in zip(ours, theirs, strict=True):
            assert one.id == other.id
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [token for token, _ in one.top] == [token for token, _ in other.top]
    reference.close()


def test_a_context_is_no_longer_than_a_window(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    language = random_language(folder, model_type="mistral", num_key_value_heads=2, sliding_window=64)
    with caplog.at_level("WARNING", "trifocal"):
        engine = load(language, CPU, threads=1)
    assert engine.context == 64
    assert "sees 64 before it" in caplog.text
    engine.close()


def test_a_long_context_is_as_long_as_there_is_room_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    language = random_language(folder, model_type="llama", max_position_embeddings=1 << 20)
    with caplog.at_level("WARNING", "trifocal"):
        engine = load(language, CPU, threads=1)
    assert engine.context == MOST_POSITIONS
    assert f"{MOST_POSITIONS} positions, not {1 << 20}; -e context=N" in caplog.text
    engine.close()
    engine = load(language, CPU, threads=1, context=20000)
    assert engine.context == 20000
    assert (engine.state().positions or 0) < 21000
    engine.close()


def test_a_second_turn_computes_only_what_is_new(language: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(language, CPU, threads=1)
    counts: list[int] = []
    decode = library.Context.decode

    def counted(self: Any, rows: Any, positions: Any, *rest: Any) -> torch.Tensor:
        counts.append(len(positions))
        return decode(self, rows, positions, *rest)

    monkeypatch.setattr(library.Context, "decode", counted)
    first = Prompt([text(1, 9), picture(1, rows=40), text(*range(3, 40))])
    answer = ids_of(engine, first)
    counts.clear()
    second = Prompt([*first.spans, text(*answer, 7, 8, 9)])
    again = ids_of(engine, second)
    assert sum(counts) < 16 + 8 + len(again)
    ids_of(engine, Prompt([text(1, 77)]))  # nobody runs with those any more: they lie outside of the memory
    counts.clear()
    assert ids_of(engine, second) == again
    assert sum(counts) < 16 + len(again)
    engine.close()
    fresh = load(language, CPU, threads=1)
    assert ids_of(fresh, second) == again
    fresh.close()


def test_more_requests_than_sequences_and_blocks_take_turns(language: Recipe) -> None:
    engine = load(language, CPU, threads=1, positions=640)
    prompts = [Prompt([text(1, at + 3), picture(at), text(*range(3, 60))]) for at in range(40)]
    wanted = [ids_of(engine, prompt) for prompt in prompts]
    assert together(engine, prompts) == wanted
    state = engine.state()
    assert (state.phase, state.running, state.waiting) == ("ready", 0, 0)
    assert state.free == state.positions
    engine.close()


def test_a_fault_ends_those_under_way_and_no_others(engine: LlamaCpp, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, decode = ids_of(engine, PROMPTS[0]), library.Context.decode
    for kind in (EngineError, OutOfMemory):
        calls = count()

        def fails(self: Any, *told: Any, kind: type[Exception] = kind, calls: Iterator[int] = calls) -> Any:
            if next(calls) == 3:  # the prompt is through, its first token told, and most of them are not
                raise kind("a fault")
            return decode(self, *told)

        with monkeypatch.context() as patched:
            patched.setattr(library.Context, "decode", fails)
            stream = engine.stream(PROMPTS[0], LONG)
            next(stream)
            with pytest.raises(kind):
                list(stream)
        assert ids_of(engine, PROMPTS[0]) == wanted
        assert engine.state().phase == "ready"


def test_what_the_library_refuses_is_an_error_of_ours_with_its_words(engine: LlamaCpp) -> None:
    stream = engine.stream(Prompt([text(1, 9999)]), LONG)
    with pytest.raises(EngineError, match="invalid token"):
        list(stream)
    assert len(ids_of(engine, PROMPTS[0])) == 32


def test_rows_of_another_width_are_told(engine: LlamaCpp) -> None:
    with pytest.raises(EngineError, match="rows of 32, the language model of 64"):
        ids_of(engine, Prompt([text(1), picture(1, hidden=32)]))


def test_an_answer_is_held_to_a_schema(engine: LlamaCpp) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    said = ids_of(engine, PROMPTS[0], Sampling(max_tokens=200, temperature=1.0, seed=3, schema=schema))
    assert isinstance(json.loads(engine.tokenizer.decode(said))["a"], bool)


def test_what_cannot_be_loaded_is_said(language: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="known: F16, F32, Q4_0, Q8_0"):
        load(language, CPU, quantise="q3")
    with pytest.raises(CheckpointError, match="can't run this language model: model_type 'gemma2'"):
        load(replace(language, config={"model_type": "gemma2"}), CPU)
    with pytest.raises(CheckpointError, match="pictures see each other"):
        load(replace(language, attention="images"), CPU)
    lists = {key: value for key, value in maker.SENTENCEPIECE.items() if isinstance(value, list)}
    fewer = {key: value[:-1] for key, value in lists.items()}
    more = {key: [*value, "a word more" if isinstance(value[-1], str) else value[-1]] for key, value in lists.items()}
    for other in (fewer, more):  # a table with a row more, or less, than there are words
        path = made_gguf(tmp_path, "Q4_0", **other)
        with pytest.raises(CheckpointError, match=r"Q4_0\.gguf: llama\.cpp can't load it: .*token_embd.weight"):
            load(Recipe(source=str(path), config=source_of(path).config(), original=True), CPU)


def made_gguf(folder: Path, kind: str, **metadata: Any) -> Path:
    """A file of random weights, whose matrices are of a kind."""
    tensors = maker.language_tensors(len(maker.SENTENCEPIECE["tokenizer.ggml.tokens"]))
    told = {**maker.LANGUAGE, **maker.SENTENCEPIECE, **metadata}
    return maker.write(folder / f"{kind}.gguf", told, maker.stored(tensors, kind))


@pytest.mark.skipif(needs.has("llama_cpp") and library.offloads(), reason="this build has a GPU")
def test_a_gpu_that_the_build_has_not_is_told(language: Recipe) -> None:
    for placement, layers in ((Placement("cuda:0"), None), (Placement("cpu"), 4)):
        with pytest.raises(UsageError, match="computes on the CPU alone"):
            load(language, placement, gpu_layers=layers)


QUANTISED = {"F32": 1e-4, "F16": 0.05, "Q8_0": 0.2, "Q4_0": 0.2, "Q4_1": 0.2}  # what rounding activations makes


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_gguf_file_is_computed_as_it_is(kind: str, tmp_path: Path) -> None:
    path = made_gguf(tmp_path, kind)
    given = Recipe(source=str(path), config=source_of(path).config(), original=True)
    reference, engine = load_transformers(given, CPU), load(given, CPU, threads=1)
    prompts = [
        Prompt([text(1, 9, 10), picture(1, hidden=maker.HIDDEN), text(5, 6, 7)]),
        Prompt([text(*range(1, 80))]),
    ]
    asked = Sampling(max_tokens=1, ignore_end=True, top_logprobs=20)
    for prompt in prompts:
        [ours], [theirs] = list(engine.stream(prompt, asked)), list(reference.stream(prompt, asked))
        near = dict(ours.top)
        shared = [abs(near[token] - logprob) for token, logprob in theirs.top if token in near]
        assert len(shared) > 15
        assert max(shared) < QUANTISED[kind]
        if kind == "F32":
            assert ids_of(engine, prompt) == ids_of(reference, prompt)
    reference.close()
    engine.close()


def test_thimble_answers_about_a_picture_as_over_transformers(drawn: Any) -> None:
    from trifocal.messages import Message
    from trifocal.model.llava import load as load_llava

    said = []
    for name in ("transformers", "llamacpp"):
        model = load_llava(engine=name, language=CPU, tower=CPU, projector=CPU)
        messages = [Message("user", ["What is in this picture?", drawn(1)])]
        said.append("".join(chunk.text for chunk in model.stream(messages, Sampling(max_tokens=24))))
        model.close()
    assert said[0] == said[1]
