"""From a name to a `Checkpoint`: which layout it has, and where its parts lie."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trifocal.checkpoints.configs import text_part
from trifocal.checkpoints.gguf_pair import from_gguf, gguf_pair
from trifocal.checkpoints.hf import from_hf, is_hf
from trifocal.checkpoints.inside import changed_checkpoint
from trifocal.checkpoints.known import KNOWN, Release
from trifocal.checkpoints.original import from_original, trained_with
from trifocal.checkpoints.parts import FITS, Checkpoint, Fit, ForeignVision, OwnVision
from trifocal.checkpoints.reading import read_json
from trifocal.checkpoints.transformers import check_fits, from_transformers, is_transformers
from trifocal.checkpoints.turns import template_of
from trifocal.engines.recipe import Recipe
from trifocal.errors import CheckpointError, UnknownName, UsageError
from trifocal.hub.locate import EVERYTHING, PICKLES, locate
from trifocal.placement import Placement
from trifocal.source import source_of
from trifocal.weights.lora import ADAPTER, base_of, trained_file

__all__ = ["VISIONS", "check_fit", "find_checkpoint", "from_folder", "language_recipe", "plugged_names", "refitted"]


_ANYWHERE = Placement()


VISIONS = "trifocal.visions"  # the entry points by which other packages offer theirs


def plugged_names() -> list[str]:
    """The names under which installed packages offer visions."""
    return sorted({point.name for point in entry_points(group=VISIONS)})


def find_checkpoint(
    name: str,
    *,
    tower: str | None = None,
    projector: str | None = None,
    language: str | None = None,
    vision: str | None = None,
    fit: Fit | None = None,
    patterns: Sequence[str] = EVERYTHING,
) -> Checkpoint:
    """The checkpoint of that name: ``thimble``, a known name, a folder, or a hub id.

    ``tower``, ``projector`` and ``language`` take a part from elsewhere: a folder, a file or a hub id. ``vision``
    names another package's vision (`trifocal.vision.plugged`); then the checkpoint is a language model alone. ``fit``
    shows pictures in another way than the checkpoint was trained with. ``patterns`` are the files that are fetched of
    hub repositories: `trifocal.hub.locate.CONFIGS` alone tell what a checkpoint is.

    Raises:
        CheckpointError: files that are missing, or that don't say what they must.
        UnknownName: a vision that no installed package offers.
    """
    if vision is not None:
        if vision not in plugged_names():  # told before anything is looked for
            raise UnknownName("vision", vision, plugged_names())
        return _language_alone(locate(language or name, patterns), name, vision)
    if name == "thimble":
        folder = Path(str(resources.files("trifocal") / "thimble"))
        return refitted(from_folder(folder, name=name, tower=tower, projector=projector, language=language), fit)
    known = KNOWN.get(name, Release(language=name))
    folder = locate(known.language, patterns)
    found = from_folder(
        folder,
        name=folder.name if Path(name).expanduser().exists() else name,
        tower=tower or known.tower,
        projector=projector or known.projector,
        language=language,
        template=known.template,
        says=known.says,
        patterns=patterns,
    )
    return refitted(found, fit)


def check_fit(fit: str | None) -> None:
    """Refuses a fit that is neither left out nor known."""
    if fit is not None and fit not in FITS:
        raise UsageError(f"fit: {fit!r} is no way to make a picture square; known: {', '.join(FITS)}")


def refitted(checkpoint: Checkpoint, fit: Fit | None) -> Checkpoint:
    """The checkpoint with pictures fitted another way; a square instead of tiles, too.

    Raises:
        UsageError: a way that nobody knows, or a vision that fits pictures by itself.
    """
    check_fit(fit)
    if fit is None:
        return checkpoint
    if not isinstance(checkpoint.vision, OwnVision):
        raise UsageError(f"fit: the vision of {checkpoint.name} fits pictures by itself")
    shown = checkpoint.preprocessing
    newline = shown.newline and shown.tiles is None  # LLaVA 1.6 sees one square without its newline
    return checkpoint.seeing(preprocessing=replace(shown, fit=fit, tiles=None, newline=newline))


def from_folder(
    folder: Path,
    *,
    name: str | None = None,
    tower: str | None = None,
    projector: str | None = None,
    language: str | None = None,
    template: str | None = None,
    says: Mapping[str, Any] | None = None,
    patterns: Sequence[str] = EVERYTHING,
) -> Checkpoint:
    """Reads what a checkpoint is from its ``config.json``; no weight is read.

    Three layouts are told apart by what the configuration says, never by a name: llava-hf
    (``vision_config`` and ``text_config``), original LLaVA (``mm_*`` keys, as a LoRA too), and a bare language model
    whose tower and projector come from elsewhere, as in the seed. A fourth needs no configuration: a
    pair of GGUF files, the language model's (or a folder with both) and the ``mmproj`` one. ``says`` are keys
    for configurations that lack them.

    Raises:
        CheckpointError: a file or key that is missing or contradicts another.
    """
    pair = gguf_pair(folder, projector)
    if pair is not None and tower is None:
        return from_gguf(*pair, name=name, template=template)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: a checkpoint is a folder, or a pair of GGUF files")
    adapter = folder if (folder / ADAPTER).is_file() else None
    if adapter and not language:
        language = base_of(adapter)
    language_source = _language(folder, language, adapter, patterns) if language else folder
    if adapter and _is_over_whole(adapter):
        _check_no_lora(adapter, language_source)
        base = from_folder(language_source, tower=tower, projector=projector, template=template, patterns=patterns)
        changed = changed_checkpoint(base, adapter)
        return replace(changed, name=name or folder.name, template=template or changed.template)
    config = read_json(folder / "config.json")
    projector_source = _projector(projector, patterns) if projector else None
    config = {**(says or {}), **config, **trained_with(projector_source)}
    elsewhere = locate(tower, patterns) if tower else None
    check_fits(folder / "config.json", config)
    if is_transformers(config) and not (tower or projector or language):
        found = from_transformers(folder, config)
    elif is_hf(config):
        found = from_hf(folder, config, elsewhere, projector_source, language_source)
    else:
        found = from_original(folder, config, elsewhere, projector_source, language_source, adapter, patterns)
    if "mm_use_im_start_end" in config:
        found = found.framed(bool(config["mm_use_im_start_end"]))
    template = template or config.get("trifocal_template") or found.template
    original = bool(config.get("trifocal_original", found.original))
    return replace(found, name=name or folder.name, template=template, original=original)


def _is_over_whole(adapter: Path) -> bool:
    """Whether a LoRA was trained over a whole checkpoint of transformers' and says nothing of it, or the same again."""
    file = adapter / "config.json"
    if not file.is_file():
        return trained_file(adapter) is None  # original LLaVA's has both files
    config = read_json(file)
    return is_transformers(config) or is_hf(config)


def _check_no_lora(adapter: Path, base: Path) -> None:
    if (base / ADAPTER).is_file():
        raise CheckpointError(f"{adapter / ADAPTER}: its base {base} is a LoRA itself; merge that one with peft first")


def _language(folder: Path, name: str, adapter: Path | None, patterns: Sequence[str]) -> Path:
    """Where the language model lies; a LoRA may name a path of the machine on which it was trained."""
    try:
        return locate(name, patterns)
    except (CheckpointError, UsageError) as error:
        if adapter is None or name != base_of(folder):
            raise
        raise CheckpointError(
            f"{folder / ADAPTER}: base_model_name_or_path is {name!r}, and that can't be had ({error}); "
            "name the base with language_from (--language-from), as a folder or a hub id"
        ) from error


def _projector(name: str, patterns: Sequence[str]) -> Path:
    """Where the projector lies; one file of a hub repository is not fetched for its name alone."""
    is_file = name.endswith((".bin", ".safetensors"))
    if is_file and PICKLES[0] not in patterns and not Path(name).expanduser().exists():
        return Path(name)
    return locate(name, patterns)


def _language_alone(folder: Path, name: str, vision: str) -> Checkpoint:
    """A language model whose pictures another package sees."""
    text = text_part(folder, source_of(folder).config())
    return Checkpoint(
        name=name,
        family=vision,
        vision=ForeignVision(vision, folder),
        language=text,
        template=template_of(text, newer=False),
    )


def language_recipe(
    checkpoint: Checkpoint,
    placement: Placement = _ANYWHERE,
    *,
    engine: str = "auto",
    options: Mapping[str, Any] = MappingProxyType({}),
    allow_pickle: bool = False,
) -> Recipe:
    """How the checkpoint's language half is loaded into an engine of that name, with its ``options``."""
    text = checkpoint.language
    return Recipe(
        source=str(text.source),
        config=json.loads(json.dumps(dict(text.config))),  # transformers' own have numbers for keys
        adapter=None if text.adapter is None else str(text.adapter),
        whole=checkpoint.vision.name == "transformers",
        allow_pickle=allow_pickle,
        attention=checkpoint.attention,
        original=checkpoint.original,
        marks=text.marks,
        engine=engine,
        options=dict(options),
        device=placement.device,
        dtype=placement.dtype,
    )
