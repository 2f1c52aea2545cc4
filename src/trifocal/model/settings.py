"""What is loaded and where it is placed: one frozen object, from a TOML file, the environment and flags."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trifocal.checkpoints import Checkpoint, find_checkpoint
from trifocal.conversation.history import Keep, parse_keep
from trifocal.errors import UnknownName, UsageError
from trifocal.hub.locate import EVERYTHING
from trifocal.placement import Placement

__all__ = ["FIELDS", "Settings", "read_boolean", "read_file"]

_PLACES = ("tower", "projector", "language")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What `trifocal.load` needs to know.

    ``checkpoint`` is a folder, a hub id or a known name; ``tower_from``, ``projector_from`` and
    ``language_from`` take a part from elsewhere (a folder, a file or a hub id), as the seed's
    settings do. ``tower``, ``projector`` and ``language`` say where each part lives. ``template``
    overrides the checkpoint's own. ``vision`` names another package's vision, for a language model
    that is no LLaVA, or the addresses of machines that see for this one: ``http://host:port``, with
    commas between several. ``fit`` (crop, pad or stretch) shows pictures in another way than the checkpoint
    was trained with. ``images`` says which past pictures stay. ``allow_pickle`` lets
    ``.bin`` files be read (with ``weights_only=True``).  ``cache_bytes`` bounds the picture cache.
    """

    checkpoint: str = "thimble"
    tower_from: str | None = None
    projector_from: str | None = None
    language_from: str | None = None
    tower: Placement = field(default_factory=Placement)
    projector: Placement = field(default_factory=Placement)
    language: Placement = field(default_factory=Placement)
    engine: str = "auto"
    engine_options: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    vision: str | None = None
    fit: str | None = None
    images: Keep = "all"
    allow_pickle: bool = False
    cache_bytes: int = 256 << 20

    @property
    def is_elsewhere(self) -> bool:
        """Whether ``vision`` has addresses of machines that see."""
        return self.vision is not None and self.vision.lower().startswith(("http://", "https://"))

    @property
    def vision_package(self) -> str | None:
        """The name of another package's vision; None where the checkpoint's own sees, here or elsewhere."""
        return None if self.is_elsewhere else self.vision

    def find(self, patterns: Sequence[str] = EVERYTHING) -> Checkpoint:
        """The checkpoint that they name; ``patterns`` and what it raises are those of `find_checkpoint`."""
        return find_checkpoint(
            self.checkpoint,
            tower=self.tower_from,
            projector=self.projector_from,
            language=self.language_from,
            vision=self.vision_package,
            fit=self.fit,  # type: ignore[arg-type]  # checked there
            patterns=patterns,
        )

    def check(self) -> None:
        """Refuses what is wrong whatever the checkpoint, for whoever opens it elsewhere or later.

        Raises:
            UnknownName: an engine, an option of it, a vision or a template that nobody here knows.
            UsageError: a fit that nobody knows, or a value that the engine does not take.
        """
        from trifocal.checkpoints.finding import check_fit, plugged_names  # whoever has help shown needs none of these
        from trifocal.conversation.jinja import check_name
        from trifocal.engines import check_engine

        check_engine(self.engine, self.engine_options)
        if self.vision_package is not None and self.vision_package not in plugged_names():
            raise UnknownName("vision", self.vision_package, plugged_names())
        if self.template is not None:
            check_name(self.template)
        check_fit(self.fit)

    @classmethod
    def read(cls, file: Path | None = None, environ: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        """Flags over the environment over the file over the defaults; a flag that is None was not given.

        The file is TOML with these fields' names as keys and ``[engine_options]`` as a table; a
        placement is written ``"cuda:0/float16"``. Without ``file``, ``TRIFOCAL_CONFIG`` or
        ``./trifocal.toml`` is read if it is there. The environment has ``TRIFOCAL_CHECKPOINT``,
        ``TRIFOCAL_TOWER`` and so on.

        Raises:
            UnknownName: a key that is no setting.
            UsageError: a file that is missing or no TOML, or a value of the wrong type.
        """
        environ = os.environ if environ is None else environ
        _, values = read_file(file, environ)
        for name in FIELDS:
            text = environ.get(f"TRIFOCAL_{name.upper()}")
            if text is not None and name != "engine_options":
                values[name] = text
        values.update({name: value for name, value in flags.items() if value is not None})
        return cls().with_values(values)

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with some replaced; text is read as on the command line."""
        for name in values:
            if name not in FIELDS:
                raise UnknownName("setting", name, FIELDS)
        return replace(self, **{name: _value(name, value) for name, value in values.items()})


FIELDS = [field.name for field in fields(Settings)]


def read_file(file: Path | None, environ: Mapping[str, str]) -> tuple[Path, dict[str, Any]]:
    """The settings file and what stands in it: ``file``, what ``TRIFOCAL_CONFIG`` names, or ``./trifocal.toml``.

    Raises:
        UsageError: a file that was named and is missing, or one that is no TOML.
    """
    named = file or (Path(environ["TRIFOCAL_CONFIG"]) if environ.get("TRIFOCAL_CONFIG") else None)
    path = named or Path("trifocal.toml")
    if not named and not path.is_file():
        return path, {}
    try:
        return path, tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UsageError(f"settings file {path}: {error.strerror or 'cannot be read'}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"settings file {path} is not TOML: {error}") from error


def _value(name: str, value: Any) -> Any:
    """A setting's value from text, TOML or Python."""
    if name in _PLACES:
        return Placement.parse(value) if isinstance(value, str) else _typed(name, value, Placement)
    if name == "images":
        return parse_keep(value)
    if name == "allow_pickle":
        return read_boolean(name, value)
    if name == "cache_bytes":
        return _whole(name, value)
    if name == "engine_options":
        return dict(_typed(name, value, Mapping))
    if value is None and name in ("tower_from", "projector_from", "language_from", "template", "vision", "fit"):
        return None
    return _typed(name, os.fspath(value) if isinstance(value, os.PathLike) else value, str)


def read_boolean(name: str, value: Any) -> bool:
    """A word that means true or false; ``name`` says whose value it is.

    Raises:
        UsageError: it is neither.
    """
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if str(value).lower() not in words:
        raise UsageError(f"{name}: {value!r} is neither true nor false")
    return words[str(value).lower()]


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not str(value).isdecimal():
        raise UsageError(f"{name}: {value!r} is not a whole number of bytes")
    return int(value)


def _typed(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        expected = "text" if kind is str else "a placement" if kind is Placement else "a table of names and values"
        raise UsageError(f"{name}: {value!r} is not {expected}")
    return value
