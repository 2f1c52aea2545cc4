"""What is told of a served model, loaded or not."""

from __future__ import annotations

from dataclasses import dataclass

from trifocal.api.model import Model

__all__ = ["Facts"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is told of a model, loaded or not: what it is, and what it took when it was."""

    family: str = ""
    context: int | None = None
    has_tools: bool = False
    bytes: int = 0
    gpu_bytes: int = 0
    made: tuple[str, ...] = ()
    modified: float | None = None

    @classmethod
    def of(cls, llava: Model) -> Facts:
        """Those of a model that is loaded."""
        parts = llava.parts
        try:
            modified = llava.checkpoint.language.source.stat().st_mtime if llava.checkpoint else None
        except OSError:
            modified = None
        return cls(
            llava.family,
            llava.context,
            llava.template.has_tools,
            sum(part.nbytes for part in parts),
            sum(part.nbytes for part in parts if part.device != "cpu"),
            tuple(f"{part.name} {part.what} {part.nbytes}" for part in parts),
            modified,
        )
