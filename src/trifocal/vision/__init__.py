"""Seeing: preprocessing, tower and projector, each where it was placed, and a cache of what was seen."""

from trifocal.vision.base import Framing, Vision
from trifocal.vision.cache import FeatureCache
from trifocal.vision.llava import BATCH, LlavaVision
from trifocal.vision.loading import load_vision, open_vision
from trifocal.vision.plugged import PluggedVision
from trifocal.vision.preprocessing import count, pixels, shown, views
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.showing import Box, PatchGrid, Showing, View, patch_grids, shown_views
from trifocal.vision.towers import VisionTransformer

__all__ = [
    "BATCH",
    "PROJECTORS",
    "Box",
    "FeatureCache",
    "Framing",
    "LlavaVision",
    "PatchGrid",
    "PluggedVision",
    "Showing",
    "View",
    "Vision",
    "VisionTransformer",
    "count",
    "load_vision",
    "open_vision",
    "patch_grids",
    "pixels",
    "shown",
    "shown_views",
    "views",
]
