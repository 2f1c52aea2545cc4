"""What released configurations hold besides the model: paths of other machines, kernels, features of several layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

import trifocal
from checkpoint_maker import tensors_of
from foreign_models import make_foreign
from layouts import TILE, family, save_hf, save_lora, save_original
from seeing import rows_of
from trifocal.checkpoints import find_checkpoint, language_recipe
from trifocal.engines.language import open_language
from trifocal.errors import CheckpointError
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.tools.convert import split
from trifocal.vision.loading import load_vision
from trifocal.vision.towers import VisionTransformer

Drawn = Callable[..., Image]
EXACT = Placement("cpu", "float32")
ELSEWHERE = [
    "/mnt/bn/vl/checkpoints/my-tower",
    "./runs/my-tower",
    "~/towers/my-tower",
    "C:\\\\towers\\\\mine",
    "a/b/c/d",
]


def say(folder: Path, **values: Any) -> dict[str, Any]:
    """Writes keys into a folder's configuration; None takes one away."""
    file = folder / "config.json"
    said = {key: value for key, value in {**json.loads(file.read_text()), **values}.items() if value is not None}
    file.write_text(json.dumps(said))
    return said


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_path_of_the_trainers_machine_is_told_with_the_way_out(tmp_path: Path, path: str) -> None:
    folder = save_original(family("1.5"), tmp_path / "whole", tower=tmp_path / "tower")
    say(folder, mm_vision_tower=path)
    with pytest.raises(CheckpointError, match=r"mm_vision_tower is .*--tower-from"):
        find_checkpoint(str(folder))
    assert find_checkpoint(str(folder), tower=str(tmp_path / "tower")).tower.source == tmp_path / "tower"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"mm_vision_tower": None}, "mm_vision_tower is not told, and openai/clip.* can't be had .*--tower-from"),
        ({"image_aspect_ratio": "Pad"}, r"the checkpoint's config\.json: image_aspect_ratio 'Pad' is not supported"),
        ({"mm_projector_type": None}, "the projector has no weight; it has 0.bias, .*: mm_projector_type in a config"),
    ],
)
def test_a_key_that_says_too_little_is_told_with_the_way_out(
    tmp_path: Path, keys: dict[str, object], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = save_original(family("1.5"), tmp_path / "one", tower=tmp_path / "tower")
    say(folder, **keys)
    with pytest.raises(CheckpointError, match=told):
        trifocal.load(checkpoint=str(folder), engine="echo")


@pytest.mark.parametrize("path", ELSEWHERE)
def test_a_tower_inside_whose_configuration_nothing_tells(tmp_path: Path, path: str) -> None:
    folder = save_original(family("1.6-vicuna"), tmp_path)
    say(folder, mm_vision_tower=path)
    with pytest.raises(CheckpointError, match=r"mm_vision_tower is .*--tower-from"):
        find_checkpoint(str(folder))


def test_a_tower_inside_with_its_configuration_beside(tmp_path: Path, drawn: Drawn) -> None:
    made = family("1.6-vicuna")
    folder = save_original(made, tmp_path)
    with trifocal.load(checkpoint=str(folder)) as llava:
        (wanted,) = rows_of(llava.gallery.vision, [drawn(1)])
    say(folder, mm_vision_tower=ELSEWHERE[0], vision_config=made.model.config.vision_config.to_dict())
    with trifocal.load(checkpoint=str(folder)) as llava:
        assert torch.equal(rows_of(llava.gallery.vision, [drawn(1)])[0], wanted)
        assert llava.checkpoint.tower.source == folder


@pytest.mark.parametrize(
    "path",
    ["/data/openai/clip-vit-large-patch14-336", "./clip-vit-large-patch14-336/", "D:\\\\clip-vit-large-patch14-336"],
)
def test_a_paths_last_word_names_a_tower_of_llava(tmp_path: Path, path: str) -> None:
    folder = save_original(family("1.6-vicuna"), tmp_path)
    say(folder, mm_vision_tower=path, image_grid_pinpoints=[[336, 672], [672, 336]])
    tower = find_checkpoint(str(folder)).tower
    assert (tower.source, tower.hidden, tower.layers, tower.heads, tower.image_size) == (folder, 1024, 24, 16, 336)


@pytest.mark.parametrize(("width", "heads", "side"), [(768, 12, 224), (1024, 16, 336)])
def test_a_tower_inside_is_known_by_its_shapes(tmp_path: Path, width: int, heads: int, side: int) -> None:
    folder = save_original(family("1.6-vicuna"), tmp_path)
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 32, "num_hidden_layers": 3}
    tower = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=side, patch_size=14))
    prefix = "model.vision_tower.vision_tower."
    held = {name: tensor for name, tensor in tensors_of(folder).items() if not name.startswith(prefix)}
    seeing = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": tensor
        for name, tensor in tower.state_dict().items()
    }
    save_file({**held, **{prefix + name: tensor for name, tensor in seeing.items()}}, folder / "model.safetensors")
    say(folder, mm_vision_tower=ELSEWHERE[0], image_grid_pinpoints=[[side, 2 * side]])
    found = find_checkpoint(str(folder)).tower
    assert (found.hidden, found.heads, found.mlp, found.layers, found.image_size, found.patch_size, found.kind) == (
        width, heads, 32, 3, side, 14, "clip",
    )  # fmt: skip


@pytest.mark.parametrize("path", ["/home/trainer/vicuna", "./vicuna"])
def test_a_loras_base_of_the_trainers_machine_is_told_with_the_way_out(tmp_path: Path, path: str) -> None:
    lora = save_lora(family("1.5"), tmp_path / "lora", tmp_path / "base")
    file = lora / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": path}))
    with pytest.raises(CheckpointError, match=r"base_model_name_or_path is .*--language-from"):
        find_checkpoint(str(lora))
    assert open_language(language_recipe(find_checkpoint(str(lora), language=str(tmp_path / "base"))))


KERNELS = ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"]


@pytest.mark.parametrize("key", KERNELS)
@pytest.mark.parametrize("where", ["original", "hf", "text_config", "vision_config", "foreign"])
def test_kernels_that_are_not_here_are_no_matter(tmp_path: Path, drawn: Drawn, where: str, key: str) -> None:
    if where == "foreign":
        make_foreign("internvl", tmp_path)
    else:
        (save_original if where == "original" else save_hf)(family("1.5"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    part = config[where] if where.endswith("_config") else config
    part[key] = "flash_attention_2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with trifocal.load(checkpoint=str(tmp_path), template="plain") as llava:
        assert llava.complete([llava.question("What?", [drawn(1)])], trifocal.Sampling(max_tokens=1)).end


LISTS = [[-2, -1], [1, 3], [-3, 0, -1, 2], [2]]


@pytest.mark.parametrize("layers", LISTS, ids=str)
@pytest.mark.parametrize(("name", "strategy"), [("1.5", "default"), ("1.6-vicuna", "default"), ("1.6-siglip", "full")])
def test_features_of_several_layers_stand_side_by_side(
    tmp_path: Path, drawn: Drawn, layers: list[int], name: str, strategy: str
) -> None:
    """As in Granite Vision; held against transformers' own class."""
    config = family("1.6-vicuna" if name == "1.6-siglip" else name).model.config
    if name == "1.6-siglip":
        config.vision_config = family("onevision").model.config.vision_config
    config.vision_feature_layer, config.vision_feature_select_strategy = layers, strategy
    torch.manual_seed(1)
    kind = LlavaForConditionalGeneration if name == "1.5" else LlavaNextForConditionalGeneration
    made = replace(family("1.6-vicuna" if name == "1.6-siglip" else name), model=kind(config).eval())
    folder = save_hf(made, tmp_path / "whole")
    checkpoint = find_checkpoint(str(folder))
    vision = load_vision(checkpoint, EXACT, EXACT)
    picture = drawn(1, 80, 60)
    values = vision.pixels(*vision.looks([picture]))
    with torch.no_grad():
        if name == "1.5":
            wanted = made.model.get_image_features(values, vision_feature_layer=layers, return_dict=True).pooler_output[
                0
            ]
        else:
            sizes = torch.tensor([[60, 80]])
            wanted = made.model.get_image_features(values[None], sizes, return_dict=True).pooler_output[0]
    (ours,) = rows_of(vision, [picture])
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)
    split(checkpoint, tmp_path / "parts")
    parts = {part: str(tmp_path / "parts" / part) for part in ("tower", "projector", "language")}
    again = find_checkpoint(parts["language"], tower=parts["tower"], projector=parts["projector"])
    assert again.tower.taken == checkpoint.tower.taken
    assert torch.equal(rows_of(load_vision(again, EXACT, EXACT), [picture])[0], ours)


@pytest.mark.parametrize("layers", [[], ["-2"], [True], [-9], [1.5], "all", [1] * 40])
def test_a_list_of_layers_that_makes_no_sense_is_told(tmp_path: Path, layers: Any) -> None:
    folder = save_hf(family("1.5"), tmp_path)
    say(folder, vision_feature_layer=layers)
    with pytest.raises(CheckpointError, match=r"feature.layer"):
        find_checkpoint(str(folder))


@pytest.mark.parametrize(
    ("said", "layer", "taken"),
    [
        ("patch", -2, (3,)),
        ("cls_patch", -2, (3,)),
        ("slice_m25811_f6_patch", -2, None),
        ("slicefour_patch", -1, (0, 1, 2, 3, 4)),
    ],
)
def test_the_selections_of_llava_next(tmp_path: Path, said: str, layer: int, taken: tuple[int, ...] | None) -> None:
    folder = save_original(family("1.5"), tmp_path)
    say(folder, mm_vision_select_feature=said, mm_vision_select_layer=layer)
    if taken is None:  # this tower has four blocks, and no eleventh from the end
        with pytest.raises(CheckpointError, match="feature layer"):
            find_checkpoint(str(folder))
        return
    tower = find_checkpoint(str(folder)).tower
    assert (tower.taken, tower.keep_first) == (taken, "cls" in said)
    with torch.no_grad():
        features = VisionTransformer(tower)(torch.zeros(1, 3, TILE, TILE))
    assert features.shape == (1, tower.patches, tower.width)


def test_a_selection_that_is_not_known_is_told(tmp_path: Path) -> None:
    folder = save_original(family("1.5"), tmp_path)
    say(folder, mm_vision_select_feature="pooled")
    with pytest.raises(CheckpointError, match="mm_vision_select_feature is 'pooled'; known: patch"):
        find_checkpoint(str(folder))
