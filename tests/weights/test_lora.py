"""LoRA checkpoints: the sums of peft, whatever the spelling, and adapters that are none refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trifocal
from layouts import family, save_lora
from trifocal.checkpoints import find_checkpoint, language_weights, load_language
from trifocal.errors import CheckpointError
from trifocal.tools.convert import split
from trifocal.weights.tensors import part_weights

QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return save_lora(family("1.5"), tmp_path / "lora", tmp_path / "base")


def respelt(folder: Path, rename: Callable[[str], str]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(file).items()}, file)


def test_a_weight_is_the_base_and_its_change(lora: Path, tmp_path: Path) -> None:
    base, sums = part_weights(tmp_path / "base", "language"), language_weights(find_checkpoint(str(lora)).language)
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
    before = language_weights(find_checkpoint(str(lora)).language)[QUERY]
    respelt(
        lora,
        lambda name: name.replace(".lora_A.weight", spelling).replace(".lora_B.weight", spelling.replace("A", "B")),
    )
    assert torch.equal(language_weights(find_checkpoint(str(lora)).language)[QUERY], before)


def test_what_was_trained_whole_replaces_the_base(lora: Path) -> None:
    table = torch.randn(7, 64)
    file = lora / "non_lora_trainables.safetensors"
    held = load_file(file)
    save_file({**held, "base_model.model.model.embed_tokens.weight": table}, file)
    saved = "base_model.model.lm_head.modules_to_save.default.weight"
    adapter = lora / "adapter_model.safetensors"
    save_file({**load_file(adapter), saved: table}, adapter)
    weights = load_language(find_checkpoint(str(lora))).weights
    assert torch.equal(weights["model.embed_tokens.weight"], table)
    assert torch.equal(weights["lm_head.weight"], table)


def test_alpha_may_differ_by_layer(lora: Path, tmp_path: Path) -> None:
    plain = language_weights(find_checkpoint(str(lora)).language)[QUERY]
    change(lora, alpha_pattern={"layers.0.self_attn.q_proj": 16})
    base = part_weights(tmp_path / "base", "language")[QUERY]
    torch.testing.assert_close(
        language_weights(find_checkpoint(str(lora)).language)[QUERY] - base, 2 * (plain - base), atol=1e-5, rtol=0
    )


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
    sums = language_weights(find_checkpoint(str(lora)).language)
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
        ({"bias": "all"}, "'all'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"lora_alpha": "two"}, "'two'"),
        ({"alpha_pattern": [1]}, "alpha_pattern"),
    ],
)
def test_what_is_no_plain_lora_is_refused(lora: Path, values: dict[str, Any], told: str) -> None:
    change(lora, **values)
    with pytest.raises(CheckpointError, match=told):
        load_language(find_checkpoint(str(lora)))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: {k: v for k, v in t.items() if "q_proj.lora_B" not in k}, "lora_A alone"),
        (lambda t: {k: v[:, :3] if "q_proj.lora_A" in k else v for k, v in t.items()}, r"make no change of \[64, 64\]"),
        (lambda t: {k: v[:0] if "q_proj.lora_A" in k else v for k, v in t.items()}, "make no change"),
        (lambda t: {k.replace("layers.1", "layers.7"): v for k, v in t.items()}, "layers.7.*belongs to another model"),
        (lambda t: {**t, "base_model.model.model.norm.weight": torch.ones(64)}, "no plain LoRA"),
        (lambda t: {**t, "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 9)}, "no plain LoRA"),
    ],
)
def test_an_adapter_that_does_not_fit_is_told(lora: Path, spoil: Callable[[Any], Any], told: str) -> None:
    file = lora / "adapter_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in spoil(load_file(file)).items()}, file)
    with pytest.raises(CheckpointError, match=told):
        load_language(find_checkpoint(str(lora)))


def test_an_adapter_without_its_file_or_its_base_is_told(lora: Path) -> None:
    (lora / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        load_language(find_checkpoint(str(lora)))
    change(lora, base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="language_from"):
        find_checkpoint(str(lora))
    (lora / "adapter_config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="no JSON"):
        find_checkpoint(str(lora))
