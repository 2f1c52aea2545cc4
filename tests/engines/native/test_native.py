"""The native engine against transformers' own classes: the same weights, the same logits and the same ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import small_languages
from checkpoint_maker import llama_tokenizer, save_tokenizer
from recipes import written
from trifocal.engines import load_engine
from trifocal.engines.language import open_language
from trifocal.engines.native import Native, load
from trifocal.engines.native.memory import Pool
from trifocal.engines.native.model import Plain
from trifocal.engines.native.runner import NativeRunner
from trifocal.engines.recipe import Recipe
from trifocal.engines.scheduler import Run
from trifocal.engines.shape import FAMILIES, shape_of
from trifocal.engines.speculation import Costs
from trifocal.engines.transformers import load as load_transformers
from trifocal.errors import CheckpointError, UsageError
from trifocal.messages import Sampling
from trifocal.placement import Placement
from trifocal.prompt import ImageSpan, Prompt, TokenSpan

SIZES: dict[str, Any] = {**small_languages.SIZES, "num_hidden_layers": 3, "vocab_size": 400}
KINDS: dict[str, dict[str, Any]] = {
    **small_languages.KINDS,
    "llama, narrow heads": {"model_type": "llama", "head_dim": 8, "num_key_value_heads": 1},
    "mistral, window": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 8},
    "qwen3, tied": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "phi3, half turned": {"model_type": "phi3", "partial_rotary_factor": 0.5},
}
LONG = Sampling(max_tokens=48, ignore_end=True)
CPU = Placement("cpu", "float32")


def picture(seed: int, rows: int = 5) -> ImageSpan:
    return ImageSpan(torch.randn(rows, 64, generator=torch.Generator().manual_seed(seed)) / 20, f"{seed} of {rows}")


def text(*ids: int) -> TokenSpan:
    return TokenSpan(ids)


PROMPTS = [
    Prompt([text(1, 9, 10), picture(1), text(5, 6, 7)]),
    Prompt([text(1, 9, 10), picture(1), picture(2), text(8), picture(3)]),
    Prompt([text(*range(3, 80))]),
    Prompt([text(1)]),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(llama_tokenizer(["<x>"]), folder)
    return folder


def language(kind: dict[str, Any], folder: Path) -> tuple[Recipe, Any]:
    """The recipe of a random language half, and the reference with its weights."""
    values = {**SIZES, **kind}
    name = values.pop("model_type")
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values), dtype=torch.float32).eval()
    for parameter in reference.parameters():
        parameter.data += torch.randn_like(parameter) * 0.02  # biases and norms that are not all alike
    weights = dict(reference.state_dict())
    if values.get("tie_word_embeddings"):
        weights.pop("lm_head.weight")
    return written(folder, {**values, "model_type": name}, weights, folder), reference


@torch.no_grad()
def generated(reference: Any, prompt: Prompt, count: int = 48) -> list[int]:
    rows = prompt.splice(reference.get_input_embeddings())[None]
    told: list[int] = reference.generate(
        inputs_embeds=rows, max_new_tokens=count, min_new_tokens=count, do_sample=False
    )[0].tolist()
    return told


def said(engine: Native, prompt: Prompt, sampling: Sampling = LONG) -> list[int]:
    return [token.id for token in engine.stream(prompt, sampling)]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_ids_and_probabilities_are_those_of_transformers(kind: dict[str, Any], tokenizer: Path) -> None:
    half, reference = language(kind, tokenizer)
    with closing(load(half, CPU)) as engine:
        for prompt in PROMPTS:
            assert said(engine, prompt) == generated(reference, prompt)
        (first,) = engine.stream(PROMPTS[0], Sampling(max_tokens=1, ignore_end=True, top_logprobs=20))
    rows = PROMPTS[0].splice(reference.get_input_embeddings())
    with torch.no_grad():
        theirs = reference(inputs_embeds=rows[None]).logits[0, -1].log_softmax(-1)
    ids, ours = zip(*first.top, strict=True)
    torch.testing.assert_close(torch.tensor(ours), theirs[list(ids)], atol=1e-4, rtol=0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two cards here")
def test_a_second_card_answers_as_the_first_one_does(tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    told = []
    for card in ("cuda:0", "cuda:1"):
        with closing(load(half, Placement(card, "bfloat16"))) as engine:
            told.append([said(engine, prompt) for prompt in PROMPTS])
    assert told[0] == told[1]


def test_a_table_of_eight_bits_is_read_as_the_rest_is(tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    weights = dict(open_language(half).weights)
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].to(torch.float8_e4m3fn)
    with closing(load(written(tokenizer, half.config, weights, tokenizer), CPU)) as engine:
        assert engine.runner.model.embedding.dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_that_is_only_looked_up_stays_as_narrow_as_it_is_stored(tied: bool, tokenizer: Path) -> None:
    half, _ = language({**KINDS["llama"], "tie_word_embeddings": tied}, tokenizer)
    narrow = {name: each.bfloat16() for name, each in open_language(half).weights.items()}
    half = written(tokenizer, half.config, narrow, tokenizer)
    wide = written(tokenizer, half.config, {name: each.float() for name, each in narrow.items()}, tokenizer)
    with closing(load(half, CPU)) as engine, closing(load(wide, CPU)) as other:
        assert engine.runner.model.embedding.dtype == (torch.float32 if tied else torch.bfloat16)
        assert (engine.parts[0].dtype, engine.embed(torch.tensor([3])).dtype) == ("float32", torch.float32)
        rows = PROMPTS[0].splice(engine.embed)
        assert torch.equal(rows, PROMPTS[0].splice(other.embed))
        assert torch.equal(engine.runner.logits(rows), other.runner.logits(rows))


# keys that stand in a configuration and mean something in another family's
STRAY: dict[str, dict[str, Any]] = {
    "llama, a window": {"model_type": "llama", "sliding_window": 8},
    "llama, partial": {"model_type": "llama", "partial_rotary_factor": 0.5},
    "mistral, a switch": {"model_type": "mistral", "sliding_window": 8, "use_sliding_window": False},
    "qwen2, a window": {"model_type": "qwen2", "sliding_window": 8},
    "qwen2, partial": {"model_type": "qwen2", "partial_rotary_factor": 0.5},
    "qwen2, all windows": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0},
    "qwen2, no layer left": {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
    "qwen3, a window": {"model_type": "qwen3", "sliding_window": 8, "head_dim": 16},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", STRAY.values(), ids=STRAY)
def test_what_a_family_does_not_follow_changes_nothing(kind: dict[str, Any], tokenizer: Path) -> None:
    half, reference = language({"model_type": "qwen2", "num_key_value_heads": 2, **kind}, tokenizer)
    with closing(load(half, CPU)) as engine:
        (first,) = engine.stream(PROMPTS[2], Sampling(max_tokens=1, ignore_end=True, top_logprobs=20))
    rows = PROMPTS[2].splice(reference.get_input_embeddings())
    theirs = reference(inputs_embeds=rows[None]).logits[0, -1].log_softmax(-1)
    ids, ours = zip(*first.top, strict=True)
    torch.testing.assert_close(torch.tensor(ours), theirs[list(ids)], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *(({"rope_scaling": odd}, "rope_scaling is") for odd in (4.0, "linear", [1])),
        *(({"rope_scaling": {"type": "linear", "factor": odd}}, "factor is") for odd in (0, "2", -1.0)),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor'"),
        *(({"rope_theta": odd}, "rope_theta is") for odd in (0, -1.0, "10000", True)),
        *(({"sliding_window": odd}, "sliding_window is") for odd in ("8", -1, 2.5)),
        *(({key: None}, key) for key in ("num_hidden_layers", "rms_norm_eps", "num_attention_heads")),
        *(({"bos_token_id": odd}, "bos_token_id is") for odd in ([1, 2], "1")),
    ],
    ids=str,
)
def test_odd_values_are_told_by_their_key(change: dict[str, Any], told: str, tokenizer: Path) -> None:
    """Where no engine is named, none computes with them."""
    half, _ = language({"model_type": "llama"}, tokenizer)
    with pytest.raises(CheckpointError, match=rf"config\.json: .*{told}"):
        load_engine(replace(half, config={**half.config, **change}))


@pytest.mark.parametrize("kind", ["mistral, window", "phi3"])
def test_guessing_changes_no_answer(kind: str, tokenizer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Costs, "rows", lambda self, answers, chances: len(chances))
    half, reference = language(KINDS[kind], tokenizer)
    with closing(load(half, CPU)) as engine:
        for prompt in PROMPTS:
            assert said(engine, prompt, Sampling(max_tokens=96, ignore_end=True)) == generated(reference, prompt, 96)
        assert engine.state().drafted > engine.state().accepted > 0


@pytest.mark.parametrize("sampling", [LONG, replace(LONG, temperature=1.0, top_p=0.9, seed=5)], ids=["greedy", "drawn"])
def test_steps_begun_ahead_change_no_answer(
    sampling: Sampling, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, _ = language(KINDS["mistral, window"], tokenizer)
    with closing(load(half, CPU, speculate=False, overlap=False)) as engine:
        wanted = [said(engine, prompt, sampling) for prompt in PROMPTS]
    begun: list[int] = []
    follow = NativeRunner.follow

    def counted(self: NativeRunner, runs: Sequence[Run[Any]], ids: torch.Tensor) -> torch.Tensor:
        begun.append(len(runs))
        return follow(self, runs, ids)

    monkeypatch.setattr(NativeRunner, "follow", counted)
    with closing(load(half, CPU, speculate=False, overlap=True)) as engine:
        assert [said(engine, prompt, sampling) for prompt in PROMPTS] == wanted
        assert len(begun) == sum(len(ids) - 1 for ids in wanted)  # all but the first token of each
        streams = [engine.stream(prompt, sampling) for prompt in PROMPTS]
        told = [[next(stream).id] for stream in streams]
        for ids, stream in zip(told, streams, strict=True):
            ids += [token.id for token in stream]
        assert told == wanted
        assert max(begun) > 1


def test_every_family_of_the_table_is_held() -> None:
    assert {kind["model_type"] for kind in KINDS.values()} == set(FAMILIES)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_configuration_leaves_unsaid_is_what_transformers_takes(kind: str) -> None:
    theirs, ours = AutoConfig.for_model(kind, pad_token_id=0), shape_of({"model_type": kind})
    assert (ours.layers, ours.hidden, ours.heads, ours.kv_heads, ours.inner, ours.context) == (
        *(theirs.num_hidden_layers, theirs.hidden_size, theirs.num_attention_heads),
        *(theirs.num_key_value_heads, theirs.intermediate_size, theirs.max_position_embeddings),
    )
    assert ours.dim == getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.epsilon, ours.window) == (theirs.rms_norm_eps, getattr(theirs, "sliding_window", None) or 0)
    assert ours.rope["rope_theta"] == theirs.rope_parameters["rope_theta"]


def test_a_crowd_gets_what_each_would_get_alone(tokenizer: Path) -> None:
    half, reference = language(KINDS["mistral, window"], tokenizer)
    prompts = [Prompt([text(1, at + 3, at + 4), picture(at, 3 + at), text(9, 10)]) for at in range(6)]
    with closing(load(half, CPU)) as engine:
        streams = [engine.stream(prompt, LONG) for prompt in prompts]
        told: list[list[int]] = [[] for _ in prompts]
        for at, stream in enumerate(streams):  # one begins after the other, so that each meets the others half way
            told[at].append(next(stream).id)
        for at, stream in enumerate(streams):
            told[at] += [token.id for token in stream]
    assert told == [generated(reference, prompt) for prompt in prompts]


@pytest.mark.parametrize(
    ("options", "room", "positions", "context"),
    [
        ({}, 1 << 40, 8 * 4096, 4096),
        ({}, 0, 2048, 2048),
        ({"context": 3000}, 0, 3008, 3000),
        ({"positions": 5000}, 0, 5008, 4096),
        ({"positions": 10, "context": 100}, 0, 112, 100),
    ],
)
def test_the_pool_holds_what_there_is_room_for(
    options: dict[str, int], room: int, positions: int, context: int, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trifocal.engines.native._room", lambda device: room)
    half, _ = language({**KINDS["llama"], "max_position_embeddings": 4096}, tokenizer)
    with closing(load(half, CPU, **options)) as engine:
        assert (engine.runner.positions, engine.context) == (positions, context)


def test_a_second_turn_goes_on_from_what_is_there(tokenizer: Path) -> None:
    half, reference = language(KINDS["llama 3"], tokenizer)
    first = Prompt([text(*range(3, 40)), picture(1, 20), text(5)])
    with closing(load(half, CPU)) as engine:
        answer = said(engine, first)
        second = Prompt([*first.spans, text(*answer[:-1], 11, 12), picture(2), text(13)])
        assert said(engine, second) == generated(reference, second)


@pytest.mark.parametrize("kind", ["mistral, window", "qwen3, tied"])
def test_keys_and_values_kept_as_bytes_are_near_and_half_as_large(kind: str, tokenizer: Path) -> None:
    half, _ = language(KINDS[kind], tokenizer)
    one = Sampling(max_tokens=1, ignore_end=True, top_logprobs=20)
    told: dict[str, dict[int, float]] = {}
    for kv in ("exact", "int8"):
        with closing(load(half, CPU, kv=kv)) as engine:
            answer = said(engine, PROMPTS[1])
            (next_turn,) = engine.stream(Prompt([*PROMPTS[1].spans, text(7, 9)]), one)
            told[kv] = dict(next_turn.top)
            pieces = Prompt([*PROMPTS[1].spans, text(*answer[:-1])])
            (after,) = engine.stream(pieces, one)  # goes on from what is kept
            assert after.id == answer[-1]
    known = [told["int8"][id] - told["exact"][id] for id in told["exact"].keys() & told["int8"].keys()]
    assert len(known) >= 15
    assert 0 < max(map(abs, known)) < 2e-2
    shape = shape_of(open_language(half).config)
    pools = [Pool(shape, 4, torch.bfloat16, torch.device("cpu"), in_bytes=in_bytes) for in_bytes in (False, True)]
    sizes = [sum(part.nbytes for part in (pool.keys, pool.values, pool.scales) if part is not None) for pool in pools]
    assert sizes == [4 * Pool.bytes_a_block(shape, torch.bfloat16, in_bytes=in_bytes) for in_bytes in (False, True)]
    assert sizes[1] / sizes[0] == (shape.dim + 2) / (2 * shape.dim)


def test_heads_kept_as_bytes_are_within_half_a_step() -> None:
    shape = shape_of({**SIZES, "model_type": "llama", "num_hidden_layers": 1})
    pool = Pool(shape, 2, torch.float32, torch.device("cpu"), in_bytes=True)
    keys, values = torch.randn(2, 5, shape.kv_heads, shape.dim, generator=torch.Generator().manual_seed(1))
    keys[1], values[2] = 0, 1e-9  # nothing, and next to nothing
    slots = torch.tensor([7, 3, 31, 0, 12])
    pool.write(0, slots, keys, values)
    for kept, given in zip(pool.read(0, slots), (keys, values), strict=True):
        step = given.abs().amax(-1, keepdim=True) / 127
        assert bool(((kept - given).abs() <= 0.51 * step + 1e-7).all())
        assert not torch.equal(kept, given)


def test_another_way_to_keep_keys_and_values_is_refused_by_name(tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    for name, value in (("kv", "fp8"), ("table", "disk"), ("prompts", "int4")):
        with pytest.raises(UsageError, match=f"{name}.*{value}"):
            load_engine(replace(half, engine="native", options={name: value}))


def test_prompts_in_eight_bits_are_refused_where_there_is_no_card_for_them(tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    with pytest.raises(UsageError, match=r"prompts=fp8 wants a Hopper card.*this is cpu in float32"):
        load_engine(replace(half, engine="native", device="cpu", options={"prompts": "fp8"}))


@pytest.mark.parametrize("ids", [[7, 8, 9, 10], [7]])
@pytest.mark.parametrize("kind", ["qwen3, tied", "mistral, window"])
def test_where_it_looked_is_what_the_transformers_engine_tells(kind: str, ids: list[int], tokenizer: Path) -> None:
    half, _ = language(KINDS[kind], tokenizer)
    with closing(load(half, CPU)) as ours, closing(load_transformers(half, CPU)) as theirs:
        for prompt in PROMPTS:
            torch.testing.assert_close(ours.attention(prompt, ids), theirs.attention(prompt, ids), atol=1e-5, rtol=0)


def test_where_it_looked_is_told_as_well_where_attention_knows_shapes_for_masks(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a card, whose kernels take a shape that nobody can read: there this was an error."""
    half, _ = language(KINDS["llama"], tokenizer)
    with closing(load(half, CPU)) as engine:
        told = engine.attention(PROMPTS[0], [7, 8, 9, 10])
        made = Plain.__init__

        def as_on_a_card(self: Plain, *given: Any) -> None:
            made(self, *given)
            self._by_shape = True

        monkeypatch.setattr(Plain, "__init__", as_on_a_card)
        torch.testing.assert_close(engine.attention(PROMPTS[0], [7, 8, 9, 10]), told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not of the LLaMA family"),
        ({"hidden_act": "gelu"}, "its activation is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "its rotary positions are of the kind 'yarn'"),
        ({"logits_scaling": 8.0}, "it has logits_scaling"),
        (
            {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
            "only some of its layers have a window",
        ),
    ],
)
def test_what_it_does_not_compute_is_refused_by_name(change: dict[str, Any], told: str, tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    with pytest.raises(CheckpointError, match=f"the engine native can't run this language model: {told}"):
        load(replace(half, config={**half.config, **change}), CPU)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda w: w.pop("model.layers.1.mlp.up_proj.weight"),
            "missing from the language model: the tensor 'model.layers.1.mlp.up_proj.weight'",
        ),
        (lambda w: w.update({"model.extra.weight": torch.zeros(2)}), "1 tensors of the language model are unexpected"),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(63)}),
            r"norm.weight is \[63\], \[64\] was expected",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.full((64,), torch.nan)}),
            "model.norm.weight holds numbers that are not finite",
        ),
    ],
)
def test_damaged_weights_are_told_by_tensor(spoil: Any, told: str, tokenizer: Path) -> None:
    half, _ = language(KINDS["llama"], tokenizer)
    weights = dict(open_language(half).weights)
    spoil(weights)
    with pytest.raises(CheckpointError, match=told):
        load(written(tokenizer, half.config, weights, tokenizer), CPU)


@pytest.mark.parametrize(
    ("key", "layers"),
    [("attention_bias", "self_attn."), ("attention_bias", "self_attn.o_proj."), ("mlp_bias", "mlp.")],
)
def test_biases_that_the_configuration_promises_are_missed_by_both_engines(
    key: str, layers: str, tokenizer: Path
) -> None:
    half, _ = language(KINDS["llama, biases"], tokenizer)
    weights = dict(open_language(half).weights)
    assert half.config[key]
    left = {name: each for name, each in weights.items() if not (layers in name and name.endswith(".bias"))}
    assert len(left) < len(weights)
    spoilt = written(tokenizer, half.config, left, tokenizer)
    for opened in (load, load_transformers):
        with pytest.raises(CheckpointError, match=rf"missing.*{layers}.*bias"):
            opened(spoilt, CPU)
