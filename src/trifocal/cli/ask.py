"""``trifocal ask``: one question about one or more pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trifocal.cli.options import load_shown, model_options, sampling_options
from trifocal.errors import UsageError
from trifocal.images import Image, from_bytes, from_path
from trifocal.messages import Chunk, End, Message, Reply, Sampling
from trifocal.model.decoding import collect
from trifocal.model.settings import Settings

if TYPE_CHECKING:
    from trifocal.model.llava import Llava

__all__ = ["ask", "describe", "read_picture"]


@click.command(
    short_help="Ask one question about pictures.",
    epilog="""\b
Examples:
  trifocal ask cat.png "What colour is the cat?"
  trifocal ask before.png after.png "What has changed?"
  trifocal ask cat.png                          describes the picture
  trifocal ask cat.png --explain looked.png     and draws where it looked for each main word
  curl -s http://127.0.0.1:8000/cat.png | trifocal ask - "What is it?"
  trifocal ask cat.png "What is it?" --json | jq .usage""",
)
@click.argument("words", nargs=-1, required=True, metavar='PICTURE... "QUESTION"')
@click.option("--system", metavar="TEXT", help="System text instead of the template's.")
@click.option(
    "--explain",
    "overlay",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw where it looked for the answer's main words.",
)
@click.option("--json", "as_json", is_flag=True, help="Text, positions of each kind and timings as one JSON object.")
@sampling_options
@model_options
def ask(
    words: tuple[str, ...],
    system: str | None,
    overlay: Path | None,
    as_json: bool,
    settings: Settings,
    sampling: Sampling,
) -> None:
    """Answers QUESTION about the PICTUREs, word by word as the answer comes.

    The last word is the question, unless it is a file too: then the pictures are described. A picture called `-`
    is read from standard input. `<image>` in the question says where a picture goes.
    """
    names, question = _split(words)
    pictures = [read_picture(name) for name in names]
    with load_shown(settings) as llava:
        turn = llava.question(question, pictures)
        messages = [Message("system", system), turn] if system is not None else [turn]
        if overlay and llava.explains_not:
            raise UsageError(llava.explains_not)
        if as_json:
            reply = llava.complete(messages, sampling)
            click.echo(json.dumps(describe(reply), ensure_ascii=False, indent=2))
        else:
            reply = collect(_shown(llava.stream(messages, sampling)))
            click.echo()
        if overlay:
            _draw(llava, [*messages, Message("assistant", reply.text)], sampling, overlay)


def _shown(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks, each printed as it comes."""
    for chunk in chunks:
        click.echo(chunk.text, nl=False)
        sys.stdout.flush()
        yield chunk


def _draw(llava: Llava, messages: Sequence[Message], sampling: Sampling, path: Path) -> None:
    """Draws where it looked for an answer's main words. The question stays whole, so that its pictures are the last."""
    from trifocal.cli.overlay import save_overlay

    explained = llava.explain(messages, max_tokens=sampling.max_tokens)
    kept = len(explained.pictures)
    pictures = [image for message in messages for image in message.images]
    save_overlay(explained, pictures[len(pictures) - kept :], path)
    click.echo(f"where it looked: {path}", err=True)


def read_picture(name: str) -> Image:
    """The picture at a path, or on standard input for ``-``.

    Raises:
        BadImage: it is no picture, or one over the limits.
    """
    return from_bytes(sys.stdin.buffer.read(), name="standard input") if name == "-" else from_path(name)


def describe(reply: Reply) -> dict[str, Any]:
    """A reply as plain JSON values: positions of each kind, and seconds of each step."""
    end = reply.end
    return {"text": reply.text, "finish": end.finish, "usage": _usage(end), "timings": _timings(end)}


def _usage(end: End) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt_tokens,
        "text_tokens": end.prompt_tokens - end.image_tokens,
        "image_tokens": end.image_tokens,
        "completion_tokens": end.completion_tokens,
        "images": end.images,
        "cached_images": end.cached_images,
        "left_out": list(end.left_out),
    }


def _timings(end: End) -> dict[str, float]:
    later = max(end.completion_tokens - 1, 1)
    seconds = {name: round(value, 6) for name, value in end.timings.items()}
    return {**seconds, "per_token": round(end.timings.get("generate", 0.0) / later, 6)}


def _split(words: Sequence[str]) -> tuple[list[str], str]:
    """Pictures and question: the last word is the question unless it is a file."""
    *names, last = words
    if last == "-" or Path(last).is_file():
        return list(words), "Describe the picture."
    return names, last
