"""Towers with random weights, of the kinds and sizes that tests want."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from trifocal.checkpoints import Tower
from trifocal.vision import VisionTransformer

__all__ = ["CLIP", "SIGLIP", "made"]

CLIP = Tower(Path("none"), 64, 4, 4, 128, 56, 14)
SIGLIP = replace(CLIP, kind="siglip", act="gelu_pytorch_tanh", image_size=60, eps=1e-6, keep_first=True)


def made(config: Tower) -> VisionTransformer:
    """A tower in float32 whose numbers are of the size of real ones."""
    torch.manual_seed(0)
    tower = VisionTransformer(config).eval().requires_grad_(False)
    for name, values in tower.named_parameters():
        values.normal_()
        wide = values[0].numel() if values.dim() > 1 and "position" not in name else 25
        values.mul_(wide**-0.5)
        if "norm" in name and name.endswith("weight"):
            values.add_(1)
    return tower
