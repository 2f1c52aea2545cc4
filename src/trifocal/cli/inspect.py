"""``trifocal inspect``: what a checkpoint is, part by part, and what it needs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from trifocal.checkpoints import KNOWN, Checkpoint, find_checkpoint, language_weights
from trifocal.cli.options import model_options
from trifocal.settings import Settings
from trifocal.templates import get_template
from trifocal.weights import part_weights

__all__ = ["PartFacts", "inspect", "part_facts"]

ANSWER = 512  # positions of text that the memory table reckons with, besides one picture


@dataclass(frozen=True, slots=True)
class PartFacts:
    """One part as its files have it: how many numbers, in which types, how many bytes on disk."""

    name: str
    source: Path
    what: str
    numbers: int
    types: tuple[str, ...]
    nbytes: int

    def memory(self, bits: int) -> int:
        """Bytes of its weights when each number takes ``bits``."""
        return self.numbers * bits // 8


@click.command(
    short_help="What a checkpoint is and what it needs.",
    epilog="""\b
Examples:
  trifocal inspect                           the bundled model
  trifocal inspect ./llava-1.5-7b-hf         a folder
  trifocal inspect ./llama --tower-from ./clip --projector-from mm_projector.safetensors
  trifocal inspect --known                   checkpoints known by name""",
)
@click.argument("folder", required=False)
@click.option("--known", is_flag=True, help="List the checkpoints that are known by name.")
@click.option("--json", "as_json", is_flag=True, help="The same as one JSON object.")
@model_options
def inspect(folder: str | None, known: bool, as_json: bool, settings: Settings) -> None:
    """Says what the checkpoint in FOLDER is: its three parts, sizes, template, and memory per precision.

    Only configurations and the headers of weight files are read, no weights.
    """
    if known:
        _print_known()
        return
    checkpoint = find_checkpoint(
        folder or settings.checkpoint,
        tower=settings.tower_from,
        projector=settings.projector_from,
        language=settings.language_from,
    )
    parts = part_facts(checkpoint, allow_pickle=settings.allow_pickle)
    facts = _facts(checkpoint, settings.template)
    if as_json:
        click.echo(json.dumps(_plain(facts, parts), indent=2))
        return
    _print(checkpoint, facts, parts)


def part_facts(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> list[PartFacts]:
    """The facts of the three parts, read from the headers of their files.

    Raises:
        CheckpointError: files that are missing or damaged.
    """
    tower = checkpoint.tower
    described = {
        "tower": (tower.source, f"CLIP ViT, {tower.layers} blocks of {tower.hidden}, {tower.image_size} px"),
        "projector": (checkpoint.projector.source, f"{checkpoint.projector.kind}, {checkpoint.projector.act}"),
        "language": (checkpoint.language.source, _language(checkpoint)),
    }
    found = []
    for name, (source, what) in described.items():
        if name == "language":
            weights = language_weights(checkpoint.language, allow_pickle=allow_pickle)
        else:
            weights = part_weights(source, name, allow_pickle=allow_pickle)
        specs = [weights.spec(tensor) for tensor in weights]
        files = {file.resolve() for file in weights.files}
        numbers = sum(math.prod(shape) for _, shape in specs)
        nbytes = sum(_BYTES.get(kind, 4) * math.prod(shape) for kind, shape in specs)
        types = tuple(sorted({kind for kind, _ in specs}))
        found.append(
            PartFacts(name, source, f"{what}, {len(files)} file{'s' * (len(files) > 1)}", numbers, types, nbytes)
        )
    return found


_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def _language(checkpoint: Checkpoint) -> str:
    config = checkpoint.language.config
    return f"{config['model_type']}, {config.get('num_hidden_layers', '?')} blocks of {config['hidden_size']}"


def _facts(checkpoint: Checkpoint, template: str | None) -> dict[str, Any]:
    """What concerns the whole checkpoint."""
    frame = bool(checkpoint.image_start) + bool(checkpoint.image_end)
    fit = {"crop": "short side resized, centre cropped", "pad": "padded to a square with the mean colour"}
    chosen = get_template(template or checkpoint.template)
    return {
        "name": checkpoint.name,
        "family": checkpoint.family,
        "template": chosen.name,
        "stops at": list(chosen.stop),
        "pictures": fit[checkpoint.preprocessing.fit] + f", {checkpoint.preprocessing.size} px",
        "positions per picture": checkpoint.tower.patches + frame,
        "sees with": f"the output of block {checkpoint.tower.blocks} of {checkpoint.tower.layers}",
        "context": checkpoint.language.context,
    }


def _cache_bytes(checkpoint: Checkpoint, positions: int) -> int:
    """Bytes of the language model's key-value cache in 16 bits, for that many positions."""
    config = checkpoint.language.config
    heads = int(config.get("num_attention_heads", 1))
    head = int(config.get("head_dim") or config["hidden_size"] // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    return 2 * 2 * int(config.get("num_hidden_layers", 0)) * keys * head * positions


def _print(checkpoint: Checkpoint, facts: dict[str, Any], parts: list[PartFacts]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    about = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in facts.items():
        about.add_row(f"[dim]{key}[/dim]", ", ".join(repr(v) for v in value) if isinstance(value, list) else str(value))
    console.print(about)
    table = Table(title=None)
    for column in ("part", "what it is", "numbers", "on disk", "float32", "16 bits"):
        table.add_column(column, justify="left" if column in ("part", "what it is") else "right")
    for part in parts:
        stored = f"{_size(part.nbytes)} {'/'.join(part.types)}"
        sizes = (_size(part.memory(32)), _size(part.memory(16)))
        table.add_row(part.name, part.what, f"{part.numbers / 1e6:,.1f} M", stored, *sizes)
    room = min(checkpoint.language.context, checkpoint.tower.patches + ANSWER)
    cache = _cache_bytes(checkpoint, room)
    table.add_row("cache", f"keys and values of {room} positions", "", "", _size(2 * cache), _size(cache))
    console.print(table)
    for part in parts:
        console.print(f"[dim]{part.name:<9}[/dim] {part.source}", soft_wrap=True, highlight=False)
    console.print(
        "\nPlace each part with --tower, --projector and --language, such as --tower cpu --language cuda:0/float16.",
        style="dim",
        soft_wrap=True,
        highlight=False,
    )


def _print_known() -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("name", overflow="fold")
    table.add_column("needs", overflow="fold")
    for name, source in KNOWN.items():
        table.add_row(name, source.needs)
    Console().print(table)


def _plain(facts: dict[str, Any], parts: list[PartFacts]) -> dict[str, Any]:
    described = [
        {
            "part": part.name,
            "source": str(part.source),
            "what": part.what,
            "numbers": part.numbers,
            "types": list(part.types),
            "bytes": part.nbytes,
        }
        for part in parts
    ]
    return {**facts, "parts": described}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
