"""What a checkpoint is, as data: its three parts, its preprocessing, its tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from trifocal.engines.recipe import width_of
from trifocal.errors import UsageError

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CLIP_TOWER",
    "FITS",
    "Checkpoint",
    "Fit",
    "ForeignVision",
    "Frames",
    "Merge",
    "NewlinePosition",
    "OwnVision",
    "Pool",
    "Preprocessing",
    "Projector",
    "Text",
    "Tiling",
    "Tower",
    "layers_of",
]

_PERCEPTRON = re.compile(r"mlp(\d+)x(?:_res(\d+)x)?")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_TOWER = "openai/clip-vit-large-patch14"

Merge = Literal["spatial_unpad", "spatial", "spatial_maxpool2x2", "flat"]
Pool = Literal["bilinear", "average", "max"]
NewlinePosition = Literal["grid", "frame", "one_token", "no_token"]
Fit = Literal["crop", "pad", "stretch"]


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower: a ViT with pre-norm blocks.

    ``kind`` is ``clip`` (a class token, a norm before the blocks, no bias on the patches) or ``siglip``
    (none of the first two, a bias). ``feature_layer`` counts as in ``hidden_states``: 0 is the
    embedding, k the output of block k, and negative numbers count from the end. ``keep_first`` keeps
    the first row (``full`` or ``cls_patch``): CLIP's is the class token, which no released LLaVA
    keeps, SigLIP's is a patch like the others.
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
    feature_layer: int | tuple[int, ...] = -2
    keep_first: bool = False
    kind: Literal["clip", "siglip"] = "clip"
    adapter: Path | None = None

    @property
    def side(self) -> int:
        """Patches along each side of a tile."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Rows of a tile: its patches, and CLIP's class token where it is kept."""
        return self.side**2 + (self.kind == "clip") - (not self.keep_first)

    @property
    def looked_at(self) -> float:
        """Which share of a tile's sides is looked at: a rest narrower than a patch is not."""
        return self.side * self.patch_size / self.image_size

    @property
    def taken(self) -> tuple[int, ...]:
        """After how many blocks each feature is taken, in the order in which they stand side by side."""
        layers = (self.feature_layer,) if isinstance(self.feature_layer, int) else self.feature_layer
        return tuple(layer if layer >= 0 else self.layers + 1 + layer for layer in layers)

    @property
    def blocks(self) -> int:
        """How many blocks have to run."""
        return max(self.taken)

    @property
    def width(self) -> int:
        """The width of a patch's features: those of several layers stand side by side."""
        return self.hidden * len(self.taken)


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector: ``linear``, or ``mlp{n}x`` with ``act`` between its n linear layers.

    ``adapter`` is the folder of a LoRA that changes it, as a `Tower`'s and a `Text`'s is.
    """

    source: Path
    kind: str
    act: str = "gelu"
    adapter: Path | None = None


def layers_of(kind: str) -> tuple[int, int]:
    """How many linear layers a kind of projector has, and residual blocks behind them: 2 and 3 of ``mlp2x_res3x``."""
    found = _PERCEPTRON.fullmatch(kind)
    return (int(found[1]), int(found[2] or 0)) if found else (1, 0)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture is cut into tiles, and how their rows are put together: ``anyres``.

    ``pinpoints`` are the canvases to choose from, ``(width, height)`` in pixels, in the order in which
    the reference goes through them. ``merge`` is ``spatial_unpad`` (one grid, without what shows only
    padding), ``spatial`` (one grid), ``spatial_maxpool2x2`` (one grid, of each four patches the largest numbers) or
    ``flat`` (tile after tile). ``newline`` ends each row of the grid with the learned vector. ``most`` bounds the grid
    to that many tiles' rows (``anyres_max_9``). ``digits`` rounds the size that unpadding keeps, as transformers does;
    the original cuts it off. ``alone`` cuts only a picture that is the only one of its prompt; several are padded to
    squares. ``base`` is whether the whole picture's rows stand before its tiles' (not so in ``nobase``).
    """

    pinpoints: tuple[tuple[int, int], ...]
    merge: Merge = "spatial_unpad"
    newline: bool = True
    most: int | None = None
    digits: int | None = None
    alone: bool = False
    base: bool = True


@dataclass(frozen=True, slots=True)
class Frames:
    """How the rows of a video's frames become one block.

    Each frame's grid is made smaller by ``stride`` along each side, as ``pool`` says: ``bilinear`` rounds its sides
    up, ``average`` and ``max`` leave a rest away. The learned vector stands where ``newline`` says: behind each row of
    each frame (``grid``), behind each frame, behind the last (``one_token``) or nowhere (``no_token``).
    ``fit`` is how a frame becomes a square. ``early`` pools what the projector takes, not what it makes. ``own`` is how
    a frame becomes pixels, where that is not as with pictures.
    """

    pool: Pool = "bilinear"
    stride: int = 2
    newline: NewlinePosition = "one_token"
    fit: Fit = "stretch"
    early: bool = False
    own: Preprocessing | None = None


FITS: dict[str, str] = {
    "crop": "short side resized, centre cropped",
    "pad": "padded to a square with the mean colour",
    "stretch": "stretched to a square",
}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to pixel values.

    ``fit`` is how a picture that is not square becomes one: ``crop`` (resize the short side, take the
    middle), ``pad`` (onto a square of the mean colour, nothing is lost) or ``stretch``. ``tiles`` says
    that it is seen in tiles besides; then ``fit`` is for pictures that are not. ``background`` shows
    where the picture is transparent. ``newline`` ends the rows of a picture that is seen as one square with the learned
    vector; ``video`` is how videos are seen, None where they are not. ``resized`` is the side that is resized to before
    the middle of ``size`` is taken, where it is another; ``normalise`` is off where ``mean`` is for the padding alone.
    """

    size: int
    fit: Fit
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255
    resample: int = 3
    background: tuple[int, int, int] = (255, 255, 255)
    tiles: Tiling | None = None
    newline: bool = False
    video: Frames | None = None
    resized: int | None = None
    normalise: bool = True

    @property
    def has_newline(self) -> bool:
        """Whether the learned vector stands anywhere in the rows of a picture or video."""
        framed = self.video is not None and self.video.newline != "no_token"
        return self.newline or framed or (self.tiles is not None and self.tiles.newline)

    @property
    def of_frames(self) -> Preprocessing:
        """How the frames of videos become pixels."""
        own = self.video.own if self.video is not None else None
        return self if own is None else replace(own, video=self.video, background=self.background)

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """The mean as a colour: (122, 116, 104) for CLIP."""
        red, green, blue = (min(max(int(value * 255), 0), 255) for value in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class Text:
    """The language half: where it lies, its own configuration, and the folder of a LoRA that changes it.

    ``marks`` are the tokens that original LLaVA adds to its tokenizer where it lacks them.
    """

    source: Path
    config: Mapping[str, Any] = field(hash=False)
    adapter: Path | None = None
    marks: tuple[str, ...] = ()

    @property
    def homes(self) -> tuple[Path, ...]:
        """Where its tokens' names and its chat template may be told: a LoRA's are those that it was trained with."""
        return (self.source,) if self.adapter is None else (self.adapter, self.source)

    @property
    def hidden(self) -> int:
        """The width of its embedding rows."""
        return width_of(self.config)

    @property
    def context(self) -> int:
        """Positions of prompt and answer."""
        return int(self.config["max_seq_len" if self.config["model_type"] == "mpt" else "max_position_embeddings"])


@dataclass(frozen=True, slots=True)
class OwnVision:
    """What a checkpoint's pictures are seen with where that is our own tower and projectors."""

    tower: Tower
    projector: Projector
    preprocessing: Preprocessing

    @property
    def name(self) -> str:
        """Its name in the table of visions."""
        return "llava"


@dataclass(frozen=True, slots=True)
class ForeignVision:
    """What sees a checkpoint's pictures elsewhere: transformers' classes, or the vision of another package.

    ``name`` is ``transformers`` or that of the other package's entry point, ``source`` the folder that it is made of,
    ``what`` says in words what it is and ``side`` how many pixels its squares have, as far as a configuration tells.
    """

    name: str
    source: Path
    what: str = ""
    side: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A LLaVA checkpoint.

    ``template`` names its conversation template. ``image_start`` and ``image_end`` name the control
    tokens around a picture, where it was trained with them. ``strip_around_images`` is for LLaVA v0,
    whose tokenizer took white space beside them away. ``attention`` is how its language model attends,
    ``original`` how its text is cut up: see `trifocal.engines.recipe.Recipe`.
    """

    name: str
    family: str
    vision: OwnVision | ForeignVision
    language: Text
    template: str
    image_start: str = ""
    image_end: str = ""
    strip_around_images: bool = False
    attention: Literal["causal", "images", "prompt"] = "causal"
    original: bool = False

    @property
    def own(self) -> OwnVision:
        """Its vision, where that is our own.

        Raises:
            UsageError: another sees its pictures.
        """
        if not isinstance(self.vision, OwnVision):
            raise UsageError(f"{self.name}: its pictures are seen by {self.vision.name}, not by a tower of ours")
        return self.vision

    @property
    def tower(self) -> Tower:
        """The tower of its own vision."""
        return self.own.tower

    @property
    def projector(self) -> Projector:
        """The projector of its own vision."""
        return self.own.projector

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of its own vision."""
        return self.own.preprocessing

    def seeing(self, **changes: Any) -> Checkpoint:
        """The checkpoint with another ``tower``, ``projector`` or ``preprocessing`` of its own vision."""
        return replace(self, vision=replace(self.own, **changes))

    def framed(self, framed: bool) -> Checkpoint:
        """The checkpoint with its pictures between ``<im_start>`` and ``<im_end>``, or not."""
        start, end = ("<im_start>", "<im_end>") if framed else ("", "")
        return replace(self, image_start=start, image_end=end)
