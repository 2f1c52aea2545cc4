"""What the page shows of the model and of the server: the parts and where they are, the limits, the samples."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from trifocal.api.serving import Server, Serving
from trifocal.api.wire import Json
from trifocal.checkpoints import FITS, Checkpoint, OwnVision
from trifocal.conversation.templates import TEMPLATES
from trifocal.images import FORMATS
from trifocal.web.pages import samples

__all__ = ["FIT_WORDS", "fit_of", "fit_words", "router"]

router = APIRouter(tags=["Page"])
FIT_WORDS = {
    "crop": "Of a picture that is not square the model sees the middle square; what is beside it is cut off.",
    "pad": "A picture that is not square is padded to one with a plain colour; nothing is cut off.",
    "stretch": "A picture that is not square is stretched to one; nothing is cut off.",
}
PASSED_ON = "Pictures are passed on to the server that has the model, which prepares them itself."
TILES = "A picture is seen whole, made small, and again in tiles, where small things can be told."
BUNDLED = Path(str(resources.files("trifocal") / "thimble"))
NEEDS = (
    "trifocal inspect llava-hf/llava-1.5-7b-hf",
    "trifocal serve -m llava-hf/llava-1.5-7b-hf --tower cpu --language cuda:0/float16",
)
SHARP = 2048  # pixels; no model of the line looks at more, and a photograph of that size is still sharp on a screen
assert FIT_WORDS.keys() == FITS.keys()


@router.get("/page/api/models", summary="Which models the page can switch between")
async def models(server: Serving) -> Response:
    """The name of each, and whether it is ready, loading or away."""
    phases = server.models.phases if server.models else {server.name: "ready"}
    return Json({"models": [{"name": name, "phase": phase} for name, phase in phases.items()]})


@router.get("/page/api/info", summary="What the page shows of model and server")
async def info(server: Serving, model: str | None = None) -> Response:
    """The model (loaded where it is named), its three parts, its templates, and what the server takes."""
    server.check_model(model)
    llava = server.llava
    checkpoint = llava.checkpoint
    templates = TEMPLATES if checkpoint else {}  # another server writes conversations down itself
    return Json(
        {
            "name": server.name,
            "models": [each.name for each in server.all],
            "family": llava.family,
            "bundled": is_bundled(checkpoint),
            "context": llava.context,
            "template": llava.template.name,
            "templates": list(dict.fromkeys((*templates, llava.template.name))),
            "system": llava.template.system,
            "systems": {name: template.system for name, template in templates.items()},
            "places": {name: template.pictures for name, template in templates.items()},
            "images": llava.images,
            "fit": fit_of(checkpoint),
            "fit_words": fit_words(checkpoint),
            "parts": _parts(server),
            "engine": {
                "name": llava.engine_name,
                "explains": llava.explains_not is None,
                "explains_not": llava.explains_not,
            },
            "limits": _limits(server),
            "samples": samples(),
            "needs": list(NEEDS),
        }
    )


def fit_of(checkpoint: Checkpoint | None) -> str | None:
    """How a picture becomes a square, by the name of the way; None where another sees it."""
    return checkpoint.preprocessing.fit if checkpoint and isinstance(checkpoint.vision, OwnVision) else None


def fit_words(checkpoint: Checkpoint | None) -> str:
    """How a picture becomes what the model sees, as a sentence."""
    if checkpoint is None:
        return PASSED_ON
    if not isinstance(checkpoint.vision, OwnVision):
        return f"Pictures are prepared by {checkpoint.vision.name}, as the model was trained with them."
    how = checkpoint.preprocessing
    return TILES if how.tiles else FIT_WORDS[how.fit]


def is_bundled(checkpoint: Checkpoint | None) -> bool:
    """Whether this is the model that comes with the package."""
    return checkpoint is not None and checkpoint.language.source == BUNDLED


def _parts(server: Server) -> list[dict[str, Any]]:
    return [
        {"part": part.name, "what": part.what, "device": part.device, "dtype": part.dtype, "bytes": part.nbytes}
        for part in server.llava.parts
    ]


def useful_side(checkpoint: Checkpoint | None) -> int:
    """The long side in pixels beyond which the page makes a picture smaller before it is sent.

    Never below `SHARP`: a picture that is cropped or enlarged keeps more than the model looks at.
    """
    own = checkpoint.vision if checkpoint else None
    tiles = checkpoint.preprocessing.tiles if checkpoint and isinstance(own, OwnVision) else None
    canvases = tiles.pinpoints if tiles else ()
    return max([SHARP, *(max(canvas) for canvas in canvases)])


def _limits(server: Server) -> dict[str, Any]:
    settings = server.settings
    return {
        "image_bytes": server.image_limits.bytes,
        "images": settings.images,
        "body_bytes": settings.body_bytes,
        "max_text": settings.text_bytes,
        "aspect": server.image_limits.aspect,
        "useful_side": useful_side(server.llava.checkpoint),
        "formats": list(FORMATS),
    }
