"""What every engine promises, held against every engine that can run here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from installing import installed as packaged

import needs
from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines import ENGINES, WITH_PROCESSES, engine_names, load_engine
from trifocal.engines.base import Engine
from trifocal.engines.batching import Batching
from trifocal.engines.language import open_language
from trifocal.engines.recipe import Recipe
from trifocal.engines.remote import load_remote
from trifocal.engines.transformers import OneAtATime
from trifocal.engines.transformers.loading import read
from trifocal.errors import EngineError, PromptTooLong, UnknownName
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, Span, TokenSpan
from waiting import PATIENCE, until

HERE = ["native", "transformers", "echo", pytest.param("llamacpp", marks=needs.engine("llamacpp", "llama_cpp"))]
CPU = Placement("cpu", "float32")
STRANGER = Path(__file__).with_name("stranger.py")
TEN = Sampling(max_tokens=10, ignore_end=True)
Loader = Callable[..., Engine]


@pytest.fixture(scope="module")
def recipe(hf15: Path) -> Recipe:
    return language_recipe(from_folder(hf15), CPU)


@pytest.fixture(scope="module", params=[*HERE, "overlapped", "one at a time", "stranger", "apart"])
def loader(request: pytest.FixtureRequest, recipe: Recipe) -> Loader:
    if request.param == "one at a time":  # what the engine transformers does where a model's attention allows no more
        return lambda **options: OneAtATime(read(open_language(recipe), CPU, **options), 1 << 30)
    if request.param == "apart":  # the engine native in a process of its own
        return lambda **options: load_remote(replace(recipe, engine="native", options=options))
    if request.param == "overlapped":  # as on a card: the next step is begun before the tokens of this one are read
        return lambda **options: load_engine(replace(recipe, engine="native", options={"overlap": True, **options}))
    if request.param == "stranger":
        request.getfixturevalue("installed")
    return lambda **options: load_engine(replace(recipe, engine=request.param, options=options))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The stranger's package, where Python finds installed ones."""
    with packaged(tmp_path_factory.mktemp("site"), "stranger", STRANGER):
        yield


def test_a_stranger_needs_sixty_lines_at_most() -> None:
    assert len(STRANGER.read_text("utf-8").splitlines()) <= 60


@pytest.fixture(scope="module")
def engine(loader: Loader) -> Iterator[Engine]:
    made = loader()
    yield made
    made.close()


def picture(engine: Engine, seed: int, rows: int = 4) -> ImageSpan:
    features = torch.randn(rows, engine.hidden, generator=torch.Generator().manual_seed(seed))
    return ImageSpan(features, f"picture {seed}")


def text(engine: Engine, words: str, start: bool = False) -> TokenSpan:
    return TokenSpan(tuple(engine.tokenizer.encode(words, start=start)))


def answer(engine: Engine, *spans: Span, sampling: Sampling = TEN) -> list[int]:
    return [token.id for token in engine.stream(Prompt([text(engine, "", start=True), *spans]), sampling)]


def test_every_built_in_engine_is_tried_here() -> None:
    tried = [name if isinstance(name, str) else str(name.values[0]) for name in HERE]
    assert sorted([*tried, *WITH_PROCESSES]) == sorted(ENGINES)  # the last have tests and environments of their own


def test_it_has_what_the_protocol_names(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert engine.hidden > 0
    assert engine.context > 0


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.text(max_size=40))
def test_text_goes_there_and_back(engine: Engine, words: str) -> None:
    ids = engine.tokenizer.encode(words, start=False)
    assert engine.tokenizer.decode(ids).strip() == words.strip()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.lists(
        st.sampled_from(
            ["<image>", "<pad>", "</s>", "<s>", "<unk>", "<im_patch>", "<im_start>", "<|im_end|>", " ", "a", "\n"]
        ),
        max_size=8,
    )
)
def test_text_never_becomes_a_control_token(engine: Engine, words: list[str]) -> None:
    names = ("<image>", "<pad>", "</s>", "<s>", "<unk>", "<im_patch>", "<im_start>", "<|im_end|>")
    controls = {engine.tokenizer.token(name) for name in names} - {None}
    assert controls
    assert not controls & set(engine.tokenizer.encode("".join(words), start=False))
    start = engine.tokenizer.encode("".join(words), start=True)
    assert not controls & set(start[1:])


def test_control_tokens_are_found_by_name_and_not_decoded(engine: Engine) -> None:
    end = engine.tokenizer.token("</s>")
    assert end is not None
    assert engine.tokenizer.token("<nonsense>") is None
    assert engine.tokenizer.decode([end]) == ""


def test_greedy_is_the_same_every_time_and_keeps_to_its_limit(engine: Engine) -> None:
    one, two = (answer(engine, text(engine, "What is shown here?")) for _ in range(2))
    assert one == two
    assert len(one) == 10
    assert (
        answer(engine, text(engine, "What is shown here?"), sampling=Sampling(max_tokens=4, ignore_end=True)) == one[:4]
    )


def test_one_seed_draws_one_answer(engine: Engine) -> None:
    def drawn(seed: int) -> list[int]:
        return answer(engine, text(engine, "What?"), sampling=Sampling(temperature=1, seed=seed, max_tokens=10))

    assert drawn(1) == drawn(1)


@pytest.mark.parametrize("order", ["p", "pt", "tp", "tpt", "ppt", "tptp"])
def test_two_pictures_give_two_answers_wherever_they_stand(engine: Engine, order: str) -> None:
    def ask(seed: int) -> list[int]:
        spans = [picture(engine, seed) if kind == "p" else text(engine, "What is it?") for kind in order]
        return answer(engine, *spans, sampling=Sampling(max_tokens=60, ignore_end=True))

    first = ask(0)
    assert any(ask(seed) != first for seed in range(1, 4))


def test_closing_the_stream_ends_the_work_and_the_engine_goes_on(engine: Engine) -> None:
    spans = text(engine, "What is shown here?")
    whole = answer(engine, spans)
    stream = engine.stream(Prompt([text(engine, "", start=True), spans]), TEN)
    assert next(stream).id == whole[0]
    stream.close()
    assert list(stream) == []
    assert answer(engine, spans) == whole


def test_a_stream_leaves_the_callers_torch_as_it_was(engine: Engine) -> None:
    stream = engine.stream(Prompt([text(engine, "What?", start=True)]), TEN)
    next(stream)
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    stream.close()


def test_threads_get_what_they_would_get_alone(engine: Engine) -> None:
    questions = [[text(engine, f"What is shown in picture {n}?"), picture(engine, n)] for n in range(4)]
    alone = [answer(engine, *question) for question in questions]
    together: list[list[int]] = [[] for _ in questions]

    def ask(at: int) -> None:
        together[at] = answer(engine, *questions[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert together == alone


def test_a_crowd_with_one_opening_and_pictures_gets_what_each_gets_alone(loader: Loader) -> None:
    engine, fresh = loader(), loader()
    opening = [text(engine, "A chat between a curious user and an assistant. " * 2), picture(engine, 1, rows=40)]
    questions = [[*opening, text(engine, words)] for words in ("What?", "What?", "Where is it?", "Why?")]
    questions += [[*opening[:1], picture(engine, 2, rows=40), text(engine, "What?")]]
    alone = [answer(fresh, *question) for question in questions]
    together: list[list[int]] = [[] for _ in questions]
    left = engine.stream(Prompt([text(engine, "", start=True), *questions[0]]), TEN)
    next(left)

    def ask(at: int) -> None:
        together[at] = answer(engine, *questions[at])

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(len(questions))]
    for thread in threads:
        thread.start()
    left.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert together == alone
    assert engine.state().phase == "ready"
    engine.close()
    fresh.close()


def test_what_does_not_fit_is_refused_before_anything_is_said(loader: Loader) -> None:
    engine = loader(context=16)
    assert engine.context == 16
    with pytest.raises(PromptTooLong):
        engine.stream(Prompt([picture(engine, 1, rows=16)]), TEN)
    full = list(engine.stream(Prompt([picture(engine, 1, rows=12)]), Sampling(max_tokens=100, ignore_end=True)))
    assert len(full) == 4


def test_nothing_is_kept_of_a_prompt_without_a_scope(loader: Loader) -> None:
    engine = loader()
    spans = [text(engine, "What is shown?", start=True), picture(engine, 1, rows=40)]
    kept = [token.id for token in engine.stream(Prompt(spans), TEN)]
    before = held(engine)
    for _ in range(3):
        assert [token.id for token in engine.stream(Prompt(spans, None), TEN)] == kept
        other = Prompt([*spans, picture(engine, 2)], None)
        list(engine.stream(other, TEN))
    assert held(engine) == before
    engine.close()


def held(engine: Engine) -> int:
    """How much an engine remembers of earlier prompts."""
    if isinstance(engine, Batching):
        blocks = engine._loop.blocks
        until(lambda: blocks.free == blocks.count, "rest")
        return blocks.count - blocks.empty
    # of one in another process only the answers are seen; what crosses to it is the wire's affair
    return len(engine._prefixes._states) if isinstance(engine, OneAtATime) else 0


def test_a_closed_engine_says_so(loader: Loader) -> None:
    engine = loader()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.stream(Prompt([TokenSpan((1, 2))]), TEN)


@pytest.mark.parametrize("name", HERE)
def test_options_and_names_that_are_not_known_list_those_that_are(name: str, recipe: Recipe) -> None:
    with pytest.raises(UnknownName, match=r"known: .*context"):
        load_engine(replace(recipe, engine=name, options={"contxt": 3}))
    with pytest.raises(UnknownName, match=r"known: .*echo, .*transformers"):
        load_engine(replace(recipe, engine="warp"))
    assert set(ENGINES) <= set(engine_names())
