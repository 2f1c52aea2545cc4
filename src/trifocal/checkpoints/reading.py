"""Values out of configuration files, each checked before anybody relies on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trifocal.errors import CheckpointError
from trifocal.files import read_object

__all__ = ["LARGEST", "image_processor", "layer_number", "number", "read_json", "real", "video_processor", "whole"]

MOST_LAYERS = 32  # whose features stand side by side
LARGEST = 1 << 24  # no size in a configuration is larger: contexts have up to ten million positions


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is not there, or no JSON object.
    """
    if not file.exists() and not file.is_symlink():
        raise CheckpointError(f"{file} is not there")
    return read_object(file)


def image_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The image processor's configuration and its file; empty where there is none.

    transformers writes it by itself before 5.0, and into ``processor_config.json`` from then on. Where both are there,
    it reads the newer one.
    """
    return _processor(folder, "image_processor", "preprocessor_config.json")


def video_processor(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The same of the video processor; where there is none, videos are for the image processor."""
    return _processor(folder, "video_processor", "video_preprocessor_config.json")


def _processor(folder: Path, key: str, name: str) -> tuple[Path, dict[str, Any]]:
    newer, older = folder / "processor_config.json", folder / name
    inside = read_json(newer).get(key) if newer.is_file() else None
    if inside is None and older.is_file():
        return older, read_json(older)
    if not isinstance(inside, dict | None):
        raise CheckpointError(f"{newer}: {key} is {inside!r}, a JSON object was expected")
    return newer, inside or {}


def whole(source: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
        raise CheckpointError(f"{_told(source)}: {key} is {value!r}, a whole number from 1 to {LARGEST} was expected")
    return value


def _told(source: Path) -> Path:
    """The file that says a value: a part's own, or the configuration in its folder."""
    return source / "config.json" if source.is_dir() else source


def real(source: Path, value: Any, key: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e6:
        raise CheckpointError(f"{_told(source)}: {key} is {value!r}, a number above 0 was expected")
    return float(value)


def number(source: Path, value: Any, key: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e6 < value < 1e6:
        raise CheckpointError(f"{_told(source)}: {key} is {value!r}, a number was expected")
    return float(value)


def layer_number(folder: Path, config: Mapping[str, Any], key: str, default: int = -2) -> int | tuple[int, ...]:
    """The layer whose features are taken, or several (as in Granite Vision)."""
    value = config.get(key, default)
    layers = value if isinstance(value, list) else [value]
    if not 0 < len(layers) <= MOST_LAYERS or not all(type(layer) is int for layer in layers):
        raise CheckpointError(
            f"{folder / 'config.json'}: {key} is {value!r}, one layer's number was expected, or a list of up to "
            f"{MOST_LAYERS}"
        )
    return tuple(layers) if isinstance(value, list) else int(layers[0])
