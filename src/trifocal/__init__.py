"""Trifocal: LLaVA in three parts, each placed where you want it.

>>> import trifocal
>>> llava = trifocal.load()
>>> print(llava.complete([llava.question("What is this?", [trifocal.open_image("cat.png")])]).text)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trifocal.embedded import Embedded, embedded
    from trifocal.errors import (
        BadImage,
        BadMarkup,
        BadMessages,
        BadSampling,
        CheckpointError,
        EngineError,
        MissingExtra,
        OutOfMemory,
        PromptTooLong,
        TrifocalError,
        UnknownName,
        UsageError,
        VisionError,
    )
    from trifocal.images import Image
    from trifocal.images import load as open_image
    from trifocal.messages import Chunk, End, Message, Reply, Sampling
    from trifocal.model.budget import Budget, TurnCost
    from trifocal.model.explaining import ExplainedPicture, ExplainedWord, Explanation, Heatmap
    from trifocal.model.llava import Llava, load
    from trifocal.model.opening import open_model
    from trifocal.model.relay import Relay
    from trifocal.model.settings import Settings
    from trifocal.placement import Placement

__version__ = "0.1.0"

_HOME = {
    "errors": (
        "BadImage",
        "BadMarkup",
        "BadMessages",
        "BadSampling",
        "CheckpointError",
        "EngineError",
        "MissingExtra",
        "NotSupported",
        "OutOfMemory",
        "PeerBusy",
        "PeerError",
        "PeerRefused",
        "PeerTimeout",
        "PromptTooLong",
        "TrifocalError",
        "UnknownName",
        "UsageError",
        "VisionError",
    ),
    "embedded": ("Embedded", "embedded"),
    "model.budget": ("Budget", "TurnCost"),
    "model.explaining": ("Explanation", "Heatmap", "ExplainedPicture", "ExplainedWord"),
    "images": ("Image", "open_image"),
    "model.llava": ("Llava", "load"),
    "model.opening": ("open_model",),
    "model.relay": ("Relay",),
    "messages": ("Chunk", "End", "Message", "Reply", "Sampling"),
    "placement": ("Placement",),
    "model.settings": ("Settings",),
}
_RENAMED = {"open_image": "load"}

__all__ = [
    "BadImage",
    "BadMarkup",
    "BadMessages",
    "BadSampling",
    "Budget",
    "CheckpointError",
    "Chunk",
    "Embedded",
    "End",
    "EngineError",
    "ExplainedPicture",
    "ExplainedWord",
    "Explanation",
    "Heatmap",
    "Image",
    "Llava",
    "Message",
    "MissingExtra",
    "NotSupported",
    "OutOfMemory",
    "PeerBusy",
    "PeerError",
    "PeerRefused",
    "PeerTimeout",
    "Placement",
    "PromptTooLong",
    "Relay",
    "Reply",
    "Sampling",
    "Settings",
    "TrifocalError",
    "TurnCost",
    "UnknownName",
    "UsageError",
    "VisionError",
    "__version__",
    "embedded",
    "load",
    "open_image",
    "open_model",
]


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for, so that ``import trifocal`` costs nothing."""
    for home, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"trifocal.{home}"), _RENAMED.get(name, name))
    raise AttributeError(f"module 'trifocal' has no attribute {name!r}")
