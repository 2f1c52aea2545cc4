"""A pair of GGUF files: a language model's, and the ``mmproj`` one with tower and projector."""

from __future__ import annotations

import re
from pathlib import Path

from trifocal.checkpoints.configs import text_part, tower_part
from trifocal.checkpoints.parts import Checkpoint, Fit, OwnVision, Preprocessing, Projector
from trifocal.checkpoints.processors import channels
from trifocal.checkpoints.tilings import Layout, original_layout
from trifocal.checkpoints.turns import template_of, turns_of
from trifocal.errors import CheckpointError
from trifocal.hub.locate import locate
from trifocal.source import source_of

__all__ = ["from_gguf", "gguf_pair"]


def gguf_pair(folder: Path, projector: str | None) -> tuple[Path, Path] | None:
    """The language model's GGUF file and the ``mmproj`` one: named both, or the only two of a folder, under any names.

    Raises:
        CheckpointError: one of the two is missing, or there are several to choose from.
    """
    if folder.is_dir() and (folder / "config.json").is_file():
        return None
    files = [folder] if source_of(folder).container else sorted(folder.glob("*.gguf"))
    if not files:
        return None
    if _later_part(folder):
        raise CheckpointError(
            f"{folder}: is a later part of a model in several files; name its first (...-00001-of-...)"
        )
    seeing = _seeing(files) if projector is None else [locate(projector, ("*.gguf",))]
    others = [file for file in files if not any(file.samefile(one) for one in seeing)]
    speaking = [file for file in others if "mmproj" not in file.name.lower() and not _later_part(file)]
    for found, what in ((speaking, "language model"), (seeing, "mmproj file")):
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "none"
            raise CheckpointError(
                f"{folder}: one GGUF {what} is wanted, here is {listed}; name the language model's file itself "
                "and the mmproj file with projector_from (--projector-from)"
            )
    return speaking[0], seeing[0]


def _seeing(files: list[Path]) -> list[Path]:
    """The ``mmproj`` files among several, by their names; where none is called so, by what they say of themselves."""
    from trifocal.gguf.container import GgufFile

    named = [file for file in files if "mmproj" in file.name.lower()]
    if named or len(files) == 1:
        return named
    first = (file for file in files if not _later_part(file))
    return [file for file in first if GgufFile(file).metadata.get("general.architecture") == "clip"]


def _later_part(file: Path) -> bool:
    """Whether it is the second part, or a later one, of a model in several files."""
    part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", file.name)
    return part is not None and int(part[1]) > 1


def from_gguf(language: Path, mmproj: Path, *, name: str | None, template: str | None) -> Checkpoint:
    """A pair of GGUF files; what they don't say is the recipe of their generation.

    A projector of one layer is LLaVA v0's (pictures cropped), one of two layers 1.5's (padded), or 1.6's
    where there are canvases to cut into tiles.
    """
    from trifocal.gguf.container import GgufFile
    from trifocal.gguf.mmproj import Mmproj

    seeing = Mmproj(GgufFile(mmproj))
    first_family = "weight" in seeing.projector
    text = text_part(language, source_of(language).config())
    siglip = seeing.config["model_type"] == "siglip_vision_model"  # it has no class token to drop
    tower = tower_part(mmproj, seeing.config, seeing.feature_layer, keep_first=siglip)
    tiled = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad", **seeing.preprocessing}
    layout = original_layout(mmproj, tiled, tower.image_size) if "image_grid_pinpoints" in tiled else Layout()
    mean, std = (channels(mmproj, seeing.preprocessing, f"image_{name}") for name in ("mean", "std"))
    recipe = turns_of(text, "llava_v0_webui") if first_family else template_of(text, newer=layout.tiles is not None)
    framed = first_family and source_of(language).knows("<im_start>")
    cropped = first_family or seeing.preprocessing.get("image_aspect_ratio") == "square"
    fit: Fit = "crop" if cropped and layout.tiles is None else "pad"
    preprocessing = Preprocessing(tower.image_size, fit, mean, std, tiles=layout.tiles, newline=layout.newline)
    return Checkpoint(
        name=name or language.stem,
        family="llava-v0" if first_family else "llava-1.6" if layout.tiles else "llava-1.5",
        vision=OwnVision(tower, Projector(mmproj, "linear" if first_family else "mlp2x"), preprocessing),
        language=text,
        template=template or recipe,
        strip_around_images=first_family,
        original=True,
    ).framed(framed)
