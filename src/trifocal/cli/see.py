"""``trifocal see``: a checkpoint's tower and projector for the language models of other machines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import vision_options
from trifocal.cli.serve import host_options, server_settings
from trifocal.errors import UsageError
from trifocal.model.settings import Settings

__all__ = ["see"]

PICTURE_BYTES = 200 << 20  # the largest picture that is taken anywhere, 64 megapixels, without any loss


@click.command(
    cls=Configured,
    short_help="Serve a vision tower and projector to other machines.",
    epilog="""\b
Examples:
  trifocal see -m llava-hf/llava-1.5-7b-hf --tower cuda:0 --port 5010           on the machine that sees
  trifocal serve -m llava-hf/llava-1.5-7b-hf --vision http://127.0.0.1:5010     on the one that answers
  trifocal ask cat.png "What is it?" --vision http://one:5010,http://two:5010   whoever is there""",
)
@host_options
@vision_options
def see(settings: Settings, **values: Any) -> None:
    """Serves the vision half of a checkpoint until Ctrl-C: pictures come in, rows of embeddings go out.

    No language model is loaded. Pictures of all who ask go through the tower together, and what was seen is kept. Keys
    come from a file or from the environment, as those of trifocal serve; who asks has one in TRIFOCAL_VISION_KEY.
    """
    if settings.is_elsewhere:
        raise UsageError(f"vision: {settings.vision} sees already; trifocal see is for the machine that does it itself")
    server = replace(server_settings(**values), body_bytes=PICTURE_BYTES + (1 << 20), image_bytes=PICTURE_BYTES)
    from trifocal.api import serve_vision

    serve_vision(settings, server)
