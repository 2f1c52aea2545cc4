"""Servers that take embeddings as ones that see: what is asked of them, and what of their answers is not believed."""

from __future__ import annotations

from typing import Any

import pytest

import needs
import trifocal
from little_server import answer, events, little
from trifocal import PeerError, Sampling, UsageError
from trifocal.errors import MissingExtra, PeerBusy

MODELS = ({"id": "half", "max_model_len": 512},)


def said(*ids: int, finish: str | None = "length", **more: Any) -> bytes:
    return events({"choices": [{"index": 0, "text": "x", "token_ids": list(ids), "finish_reason": finish, **more}]})


def scored(top: dict[str, Any]) -> dict[str, Any]:
    return {"token_logprobs": [-1.0], "top_logprobs": [top]}


def opened(url: str, **options: Any) -> trifocal.Llava:
    return trifocal.load(engine="vllm", engine_options={"url": url, **options})


def test_a_prompt_with_a_picture_goes_as_embeddings_and_one_without_as_ids() -> None:
    with little(said(5, 6), models=MODELS) as there:
        llava = opened(there.url, key="some-key")
        llava.complete([llava.question("Hi")], Sampling(max_tokens=2, top_k=3))
        picture = trifocal.open_image("docs/example.png")
        llava.complete([llava.question("Hi", [picture])], Sampling(max_tokens=2, temperature=0.5))
    assert [sorted({"prompt", "prompt_embeds"} & set(body)) for body in there.bodies] == [
        ["prompt_embeds"],
        ["prompt"],
        ["prompt"],
        ["prompt_embeds"],
    ]
    assert there.bodies[2]["top_k"] == 3
    assert there.bodies[3]["temperature"] == 0.5
    assert all("authorization: bearer some-key" in head.lower() for head in there.requests)
    assert llava.context == 512


@pytest.mark.parametrize(
    ("answers", "said_of_it"),
    [
        (
            (answer({"error": {"message": "You must set `--enable-prompt-embeds`"}}, "400 Bad Request"),),
            "--enable-prompt",
        ),
        ((said(1, 2), said(1, 3)), "another language model"),
    ],
)
def test_a_server_that_is_not_the_one(answers: tuple[bytes, ...], said_of_it: str) -> None:
    with little(*answers, models=MODELS) as there, pytest.raises(UsageError, match=said_of_it):
        opened(there.url)


@pytest.mark.parametrize("length", [None, -1, True, "512", 0])
def test_a_server_that_does_not_tell_its_context(length: Any) -> None:
    models = ({"id": "half", "max_model_len": length},)
    with little(said(5), models=models) as there, pytest.raises(UsageError, match="a known context"):
        opened(there.url)
    with little(said(5), listed=answer({"data": 7})) as there, pytest.raises(UsageError, match="a known context"):
        opened(there.url)


@pytest.mark.parametrize(
    ("told", "kind", "words"),
    [
        (said(1 << 30), PeerError, "no ids of this vocabulary"),
        (said(-1), PeerError, "no ids of this vocabulary"),
        (said(True), PeerError, "no ids of this vocabulary"),
        (said(), PeerError, "tells no ids"),
        (said(5, finish=None), PeerError, "in the middle"),
        (said(5, 6, 7), PeerError, "more than the 2 ids"),
        (said(5, logprobs=scored({"token_id:1073741824": -1.0})), PeerError, "no ids of this vocabulary"),
        (said(5, logprobs=scored({"token_id:5": "likely"})), PeerError, "not known here"),
        (events({"hello": 1}), PeerError, "no completion"),
        (events({"choices": [1]}), PeerError, "no completion"),
        (said(5, logprobs={"tokens": []}), PeerError, "not known here"),
        (answer({"error": {"message": "Too many."}}, "429 Too Many Requests"), PeerBusy, "Too many."),
        (answer({"error": {"message": "Not so."}}, "400 Bad Request"), PeerError, "Not so."),
    ],
)
def test_answers_that_are_not_believed(told: bytes, kind: type[Exception], words: str) -> None:
    with little(said(5), said(5), told, models=MODELS) as there:
        llava = opened(there.url)
        with pytest.raises(kind, match=words):
            llava.complete(
                [llava.question("Hi")], Sampling(max_tokens=2, top_logprobs=1 if b"logprobs" in told else None)
            )
        llava.close()
        with pytest.raises(trifocal.EngineError, match="closed"):
            llava.complete([llava.question("Hi")])


def test_options_of_the_other_way() -> None:
    with pytest.raises(UsageError, match="other end"):
        opened("http://127.0.0.1:1", kv_gib=1.0)
    with pytest.raises(UsageError, match="without -e url"):
        trifocal.load(engine="vllm", engine_options={"model": "half"})
    with pytest.raises(UsageError, match="is no address"):
        opened("127.0.0.1")


@pytest.mark.skipif(needs.has("vllm"), reason="vLLM is installed")
def test_where_vllm_is_not_installed() -> None:
    with pytest.raises(MissingExtra, match="vllm"):
        trifocal.load(engine="vllm")


def told(*ids: int, total: int, finish: str | None = "length", **more: Any) -> dict[str, Any]:
    facts = {"completion_tokens": total, "finish_reason": finish and {"type": finish}, **more}
    return {"text": "x", "output_ids": list(ids), "meta_info": facts}


@pytest.mark.parametrize(
    "answers",
    [
        (told(5, total=1, finish=None), told(5, 6, total=2, finish=None), told(5, 6, 7, total=3)),  # all ids so far
        (told(5, total=1, finish=None), told(6, total=2, finish=None), told(7, total=3)),  # the new ones alone
    ],
)
def test_sglang_tells_ids_in_either_way(answers: tuple[dict[str, Any], ...]) -> None:
    trial = events(told(8, total=1))
    with little(trial, trial, events(*answers), models=MODELS) as there:
        llava = trifocal.load(engine="sglang", engine_options={"url": there.url})
        asked = llava.prepare(llava.write([llava.question("Hi")]), Sampling(max_tokens=3, seed=2))
        assert [token.id for token in llava.engine.stream(asked.prompt, asked.sampling)] == [5, 6, 7]
    assert isinstance(there.bodies[0]["input_embeds"][0][0], float)
    assert isinstance(there.bodies[1]["input_ids"][0], int)
    assert there.bodies[2]["sampling_params"]["sampling_seed"] == 2
    assert all(head.startswith("POST /generate ") for head in there.requests)


def test_sglang_tells_how_likely_they_are() -> None:
    scores = {
        "output_token_logprobs": [[-0.5, 5, None], [-0.25, 6, None]],
        "output_top_logprobs": [[[-0.5, 5, None], [-2.0, 9, None]], [[-0.25, 6, None]]],
    }
    trial = events(told(8, total=1))
    with little(trial, trial, events(told(5, 6, total=2, **scores)), models=MODELS) as there:
        llava = trifocal.load(engine="sglang", engine_options={"url": there.url})
        asked = llava.prepare(llava.write([llava.question("Hi")]), Sampling(max_tokens=3, top_logprobs=2))
        tokens = list(llava.engine.stream(asked.prompt, asked.sampling))
    assert [(token.id, token.logprob) for token in tokens] == [(5, -0.5), (6, -0.25)]
    assert tokens[0].top == ((5, -0.5), (9, -2.0))


def test_sglang_without_an_address() -> None:
    with pytest.raises(UsageError, match="-e url"):
        trifocal.load(engine="sglang")
    with little(events({"hello": 1}), models=MODELS) as there, pytest.raises(PeerError, match="no answer"):
        trifocal.load(engine="sglang", engine_options={"url": there.url})
