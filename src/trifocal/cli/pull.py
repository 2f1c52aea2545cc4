"""``trifocal pull`` and ``trifocal list``: checkpoints fetched from the hub, and those that are here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, get_args

import click

from trifocal.checkpoints import KNOWN, find_checkpoint
from trifocal.cli.configuration import Configured, nearest
from trifocal.errors import TrifocalError, UsageError
from trifocal.tools.pull import PARTS, Downloaded, Part, Pulled, Wanted, downloaded, pull, remove, wanted

__all__ = ["list_held", "pull_command", "remove_held"]


@click.command(
    "pull",
    cls=Configured,
    short_help="Fetch a checkpoint from the hub, checked.",
    epilog="""\b
Examples:
  trifocal pull llava-hf/llava-1.5-7b-hf                        all of it, going on where it was cut off
  trifocal pull llava-hf/llava-v1.6-mistral-7b-hf --part tower  only the files with the tower
  trifocal pull wojtab/llava-13b-v0-4bit-128g --allow-pickle    the three parts of a known name
  HF_TOKEN=... trifocal pull owner/private""",
)
@click.argument("name")
@click.option("--part", type=click.Choice(get_args(Part)), help="Only what this part needs.")
@click.option("--allow-pickle", is_flag=True, help="Fetch .bin weights too (no code in them is ever run).")
@click.option("--no-verify", is_flag=True, help="Check only what is fetched, not what was here.")
def pull_command(name: str, part: Part | None, allow_pickle: bool, no_verify: bool) -> None:
    """Fetches what NAME needs into the hub's cache, and checks every file against the digest that the hub gives.

    What is here already is only checked. A fetch that was cut off, and be it by switching the machine off, goes on
    where it was. An original checkpoint's tower is fetched from where it is named.
    """
    files = wanted(name, part=part, allow_pickle=allow_pickle)
    total = sum(file.size for file in files)
    click.echo(f"{name}: {len(files)} files, {_size(total)}")
    new = sum(file.wanted.size for file in _pull_shown(files, verify=not no_verify) if file.new)
    what = f"{_size(new)} fetched" if new else "all of it was here"
    checked = (
        "" if no_verify and not new else ", and what was fetched is checked" if no_verify else ", and all is checked"
    )
    click.echo(f"{name}: {what}{checked}. trifocal inspect {name} says what it is.")


def _pull_shown(files: list[Wanted], *, verify: bool) -> list[Pulled]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    done: list[Pulled] = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(file.size for file in files))
        for file in files:
            before = sum(pulled.wanted.size for pulled in done)
            progress.update(task, description=file.name, completed=before)
            done += pull([file], verify=verify, tell=lambda _, have: progress.update(task, completed=before + have))  # noqa: B023
            progress.update(task, completed=before + file.size)
    return done


@click.command("list", cls=Configured, short_help="The checkpoints on this machine.")
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="The same as a JSON list.")
def list_held(folders: tuple[Path, ...], as_json: bool) -> None:
    """Lists the bundled model and what is in the hub's cache and in FOLDERS, and right below them.

    Of each: family, the parts that it holds, size, place, and what is missing of it. The hub is not asked.
    """
    rows = [_bundled(), *(_row(each) for each in downloaded(folders))]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("name", "family", "parts", "size", "missing", "where"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in rows:
        missing = ", ".join(row["missing"]) or "nothing"
        parts = ", ".join(row["parts"])
        table.add_row(row["name"], row["family"], parts, _size(row["bytes"]), missing, row["folder"])
    Console().print(table)


@click.command(
    "rm",
    cls=Configured,
    short_help="Take a checkpoint off this machine.",
    epilog="""\b
Examples:
  trifocal rm llava-hf/llava-1.5-7b-hf         asks first
  trifocal rm llava-hf/llava-1.5-7b-hf --yes   for scripts""",
)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def remove_held(names: tuple[str, ...], yes: bool) -> None:
    """Takes each NAME out of the hub's cache, as `trifocal list` calls it. Folders of your own are never touched."""
    here = {each.repository: each for each in downloaded()}
    for name in names:
        if name not in here:
            raise UsageError(
                f"{name!r} is not in the hub's cache{nearest(name, list(here))}; trifocal list says what is"
            )
    for name in dict.fromkeys(names):
        if not yes and not sys.stdin.isatty():
            raise UsageError("there is no terminal to ask on: say --yes")
        if yes or click.confirm(f"take {name} ({_size(here[name].nbytes)}) off this machine?", err=True):
            click.echo(f"{name}: {_size(remove(name))} freed")
        else:
            click.echo(f"{name}: kept")


def _bundled() -> dict[str, Any]:
    found = find_checkpoint("thimble")
    folder = found.language.source
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return {
        "name": "thimble",
        "family": found.family,
        "parts": list(PARTS),
        "bytes": size,
        "missing": [],
        "folder": str(folder),
    }


def _row(each: Downloaded) -> dict[str, Any]:
    """A repository of the cache; one that is no whole checkpoint is a part, or says what is wrong with it."""
    family = "a part"
    if (each.folder / "config.json").is_file() and not each.missing:
        try:
            name = each.repository if each.repository in KNOWN else str(each.folder)
            family = find_checkpoint(name).family
        except TrifocalError:
            family = "a part, or not read"
    missing = list(each.missing)
    return {
        "name": each.repository,
        "family": family,
        "parts": list(each.parts),
        "bytes": each.nbytes,
        "missing": missing,
        "folder": str(each.folder),
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
