"""The model as it is trained: a CLIP tower, a linear projector and a LLaMA, small enough to read.

``hub_state`` and ``load_hub`` translate to and from the names of LlavaForConditionalGeneration on disk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import nn

from training.render import Aims
from training.scenes import CLASSES
from training.world import BACKGROUNDS, COLOURS


@dataclass(frozen=True)
class Sizes:
    """How big the model is."""

    width: int = 256  # of tower and language model alike
    tower_layers: int = 8
    tower_hidden: int = 1024
    layers: int = 8
    hidden: int = 704
    heads: int = 4
    vocabulary: int = 3072
    positions: int = 4096
    rope_base: float = 10_000.0


PATCH, PATCHES = 14, 256
# the parts of the extra head that teaches the tower: label or nothing, colour, background, box, centre
_HEAD = (CLASSES + 1, len(COLOURS), len(BACKGROUNDS), 4, 1)


class TowerBlock(nn.Module):
    """A layer of CLIP's tower."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        normed = self.layer_norm1(x)

        def split(layer: nn.Linear) -> torch.Tensor:
            parts: torch.Tensor = layer(normed).view(rows, length, self.heads, width // self.heads)
            return parts.transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(split(self.q_proj), split(self.k_proj), split(self.v_proj))
        x = x + self.out_proj(mixed.transpose(1, 2).reshape(rows, length, width))
        hidden = self.fc1(self.layer_norm2(x))
        result: torch.Tensor = x + self.fc2(hidden * torch.sigmoid(1.702 * hidden))
        return result


class RootMeanSquare(nn.Module):
    """LLaMA's norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        exact = x.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (self.weight * exact).to(x.dtype)


def _rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    one, other = x.chunk(2, -1)
    return torch.cat([one * cosine - other * sine, other * cosine + one * sine], -1)


class LanguageBlock(nn.Module):
    """A layer of LLaMA."""

    flex: Any = None  # torch's flex_attention, where the mask is one of its block masks

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm, self.post_attention_layernorm = RootMeanSquare(width), RootMeanSquare(width)
        self.q_proj, self.k_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.v_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(
        self, x: torch.Tensor, positions: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, mask: Any
    ) -> torch.Tensor:
        rows, length, width = x.shape
        normed = self.input_layernorm(x)

        def split(layer: nn.Linear) -> torch.Tensor:
            parts: torch.Tensor = layer(normed).view(rows, length, self.heads, width // self.heads)
            return parts.transpose(1, 2)

        turn = cosine[positions][:, None], sine[positions][:, None]
        query, key, value = split(self.q_proj), split(self.k_proj), split(self.v_proj)
        query, key = (_rotated(each.float(), *turn).to(value.dtype) for each in (query, key))
        if isinstance(mask, torch.Tensor):
            mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        else:
            mixed = LanguageBlock.flex(query, key, value, block_mask=mask)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(rows, length, width))
        normed = self.post_attention_layernorm(x)
        result: torch.Tensor = x + self.down_proj(functional.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return result


class Thimble(nn.Module):
    """Tower, projector, language model, and an extra head on the tower that is dropped after training."""

    cosine: torch.Tensor
    sine: torch.Tensor

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__()
        self.sizes = sizes = sizes or Sizes()
        width, heads = sizes.width, sizes.heads
        self.class_embedding = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_embedding = nn.Conv2d(3, width, PATCH, PATCH, bias=False)
        self.position_embedding = nn.Parameter(torch.randn(PATCHES + 1, width) * 0.02)
        self.pre_norm = nn.LayerNorm(width, eps=1e-5)
        self.tower = nn.ModuleList(TowerBlock(width, heads, sizes.tower_hidden) for _ in range(sizes.tower_layers))
        self.projector = nn.Linear(width, width)
        self.embedding = nn.Embedding(sizes.vocabulary, width)
        self.language = nn.ModuleList(LanguageBlock(width, heads, sizes.hidden) for _ in range(sizes.layers))
        self.norm = RootMeanSquare(width)
        self.extra_norm = nn.LayerNorm(width)
        self.extra = nn.Linear(width, sum(_HEAD))
        self._start()
        each = width // heads
        speeds = 1.0 / (sizes.rope_base ** (torch.arange(0, each, 2).float() / each))
        angles = torch.arange(sizes.positions).float()[:, None] * speeds[None]
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def _start(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and name != "position_embedding":
                nn.init.normal_(parameter, std=0.02 if name.startswith(("embedding", "extra")) else 0.03)
            if name.endswith(("out_proj.weight", "o_proj.weight", "fc2.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=0.03 / math.sqrt(2 * self.sizes.tower_layers))
        nn.init.normal_(self.patch_embedding.weight, std=0.03)
        nn.init.normal_(self.projector.weight, std=1 / 16)

    def see(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures ``[pictures, 3, 224, 224]`` to features ``[pictures, 256, width]``."""
        count, width, grid = len(pictures), self.sizes.width, pictures.shape[-1] // PATCH
        cut = pictures.view(count, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(count, PATCHES, -1)
        x = functional.linear(cut, self.patch_embedding.weight.view(width, -1))  # the convolution as one product
        first = self.class_embedding.to(x.dtype).expand(count, 1, width)
        x = torch.cat([first, x], 1) + self.position_embedding.to(x.dtype)
        x = self.pre_norm(x).to(pictures.dtype)
        for block in self.tower:
            x = block(x)
        features: torch.Tensor = x[:, 1:]
        return features

    def read(
        self,
        ids: torch.Tensor,
        features: torch.Tensor,
        positions: torch.Tensor,
        mask: Any,
        seen: torch.Tensor,
    ) -> torch.Tensor:
        """Token ids ``[rows, tokens]`` to hidden states; ``features`` tells which patch a token stands for, or -1."""
        rows, tokens = ids.shape
        x = functional.embedding(ids, self.embedding.weight)
        patches = self.projector(seen).reshape(-1, self.sizes.width)
        # where no patch stands, any is taken, each by few tokens, so that no one row is gathered by all
        any_patch = (torch.arange(rows * tokens, device=ids.device) % len(patches)).view(rows, tokens)
        index = torch.where(features >= 0, features, any_patch).reshape(-1, 1).expand(-1, self.sizes.width)
        taken = torch.gather(patches, 0, index).view(rows, tokens, -1)
        x = torch.where((features >= 0)[..., None], taken.to(x.dtype), x)
        x = x.to(torch.bfloat16) if torch.is_autocast_enabled() else x
        for block in self.language:
            x = block(x, positions, self.cosine, self.sine, mask)
        return x

    def judge(self, x: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss at the targets, and ``[rows, targets]``: whether the next token is the likeliest."""
        place = targets.clamp_min(0)
        hidden = self.norm(torch.gather(x, 1, place[..., None].expand(-1, -1, x.shape[-1])))
        following = torch.gather(ids, 1, (place + 1).clamp_max(ids.shape[1] - 1))
        following = torch.where(targets >= 0, following, -100)
        logits = functional.linear(hidden, self.embedding.weight).float()
        loss = functional.cross_entropy(logits.flatten(0, 1), following.flatten(), ignore_index=-100)
        return loss, logits.argmax(-1) == following

    def tower_loss(self, seen: torch.Tensor, aims: Aims) -> tuple[torch.Tensor, torch.Tensor]:
        """How badly every patch tells what is there; and the share of covered patches whose label is right."""
        label, colour, behind, box, centre = self.extra(self.extra_norm(seen)).float().split(_HEAD, -1)
        centre = centre[..., 0]
        covered = aims.covered.float()
        weight = torch.where(aims.covered, 1.0, 0.1)

        def wrong(scores: torch.Tensor, wanted: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
            flat = scores.flatten(0, 1), wanted.flatten()
            return functional.cross_entropy(*flat, ignore_index=-1, reduction=reduction)

        labels = (wrong(label, aims.label, "none").view_as(weight) * weight).sum() / weight.sum()
        boxes = functional.smooth_l1_loss(box, aims.box, reduction="none", beta=0.1).mean(-1)
        boxes = (boxes * covered).sum() / covered.sum()
        centres = functional.binary_cross_entropy_with_logits(centre, aims.centre, reduction="none")
        centres = (centres * (1 + 4 * aims.centre)).mean()
        loss = labels + 0.3 * wrong(colour, aims.colour) + 0.15 * wrong(behind, aims.behind) + 2 * boxes + 2 * centres
        with torch.no_grad():
            right = ((label.argmax(-1) == aims.label) & aims.covered).float().sum() / covered.sum()
        return loss, right


def star_mask(conversations: torch.Tensor) -> torch.Tensor:
    """``[rows, 1, tokens, tokens]``: a token sees what came before it in the shared part and in its conversation."""
    tokens = conversations.shape[1]
    order = torch.arange(tokens, device=conversations.device)
    keys, queries = conversations[:, None, :], conversations[:, :, None]
    return ((order[:, None] >= order[None])[None] & ((keys == 0) | (keys == queries)))[:, None]


# ---- names on disk

_TOWER, _LANGUAGE = "vision_tower.vision_model.", "language_model.model."


def _on_disk(name: str) -> str | None:
    """The name that a parameter has on disk; None for the extra head's."""
    start, _, rest = name.partition(".")
    if start in ("class_embedding", "position_embedding", "patch_embedding"):
        return _TOWER + "embeddings." + (name if start != "position_embedding" else "position_embedding.weight")
    if start == "pre_norm":
        return f"{_TOWER}pre_layrnorm.{rest}"  # so spelt in CLIP
    if start == "extra_norm":
        return f"{_TOWER}post_layernorm.{rest}"  # LLaVA never uses CLIP's; ours fills the place
    if start == "projector":
        return f"multi_modal_projector.linear_1.{rest}"
    if start in ("embedding", "norm"):
        return _LANGUAGE + {"embedding": "embed_tokens.weight", "norm": "norm.weight"}[start]
    if start not in ("tower", "language"):
        return None
    layer, part, kind = rest.split(".")
    block = "self_attn." if part.endswith(("q_proj", "k_proj", "v_proj", "out_proj", "o_proj")) else "mlp."
    block = "" if "norm" in part else block
    layers = f"{_TOWER}encoder.layers" if start == "tower" else f"{_LANGUAGE}layers"
    return f"{layers}.{layer}.{block}{part}.{kind}"


def hub_state(model: Thimble) -> dict[str, torch.Tensor]:
    """The weights in half precision, by the names of LLaVA checkpoints; the second projector layer is identity."""
    named = ((_on_disk(name), tensor) for name, tensor in model.state_dict().items())
    state = {name: tensor.detach().half().cpu().contiguous().clone() for name, tensor in named if name}
    width = model.sizes.width
    state["multi_modal_projector.linear_2.weight"] = torch.eye(width, dtype=torch.float16)
    state["multi_modal_projector.linear_2.bias"] = torch.zeros(width, dtype=torch.float16)
    return state


def load_hub(folder: Path, sizes: Sizes | None = None) -> Thimble:
    """The model whose exported weights are in a folder; its extra head is new."""
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        state |= load_file(file)
    model = Thimble(sizes)
    own = model.state_dict()
    for name, tensor in own.items():
        kept = _on_disk(name)
        if kept:
            tensor.copy_(state[kept].float())
    return model
