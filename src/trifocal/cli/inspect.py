"""``trifocal inspect``: what a checkpoint is, part by part, and what it needs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from trifocal.checkpoints import (
    FITS,
    KNOWN,
    Checkpoint,
    ForeignVision,
    OwnVision,
    Preprocessing,
    Release,
    language_recipe,
    layers_of,
    read_json,
)
from trifocal.cli.configuration import Configured
from trifocal.cli.options import model_options
from trifocal.conversation.brought import own_template
from trifocal.conversation.jinja import find_template
from trifocal.engines.choosing import choices
from trifocal.errors import CheckpointError, UsageError
from trifocal.hub.locate import CONFIGS, EVERYTHING, is_whole
from trifocal.model.settings import Settings
from trifocal.placement import Placement
from trifocal.source import source_of
from trifocal.weights.lora import changed_weights
from trifocal.weights.tensors import stored_names

__all__ = ["PartFacts", "expected_facts", "expected_numbers", "inspect", "part_facts"]

WIDE = 160  # columns of a table that no terminal shows
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
    cls=Configured,
    short_help="What a checkpoint is and what it needs.",
    epilog="""\b
Examples:
  trifocal inspect                           the bundled model
  trifocal inspect ./llava-1.5-7b-hf         a folder
  trifocal inspect ./llama --tower-from ./clip --projector-from mm_projector.safetensors
  trifocal inspect liuhaotian/llava-v1.5-7b  by its configuration alone where it was not pulled
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
        _print_known(as_json)
        return
    if folder and click.get_current_context().get_parameter_source("checkpoint") is ParameterSource.COMMANDLINE:
        raise UsageError(f"FOLDER is {folder} and --checkpoint {settings.checkpoint}: give one of them")
    name = folder or settings.checkpoint
    source = KNOWN.get(name, Release(language=name))
    bare = _without_weights(Path(name).expanduser())
    here = name == "thimble" or (is_whole(source.language) and not bare)
    if not here and source_of(Path(source.language)).container:
        raise CheckpointError(
            f"{name} is not on this machine, and only a GGUF file itself tells what it is: trifocal pull {name}"
            + (f" (it needs {source.needs})" if source.needs else "")
        )
    checkpoint = replace(settings, checkpoint=name).find(EVERYTHING if here else CONFIGS)
    parts = part_facts(checkpoint, allow_pickle=settings.allow_pickle) if here else expected_facts(checkpoint)
    facts = _facts(checkpoint, settings.template, settings.language)
    if not here:
        facts["on this machine"] = "its configuration alone" + (
            f"; {name} has no weights in it" if bare else f"; trifocal pull {name} fetches the rest"
        )
    if as_json:
        click.echo(json.dumps(_plain(facts, parts), indent=2))
        return
    _print(checkpoint, facts, parts)


def _without_weights(folder: Path) -> bool:
    """Whether a folder has a configuration and nothing that it configures."""
    return (folder / "config.json").is_file() and not any(
        file.suffix in (".safetensors", ".bin", ".gguf", ".pt") for file in folder.iterdir()
    )


def expected_facts(checkpoint: Checkpoint) -> list[PartFacts]:
    """The facts of the three parts as their configurations tell them; no weight file is there."""
    scheme = checkpoint.language.config.get("quantization_config")
    bits = scheme.get("bits", 4) if isinstance(scheme, dict) else 16
    found = []
    for name, (source, what) in _described(checkpoint).items():
        count = expected_numbers(checkpoint, name)
        nbytes = count * (bits if name == "language" and isinstance(bits, int) else 16) // 8
        found.append(PartFacts(name, source, what, count, ("expected",), nbytes))
    return found


def _and(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def expected_numbers(checkpoint: Checkpoint, part: str) -> int:
    """How many numbers a part has, by its configuration; 0 where that does not tell."""
    if part == "language":
        return _language_numbers(checkpoint.language.config)
    if not isinstance(checkpoint.vision, OwnVision):
        return 0
    tower = checkpoint.tower
    wide = tower.hidden
    if part == "tower":
        clip = tower.kind == "clip"
        patches = 3 * wide * tower.patch_size**2 + (0 if clip else wide)
        places = wide * (tower.side**2 + clip) + (3 * wide if clip else 0)  # the class token and the norm before, too
        block = 4 * wide * (wide + 1) + 2 * wide * tower.mlp + tower.mlp + 5 * wide
        return patches + places + (tower.layers if clip else tower.blocks) * block + 2 * wide
    hidden = checkpoint.language.hidden
    linears, blocks = layers_of(checkpoint.projector.kind)
    newline = hidden * checkpoint.preprocessing.has_newline
    square = hidden * (hidden + 1)
    return hidden * (tower.width + 1) + (linears - 1) * square + blocks * 2 * (square + hidden) + newline


def _language_numbers(config: Mapping[str, Any]) -> int:
    words, tied = int(config.get("vocab_size", 0)), bool(config.get("tie_word_embeddings", False))
    if config["model_type"] == "mpt":
        wide = int(config["d_model"])
        block = 12 * wide**2 + 2 * wide  # four for attention, twice four for the widening
        return words * wide + int(config["n_layers"]) * block + wide
    wide, inner = int(config["hidden_size"]), int(config.get("intermediate_size", 0))
    heads = int(config.get("num_attention_heads", 1))
    size = int(config.get("head_dim") or wide // heads)
    asking, keys = heads * size, int(config.get("num_key_value_heads") or heads) * size
    biases = asking + 2 * keys if config["model_type"] == "qwen2" else 0
    block = 2 * wide * (asking + keys) + 3 * wide * inner + 2 * wide + biases
    return words * wide * (1 if tied else 2) + int(config.get("num_hidden_layers", 0)) * block + wide


def _described(checkpoint: Checkpoint) -> dict[str, tuple[Path, str]]:
    """Where each part lies, and what it is."""
    language = checkpoint.language.source, _language(checkpoint)
    if isinstance(checkpoint.vision, ForeignVision):
        source, name, what = checkpoint.vision.source, checkpoint.vision.name, checkpoint.vision.what
        return {
            "tower": (source, what or f"seen by {name}"),
            "projector": (source, f"seen by {name}"),
            "language": language,
        }
    tower = checkpoint.tower
    kind, act = "CLIP ViT" if tower.kind == "clip" else "SigLIP ViT", f", {checkpoint.projector.act}"
    return {
        "tower": (tower.source, f"{kind}, {tower.layers} blocks of {tower.hidden}, {tower.image_size} px"),
        "projector": (checkpoint.projector.source, f"{checkpoint.projector.kind}{act}"),
        "language": language,
    }


def part_facts(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> list[PartFacts]:
    """The facts of the three parts, read from the headers of their files.

    Raises:
        CheckpointError: files that are missing or damaged.
    """
    own = checkpoint.vision if isinstance(checkpoint.vision, OwnVision) else None
    adapters = {"language": checkpoint.language.adapter} | (
        {"tower": own.tower.adapter, "projector": own.projector.adapter} if own else {}
    )
    found = []
    for name, (source, what) in _described(checkpoint).items():
        weights = changed_weights(source, name, adapters.get(name), allow_pickle=allow_pickle)
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
    text = checkpoint.language
    blocks = text.config.get("num_hidden_layers") or text.config.get("n_layers", "?")
    lora = f", with the LoRA of {text.adapter.name}" if text.adapter else ""
    return f"{text.config['model_type']}, {blocks} blocks of {text.hidden}{lora}"


def _facts(checkpoint: Checkpoint, template: str | None, placement: Placement) -> dict[str, Any]:
    """What concerns the whole checkpoint."""
    own = checkpoint.vision if isinstance(checkpoint.vision, OwnVision) else None
    chosen = template or checkpoint.template
    speaks: dict[str, Any] = {"template": "none of its own; name one with --template"}
    homes = checkpoint.language.homes
    if chosen != "checkpoint" or own_template(*homes) is not None:
        found = find_template(chosen, *homes)
        speaks = {"template": found.name, **({"stops at": list(found.stop)} if found.stop else {})}
    return {
        "name": checkpoint.name,
        "family": checkpoint.family,
        **speaks,
        "pictures": _pictures(own.preprocessing) if own else f"as {checkpoint.vision.name} prepares them",
        "positions per picture": _positions(checkpoint),
        **({"sees with": f"the output of block {own.tower.blocks} of {own.tower.layers}"} if own else {}),
        "context": checkpoint.language.context,
        "quantised": _quantised(checkpoint),
        "engine": _engine(checkpoint, placement),
    }


def _engine(checkpoint: Checkpoint, placement: Placement) -> str:
    """What runs the language model where nothing else is said, and why."""
    first = choices(language_recipe(checkpoint, placement))[0]
    return f"{first.engine}: {first.why}"


def _pictures(preprocessing: Preprocessing) -> str:
    """How a picture is shown to the tower, in words; --fit shows it in another way."""
    tiles, size = preprocessing.tiles, preprocessing.size
    if tiles is None:
        newline = ", a newline behind it" if preprocessing.newline else ""
        return f"{FITS[preprocessing.fit]}, {size} px{newline} (--fit changes that)"
    bound = f", at most {tiles.most} tiles' rows" if tiles.most else ""
    rounding = "transformers' rounding" if tiles.digits is not None else "the original's rounding"
    alone = "; several at once are padded squares" if tiles.alone else ""
    return f"whole and in tiles of {size} px, {len(tiles.pinpoints)} canvases, {tiles.merge}, {rounding}{bound}{alone}"


def _positions(checkpoint: Checkpoint) -> int | str:
    """What a picture takes; of pictures in tiles what some sizes take."""
    frame = bool(checkpoint.image_start) + bool(checkpoint.image_end)
    vision, sizes = checkpoint.vision, [(1024, 768), (1920, 1080)]
    if isinstance(vision, ForeignVision):
        if vision.name != "transformers" or not list(vision.source.glob("*processor_config.json")):
            return "by its size"
        from trifocal.vision.transformers import count

        sizes = [(vision.side, vision.side), *sizes]
        counts = [count(vision.source, *size) for size in sizes]
        return counts[0] if len(set(counts)) == 1 else _by_size(counts, sizes)
    tower, how = vision.tower, vision.preprocessing
    if how.tiles is None:
        return tower.patches + how.newline + frame
    from trifocal.vision.tiles import InTiles

    sizes = [(tower.image_size, tower.image_size), *sizes]
    return _by_size([InTiles(size, how, tower).rows + frame for size in sizes], sizes)


def _by_size(counts: Sequence[int], sizes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{number} ({w} x {h})" for number, (w, h) in zip(counts, sizes, strict=True))


def _quantised(checkpoint: Checkpoint) -> str:
    """How the language half is packed: as its configuration says, or by its tensors."""
    text = checkpoint.language
    if container := source_of(text.source).container:
        return container
    given = text.config.get("quantization_config")
    for name in ("config.json", "quantize_config.json", "quant_config.json"):
        if not isinstance(given, dict) and (text.source / name).is_file():
            config = read_json(text.source / name)
            given = config.get("quantization_config") if name == "config.json" else config
    if isinstance(given, dict):
        facts = [str(given.get("quant_method", "quantised")).upper()]
        bits, group = (
            given.get(old, given.get(new)) for old, new in (("w_bit", "bits"), ("q_group_size", "group_size"))
        )
        facts += [f"{bits} bits"] if bits else []
        facts += [f"groups of {group}"] if group else []
        facts += ["act-order"] if given.get("desc_act") else []
        return ", ".join(
            [*facts, *(str(given[key]) for key in ("version", "format", "checkpoint_format") if given.get(key))]
        )
    names = stored_names(text.source) if text.source.is_dir() else []
    if not any(name.endswith(".qweight") for name in names):
        return "no"
    return "GPTQ, new layout" if any(name.endswith(".g_idx") for name in names) else "GPTQ of old CUDA, or AWQ"


def _cache_bytes(checkpoint: Checkpoint, positions: int) -> int:
    """Bytes of the language model's key-value cache in 16 bits, for that many positions."""
    config = checkpoint.language.config
    heads = int(config.get("num_attention_heads") or config.get("n_heads", 1))
    head = int(config.get("head_dim") or checkpoint.language.hidden // heads)
    keys = int(config.get("num_key_value_heads") or heads)
    blocks = int(config.get("num_hidden_layers") or config.get("n_layers", 0))
    return 2 * 2 * blocks * keys * head * positions


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
    rows = checkpoint.tower.patches if isinstance(checkpoint.vision, OwnVision) else 0
    room = min(checkpoint.language.context, rows + ANSWER)
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


def _print_known(as_json: bool) -> None:
    rows = [
        {
            "name": name,
            "family": source.family,
            "context": source.context,
            "positions per picture": source.positions,
            "needs": source.needs,
            "on this machine": all(map(is_whole, filter(None, (source.language, source.tower, source.projector)))),
        }
        for name, source in KNOWN.items()
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("name", "family", "context", "a picture", "needs"):
        table.add_column(column, no_wrap=column == "name", justify="right" if column == "context" else "left")
    for row in rows:
        here = " [green]here[/green]" if row["on this machine"] else ""
        texts = [str(row[key]) for key in ("family", "context", "positions per picture", "needs")]
        table.add_row(f"{row['name']}{here}", *texts)
    Console(width=None if sys.stdout.isatty() else WIDE).print(table)


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
