"""Towers and projectors of few bits: transformers saves a whole LLaVA so unless its user leaves them out."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import packers
import pytest
import torch
from safetensors.torch import load_file, save_file

import trifocal
from layouts import QUANTISATIONS, family, save_hf
from trifocal.checkpoints import find_checkpoint
from trifocal.errors import CheckpointError
from trifocal.tools.convert import split


def fp8(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


PACKERS = {"bitsandbytes NF4": packers.nf4, "bitsandbytes 8 bits": packers.int8, "FP8": fp8}


def saved(folder: Path, kind: str) -> tuple[Path, Path]:
    """A checkpoint with each linear layer of tower and projector packed, and one with what these stand for."""
    packed, dense = (save_hf(copy.deepcopy(family("1.5")), folder / name) for name in ("packed", "dense"))
    tensors = load_file(packed / "model.safetensors")
    small, plain = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        seen = "vision_tower" in name or "multi_modal" in name
        if seen and tensor.ndim == 2 and name.endswith("weight") and "position" not in name:
            parts, plain[name] = PACKERS[kind](tensor)
            del small[name]
            small |= {f"{name.removesuffix('weight')}{part}": each.contiguous() for part, each in parts.items()}
    assert len(small) > len(tensors) + 20
    save_file(small, packed / "model.safetensors")
    save_file(plain, dense / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, "quantization_config": QUANTISATIONS[kind]}))
    return packed, dense


@pytest.mark.parametrize("kind", PACKERS)
def test_pictures_are_seen_as_with_the_dense_layers(tmp_path: Path, drawn: Any, kind: str) -> None:
    packed, dense = saved(tmp_path, kind)
    rows = []
    for folder in (packed, dense):
        with trifocal.load(checkpoint=str(folder)) as llava:
            written = llava.write([llava.question("What?", [drawn(1)])])
            rows.append(llava.prepare(written).prompt.images[0].features)
    torch.testing.assert_close(*rows, atol=1e-6, rtol=0)
    split(find_checkpoint(str(packed)), tmp_path / "parts")
    parts = [load_file(next((tmp_path / "parts" / part).glob("*.safetensors"))) for part in ("tower", "projector")]
    assert {tensor.dtype for part in parts for tensor in part.values()} == {torch.float32}


def test_what_is_packed_otherwise_is_told_with_the_way_out(tmp_path: Path) -> None:
    packed, _ = saved(tmp_path, "FP8")
    tensors = load_file(packed / "model.safetensors")
    odd = next(name for name in tensors if "vision_tower" in name and name.endswith("q_proj.weight"))
    save_file({**tensors, odd.replace("weight", "qweight"): tensors[odd].clone()}, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"q_proj\.qweight is a layer of few bits.*--tower-from"):
        trifocal.load(checkpoint=str(packed))


def test_a_layer_that_tells_no_shape_is_told(tmp_path: Path) -> None:
    packed, _ = saved(tmp_path, "bitsandbytes NF4")
    tensors = load_file(packed / "model.safetensors")
    state = next(name for name in tensors if "vision_tower" in name and "quant_state" in name)
    save_file({**tensors, state: torch.zeros(4, dtype=torch.uint8)}, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"quant_state.* tells no shape"):
        trifocal.load(checkpoint=str(packed))
