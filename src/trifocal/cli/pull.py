"""``trifocal pull`` and ``trifocal list``: checkpoints fetched from the hub, and those that are here."""

from __future__ import annotations

import json
from typing import Any, get_args

import click

from trifocal.checkpoints import find_checkpoint
from trifocal.errors import TrifocalError
from trifocal.pulling import Held, Part, Wanted, held, pull, wanted

__all__ = ["list_held", "pull_command"]


@click.command(
    "pull",
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
@click.option("--no-verify", is_flag=True, help="Don't read the files again to check their digests.")
def pull_command(name: str, part: Part | None, allow_pickle: bool, no_verify: bool) -> None:
    """Fetches what NAME needs into the hub's cache, and checks every file against the digest that the hub gives.

    What is here already is only checked. A fetch that was cut off goes on where it was.
    """
    files = wanted(name, part=part, allow_pickle=allow_pickle)
    total = sum(file.size for file in files)
    click.echo(f"{name}: {len(files)} files, {_size(total)}")
    _pull_shown(files, total, verify=not no_verify)
    checked = "fetched" if no_verify else "fetched and checked"
    click.echo(f"{name}: {checked}. trifocal inspect {name} says what it is.")


def _pull_shown(files: list[Wanted], total: int, *, verify: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total)
        for file in files:
            progress.update(task, description=file.name)
            pull([file], verify=verify)
            progress.advance(task, file.size)


@click.command("list", short_help="The checkpoints on this machine.")
@click.option("--json", "as_json", is_flag=True, help="The same as a JSON list.")
def list_held(as_json: bool) -> None:
    """Lists the bundled model and what is in the hub's cache: family, size, place, and what is missing of it."""
    rows = [_bundled(), *(_row(each) for each in held())]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("name", "family", "size", "missing", "where"):
        table.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for row in rows:
        missing = ", ".join(row["missing"]) or "nothing"
        table.add_row(row["name"], row["family"], _size(row["bytes"]), missing, row["folder"])
    Console().print(table)


def _bundled() -> dict[str, Any]:
    found = find_checkpoint("thimble")
    folder = found.language.source
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    return {"name": "thimble", "family": found.family, "bytes": size, "missing": [], "folder": str(folder)}


def _row(each: Held) -> dict[str, Any]:
    """A repository of the cache; one that is no whole checkpoint is a part, or says what is wrong with it."""
    family = "a part"
    if (each.folder / "config.json").is_file() and not each.missing:
        try:
            family = find_checkpoint(str(each.folder)).family
        except TrifocalError:
            family = "a part, or not read"
    missing = list(each.missing)
    return {
        "name": each.repository,
        "family": family,
        "bytes": each.nbytes,
        "missing": missing,
        "folder": str(each.folder),
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
