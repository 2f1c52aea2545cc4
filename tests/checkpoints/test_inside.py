"""LoRAs over whole checkpoints: what the base brings along is the base's, and each part has its own changes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import trifocal
from foreign_models import make_foreign
from layouts import Family, _tensors, family, original_name, save_hf, save_lora, save_original
from trifocal.checkpoints import find_checkpoint
from trifocal.errors import CheckpointError
from trifocal.tools.convert import split
from trifocal.weights.lora import changed_weights

ALPHA, RANK = 8, 4


def drawn_changes(tensors: Mapping[str, torch.Tensor], layers: Iterable[str]) -> dict[str, torch.Tensor]:
    """Pieces of a change for each layer, under peft's names."""
    random = torch.Generator().manual_seed(5)
    pieces: dict[str, torch.Tensor] = {}
    for layer in layers:
        rows, columns = tensors[f"{layer}.weight"].shape
        pieces[f"base_model.model.{layer}.lora_A.weight"] = torch.randn(RANK, columns, generator=random) / 10
        pieces[f"base_model.model.{layer}.lora_B.weight"] = torch.randn(rows, RANK, generator=random) / 10
    return pieces


def summed(tensors: Mapping[str, torch.Tensor], pieces: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The base's tensors with the changes, in float64."""
    whole = dict(tensors)
    for name, up in pieces.items():
        if "lora_B" in name:
            layer = name.removeprefix("base_model.model.").replace("lora_B.weight", "weight")
            down = pieces[name.replace("lora_B", "lora_A")]
            whole[layer] = (whole[layer].double() + ALPHA / RANK * up.double() @ down.double()).float()
    return whole


def save_adapter(folder: Path, base: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def rows_of(folder: Path, picture: Any) -> torch.Tensor:
    with trifocal.load(checkpoint=str(folder)) as llava:
        written = llava.write([llava.question("What?", [picture])])
        return torch.cat([span.features for span in llava.prepare(written).prompt.images])


def held(folder: Path, part: str) -> Any:
    found = find_checkpoint(str(folder))
    place = {"language": found.language, "tower": found.tower, "projector": found.projector}[part]
    return changed_weights(place.source, part, place.adapter)


@pytest.fixture(params=["1.6", "onevision"])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A LoRA of a whole original checkpoint whose tower was trained, too, and the sum of both."""
    made: Family = family(request.param)
    base = save_original(made, tmp_path / "base")
    tensors = {original_name(name): tensor for name, tensor in _tensors(made).items()}
    pieces = drawn_changes(tensors, ["model.layers.0.self_attn.q_proj"])
    lora = save_adapter(tmp_path / "lora", base, pieces)
    projector = {name: tensor + 0.5 for name, tensor in tensors.items() if "mm_projector" in name}
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in projector.items()},
        lora / "non_lora_trainables.safetensors",
    )
    shutil.copy(base / "config.json", lora)
    whole = shutil.copytree(base, tmp_path / "whole", ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file(summed({**tensors, **projector}, pieces), whole / "model.safetensors")
    return lora, whole


def test_tower_and_newline_are_those_of_the_base(original: tuple[Path, Path], drawn: Any) -> None:
    lora, whole = original
    picture = drawn(1, 150, 80)
    assert torch.equal(rows_of(lora, picture), rows_of(whole, picture))
    for part in ("tower", "projector", "language"):
        sums, wanted = held(lora, part), held(whole, part)
        assert set(sums) == set(wanted)
        assert all(torch.allclose(sums[name], wanted[name], atol=1e-6) for name in sums)


def test_split_writes_what_the_base_brings_along(original: tuple[Path, Path], tmp_path: Path) -> None:
    split(find_checkpoint(str(original[0])), tmp_path / "parts")
    tower = load_file(next((tmp_path / "parts" / "tower").glob("*.safetensors")))
    assert tower.keys() == {f"vision_model.{name}" for name in held(original[1], "tower")}
    assert "model.image_newline" in load_file(tmp_path / "parts" / "projector" / "mm_projector.safetensors")


@pytest.mark.parametrize("nested", ["model.language_model.", "language_model.model."])
@pytest.mark.parametrize("beside", [False, True], ids=["adapter alone", "with its configuration"])
def test_a_lora_of_transformers_own_class_changes_each_part(
    tmp_path: Path, drawn: Any, nested: str, beside: bool
) -> None:
    made = family("1.6")
    tensors = _tensors(made)
    base = save_hf(made, tmp_path / "base")
    layers = (
        "model.language_model.layers.1.mlp.up_proj",
        "model.vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
        "model.multi_modal_projector.linear_1",
    )
    named = {layer: layer.replace("vision_model.", "") for layer in layers}
    pieces = drawn_changes({f"{layer}.weight": tensors[f"{short}.weight"] for layer, short in named.items()}, layers)
    second = "model.multi_modal_projector.linear_2"
    trained = {f"base_model.model.{second}.{end}": tensors[f"{second}.{end}"] + 1 for end in ("weight", "bias")}
    spelt = {name.replace("model.language_model.", nested): tensor for name, tensor in {**pieces, **trained}.items()}
    lora = save_adapter(tmp_path / "lora", base, spelt, modules_to_save=["linear_2"])
    if beside:
        shutil.copy(base / "config.json", lora)
    wanted = {**tensors, **{name.removeprefix("base_model.model."): each for name, each in trained.items()}}
    wanted = summed(wanted, {name.replace(".vision_model", ""): tensor for name, tensor in pieces.items()})
    whole = shutil.copytree(base, tmp_path / "whole", ignore=shutil.ignore_patterns("*.safetensors*"))
    save_file({name: tensor.contiguous() for name, tensor in wanted.items()}, whole / "model.safetensors")
    for part in ("tower", "projector", "language"):
        sums, merged, plain = held(lora, part), held(whole, part), held(base, part)
        assert all(torch.allclose(sums[name], merged[name], atol=1e-6) for name in merged)
        assert any(not torch.equal(sums[name], plain[name]) for name in plain), part
    picture = drawn(1, 150, 80)
    torch.testing.assert_close(rows_of(lora, picture), rows_of(whole, picture), atol=1e-5, rtol=0)


def test_a_lora_over_a_lora_or_over_what_transformers_sees_for_is_told(tmp_path: Path) -> None:
    first = save_lora(family("1.5"), tmp_path / "first", tmp_path / "base")
    with pytest.raises(CheckpointError, match="is a LoRA itself"):
        find_checkpoint(str(save_adapter(tmp_path / "second", first, {"unused": torch.ones(1)})))
    make_foreign("paligemma", tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="merge the two with peft"):
        find_checkpoint(str(save_adapter(tmp_path / "third", tmp_path / "foreign", {"unused": torch.ones(1)})))
