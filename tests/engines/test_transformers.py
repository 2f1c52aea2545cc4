"""The transformers engine: its prefix cache, its loader's checks, its log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import written
from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines.language import open_language
from trifocal.engines.prefixes import Prefixes, position_keys
from trifocal.engines.recipe import Recipe
from trifocal.engines.scheduler import Run
from trifocal.engines.transformers import Transformers, load
from trifocal.errors import CheckpointError, EngineError, OutOfMemory
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

CPU = Placement("cpu", "float32")
LONG = Sampling(max_tokens=24, ignore_end=True)


@pytest.fixture(scope="module")
def recipe(hf15: Path) -> Recipe:
    return language_recipe(from_folder(hf15))


@pytest.fixture(scope="module")
def engine(recipe: Recipe) -> Transformers:
    return load(recipe, CPU)


def ids(engine: Transformers, prompt: Prompt) -> list[int]:
    return [token.id for token in engine.stream(prompt, LONG)]


def forwarded(engine: Transformers, prompt: Prompt, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many positions of a prompt really run."""
    ran: list[int] = []
    runner = engine.facts.runner
    forward = runner.forward

    def counting(runs: Sequence[Run[Any]]) -> torch.Tensor:
        ran.extend(run.count for run in runs)
        return forward(runs)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "forward", counting)
        list(engine.stream(prompt, LONG))
    return ran[0]


def test_a_second_turn_runs_only_over_what_is_new_and_says_the_same(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering, forgetful = load(recipe, CPU), load(recipe, CPU, prefix_cache=0)
    image = ImageSpan(torch.randn(16, remembering.hidden, generator=torch.Generator().manual_seed(1)), "one")
    first = Prompt([TokenSpan((1, 270, 280)), image, TokenSpan((290, 300))])
    said = ids(remembering, first)
    assert said == ids(forgetful, first)
    second = Prompt([*first.spans, TokenSpan((*said, 310, 320))])
    assert forwarded(remembering, second, monkeypatch) <= 3 + 15  # blocks of 16 are shared whole
    assert forwarded(forgetful, second, monkeypatch) == len(second)
    third = Prompt([*first.spans, TokenSpan((330,))])
    for prompt in (second, third, first, third, second):
        assert ids(remembering, prompt) == ids(forgetful, prompt)


def cut(state: str, positions: int) -> str:
    return state[:positions]


def test_another_picture_shares_nothing_from_there_on() -> None:
    one, two = (Prompt([TokenSpan((1, 2)), ImageSpan(torch.zeros(3, 2), name), TokenSpan((5,))]) for name in "ab")
    held: Prefixes[str] = Prefixes(100, cut)
    held.put(position_keys(one), "state.", 10)
    assert held.take(position_keys(two)) == ("st", 2)
    assert held.take(position_keys(one)) == ("state.", 6)
    assert held.take(position_keys(one)) == (None, 0)


def test_states_of_one_scope_are_not_found_in_another() -> None:
    held: Prefixes[str] = Prefixes(100, cut)
    held.put([1, 2], "a.", 10, scope="a")
    held.put([1, 2, 3], "b..", 10, scope="b")  # goes on where a's ends, and leaves it alone
    assert held.take([1, 2, 3]) == held.take([1, 2, 3], scope="c") == (None, 0)
    assert held.take([1, 2, 3], scope="a") == ("a.", 2)
    assert held.take([1, 2, 4], scope="b") == ("b.", 2)


def test_an_answer_that_the_collector_closes_while_its_states_are_looked_at_waits_for_nobody() -> None:
    def cut_meanwhile(state: str, positions: int) -> str:
        held.put([7], "closed by the collector", 10)
        return state[:positions]

    held: Prefixes[str] = Prefixes(100, cut_meanwhile)
    held.put([1, 2, 3], "abc", 10)
    assert held.take([1, 2, 4]) == ("ab", 2)
    assert held.take([7, 8]) == (None, 0)  # what could not be kept safely is not kept
    held.put([7], "seven", 10)
    assert held.take([7, 8]) == ("seven", 1)


def test_the_prefix_cache_keeps_to_its_bytes() -> None:
    held: Prefixes[str] = Prefixes(25, cut)
    for name in "abc":
        held.put([name], name, 10)
    held.put(["too large"], "d", 26)
    assert [held.take([name])[0] for name in "abc"] == [None, "b", "c"]
    assert held.take(["too large"])[0] is None


def test_a_longer_state_stands_for_its_own_beginning() -> None:
    held: Prefixes[str] = Prefixes(25, cut)
    held.put(["other"], "o", 10)
    for state in ("a", "ab", "abc", "abc"):
        held.put(list(state), state, 10)
    assert held.take(list("abcd")) == ("abc", 3)
    assert held.take(["other"]) == ("o", 1)
    assert held.take(list("abcd")) == (None, 0)


def test_a_branch_leaves_what_it_came_from() -> None:
    held: Prefixes[str] = Prefixes(100, cut)
    held.put(list("abc"), "abc", 10)
    assert held.take(list("abc"), branch=True) == ("abc", 3)
    assert held.take(list("abx"), branch=True) == ("ab", 2)
    assert held.take(list("abc")) == ("abc", 3)
    assert held.take(list("abc"), branch=True) == (None, 0)


def test_conversations_that_begin_alike_keep_what_is_theirs(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    remembering, forgetful = load(recipe, CPU), load(recipe, CPU, prefix_cache=0)
    system = tuple(range(265, 285))
    talks = [Prompt([TokenSpan((1, *system, *[own] * 20))]) for own in (270, 271)]
    ran = []
    for _ in range(3):
        for at, talk in enumerate(talks):
            ran.append(forwarded(remembering, talk, monkeypatch))
            said = ids(forgetful, talk)
            assert ids(remembering, talk) == said
            talks[at] = Prompt([*talk.spans, TokenSpan((*said, 310, 311))])
    assert ran == [41, 25, 3, 3, 3, 3]  # blocks of 16 are shared whole, and gone on with where they were begun


@pytest.mark.parametrize(("step", "failure"), [(0, torch.OutOfMemoryError), (0, RuntimeError), (2, RuntimeError)])
def test_what_broke_off_halfway_is_not_remembered(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, step: int, failure: type[Exception]
) -> None:
    engine, prompt = load(recipe, CPU), Prompt([TokenSpan((1, 270, 280, 290))])
    whole = ids(load(recipe, CPU), prompt)
    last = engine.model.model.layers[-1]
    forward, calls = last.forward, iter(range(100))

    def failing(*args: object, **options: object) -> object:
        if next(calls) == step:
            raise failure("no room, or no luck")
        return forward(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", failing)
        with pytest.raises(OutOfMemory if failure is torch.OutOfMemoryError else EngineError):
            ids(engine, prompt)
    assert ids(engine, prompt) == whole


def test_an_abandoned_stream_leaves_a_cache_that_can_be_used(engine: Transformers) -> None:
    prompt = Prompt([TokenSpan((1, 270, 280, 290))])
    whole = ids(engine, prompt)
    stream = engine.stream(prompt, LONG)
    assert [next(stream).id, next(stream).id] == whole[:2]
    stream.close()
    assert ids(engine, prompt) == whole


def test_log_probabilities_are_those_of_the_logits(engine: Transformers) -> None:
    prompt = Prompt([TokenSpan((1, 270, 280))])
    steps = list(engine.stream(prompt, replace(LONG, max_tokens=3, top_logprobs=4)))
    with torch.inference_mode():
        logprobs = engine.model(input_ids=torch.tensor([[1, 270, 280]])).logits[0, -1].log_softmax(-1)
    best = logprobs.topk(4)
    assert [i for i, _ in steps[0].top] == best.indices.tolist()
    assert steps[0].logprob == pytest.approx(float(logprobs[steps[0].id]), abs=1e-5)
    assert steps[0].id == steps[0].top[0][0]


def test_an_empty_prompt_is_refused(engine: Transformers) -> None:
    with pytest.raises(EngineError, match="nothing to continue"):
        engine.stream(Prompt([]), LONG)


def test_weights_that_are_not_finite_are_told(recipe: Recipe, tmp_path: Path) -> None:
    broken = dict(open_language(recipe).weights)
    broken["model.norm.weight"] = broken["model.norm.weight"] * float("nan")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds numbers that are not finite"):
        load(written(recipe.path, recipe.config, broken, tmp_path), CPU)
    broken["model.norm.weight"] = torch.full((64,), 1e6)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds numbers too large for torch\.float16"):
        load(written(recipe.path, recipe.config, broken, tmp_path), Placement("cpu", "float16"))


def test_logits_that_are_not_finite_are_told(recipe: Recipe) -> None:
    engine = load(recipe, CPU)
    engine.model.model.norm.weight.data *= float("nan")
    with pytest.raises(EngineError, match="no finite logits"):
        list(engine.stream(Prompt([TokenSpan((1,))]), LONG))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model.norm.weight": None}, "1 tensors of the language model are missing, first 'model.norm.weight'"),
        ({"model.extra.weight": torch.zeros(1)}, "unexpected, first 'model.extra.weight'"),
        ({"model.norm.weight": torch.zeros(3)}, r"model.norm.weight is \[3\], \[64\] was expected"),
    ],
)
def test_weights_of_another_model_are_refused_by_name(
    recipe: Recipe, change: dict[str, torch.Tensor | None], match: str, tmp_path: Path
) -> None:
    weights = {**open_language(recipe).weights, **change}
    changed = {name: tensor for name, tensor in weights.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=match):
        load(written(recipe.path, recipe.config, changed, tmp_path), CPU)


def test_a_configuration_that_is_none_is_refused(recipe: Recipe) -> None:
    with pytest.raises(CheckpointError, match="warp"):
        load(replace(recipe, config={**recipe.config, "model_type": "warp"}), CPU)


def test_the_vocabulary_is_that_of_the_tensor(recipe: Recipe) -> None:
    wrong = replace(recipe, config={**recipe.config, "vocab_size": 7})
    assert (
        load(wrong, CPU).model.config.vocab_size == open_language(recipe).weights["model.embed_tokens.weight"].shape[0]
    )
