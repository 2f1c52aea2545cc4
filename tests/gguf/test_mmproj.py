"""mmproj files: the legacy ones with their swapped names and the newer ones stand for the same tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmproj_maker import BLOCKS, HIDDEN, model, read, state, stored
from transformers import CLIPVisionConfig, CLIPVisionModel

from trifocal.errors import CheckpointError


@pytest.mark.parametrize("swapped", [True, False])
def test_legacy_and_new_names_give_the_same_tower(tmp_path: Path, swapped: bool) -> None:
    expected = state(model())
    new = {} if swapped else {"clip.vision.feature_layer": [BLOCKS - 1]}
    parts = read(tmp_path, stored(expected, BLOCKS - 1, swapped=swapped), **new)
    kept = {name for name in expected if "post_layernorm" not in name and f"layers.{BLOCKS - 1}." not in name}
    assert set(parts.tower) == kept
    assert all(torch.equal(parts.tower[name].float(), expected[name]) for name in kept)
    assert parts.feature_layer == BLOCKS - 1
    assert parts.config["hidden_act"] == "quick_gelu"
    assert set(parts.projector) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_its_features_are_those_of_the_whole_tower(tmp_path: Path) -> None:
    whole = model()
    parts = read(tmp_path, stored(state(whole), BLOCKS - 1, swapped=True))
    short = CLIPVisionModel(CLIPVisionConfig(**parts.config)).eval()
    named = {name: name.removeprefix("vision_model.") for name in short.state_dict()}
    short.load_state_dict(
        {name: parts.tower[source].float() for name, source in named.items() if source in parts.tower}, strict=False
    )
    pixels = torch.randn(1, 3, 28, 28)
    with torch.inference_mode():
        expected = whole(pixels, output_hidden_states=True).hidden_states[-2]
        found = short(pixels, output_hidden_states=True).hidden_states[parts.feature_layer]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["model.image_newline", "v.image_newline"])
def test_newer_generations(tmp_path: Path, name: str) -> None:
    tensors = stored(state(model()), BLOCKS - 1, swapped=True)
    tensors[name] = (np.arange(HIDDEN), "F32")
    pins = [336, 672, 672, 336]
    parts = read(
        tmp_path, tensors, **{"clip.vision.image_grid_pinpoints": pins, "clip.vision.image_aspect_ratio": "anyres"}
    )
    assert parts.projector["image_newline"].tolist() == list(range(HIDDEN))
    assert parts.preprocessing["image_grid_pinpoints"] == [[336, 672], [672, 336]]
    assert parts.preprocessing["image_aspect_ratio"] == "anyres"


def test_one_linear_is_the_projector_of_before(tmp_path: Path) -> None:
    tensors = stored(state(model()), BLOCKS - 1, swapped=True)
    del tensors["mm.2.weight"], tensors["mm.2.bias"]
    assert set(read(tmp_path, tensors).projector) == {"weight", "bias"}


def test_a_count_that_has_the_dropped_block_in_it_is_put_right(tmp_path: Path) -> None:
    parts = read(tmp_path, stored(state(model()), BLOCKS - 1, swapped=True), **{"clip.vision.block_count": BLOCKS})
    assert (parts.config["num_hidden_layers"], parts.feature_layer) == (BLOCKS - 1, BLOCKS - 1)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"general.architecture": "llama"}, r"expected 'clip'"),
        ({"clip.projector_type": "resampler"}, "the projector is 'resampler'"),
        ({"clip.projector_type": None, "clip.vision.projector_type": "ldpv2"}, "the projector is 'ldpv2'"),
        ({"clip.use_silu": True}, "clip.use_silu is true"),
        ({"clip.vision.block_count": 9}, r"block_count is 9, but the tensors are of the blocks \[0, 1, 2\]"),
        ({"clip.vision.feature_layer": [1, -1]}, r"feature_layer is \[1, -1\]"),
        ({"clip.vision.feature_layer": 2}, "feature_layer is 2, expected a list of layers from 0 to 3"),
        ({"clip.vision.feature_layer": [7]}, r"feature_layer is \[7\]"),
        ({"clip.vision.embedding_length": 16}, "v.blk.0.ffn_down.weight has the shape"),
        ({"clip.vision.image_size": 56}, r"'v.position_embd.weight' has the shape \[5, 32\], expected \[17, 32\]"),
        ({"clip.vision.patch_size": 0}, "patch_size is 0"),
        ({"clip.vision.image_mean": None}, "'clip.vision.image_mean' is missing"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path, stored(state(model()), BLOCKS - 1, swapped=True), **change)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("v.blk.1.attn_q.bias", r"encoder.layers.1.self_attn.q_proj.bias' of the tower is missing"),
        ("v.blk.0.ffn_down.weight", "v.blk.0.ffn_down.weight has the shape"),
        ("v.patch_embd.weight", "embeddings.patch_embedding.weight' of the tower is missing"),
        ("v.class_embd", "embeddings.class_embedding' of the tower is missing"),
        ("mm.2.bias", "are the tensors of no LLaVA projector"),
    ],
)
def test_missing_tensors_are_named(tmp_path: Path, name: str, told: str) -> None:
    tensors = stored(state(model()), BLOCKS - 1, swapped=True)
    del tensors[name]
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path, tensors)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    tensors = stored(state(model()), BLOCKS - 1, swapped=True)
    tensors["v.deepstack.0.fc1.weight"] = tensors["mm.0.weight"]
    with pytest.raises(CheckpointError, match=r"'v.deepstack.0.fc1.weight' has no place"):
        read(tmp_path, tensors)
