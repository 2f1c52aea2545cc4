"""What a checkpoint is, as data, whatever layout it came in."""

from trifocal.checkpoints.finding import find_checkpoint, from_folder, language_recipe
from trifocal.checkpoints.known import KNOWN, Release
from trifocal.checkpoints.parts import (
    CLIP_MEAN,
    CLIP_STD,
    CLIP_TOWER,
    FITS,
    Checkpoint,
    Fit,
    ForeignVision,
    Frames,
    OwnVision,
    Preprocessing,
    Projector,
    Text,
    Tiling,
    Tower,
    layers_of,
)
from trifocal.checkpoints.reading import read_json

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "CLIP_TOWER",
    "FITS",
    "KNOWN",
    "Checkpoint",
    "Fit",
    "ForeignVision",
    "Frames",
    "OwnVision",
    "Preprocessing",
    "Projector",
    "Release",
    "Text",
    "Tiling",
    "Tower",
    "find_checkpoint",
    "from_folder",
    "language_recipe",
    "layers_of",
    "read_json",
]
