"""``trifocal caption``: a folder of pictures, a text for each."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import load_shown, model_options, sampling_options
from trifocal.cli.telling import counted, tell_refused
from trifocal.errors import UsageError
from trifocal.messages import Sampling
from trifocal.model.settings import Settings
from trifocal.tools.caption import Captioned, Found, captions, find_pictures
from trifocal.tools.caption_files import Beside, CaptionStore, Lines

__all__ = ["caption"]


@click.command(
    cls=Configured,
    short_help="Write a caption for every picture of a folder.",
    epilog="""\b
Examples:
  trifocal caption photos                       photos/cat.jpg -> photos/cat.txt
  trifocal caption photos --out captions.jsonl  one line a picture, resumed where it stopped
  trifocal caption photos --out captions.csv    a table
  trifocal caption photos "What is the main colour?" --workers 4""",
)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("question", default="Describe the picture.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="JSON Lines, or a table where it ends in .csv, instead of texts."
)
@click.option("--recursive", is_flag=True, help="Folders inside the folder too.")
@click.option("--again", is_flag=True, help="Also pictures that have a caption already.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Pictures at once.")
@sampling_options
@model_options
def caption(
    folder: Path,
    question: str,
    out: Path | None,
    recursive: bool,
    again: bool,
    workers: int,
    settings: Settings,
    sampling: Sampling,
) -> None:
    """Asks QUESTION about every picture in FOLDER and writes the answers down.

    A picture is what is one by content, whatever it is called. One that can't be read is told at the end and makes the
    exit code 1; the others are captioned. Stopped and started again, it goes on where it was.
    """
    if not question.strip():
        raise UsageError("the question is empty")
    settings.check()  # no model is opened where all is captioned
    found = find_pictures(folder, recursive=recursive)
    kept: CaptionStore = Beside(folder, found.pictures)
    if out is not None:
        kept = Lines(out, folder, found.pictures, question, again=again)
    with closing(kept):
        done = set() if again and out is None else kept.done()
        todo = [path for path in found.pictures if path not in done]
        kept.check(todo)
        if kept.mended:
            click.echo(kept.mended, err=True)
        refused = _captioned(kept, question, todo, workers, settings, sampling)
        kept.finish()
    written, refused = len(todo) - len(refused), [*found.closed, *refused]
    there = f"{len(done)} {'was' if len(done) == 1 else 'were'} there"
    gone = f"{counted(len(refused), 'file')} refused"
    click.echo(f"{counted(written, 'caption')} written, {there}, {gone}{_beside(found)}")
    for refusal in refused:
        tell_refused(refusal)
    raise click.exceptions.Exit(1 if refused else 0)


def _captioned(
    kept: CaptionStore, question: str, todo: list[Path], workers: int, settings: Settings, sampling: Sampling
) -> list[str]:
    """Captions what is to do; the refusals. The model is loaded when there is something."""
    if not todo:
        return []
    with load_shown(settings) as llava, closing(captions(llava, question, todo, sampling, workers=workers)) as made:
        return _write(made, kept, len(todo))


def _write(made: Iterable[Captioned], kept: CaptionStore, total: int) -> list[str]:
    """Writes each caption down as it comes; the refusals."""
    refused, written = [], 0
    try:
        for each in _shown(made, total):
            if each.refusal is None:
                kept.add(each.path, each.text)
                written += 1
            else:
                refused.append(each.refusal)
    except BaseException:
        click.echo(f"{counted(written, 'caption')} written before this; the same command goes on there", err=True)
        raise
    return refused


def _shown(made: Iterable[Captioned], total: int) -> Iterator[Captioned]:
    """The captions, with a bar, their rate and the time left on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f} a second" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Remaining())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        yield from progress.track(made, total=total, description="captions")


def _beside(found: Found) -> str:
    if not found.others:
        return ""
    return f"; {counted(found.others, 'other file')} {'is no picture' if found.others == 1 else 'are no pictures'}"
