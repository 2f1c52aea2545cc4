"""Where the parts lie that a checkpoint brings along, and which of them its LoRA changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trifocal.checkpoints.parts import Checkpoint, OwnVision
from trifocal.checkpoints.turns import turns_of
from trifocal.conversation.templates import TEMPLATES
from trifocal.errors import CheckpointError
from trifocal.weights.lora import ADAPTER, adapter_file, changed_part, trained_file
from trifocal.weights.names import canonical
from trifocal.weights.tensors import stored_names

__all__ = ["Inside", "changed_checkpoint", "parts_inside"]


@dataclass(frozen=True, slots=True)
class Inside:
    """Which file or folder holds each part that a checkpoint brings along.

    ``changed`` are the parts of which a LoRA changes layers, ``replaced`` those of which it has some tensors, trained
    whole, and its base all of them.
    """

    homes: dict[str, Path] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()
    replaced: frozenset[str] = frozenset()

    def adapter(self, part: str, folder: Path | None, elsewhere: Path | None) -> Path | None:
        """The LoRA's folder where it changes a part, which may have been named from elsewhere."""
        return folder if part in self.changed or (elsewhere is None and part in self.replaced) else None


def parts_inside(folder: Path, adapter: Path | None = None, base: Path | None = None) -> Inside:
    """The parts in a folder; of a LoRA those beside its changes and those that its base brings along.

    A part of which a LoRA has no more than its base is the base's, with the LoRA's tensors in the place of its own:
    LLaVA 1.6's holds the projector and leaves its newline and its tower to the base.

    Raises:
        CheckpointError: a resampler among them, or files whose names can't be read.
    """
    if adapter is None:
        return Inside(dict.fromkeys(_names(folder), folder))
    files = [file for file in (adapter_file(adapter), trained_file(adapter)) if file]
    below = _names(base) if base is not None and base.is_dir() else {}
    own: dict[str, Path] = {}
    replaced: set[str] = set()
    for file in files:
        for part, names in _names(file).items():
            if names <= below.get(part, set()):
                replaced.add(part)
            else:
                own.setdefault(part, file)
    homes = dict.fromkeys(below, base) if base else {}
    return Inside({**homes, **own}, _changed(files), frozenset(replaced))


def changed_checkpoint(base: Checkpoint, adapter: Path) -> Checkpoint:
    """A whole LLaVA with the changes of a LoRA that was trained over it as one model.

    Raises:
        CheckpointError: transformers or another package sees its pictures.
    """
    if not isinstance(base.vision, OwnVision):
        raise CheckpointError(
            f"{adapter / ADAPTER}: its base {base.name} is a {base.family}, of which a LoRA can't be read; "
            "merge the two with peft (merge_and_unload) and take what that saves"
        )
    home = base.language.source
    inside = parts_inside(adapter, adapter, home)
    own = {part: place for part, place in inside.homes.items() if place != home}  # the rest lies where the base says
    tower, projector = (
        replace(part, source=own.get(name, part.source), adapter=inside.adapter(name, adapter, None))
        for name, part in (("tower", base.tower), ("projector", base.projector))
    )
    text = replace(base.language, adapter=adapter)
    template = turns_of(text, base.template) if base.template in TEMPLATES else base.template
    return replace(base.seeing(tower=tower, projector=projector), language=text, template=template)


def _names(source: Path) -> dict[str, set[str]]:
    """The canonical names of each part's tensors in a file or folder; pieces of a change are none."""
    found: dict[str, set[str]] = {}
    for stored in stored_names(source):
        if "vision_resampler." in stored:
            raise CheckpointError(
                f"{source}: between its tower and its projector stands a resampler ({stored}), which is not supported"
            )
        if (known := canonical(stored)) and changed_part(stored) is None:
            found.setdefault(known[0], set()).add(known[1])
    return found


def _changed(files: Sequence[Path]) -> frozenset[str]:
    return frozenset(part for file in files for stored in stored_names(file) if (part := changed_part(stored)))
