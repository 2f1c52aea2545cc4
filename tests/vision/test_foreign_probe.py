"""Families that nobody named: what transformers' own forward pass shows of them when they are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen3VLConfig, Qwen3VLForConditionalGeneration

import trifocal
from checkpoint_maker import TEXT
from foreign_models import NEWCOMERS, make_foreign
from seeing import rows_of
from trifocal.checkpoints import transformers as known
from trifocal.errors import CheckpointError
from trifocal.images import Image
from trifocal.placement import Placement
from trifocal.vision.transformers import TransformersVision, probe

SOURCES = Path(trifocal.__file__).parent
EXACT = Placement("cpu", "float32")


def test_no_line_of_ours_names_the_newcomers() -> None:
    text = "".join(file.read_text() for file in SOURCES.rglob("*.py"))
    assert [name for name in NEWCOMERS if name in text] == []


def vision_of(kind: str, folder: Path) -> TransformersVision:
    make_foreign(kind, folder)
    places = dict.fromkeys(("tower", "projector", "language"), EXACT)
    with trifocal.load(checkpoint=str(folder), template="plain", **places) as llava:
        assert isinstance(llava.gallery.vision, TransformersVision)
        return llava.gallery.vision


def test_tokens_whose_rows_are_replaced_are_found_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="ovis2 can't be read: tokens beside a picture don't come"):
        vision_of("ovis2", tmp_path)


def test_another_mask_is_found_out(tmp_path: Path) -> None:
    vision = vision_of("gemma3", tmp_path)
    vision.check("images")
    for attention in ("causal", "prompt"):
        with pytest.raises(CheckpointError, match="gemma3 can't be read: its positions see each other in another way"):
            vision.check(attention)


def test_a_family_said_to_attend_otherwise_is_found_out(tmp_path: Path) -> None:
    vision = vision_of("idefics3", tmp_path)
    vision.check("causal")
    with pytest.raises(CheckpointError, match="its positions see each other in another way"):
        vision.check("images")


def test_rows_that_are_not_the_projectors_are_found_out(tmp_path: Path, drawn: Callable[..., Image]) -> None:
    vision = vision_of("deepseek_vl", tmp_path)
    inputs = vision.processor.inputs(drawn(1).pixels)
    rows = rows_of(vision, [drawn(1)])[0]
    assert probe.misfit(vision.model, inputs, rows, "causal") is None
    assert "as its projector makes them" in str(probe.misfit(vision.model, inputs, rows * 1.1, "causal"))
    assert "15 rows of a picture that has 16 tokens" in str(probe.misfit(vision.model, inputs, rows[1:], "causal"))


TEXTS: dict[str, Any] = {**TEXT, "vocab_size": 64, "num_key_value_heads": 2, "pad_token_id": 0}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def qwen2_vl() -> Any:
    eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2}
    config = Qwen2VLConfig(vision_config=eyes, text_config={**TEXTS, "rope_parameters": ROPE}, image_token_id=9)
    return Qwen2VLForConditionalGeneration(config)


def qwen3_vl() -> Any:
    eyes = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    eyes |= {"patch_size": 14, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    config = Qwen3VLConfig(
        vision_config=eyes, text_config={**TEXTS, "head_dim": 16, "rope_parameters": ROPE}, image_token_id=9
    )
    return Qwen3VLForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("make", "told"), [(qwen2_vl, "m-rope"), (qwen3_vl, "is given deepstack_visual_embeds, visual_pos_masks besides")]
)
@torch.no_grad()
def test_positions_and_inputs_of_their_own_are_found_out(make: Callable[[], Any], told: str) -> None:
    model = make().eval()
    grid = torch.tensor([[1, 4, 4]])
    inputs = {
        "input_ids": torch.tensor([[3, 9, 9, 9, 9, 4]]),
        "pixel_values": torch.randn(16, 3 * 2 * 14 * 14),
        "image_grid_thw": grid,
    }
    seen = model.model.get_image_features(inputs["pixel_values"], grid)
    rows = torch.cat(list(getattr(seen, "pooler_output", seen)))
    assert told in str(probe.misfit(model, inputs, rows, "causal"))


def test_a_family_that_transformers_has_no_class_for_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_foreign("deepseek_vl", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nobody_vl"}))
    with pytest.raises(CheckpointError, match="nobody_vl"):
        trifocal.load(checkpoint=str(tmp_path), template="plain")


def test_those_that_were_tried_are_held_against_it_in_our_tests() -> None:
    held = {"pixtral": "llava", "paligemma2": "paligemma"}
    from foreign_models import FOREIGN

    assert {held.get(kind, kind) for kind in FOREIGN} == set(known.PROVEN)
