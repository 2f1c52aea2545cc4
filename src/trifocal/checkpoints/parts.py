"""What a checkpoint is, as data: its three parts, its preprocessing, its tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = ["CLIP_MEAN", "CLIP_STD", "CLIP_TOWER", "Checkpoint", "Preprocessing", "Projector", "Text", "Tower"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_TOWER = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP vision tower: a ViT with pre-norm blocks and a class token.

    ``feature_layer`` counts as in ``hidden_states``: 0 is the embedding, k the output of block k, and
    negative numbers count from the end. ``keep_class`` keeps the class token's row (``full`` or
    ``cls_patch``) and is off in every released LLaVA.
    """

    source: Path
    hidden: int
    layers: int
    heads: int
    mlp: int
    image_size: int
    patch_size: int
    act: str = "quick_gelu"
    eps: float = 1e-5
    feature_layer: int = -2
    keep_class: bool = False

    @property
    def patches(self) -> int:
        """Rows of a picture: patches of one tile, and the class token where it is kept."""
        return (self.image_size // self.patch_size) ** 2 + self.keep_class

    @property
    def blocks(self) -> int:
        """How many blocks have to run."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector: ``linear``, or ``mlp{n}x`` with ``act`` between its n linear layers."""

    source: Path
    kind: str
    act: str = "gelu"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to pixel values.

    ``fit`` is how a picture that is not square becomes one: ``crop`` (resize the short side, take the
    middle) or ``pad`` (onto a square of the mean colour, nothing is lost). ``background`` shows where
    the picture is transparent.
    """

    size: int
    fit: Literal["crop", "pad"]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255
    resample: int = 3
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """The mean as a colour: (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class Text:
    """The language half: where it lies, and its own configuration."""

    source: Path
    config: Mapping[str, Any] = field(hash=False)

    @property
    def hidden(self) -> int:
        """The width of its embedding rows."""
        return int(self.config["hidden_size"])

    @property
    def context(self) -> int:
        """Positions of prompt and answer."""
        return int(self.config["max_position_embeddings"])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A LLaVA checkpoint.

    ``template`` names its conversation template. ``image_start`` and ``image_end`` name the control
    tokens around a picture, where it was trained with them. ``strip_around_images`` is for LLaVA v0,
    whose tokenizer took white space beside them away.
    """

    name: str
    family: str
    tower: Tower
    projector: Projector
    preprocessing: Preprocessing
    language: Text
    template: str
    image_start: str = ""
    image_end: str = ""
    strip_around_images: bool = False
