"""The sampler against transformers' own logits processors."""

from __future__ import annotations

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

from trifocal.engines.sampler import Sampler, filtered
from trifocal.errors import EngineError
from trifocal.messages import Sampling


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
    penalised = Sampler(sampling, prompt)._penalised(logits(seed).clone())
    torch.testing.assert_close(filtered(penalised / sampling.temperature, sampling), wanted)


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(Sampling(), []).pick(logits(1)) == int(logits(1).argmax())


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1, seed=5), [])
    scores = torch.tensor([0.0, 1.0, 2.0])
    drawn = torch.tensor([sampler.pick(scores.clone()) for _ in range(3000)]).bincount(minlength=3) / 3000
    torch.testing.assert_close(drawn, scores.softmax(-1), atol=0.04, rtol=0)


def test_one_seed_one_row_of_draws() -> None:
    def row(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed), [])
        return [sampler.pick(logits(n)) for n in range(30)]

    assert row(7) == row(7)
    assert row(7) != row(8)
    assert row(None) != row(None)


def test_presence_and_frequency_count_the_answer_alone() -> None:
    sampler = Sampler(Sampling(presence_penalty=2, frequency_penalty=1), prompt_ids=[0])
    scores = torch.tensor([10.0, 9.5, 0.0])
    assert [sampler.pick(scores.clone()) for _ in range(3)] == [0, 1, 0]


def test_an_ignored_end_is_never_drawn() -> None:
    assert Sampler(Sampling(ignore_end=True), [], end_ids=[0]).pick(torch.tensor([9.0, 1.0])) == 1
    assert Sampler(Sampling(), [], end_ids=[0]).pick(torch.tensor([9.0, 1.0])) == 0


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_told(temperature: float, bad: float) -> None:
    with pytest.raises(EngineError, match="finite"):
        Sampler(Sampling(temperature=temperature), []).pick(torch.tensor([1.0, bad]))
