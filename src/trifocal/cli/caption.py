"""``trifocal caption``: a folder of pictures, a text for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from trifocal.cli.options import load_shown, model_options, sampling_options
from trifocal.errors import BadImage, UsageError
from trifocal.images import from_path
from trifocal.messages import Sampling
from trifocal.model.settings import Settings

__all__ = ["caption"]

ENDINGS = {".jpg", ".jpeg", ".png", ".webp", ".gif"}


@click.command(
    short_help="Write a caption for every picture of a folder.",
    epilog="""\b
Examples:
  trifocal caption photos                       photos/cat.jpg -> photos/cat.txt
  trifocal caption photos --out captions.jsonl  one line a picture, resumed where it stopped
  trifocal caption photos "What is the main colour?" """,
)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("question", default="Describe the picture.")
@click.option("--out", type=click.Path(path_type=Path), help="A JSON Lines file instead of a text beside each picture.")
@click.option("--recursive", is_flag=True, help="Folders inside the folder too.")
@click.option("--again", is_flag=True, help="Also pictures that have a caption already.")
@sampling_options
@model_options
def caption(
    folder: Path,
    question: str,
    out: Path | None,
    recursive: bool,
    again: bool,
    settings: Settings,
    sampling: Sampling,
) -> None:
    """Asks QUESTION about every picture in FOLDER and writes the answers down.

    A file that is no picture is told at the end and makes the exit code 1; the others are captioned. Stopped and
    started again, it goes on where it was.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
    pictures = found if recursive else [path for path in found if path.parent == folder]
    if out is None:
        _check_names(pictures)
    done = set() if again else _done(pictures, folder, out)
    todo = [path for path in pictures if path not in done]
    refused: list[BadImage] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with load_shown(settings) as llava, Progress(*columns, console=Console(stderr=True)) as progress:
        for path in progress.track(todo, description="captions"):
            try:
                image = from_path(path)
            except BadImage as error:
                refused.append(error)
                continue
            text = llava.complete([llava.question(question, [image])], sampling).text.strip()
            _write(path, folder, out, text)
    click.echo(f"{len(todo) - len(refused)} captions written, {len(done)} were there, {len(refused)} files refused")
    for refusal in refused:
        click.echo(f"{click.style('refused:', fg='red')} {refusal}", err=True)
    if refused:
        raise click.exceptions.Exit(1)


def _check_names(pictures: list[Path]) -> None:
    """Refuses pictures that would share one text file."""
    seen: dict[Path, Path] = {}
    for path in pictures:
        other = seen.setdefault(path.with_suffix(".txt"), path)
        if other != path:
            raise UsageError(f"{other} and {path} would both be captioned in {path.stem}.txt; use --out FILE.jsonl")


def _done(pictures: list[Path], folder: Path, out: Path | None) -> set[Path]:
    """The pictures that have a caption already."""
    if out is None:
        return {path for path in pictures if path.with_suffix(".txt").exists()}
    if not out.exists():
        return set()
    lines = (json.loads(line) for line in out.read_text("utf-8").splitlines() if line.strip())
    names = {line["file"] for line in lines}
    return {path for path in pictures if str(path.relative_to(folder)) in names}


def _write(path: Path, folder: Path, out: Path | None, text: str) -> None:
    if out is None:
        path.with_suffix(".txt").write_text(text + "\n", "utf-8")
        return
    line: dict[str, Any] = {"file": str(path.relative_to(folder)), "text": text}
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
