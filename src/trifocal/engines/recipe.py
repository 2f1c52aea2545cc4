"""What an engine is loaded from, as plain data: it can be written down, and read by another process or machine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from trifocal.engines.base import Attention
from trifocal.errors import UnknownName, UsageError
from trifocal.placement import Placement

__all__ = ["Recipe", "width_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A language half, the engine that shall run it, and where: strings, numbers and tables alone.

    ``source`` is the folder with tokenizer and weights, or the GGUF file with both; ``adapter`` the folder of a LoRA
    that changes them. ``config`` is the language model's own configuration with its ``model_type``. ``whole`` says that
    its tensors stand among those of a checkpoint that transformers sees for, under names that tell which they are.
    ``allow_pickle`` lets ``.bin`` files be read.

    ``attention`` is ``images`` where the positions of a picture see each other in both directions (Gemma 3), and
    ``prompt`` where all of a prompt's do (PaliGemma, a prefix language model, whose templates say themselves where the
    beginning token stands); an engine that can't do that refuses it. ``original`` says that text is cut up as original
    LLaVA did it: with transformers' slow tokenizers (`trifocal.tokens.folder.read_words`), and so that what stands
    behind a picture is a text of its own; transformers' processors have the picture as a token in the text, which goes
    on behind it.

    ``marks`` are tokens that original LLaVA adds behind the tokenizer's own where it lacks them, in this order.

    ``engine`` is a name of `trifocal.engines.engine_names`, ``options`` are its loader's own. ``device`` and ``dtype``
    are a `Placement`'s.
    """

    source: str
    config: Mapping[str, Any] = field(hash=False)
    adapter: str | None = None
    whole: bool = False
    allow_pickle: bool = False
    attention: Attention = "causal"
    original: bool = False
    marks: Sequence[str] = ()
    engine: str = "auto"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", tuple(self.marks))  # JSON has lists

    @property
    def placement(self) -> Placement:
        """Where the engine lives."""
        return Placement(self.device, self.dtype)

    @property
    def hidden(self) -> int:
        """The width of the language model's embedding rows; see `width_of`."""
        return width_of(self.config)

    @property
    def path(self) -> Path:
        """``source``, as a path of this machine."""
        return Path(self.source)

    def to_json(self) -> str:
        """The recipe as JSON, of which `from_json` makes it again.

        Raises:
            UsageError: an option that is no plain value.
        """
        for name, value in self.options.items():
            if not _plain(value):
                raise UsageError(f"{name}: {value!r} is no plain value, and can't cross to another process")
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """The recipe that `to_json` wrote down.

        Raises:
            UsageError: it is none.
            UnknownName: it has a field that this version does not know.
        """
        try:
            values = json.loads(text)
            known = [field.name for field in fields(cls)]
            for name in values:
                if name not in known:
                    raise UnknownName("field of a recipe", name, known)
            return cls(**values)
        except (ValueError, TypeError) as error:
            raise UsageError(f"an engine's recipe was expected ({error})") from error


def width_of(config: Mapping[str, Any]) -> int:
    """The width of a language model's embedding rows, by its own configuration."""
    return int(config["d_model" if config.get("model_type") == "mpt" else "hidden_size"])


def _plain(value: Any) -> bool:
    """Whether JSON gives a value back as it was."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
