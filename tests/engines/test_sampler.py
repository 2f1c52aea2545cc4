"""The sampler against transformers' own logits processors."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trifocal.engines.base import Token
from trifocal.engines.sampler import Drawing, _penalised, filtered, pick, pick_along
from trifocal.errors import EngineError
from trifocal.messages import Sampling


def drawn(scores: torch.Tensor, row: Drawing) -> int:
    [token] = pick(scores[None], [row])
    if isinstance(token, EngineError):
        raise token
    return token.id


def logits(seed: int, size: int = 50) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=1, top_p=0.8),
        Sampling(temperature=1, top_p=0.01),
        Sampling(temperature=1, min_p=0.1),
        Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05, repetition_penalty=1.3),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_filters_are_those_of_transformers(sampling: Sampling, seed: int) -> None:
    prompt = [3, 4, 4, 9]
    chain = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)])
    chain.append(TemperatureLogitsWarper(float(sampling.temperature)))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    wanted = chain(torch.tensor([prompt]), logits(seed)[None].clone())[0]
    penalised = _penalised(logits(seed)[None], [Drawing(sampling, prompt)])
    got = filtered(penalised / sampling.temperature, [sampling.top_k], [sampling.top_p], [sampling.min_p])
    torch.testing.assert_close(got[0], wanted)


def test_greedy_takes_the_likeliest() -> None:
    assert drawn(logits(1), Drawing(Sampling())) == int(logits(1).argmax())


def test_draws_follow_the_probabilities() -> None:
    row = Drawing(Sampling(temperature=1, seed=5))
    scores = torch.tensor([0.0, 1.0, 2.0])
    shares = torch.tensor([drawn(scores, row) for _ in range(3000)]).bincount(minlength=3) / 3000
    torch.testing.assert_close(shares, scores.softmax(-1), atol=0.04, rtol=0)


def test_one_seed_one_row_of_draws() -> None:
    def row(seed: int | None) -> list[int]:
        own = Drawing(Sampling(temperature=1.5, seed=seed))
        return [drawn(logits(n), own) for n in range(30)]

    assert row(7) == row(7)
    assert row(7) != row(8)
    assert row(7) != row(-7)
    assert row(None) != row(None)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    row = Drawing(Sampling(presence_penalty=2, frequency_penalty=1), prompt_ids=[0])
    scores = torch.tensor([10.0, 9.5, 0.0])
    assert [drawn(scores, row) for _ in range(3)] == [0, 1, 0]


def test_an_ignored_end_is_never_drawn() -> None:
    assert drawn(torch.tensor([9.0, 1.0]), Drawing(Sampling(ignore_end=True), end_ids=[0])) == 1
    assert drawn(torch.tensor([9.0, 1.0]), Drawing(Sampling(), end_ids=[0])) == 0


def test_the_likeliest_id_is_the_same_with_and_without_a_copy_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(1))
    logits[4] = torch.nan
    logits[5, 7] = torch.inf
    rows = [Drawing(Sampling(temperature=0, ignore_end=True), end_ids=[39, at]) for at in range(6)]
    for banned in (False, True):
        if banned:
            logits[1, 1] = 99.0
        told = pick(logits, rows)
        with monkeypatch.context() as patched:
            patched.setattr("trifocal.engines.sampler._likeliest", lambda *_: None)
            wanted = pick(logits, rows)
        assert told[:4] == wanted[:4]
        assert all(isinstance(one, EngineError) for one in (*told[4:], *wanted[4:]))


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_told(temperature: float, bad: float) -> None:
    with pytest.raises(EngineError, match="finite"):
        drawn(torch.tensor([1.0, bad]), Drawing(Sampling(temperature=temperature)))


MIXED = [
    Sampling(),
    Sampling(temperature=0.7, seed=3),
    Sampling(temperature=1.3, top_k=5, seed=4),
    Sampling(temperature=1, top_p=0.8, seed=5),
    Sampling(temperature=1, min_p=0.1, seed=6, top_logprobs=3),
    Sampling(repetition_penalty=1.3, top_logprobs=0),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05, frequency_penalty=1, seed=7),
    Sampling(presence_penalty=2, ignore_end=True),
]


def test_a_crowd_draws_what_each_would_draw_alone() -> None:
    together = [Drawing(sampling, [3, 4, 4, 9], [1]) for sampling in MIXED]
    alone = [Drawing(sampling, [3, 4, 4, 9], [1]) for sampling in MIXED]
    for step in range(20):
        rows = torch.stack([logits(100 * step + at) for at in range(len(MIXED))])
        before = rows.clone()
        picked = pick(rows, together)
        assert torch.equal(rows, before)
        for at, token in enumerate(picked):
            [own] = pick(rows[at : at + 1], [alone[at]])
            assert isinstance(token, Token)
            assert isinstance(own, Token)
            assert token.id == own.id
            assert [other for other, _ in token.top] == [other for other, _ in own.top]
            assert len(token.top) == (MIXED[at].top_logprobs or 0)


def test_one_bad_row_is_nobody_elses_affair() -> None:
    rows = torch.stack([logits(1), torch.full((50,), float("nan")), logits(2)])
    good, bad, other = pick(rows, [Drawing(Sampling()) for _ in range(3)])
    assert isinstance(bad, EngineError)
    assert good == Token(int(logits(1).argmax()))
    assert other == Token(int(logits(2).argmax()))


def test_an_id_without_a_chance_is_never_drawn() -> None:
    row = Drawing(Sampling(temperature=1, top_k=2, seed=0))
    scores = torch.full((1000,), 0.0)
    scores[[10, 999]] = 1.0
    assert {drawn(scores, row) for _ in range(300)} == {10, 999}


@pytest.mark.parametrize("extreme", [Sampling(repetition_penalty=5e-324), Sampling(temperature=5e-324, top_p=5e-324)])
def test_extreme_options_are_no_broken_model(extreme: Sampling) -> None:
    scores = torch.tensor([0.0, 3.0, -2.0, 0.0])
    assert drawn(scores, Drawing(extreme, prompt_ids=[0, 2])) == 1
    if extreme.greedy:
        assert drawn(scores, Drawing(extreme, prompt_ids=[0, 1, 2, 3])) == 1


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_what_was_guessed_changes_no_draw(ahead: int) -> None:
    guessing = [Drawing(sampling, [3, 4, 4, 9], [1]) for sampling in MIXED]
    alone = [Drawing(sampling, [3, 4, 4, 9], [1]) for sampling in MIXED]
    for step in range(8):
        scores = [[logits(1000 * step + 10 * at + depth) for depth in range(ahead + 1)] for at in range(len(MIXED))]
        wanted: list[list[Token]] = []
        for row, own in zip(alone, scores, strict=True):
            twin = copy.deepcopy(row)
            wanted.append([token for each in own for token in pick(each[None], [twin]) if isinstance(token, Token)])
        # the first guesses are right, as many as the step's number; what follows is not
        drafts = [[token.id if n < step else 49 for n, token in enumerate(told[:ahead])] for told in wanted]
        got = pick_along(torch.stack([each for own in scores for each in own]), guessing, drafts)
        for at, (told, draft) in enumerate(zip(got, drafts, strict=True)):
            came = next((n for n, guess in enumerate(draft) if guess != wanted[at][n].id), len(draft))
            assert [token.id for token in told if isinstance(token, Token)] == [
                token.id for token in wanted[at][: came + 1]
            ]
            for each in scores[at][: came + 1]:
                pick(each[None], [alone[at]])


def test_of_equal_scores_the_first_id_is_told() -> None:
    logits = torch.zeros(2, 300)
    logits[0, [17, 40]] = 2.0
    assert [token.id for token in pick(logits, [Drawing(Sampling()), Drawing(Sampling())])] == [17, 0]
