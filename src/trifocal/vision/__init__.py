"""Seeing: preprocessing, tower and projector, each where it was placed, and a cache of what was seen."""

from trifocal.vision.base import Vision
from trifocal.vision.cache import FeatureCache
from trifocal.vision.llava import BATCH, ClipVision
from trifocal.vision.loading import load_vision
from trifocal.vision.preprocessing import pixels, shown
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.towers import ClipTower

__all__ = [
    "BATCH",
    "PROJECTORS",
    "ClipTower",
    "ClipVision",
    "FeatureCache",
    "Vision",
    "load_vision",
    "pixels",
    "shown",
]
