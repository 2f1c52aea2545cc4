"""``trifocal bench``: what this machine reaches."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import model_options
from trifocal.engines import engine_names
from trifocal.errors import CheckpointError, MissingExtra, UnknownName, UsageError
from trifocal.model.settings import Settings
from trifocal.tools.bench import Bench, measure
from trifocal.tools.shapes import QUANTISATIONS, SHAPES, write

__all__ = ["bench"]


@click.command(
    cls=Configured,
    short_help="Measure what this machine reaches.",
    epilog="""\b
Examples:
  trifocal bench                                            the bundled model
  trifocal bench --shape llava-1.5-13b --quant gptq --tower cuda --projector cuda --language cuda
  trifocal bench --against transformers --json bench.json""",
)
@click.option("--shape", metavar="NAME", help=f"Random weights of this shape: {', '.join(SHAPES)}.")
@click.option("--quant", type=click.Choice(QUANTISATIONS), default="none", show_default=True, help="Of a --shape.")
@click.option("--against", metavar="ENGINES", default="", help="Other engines beside it, on the same weights.")
@click.option("--streams", default="1,8", show_default=True, help="How many answers at once.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2), help="Of each answer.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures there, too.")
@model_options
def bench(
    shape: str | None, quant: str, against: str, streams: str, tokens: int, out: Path | None, settings: Settings
) -> None:
    """Measures the parts of an answer one by one, each with pictures and words that were not met before.

    The limit of one stream is that of the memory: how often a second the language model's weights can be read.
    """
    counts, others = _counts(streams), _names(against)
    with ExitStack() as stack:
        if shape is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trifocal-bench-")))
            click.echo(f"writing {shape} ({quant}) ...", err=True)
            settings = replace(settings, checkpoint=str(write(shape, quant, folder)))  # type: ignore[arg-type]
        told = [_measured(settings, counts, tokens)]
        told += _others(settings, others, counts, tokens)
    _show(told)
    if out is not None:
        out.write_text(json.dumps([one.told() for one in told], indent=1) + "\n", "utf-8")


def _counts(streams: str) -> list[int]:
    try:
        counts = [int(count) for count in streams.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--streams {streams!r}: numbers with commas between them were expected, such as 1,8")
    return counts


def _names(against: str) -> list[str]:
    names = [name for name in map(str.strip, against.split(",")) if name]
    for name in names:
        if name not in engine_names():
            raise UnknownName("engine", name, sorted(engine_names()))
    return names


def _others(settings: Settings, names: list[str], counts: list[int], tokens: int) -> list[Bench]:
    """The figures of other engines; one that is not here, or can't run this checkpoint, is told and left out."""
    found = []
    for name in names:
        try:
            # what the first engine is told by -e is nothing that another one knows
            found.append(_measured(replace(settings, engine=name, engine_options={}), counts, tokens))
        except (MissingExtra, CheckpointError, UsageError) as error:
            click.echo(f"{name}: left out: {error}", err=True)
    return found


def _measured(settings: Settings, counts: list[int], tokens: int) -> Bench:
    from trifocal.model.llava import load

    started = time.perf_counter()
    click.echo(f"{settings.engine}: loading ...", err=True)
    with load(settings) as llava:
        loaded = time.perf_counter() - started
        found = measure(
            llava,
            streams=counts,
            tokens=tokens,
            tell=lambda what: click.echo(f"{llava.engine_name}: {what} ...", err=True),
        )
    found.add("loaded", loaded, "s")
    return found


def _show(told: list[Bench]) -> None:
    """One row a figure, one column an engine; the limit and how much of it the first one reaches."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"on {told[0].device}")
    table.add_column("")
    for one in told:
        table.add_column(one.engine, justify="right")
    table.add_column("")
    table.add_column("limit", justify="right")
    values: list[dict[str, Any]] = [{figure.name: figure for figure in one.figures} for one in told]
    for figure in told[0].figures:
        row = [f"{found[figure.name].value:.1f}" if figure.name in found else "-" for found in values]
        limit = f"{figure.limit:.0f} ({figure.value / figure.limit:.0%} of it)" if figure.limit else ""
        table.add_row(figure.name, *row, figure.unit, limit)
    Console().print(table)
