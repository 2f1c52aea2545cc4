"""Sound small checkpoints of every layout, and ways to spoil one file of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmproj_maker import make_pair
from safetensors.torch import load_file, save_file

from checkpoint_maker import make_hf15, make_v0
from foreign_models import make_foreign
from layouts import family, quantised, save_hf, save_original

Spoil = Callable[[Path], None]
ABSENT = object()
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 9976576152\n"
HTML = "<!DOCTYPE html><html><head><title>403 Forbidden</title></head><body>Access denied</body></html>"


@dataclass(frozen=True)
class Sample:
    """A checkpoint that loads: its folder, and where in it the parts are (as `trifocal.model.llava.load` is told)."""

    folder: Path
    places: dict[str, str]
    template: str | None = None

    def copy(self, target: Path) -> Sample:
        """One of its own to spoil; paths that its configurations name go along."""
        shutil.copytree(self.folder, target)
        for file in target.rglob("*.json"):
            file.write_text(file.read_text("utf-8").replace(str(self.folder), str(target)), "utf-8")
        return replace(self, folder=target)

    @property
    def settings(self) -> dict[str, Any]:
        """What `trifocal.model.llava.load` is to be told."""
        places = {key: str(self.folder / place) for key, place in self.places.items()}
        return places if self.template is None else {**places, "template": self.template}


def make(layout: str, folder: Path) -> Sample:
    """The sample of that layout."""
    places = {"checkpoint": "."}
    if layout == "hf":
        make_hf15(folder)
    elif layout == "hf shards":
        make_hf15(folder, shards=3)
    elif layout == "v0":
        make_v0(folder)
        places = {"checkpoint": "llama", "tower_from": "clip", "projector_from": "mm_projector.safetensors"}
    elif layout == "gguf":
        folder.mkdir()
        make_pair(folder)
    elif layout in ("gptq", "awq"):
        made = family("1.5", **WIDE)
        kind = "GPTQ 4 bits, act-order" if layout == "gptq" else "AWQ GEMM"
        save_original(quantised(made, kind), folder, tower=folder / "tower")
    elif layout in ("original", "pickle"):
        save_original(family("1.5"), folder, tower=folder / "tower", pickle=layout == "pickle")
    elif layout.startswith("foreign "):
        make_foreign(layout.removeprefix("foreign "), folder)
    else:
        name, _, kind = layout.partition(" ")
        (save_hf if kind == "hf" else save_original)(family(name), folder)
    return Sample(folder, places, "plain" if layout.startswith("foreign ") else None)


def says(file: str, key: str, value: Any) -> Spoil:
    """A configuration says something else under a dotted key, or nothing (`ABSENT`)."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / file).read_text("utf-8"))
        inside = config
        *path, last = key.split(".")
        for name in path:
            inside = inside[name]
        if value is ABSENT:
            del inside[last]
        else:
            inside[last] = value
        (folder / file).write_text(json.dumps(config), "utf-8")

    return spoil


def holds(file: str, content: str | bytes) -> Spoil:
    """A file has other content; its folder is made."""

    def spoil(folder: Path) -> None:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def tensor(file: str, name: str, change: Callable[[torch.Tensor], torch.Tensor] | None) -> Spoil:
    """A tensor of a safetensors file is another one, or missing (None); a new name is a new tensor."""

    def spoil(folder: Path) -> None:
        tensors = load_file(folder / file)
        before = tensors.pop(name, torch.ones(2, 2))
        if change is not None:
            tensors[name] = change(before).contiguous()
        save_file(tensors, folder / file)

    return spoil


def torch_file(file: str, make: Callable[[dict[str, Any]], Any]) -> Spoil:
    """A ``.bin`` file holds something else than its table of tensors."""

    def spoil(folder: Path) -> None:
        torch.save(make(torch.load(folder / file, weights_only=True)), folder / file)

    return spoil


def header(file: str, change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """A safetensors file's header is another one over the same data."""

    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        length = int.from_bytes(data[:8], "little")
        changed = change(json.loads(data[8 : 8 + length]))
        text = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
        (folder / file).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return spoil


def cut(file: str, keep: int) -> Spoil:
    """A file ends early: after ``keep`` bytes, or that many before its end."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:keep]) and None


def grown(file: str, more: int) -> Spoil:
    """Some bytes follow behind a file's end."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes() + bytes(more)) and None


def changed(file: str, at: int, content: bytes) -> Spoil:
    """Some bytes of a file are others."""

    def spoil(folder: Path) -> None:
        data = bytearray((folder / file).read_bytes())
        data[at : at + len(content)] = content
        (folder / file).write_bytes(data)

    return spoil


def gone(*files: str) -> Spoil:
    """Files are not there."""

    def spoil(folder: Path) -> None:
        for file in files:
            (folder / file).unlink()

    return spoil


def swapped(one: str, other: str) -> Spoil:
    """Two files have each other's names."""

    def spoil(folder: Path) -> None:
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)

    return spoil


def folder_instead(file: str) -> Spoil:
    """A folder has a file's name."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return spoil


def link(file: str, target: str) -> Spoil:
    """A file is a link to somewhere."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target)

    return spoil


def pipe(file: str) -> Spoil:
    """A pipe that nobody writes to has a file's name."""

    def spoil(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return spoil


def both(*spoils: Spoil) -> Spoil:
    """One after the other."""

    def spoil(folder: Path) -> None:
        for each in spoils:
            each(folder)

    return spoil
