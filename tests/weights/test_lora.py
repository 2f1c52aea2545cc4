"""LoRA checkpoints: the sums of peft, whatever the spelling, and adapters that are none refused by name."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trifocal
from layouts import family, quantised, save_hf, save_lora
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines.language import open_language
from trifocal.errors import CheckpointError
from trifocal.tools.convert import split
from trifocal.weights.lora import changed_weights
from trifocal.weights.tensors import part_weights

WRAPPED = "base_model.model.model."
QUERY = "model.layers.0.self_attn.q_proj.weight"


def weights_of(folder: Path, language: str | None = None) -> Any:
    text = find_checkpoint(str(folder), language=language).language
    return changed_weights(text.source, "language", text.adapter)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_lora(family("1.5"), tmp_path / "lora", tmp_path / "base")


def respelt(folder: Path, rename: Callable[[str], str]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)


def test_a_weight_is_the_base_and_its_change(lora: Path, tmp_path: Path) -> None:
    base, sums = part_weights(tmp_path / "base", "language"), weights_of(lora)
    changes = load_file(lora / "adapter_model.safetensors")
    stem = f"base_model.model.{QUERY.removesuffix('.weight')}.lora_"
    wanted = base[QUERY] + 2.0 * (changes[f"{stem}B.weight"] @ changes[f"{stem}A.weight"])
    torch.testing.assert_close(sums[QUERY], wanted, atol=1e-6, rtol=0)
    assert not torch.equal(sums[QUERY], base[QUERY])
    assert torch.equal(sums["model.norm.weight"], base["model.norm.weight"])
    assert set(sums) == set(base)
    assert sums.spec(QUERY) == base.spec(QUERY)


@pytest.mark.parametrize("spelling", [".lora_A.default.weight", ".lora_A.weight"])
def test_both_spellings_of_peft(lora: Path, spelling: str) -> None:
    before = weights_of(lora)[QUERY]
    respelt(
        lora,
        lambda name: name.replace(".lora_A.weight", spelling).replace(".lora_B.weight", spelling.replace("A", "B")),
    )
    assert torch.equal(weights_of(lora)[QUERY], before)


def test_what_was_trained_whole_replaces_the_base(lora: Path) -> None:
    table = torch.randn(7, 64)
    file = lora / "non_lora_trainables.safetensors"
    held = load_file(file)
    save_file({**held, "base_model.model.model.embed_tokens.weight": table}, file)
    saved = "base_model.model.lm_head.modules_to_save.default.weight"
    adapter = lora / "adapter_model.safetensors"
    save_file({**load_file(adapter), saved: table}, adapter)
    weights = open_language(language_recipe(find_checkpoint(str(lora)))).weights
    assert torch.equal(weights["model.embed_tokens.weight"], table)
    assert torch.equal(weights["lm_head.weight"], table)


def test_alpha_may_differ_by_layer(lora: Path, tmp_path: Path) -> None:
    plain = weights_of(lora)[QUERY]
    change(lora, alpha_pattern={"layers.0.self_attn.q_proj": 16})
    base = part_weights(tmp_path / "base", "language")[QUERY]
    torch.testing.assert_close(weights_of(lora)[QUERY] - base, 2 * (plain - base), atol=1e-5, rtol=0)


@pytest.mark.parametrize("around", ["model.language_model.", "language_model.model."])
def test_a_pattern_names_layers_as_they_were_when_trained(lora: Path, tmp_path: Path, around: str) -> None:
    plain = weights_of(lora)[QUERY]
    respelt(lora, lambda name: name.replace("base_model.model.model.", f"base_model.model.{around}"))
    change(lora, alpha_pattern={f"^{around}layers.0.self_attn.q_proj$": 16})
    base = part_weights(tmp_path / "base", "language")[QUERY]
    torch.testing.assert_close(weights_of(lora)[QUERY] - base, 2 * (plain - base), atol=1e-5, rtol=0)


def test_which_way_round_a_weight_lies_is_said_of_layers_that_a_llama_has_not(lora: Path) -> None:
    plain = weights_of(lora)[QUERY]
    change(lora, fan_in_fan_out=True)  # as peft: Conv1D's alone lie so
    assert torch.equal(weights_of(lora)[QUERY], plain)


@pytest.mark.parametrize("kind", ["GPTQ 4 bits", "FP8", "bitsandbytes NF4", "bitsandbytes 8 bits"])
def test_no_change_is_added_to_levels_of_few_bits(lora: Path, tmp_path: Path, kind: str) -> None:
    packed = save_hf(quantised(copy.deepcopy(family("1.5")), kind), tmp_path / "packed")
    with pytest.raises(CheckpointError, match=r"quantised in .*language_from"):
        weights_of(lora, language=str(packed))


def test_the_base_may_lie_elsewhere(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="base"):
        find_checkpoint(str(lora))
    found = find_checkpoint(str(lora), language=str(tmp_path / "elsewhere"))
    assert found.language.adapter == lora
    assert found.template == "llava_v1"


def test_split_writes_the_sums(lora: Path, tmp_path: Path, drawn: Any) -> None:
    split(find_checkpoint(str(lora)), tmp_path / "parts")
    merged = part_weights(tmp_path / "parts" / "language", "language")
    sums = weights_of(lora)
    assert all(torch.equal(merged[name], sums[name]) for name in sums)
    with trifocal.load(checkpoint=str(lora)) as llava:
        assert llava.complete([llava.question("What?", [drawn(1)])]).end.image_tokens == 16


def change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"rank_pattern": {"(": 4}}, "no pattern"),
        ({"r": 16}, "a rank of 4, adapter_config.json says 16"),
        ({"rank_pattern": {"mlp.up_proj": 8}}, "mlp.up_proj.weight is changed with a rank of 4"),
        ({"lora_alpha": "two"}, "'two'"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_what_is_no_plain_lora_is_refused(lora: Path, values: dict[str, Any], told: str) -> None:
    change(lora, **values)
    with pytest.raises(CheckpointError, match=told):
        open_language(language_recipe(find_checkpoint(str(lora))))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: {k: v for k, v in t.items() if "q_proj.lora_B" not in k}, "lora_A alone"),
        (lambda t: {k: v[:, :3] if "q_proj.lora_A" in k else v for k, v in t.items()}, r"make no change of \[64, 64\]"),
        (lambda t: {k: v[:0] if "q_proj.lora_A" in k else v for k, v in t.items()}, "make no change"),
        (lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}, "layers.7.*belongs to another model"),
        (lambda t: {**t, "base_model.model.model.layers.0.mlp.up_proj.bias": torch.ones(96)}, "no plain LoRA"),
        (lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}, "lora_A alone"),
        (lambda t: {**t, f"{WRAPPED}layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(64)}, "use_dora"),
        (lambda t: {**t, f"{WRAPPED}layers.0.self_attn.q_proj.lora_A.other.weight": torch.ones(4, 64)}, "are both for"),
        (lambda t: {**t, f"{WRAPPED}embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)}, "0 ids"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(lora: Path, spoil: Callable[[Any], Any], told: str) -> None:
    file = lora / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in spoil(load_file(file)).items()}, file)
    with pytest.raises(CheckpointError, match=told):
        open_language(language_recipe(find_checkpoint(str(lora))))


def test_an_adapter_without_its_file_or_its_base_is_told(lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        open_language(language_recipe(find_checkpoint(str(lora))))
    change(lora, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="language_from"):
        find_checkpoint(str(lora))
    (lora / "adapter_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="no JSON"):
        find_checkpoint(str(lora))


# what peft writes, and under which names


def add(folder: Path, **settings: Any) -> Callable[[dict[str, torch.Tensor]], None]:
    """Adds tensors to an adapter whose settings say these."""

    def write(tensors: dict[str, torch.Tensor]) -> None:
        change(folder, **settings)
        file = folder / "adapter_model.safetensors"
        save_file({**load_file(file), **tensors}, file)

    return write


def sums(folder: Path) -> Any:
    return weights_of(folder)


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"],
)
@pytest.mark.parametrize("words", ["", ".modules_to_save", ".modules_to_save.default", ".base_layer"])
def test_a_module_trained_whole_is_used_whatever_peft_calls_it(
    lora: Path, tmp_path: Path, name: str, words: str
) -> None:
    trained = torch.randn(part_weights(tmp_path / "base", "language").spec(name)[1])
    layer = name.removesuffix(".weight")
    add(lora)({f"base_model.model.{layer}{words}.weight": trained})
    assert torch.equal(open_language(language_recipe(find_checkpoint(str(lora)))).weights[name], trained)


def test_a_resized_table_and_its_head_answer(lora: Path, drawn: Any) -> None:
    rows = torch.randn(410, 64)
    add(lora)({f"{WRAPPED}embed_tokens.weight": rows, "base_model.model.lm_head.weight": rows + 1})
    with trifocal.load(checkpoint=str(lora)) as llava:
        assert torch.equal(llava.engine.runner.model.head.weight.float(), rows + 1)
        assert llava.complete(
            [llava.question("What?", [drawn(1)])], trifocal.Sampling(max_tokens=3)
        ).end.completion_tokens


@pytest.mark.parametrize("ending", ["", ".default"])
def test_an_embedding_is_changed_the_other_way_round(lora: Path, tmp_path: Path, ending: str) -> None:
    table = part_weights(tmp_path / "base", "language")["model.embed_tokens.weight"]
    down, up = torch.randn(4, len(table)), torch.randn(64, 4)
    stem = f"{WRAPPED}embed_tokens.lora_embedding_"
    add(lora)({f"{stem}A{ending}": down, f"{stem}B{ending}": up})
    torch.testing.assert_close(sums(lora)["model.embed_tokens.weight"], table + 2 * (up @ down).T)


@pytest.mark.parametrize("ending", ["", ".default", ".default.weight", ".weight"])
def test_doras_rows_have_their_trained_lengths(lora: Path, tmp_path: Path, ending: str) -> None:
    plain = {name: sums(lora)[name] for name in sums(lora)}
    layers = [name for name in load_file(lora / "adapter_model.safetensors") if name.endswith("lora_A.weight")]
    lengths = {name: 1 + torch.rand(len(plain[spelt(name)])) for name in layers}
    add(lora, use_dora=True)(
        {name.replace("lora_A.weight", f"lora_magnitude_vector{ending}"): each for name, each in lengths.items()}
    )
    for name, each in lengths.items():
        changed = sums(lora)[spelt(name)]
        torch.testing.assert_close(changed.norm(dim=1), each)
        torch.testing.assert_close(
            changed / each[:, None], plain[spelt(name)] / plain[spelt(name)].norm(dim=1)[:, None]
        )


def spelt(name: str) -> str:
    return name.removeprefix("base_model.model.").replace("lora_A.weight", "weight")


@pytest.mark.parametrize(
    "told", [[3, 5, 9], {"embed_tokens": [3, 5, 9]}, {"lm_head": [1], "model.embed_tokens": [3, 5, 9]}]
)
def test_rows_that_were_trained_alone(lora: Path, tmp_path: Path, told: Any) -> None:
    table = part_weights(tmp_path / "base", "language")["model.embed_tokens.weight"].clone()
    rows = torch.randn(3, 64)
    add(lora, trainable_token_indices=told)({f"{WRAPPED}embed_tokens.token_adapter.trainable_tokens_delta": rows})
    table[[3, 5, 9]] = rows
    assert torch.equal(sums(lora)["model.embed_tokens.weight"], table)


def test_a_resized_module_that_was_trained_whole_is_written_down_three_times(lora: Path) -> None:
    rows, before = torch.randn(410, 64), torch.randn(410, 64)
    stem = "base_model.model.lm_head"
    named = {f"{stem}.weight": rows, f"{stem}.modules_to_save.weight": rows.clone()}
    add(lora)({**named, f"{stem}.original_module.weight": before, f"{WRAPPED}embed_tokens.weight": before.clone()})
    assert torch.equal(sums(lora)["lm_head.weight"], rows)
    add(lora)({f"{stem}.modules_to_save.weight": before.clone()})
    with pytest.raises(CheckpointError, match=r"are both for lm_head\.weight"):
        sums(lora)


def test_rows_of_a_resized_tied_table_are_trained_in_the_head_too(tied: Path) -> None:
    table, rows = torch.randn(410, 64), torch.randn(2, 64)
    add(tied, trainable_token_indices={"model.embed_tokens": [3, 409]})(
        {
            f"{layer}.token_adapter.{part}": each.clone()
            for layer in (f"{WRAPPED}embed_tokens", "base_model.model.lm_head")
            for part, each in (("base_layer.weight", table), ("trainable_tokens_delta", rows))
        }
    )
    table[[3, 409]] = rows
    assert torch.equal(sums(tied)["model.embed_tokens.weight"], table)
    assert torch.equal(sums(tied)["lm_head.weight"], table)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_replace_the_bases(tmp_path: Path, bias: str) -> None:
    lora = save_lora(family("onevision"), tmp_path / "lora", tmp_path / "base")
    settings = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**settings, "architectures": ["Qwen2ForCausalLM"]}))
    trained = torch.randn(64)
    add(lora, bias=bias)({f"{WRAPPED}layers.0.self_attn.q_proj.base_layer.bias": trained})
    assert torch.equal(sums(lora)["model.layers.0.self_attn.q_proj.bias"], trained)


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    """A LoRA over a base whose head is its table."""
    lora = save_lora(family("onevision-tied"), tmp_path / "lora", tmp_path / "base")
    assert "lm_head.weight" not in part_weights(tmp_path / "base", "language")
    return lora


def test_a_head_over_a_tied_base_is_trained_alone(tied: Path, tmp_path: Path) -> None:
    table = part_weights(tmp_path / "base", "language")["model.embed_tokens.weight"]
    down, up = torch.randn(4, 64), torch.randn(len(table), 4)
    add(tied)({"base_model.model.lm_head.lora_A.weight": down, "base_model.model.lm_head.lora_B.weight": up})
    torch.testing.assert_close(sums(tied)["lm_head.weight"], table + 2 * up @ down)
    assert torch.equal(sums(tied)["model.embed_tokens.weight"], table)
    trained = torch.randn(table.shape)
    add(tied)({"base_model.model.lm_head.weight": trained})
    torch.testing.assert_close(sums(tied)["lm_head.weight"], trained + 2 * up @ down)


@pytest.mark.parametrize(
    ("settings", "apart"),
    [
        ({"modules_to_save": ["embed_tokens"]}, True),
        ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, False),
        ({}, False),  # resized: loaded into the one tensor that both are
    ],
)
def test_a_table_over_a_tied_base(tied: Path, tmp_path: Path, settings: dict[str, Any], apart: bool) -> None:
    table = part_weights(tmp_path / "base", "language")["model.embed_tokens.weight"]
    trained = torch.randn(table.shape)
    add(tied, **settings)({f"{WRAPPED}embed_tokens.weight": trained})
    assert torch.equal(sums(tied)["model.embed_tokens.weight"], trained)
    assert ("lm_head.weight" in sums(tied)) == apart
    assert not apart or torch.equal(sums(tied)["lm_head.weight"], table)


@pytest.mark.parametrize("before", ["model.model.", "model.", "base_model.model.", ""])
def test_a_projector_under_every_name_that_the_original_reads(lora: Path, before: str) -> None:
    file = lora / "non_lora_trainables.safetensors"
    held = {name[name.index("mm_projector") :]: tensor for name, tensor in load_file(file).items()}
    save_file({before + name: tensor for name, tensor in held.items()}, file)
    projector = part_weights(find_checkpoint(str(lora)).projector.source, "projector")
    assert {f"mm_projector.{name}" for name in projector} == set(held)


def test_a_projector_in_the_adapters_own_file(lora: Path) -> None:
    held = load_file(lora / "non_lora_trainables.safetensors")
    (lora / "non_lora_trainables.safetensors").unlink()
    add(lora, modules_to_save=["mm_projector"])({name: tensor + 1 for name, tensor in held.items()})
    checkpoint = find_checkpoint(str(lora))
    projector = part_weights(checkpoint.projector.source, "projector")
    assert {name.rpartition("mm_projector.")[2] for name in held} == set(projector)
    assert torch.equal(projector["0.bias"], held["base_model.model.model.mm_projector.0.bias"] + 1)
    assert QUERY in sums(lora)
