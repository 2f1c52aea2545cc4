"""Which tower and projector were trained with a bare language model, and how they are used."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from trifocal.checkpoints import CLIP_TOWER, Checkpoint, Projector, find_checkpoint, from_folder
from trifocal.errors import CheckpointError, UsageError

__all__ = ["ModelFacts", "VisionParts", "find_llava", "known_parts", "split_beside", "tells_its_vision"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A language model's name, the width of its rows, how many tokens it has, and its folder if it is known."""

    name: str
    hidden: int
    vocabulary: int
    folder: Path | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> ModelFacts:
        """From a model's ``config.json``.

        Raises:
            CheckpointError: it is missing or damaged, or says no width.
        """
        try:
            config = json.loads((folder / "config.json").read_text("utf-8-sig"))
            text = config.get("text_config") or config
            return cls(folder.name, int(text["hidden_size"]), int(text["vocab_size"]), folder)
        except OSError as error:
            raise CheckpointError(f"{folder}/config.json: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder}/config.json is no language model's ({error!r})") from error


@dataclass(frozen=True, slots=True)
class VisionParts:
    """A tower and a projector that lie apart from their language model.

    ``kind`` is the projector's, ``fit`` how a picture becomes square, ``framed`` whether pictures stand
    between ``<im_start>`` and ``<im_end>``: what the configuration of a bare language model leaves unsaid.
    """

    tower: str
    projector: str
    kind: str = "linear"
    fit: Literal["crop", "pad"] = "crop"
    framed: bool = False

    def on(self, bare: Checkpoint) -> Checkpoint:
        """These parts on a checkpoint that was read from a bare language model's folder."""
        seeing = bare.seeing(
            projector=Projector(bare.projector.source, self.kind),
            preprocessing=replace(bare.preprocessing, fit=self.fit),
        )
        return replace(seeing.framed(self.framed), strip_around_images=self.framed)


_LARGE = "openai/clip-vit-large-patch14-336"
_V0 = "liuhaotian/LLaVA-{}/mm_projector.bin"
# rows of the language model, its tokens, a hint in its name: the first line that matches. Widths,
# vocabularies and layouts are those of the released checkpoints; a name decides only where they are
# alike. A plain name is a checkpoint that holds its own parts.
_BY_SHAPE: tuple[tuple[int, tuple[int, ...], str, VisionParts | str], ...] = (
    (256, (3072,), "", "thimble"),
    (5120, (32003,), r"v1[.-]1", VisionParts(CLIP_TOWER, _V0.format("13b-delta-v1-1"), framed=True)),
    (5120, (32003,), "", VisionParts(CLIP_TOWER, _V0.format("13b-delta-v0"), framed=True)),
    (4096, (32003,), "", VisionParts(CLIP_TOWER, _V0.format("Lightning-7B-delta-v1-1"), framed=True)),
    (4096, (32004,), "", VisionParts(CLIP_TOWER, _V0.format("7b-delta-v0"), framed=True)),
    (5120, (32000, 32064), r"1\.6|next", "llava-hf/llava-v1.6-vicuna-13b-hf"),
    (4096, (32000, 32064), r"mistral.*(1\.6|next)|(1\.6|next).*mistral", "llava-hf/llava-v1.6-mistral-7b-hf"),
    (4096, (32000, 32064), r"1\.6|next", "llava-hf/llava-v1.6-vicuna-7b-hf"),
    (
        5120,
        (32000,),
        r"llama-?2",
        VisionParts(CLIP_TOWER, "liuhaotian/llava-llama-2-13b-chat-lightning-preview/mm_projector.bin"),
    ),
    (5120, (32000, 32064), "", VisionParts(_LARGE, "liuhaotian/llava-v1.5-13b/mm_projector.bin", "mlp2x", "pad")),
    (4096, (32000, 32064), "", VisionParts(_LARGE, "liuhaotian/llava-v1.5-7b/mm_projector.bin", "mlp2x", "pad")),
    (7168, (64000, 64064), "", "llava-hf/llava-v1.6-34b-hf"),
)


def known_parts(model: ModelFacts) -> VisionParts | str | None:
    """What fits a model of this shape; the name of a checkpoint where the parts lie in it."""
    for hidden, tokens, hint, parts in _BY_SHAPE:
        if model.hidden == hidden and model.vocabulary in tokens and re.search(hint, model.name.lower()):
            return parts
    return None


def find_llava(
    model: ModelFacts, *, checkpoint: str | None = None, tower: str | None = None, projector: str | None = None
) -> Checkpoint:
    """The checkpoint that this model is the language half of.

    A checkpoint that is named comes first; then a projector whose folder tells how it is used; then the
    model's own folder, since a LLaVA that was made a language model by its ``model_type`` alone still
    says there how it sees; then the folders beside it, as ``trifocal convert split`` leaves them; then
    the model's shape. ``tower`` and ``projector`` take these parts from elsewhere, as the seed's
    settings do.

    Raises:
        UsageError: nobody knows; says which setting names it.
        CheckpointError: files that are missing, or that don't say what they must.
    """
    if checkpoint:
        return find_checkpoint(checkpoint, tower=tower, projector=projector)
    language = str(model.folder) if model.folder is not None else None
    described = _described(projector)
    if described is not None:
        return from_folder(described, tower=tower, projector=projector, language=language)
    if model.folder is not None and tells_its_vision(model.folder):
        return from_folder(model.folder, tower=tower, projector=projector)
    beside = split_beside(model.folder)
    if beside is not None:
        tower, projector = tower or str(beside / "tower"), projector or str(beside / "projector")
        return from_folder(beside / "projector", tower=tower, projector=projector, language=language)
    parts = known_parts(model)
    if isinstance(parts, str):
        return find_checkpoint(parts, tower=tower, projector=projector)
    if model.folder is not None and parts is not None:
        return parts.on(from_folder(model.folder, tower=tower or parts.tower, projector=projector or parts.projector))
    if model.folder is not None and projector is not None:
        return from_folder(model.folder, tower=tower, projector=projector)
    raise UsageError(
        f"no tower and projector are known to fit {model.name} (rows of {model.hidden}, {model.vocabulary} tokens): "
        "set llava-checkpoint to the folder or hub id of the LLaVA that this language model is a part of"
    )


def tells_its_vision(folder: Path) -> bool:
    """Whether a model's folder says which parts it was trained with."""
    return any(key in _config(folder) for key in ("mm_vision_tower", "vision_config"))


def split_beside(folder: Path | None) -> Path | None:
    """The folder in which a model lies beside its ``tower`` and ``projector``; links are followed."""
    around = folder.resolve().parent if folder is not None else None
    found = around is not None and (around / "tower").is_dir() and _described(str(around / "projector"))
    return around if found else None


def _described(projector: str | None) -> Path | None:
    """The folder of a projector whose ``config.json`` says how it is used."""
    path = Path(projector).expanduser() if projector else None
    home = path if path is None or path.is_dir() else path.parent
    return home if home is not None and "mm_projector_type" in _config(home) else None


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
