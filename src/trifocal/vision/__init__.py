"""Seeing: preprocessing, tower and projector, each where it was placed, and a gallery of what was seen."""

from trifocal.vision.base import Layout, Look, Vision, check_rows
from trifocal.vision.gallery import AT_ONCE, Gallery
from trifocal.vision.llava import BATCH, LlavaVision
from trifocal.vision.loading import load_vision, open_vision
from trifocal.vision.plugged import PluggedVision
from trifocal.vision.preprocessing import pixels, shown
from trifocal.vision.projectors import PROJECTORS
from trifocal.vision.showing import Box, PatchGrid, Showing, View
from trifocal.vision.towers import VisionTransformer
from trifocal.vision.ways import Way, way_of

__all__ = [
    "AT_ONCE",
    "BATCH",
    "PROJECTORS",
    "Box",
    "Gallery",
    "Layout",
    "LlavaVision",
    "Look",
    "PatchGrid",
    "PluggedVision",
    "Showing",
    "View",
    "Vision",
    "VisionTransformer",
    "Way",
    "check_rows",
    "load_vision",
    "open_vision",
    "pixels",
    "shown",
    "way_of",
]
