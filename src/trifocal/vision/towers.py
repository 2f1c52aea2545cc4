"""Vision transformers: CLIP's and SigLIP's, up to the block whose output LLaVA takes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from trifocal.checkpoints import Tower
from trifocal.vision.activations import activation

__all__ = ["Block", "VisionTransformer"]


class VisionTransformer(nn.Module):
    """CLIP's or SigLIP's vision transformer up to the block whose output LLaVA takes; no more are built.

    Parameter names are those of ``CLIPVisionModel`` and ``SiglipVisionModel`` without their prefix.
    """

    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        if config.kind == "clip":
            self.pre_layrnorm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.encoder = _Encoder(config)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """``[images, 3, side, side]`` to ``[images, patches, width]``: the first row is dropped unless it is kept."""
        hidden: torch.Tensor = self.embeddings(pixel_values)
        if self.config.kind == "clip":
            hidden = self.pre_layrnorm(hidden)
        hidden = self.encoder(hidden)
        return hidden if self.config.keep_first else hidden[:, 1:]


class _Embeddings(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        patch, has_class = config.patch_size, config.kind == "clip"
        self.class_embedding = nn.Parameter(torch.empty(config.hidden)) if has_class else None
        self.patch_embedding = nn.Conv2d(3, config.hidden, patch, stride=patch, bias=not has_class)
        # a table given whole is not drawn at random, for which torch would load its compiler: most of a second
        rows, hidden = config.side**2 + has_class, config.hidden
        self.position_embedding = nn.Embedding(rows, hidden, _weight=torch.empty(rows, hidden))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        grid = self.patch_embedding(pixel_values)  # [images, hidden, rows, columns]
        patches = grid.flatten(2).transpose(1, 2)  # [images, patches, hidden]
        if self.class_embedding is not None:
            patches = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches], 1)
        rows: torch.Tensor = patches + self.position_embedding.weight
        return rows


class _Encoder(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.taken = config.taken

    @property
    def blocks(self) -> list[Block]:
        """All blocks that run, in their order."""
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[images, rows, hidden]`` to the features of each layer that is taken, side by side."""
        states = {0: hidden}
        for done, block in enumerate(self.layers, 1):
            hidden = block(hidden)
            if done in self.taken:
                states[done] = hidden
        return states[self.taken[0]] if len(self.taken) == 1 else torch.cat([states[at] for at in self.taken], -1)


class _Attention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.out_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def split(rows: torch.Tensor) -> torch.Tensor:  # [images, heads, patches, head]
            return rows.view(*rows.shape[:-1], self.heads, -1).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        )
        out: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(config.hidden, config.mlp), nn.Linear(config.mlp, config.hidden)
        self.act = activation(config.act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: Tower) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden, eps=config.eps)
        self.self_attn = _Attention(config.hidden, config.heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden, eps=config.eps)
        self.mlp = _Mlp(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: torch.Tensor = x + self.mlp(self.layer_norm2(x))
        return out
