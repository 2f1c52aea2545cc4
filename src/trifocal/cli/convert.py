"""``trifocal convert``: checkpoints from one layout to another."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from trifocal.cli.configuration import ConfiguredGroup

__all__ = ["convert"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


def _size(_: click.Context, __: click.Parameter, text: str) -> int:
    """``5GB``, ``500MB`` or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.upper())
    if not match or not float(match[1]):
        raise click.BadParameter(f"{text!r} is no size; say 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2]])


_OUT = click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder that is not there yet.")
_SHARD = click.option(
    "--shard", default="5GB", show_default=True, metavar="SIZE", callback=_size, help="Size of a file."
)
_PICKLE = click.option("--allow-pickle", is_flag=True, help="Read .bin weights (without running code).")


@click.group(cls=ConfiguredGroup, short_help="Apply a delta, take a checkpoint apart, put one together.")
def convert() -> None:
    """Rewrites checkpoints, tensor by tensor, in little memory; what is there is never changed.

    A result appears under its name when all of it is written.
    """


@convert.command(
    epilog="""\b
Example:
  trifocal convert delta --base llama-13b --delta liuhaotian/LLaVA-13b-delta-v0 --out llava-13b-v0 --allow-pickle"""
)
@click.option(
    "--base", required=True, metavar="LLAMA", help="The original LLaMA in Hugging Face's form: folder or hub id."
)
@click.option("--delta", required=True, metavar="REPO", help="The delta: folder or hub id.")
@_OUT
@_SHARD
@_PICKLE
def delta(base: str, delta: str, out: Path, shard: int, allow_pickle: bool) -> None:
    """Adds a delta to LLaMA: LLaVA v0, v1.1 and Lightning were released so.

    The base is the original LLaMA, not Vicuna: tensors do not tell one from the other, so that is yours to see to.
    Names, shapes and dims are checked before anything is written, and every sum is finite or refused.

    How v1.1, Lightning and ScienceQA's talk is written beside the sums where REPO has its released name; for a folder
    of another name say --template when you ask.
    """
    from trifocal.checkpoints.known import delta_known_as
    from trifocal.hub.locate import CONFIGS, PICKLES, WEIGHTS, locate
    from trifocal.tools.convert import apply_delta

    wanted = (*CONFIGS, *WEIGHTS, *(PICKLES if allow_pickle else ()))
    with _progress("adding") as tell:
        done = apply_delta(
            locate(base, wanted),
            locate(delta, wanted),
            out,
            release=delta_known_as(delta),
            shard=shard,
            allow_pickle=allow_pickle,
            tell=tell,
        )
    click.echo(f"{done.folder}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB")


@convert.command(
    epilog="""\b
Example:
  trifocal convert split llava-hf/llava-1.5-7b-hf --out llava-parts
  cd llava-parts; trifocal ask cat.png "What is it?" -m ./language --tower-from ./tower --projector-from ./projector"""
)
@click.argument("checkpoint")
@_OUT
@_SHARD
@_PICKLE
def split(checkpoint: str, out: Path, shard: int, allow_pickle: bool) -> None:
    """Takes CHECKPOINT apart: OUT/language is a plain language model, beside it OUT/tower and OUT/projector.

    The language model is one that transformers, and so text-generation-webui's Transformers loader, opens by itself.
    """
    from trifocal.checkpoints import find_checkpoint
    from trifocal.tools import convert as work

    with _progress("taking apart") as tell:
        done = work.split(find_checkpoint(checkpoint), out, shard=shard, allow_pickle=allow_pickle, tell=tell)
    click.echo(f"{done.folder}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB in language, tower, projector")


@convert.command(
    epilog="""\b
Example:
  trifocal convert join llava-parts --out llava-1.5-mine"""
)
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@_OUT
@_SHARD
def join(folder: Path, out: Path, shard: int) -> None:
    """Puts FOLDER/language, FOLDER/tower and FOLDER/projector together, in the layout of llava-hf's 1.5."""
    from trifocal.tools import convert as work

    with _progress("putting together") as tell:
        done = work.join(folder, out, shard=shard, tell=tell)
    click.echo(f"{done.folder}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, with bytes, speed and the time left; the time taken when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    started = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
    console.print(f"took {time.perf_counter() - started:.1f} s", style="dim")
