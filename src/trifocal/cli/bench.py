"""``trifocal bench``: what this machine reaches."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import model_options
from trifocal.engines import engine_names
from trifocal.errors import CheckpointError, MissingExtra, UnknownName, UsageError
from trifocal.model.settings import Settings
from trifocal.tools.bench import Bench, measure
from trifocal.tools.bench_plot import plot
from trifocal.tools.shapes import QUANTISATIONS, SHAPES, write
from trifocal.tools.writing import check_place

if TYPE_CHECKING:
    from trifocal.model.llava import Llava

__all__ = ["bench"]


@click.command(
    cls=Configured,
    short_help="Measure what this machine reaches.",
    epilog="""\b
Examples:
  trifocal bench                                            the bundled model
  trifocal bench --shape llava-1.5-13b --quant gptq --tower cuda --projector cuda --language cuda
  trifocal bench --against transformers --json bench.json --plot bench.svg""",
)
@click.option("--shape", metavar="NAME", help=f"Random weights of this shape: {', '.join(SHAPES)}.")
@click.option("--quant", type=click.Choice(QUANTISATIONS), default="none", show_default=True, help="Of a --shape.")
@click.option("--against", metavar="ENGINES", default="", help="Other engines by turns with it, on the same weights.")
@click.option("--streams", default="1,8", show_default=True, help="How many answers at once.")
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2), help="Of each answer.")
@click.option("--apart", is_flag=True, help="One engine after the other, where memory has no room for all at once.")
@click.option("--plot", "drawn", type=click.Path(path_type=Path, dir_okay=False), help="Draw them there, as SVG.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures there, too.")
@model_options
def bench(
    shape: str | None,
    quant: str,
    against: str,
    streams: str,
    tokens: int,
    apart: bool,
    drawn: Path | None,
    out: Path | None,
    settings: Settings,
) -> None:
    """Measures the parts of an answer one by one, each with pictures and words that were not met before.

    Several engines are measured by turns, so that they meet the same machine. The limit is that of this device, as it
    is measured: how soon the language model's weights can be read once, and multiplied by all positions of a step.
    """
    for file, option, like in ((out, "--json", "bench.json"), (drawn, "--plot", "bench.svg")):
        if file is not None:
            check_place(file, option, like, once=True)
    counts, others = _counts(streams), _names(against)
    with ExitStack() as stack:
        if shape is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trifocal-bench-")))
            click.echo(f"writing {shape} ({quant}) ...", err=True)
            settings = replace(settings, checkpoint=str(write(shape, quant, folder)))  # type: ignore[arg-type]
        names = [settings.engine, *others]
        rounds = [[name] for name in names] if apart else [names]
        told = [one for own in rounds for one in _measured(settings, own, counts, tokens)]
    _show(told)
    if out is not None:
        out.write_text(json.dumps([one.told() for one in told], indent=1) + "\n", "utf-8")
    if drawn is not None:
        drawn.write_text(plot(told), "utf-8")


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


def _measured(settings: Settings, names: list[str], counts: list[int], tokens: int) -> list[Bench]:
    """The figures of the engines of these names, by turns.

    Another one than the settings' own that is not here, or can't run this checkpoint, is told and left out.
    """
    with ExitStack() as stack:
        llavas, seconds = [], []
        for name in names:
            started = time.perf_counter()
            click.echo(f"{name}: loading ...", err=True)
            try:
                llavas.append(stack.enter_context(_loaded(settings, name)))
            except (MissingExtra, CheckpointError, UsageError) as error:
                if name == settings.engine:
                    raise
                click.echo(f"{name}: left out: {error}", err=True)
                continue
            seconds.append(time.perf_counter() - started)
        if not llavas:
            return []
        tell = partial(click.echo, err=True)
        told = measure(llavas, parameters=_parameters(settings), streams=counts, tokens=tokens, tell=tell)
    for one, loaded in zip(told, seconds, strict=True):
        one.add("loaded", loaded, "s")
    return told


def _loaded(settings: Settings, name: str) -> Llava:
    from trifocal.model.llava import load

    # what the first engine is told by -e is nothing that another one knows
    return load(settings if name == settings.engine else replace(settings, engine=name, engine_options={}))


def _parameters(settings: Settings) -> int | None:
    """How many weights a position is multiplied by, where the language model is of a family that we know."""
    from trifocal.engines.shape import shape_of, unfit
    from trifocal.model.finding import find

    config = find(settings).recipe.config
    return None if unfit(config) else shape_of(config).parameters


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
        reached = figure.reached
        limit = f"{figure.limit:.1f} ({reached:.0%} of it)" if figure.limit and reached is not None else ""
        table.add_row(figure.name, *row, figure.unit, limit)
    Console().print(table)
