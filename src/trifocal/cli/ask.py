"""``trifocal ask``: one question about one or more pictures."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.log import Going, log_options
from trifocal.cli.options import load_shown, model_options, sampling_options, url_host_option
from trifocal.cli.pictures import (
    STDIN,
    clipboard,
    is_picture_word,
    looks_like_a_name,
    path_of,
    read_picture,
    read_stdin,
)
from trifocal.cli.telling import tell_refused, told_of
from trifocal.errors import BadImage, UsageError
from trifocal.images import Image
from trifocal.messages import Chunk, End, Message, Reply, Sampling
from trifocal.model.decoding import collect
from trifocal.model.settings import Settings
from trifocal.tools.writing import check_place

if TYPE_CHECKING:
    from trifocal.model.llava import Llava
    from trifocal.model.relay import Relay

__all__ = ["ask", "describe", "split_words"]

DESCRIBE = "Describe the picture."


@click.command(
    cls=Configured,
    short_help="Ask one question about pictures.",
    epilog="""\b
Examples:
  trifocal ask cat.png "What colour is the cat?"
  trifocal ask before.png after.png "What has changed?"
  trifocal ask cat.png                          describes the picture
  trifocal ask *.jpg -q "Who is this?" --each   an answer for each picture
  trifocal ask cat.png --explain looked.png     and draws where it looked for each main word
  curl -s http://127.0.0.1:8000/cat.png | trifocal ask - "What is it?"
  echo "What is it?" | trifocal ask cat.png -q -
  trifocal ask cat.png "What is it?" --json | jq .usage""",
)
@click.argument("words", nargs=-1, metavar='PICTURE... "QUESTION"')
@click.option("-q", "--question", metavar="TEXT", help="The question; all words are pictures then. - reads it.")
@click.option("--clipboard", "pasted", is_flag=True, help="The picture that was copied last, before the others.")
@url_host_option
@click.option("--each", is_flag=True, help="Ask about each picture by itself.")
@click.option("--system", metavar="TEXT", help="System text instead of the template's.")
@click.option(
    "--explain",
    "overlay",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE.png",
    help="Draw where it looked for the answer's main words.",
)
@click.option("--json", "as_json", is_flag=True, help="Text, positions and timings as JSON; with --each, a line each.")
@log_options
@sampling_options
@model_options
def ask(
    words: tuple[str, ...],
    question: str | None,
    pasted: bool,
    url_hosts: tuple[str, ...],
    each: bool,
    system: str | None,
    overlay: Path | None,
    as_json: bool,
    going: Going,
    settings: Settings,
    sampling: Sampling,
) -> None:
    """Answers QUESTION about the PICTUREs, word by word as the answer comes.

    The last word is the question, unless it is a picture too: then the pictures are described. A word that looks like
    a file and is none is never asked; `-q` says what the question is. A picture called `-` is read from standard input,
    an https address is fetched from the hosts that `--url-host` allows. `<image>` in the question says where a picture
    goes.
    """
    if not words and question is None and not pasted:
        raise click.UsageError("Missing argument 'PICTURE... \"QUESTION\"'.")
    names, question = split_words(words, question, alone=bool(going.before))
    if going.before and (each or system is not None):
        raise UsageError("--continue goes on with one conversation as it is: leave --each and --system out")
    if each and overlay:
        raise UsageError("--explain draws one answer, and --each asks for several: give one of them")
    if each:
        asking = partial(_ask_each, names, pasted, url_hosts, question=question, as_json=as_json)
        with load_shown(settings) as llava:
            refused = asking(llava, system=system, sampling=sampling, going=going)
        raise click.exceptions.Exit(1 if refused else 0)
    pictures = [clipboard()] if pasted else []
    pictures += [_picture(name, url_hosts) for name in names]
    if overlay:
        check_place(overlay, "--explain", "looked.png")
    with load_shown(settings) as llava:
        messages = [*going.before, *_asked(llava, system, question, pictures)]
        if overlay and llava.explains_not:
            raise UsageError(llava.explains_not)
        if as_json:
            reply = llava.complete(messages, sampling)
            click.echo(json.dumps(describe(reply), ensure_ascii=False, indent=2))
        else:
            reply = collect(_shown(llava.stream(messages, sampling)))
            click.echo()
        _tell_left_out(reply.end)
        going.put(llava.name, [*messages, Message("assistant", reply.text)])
        if overlay:
            _draw(llava, [*messages, Message("assistant", reply.text)], sampling, overlay)


def split_words(words: Sequence[str], question: str | None, *, alone: bool = False) -> tuple[list[str], str]:
    """Pictures and question: the last word is the question, unless it is a picture or one that is missing.

    ``alone`` says that a word by itself may be the question: the pictures came before.

    Raises:
        UsageError: words of which it can't be said which they are, or a question that is none.
    """
    if words.count(STDIN) + (question == STDIN) > 1:
        raise UsageError("standard input (-) can be read once")
    if question == STDIN:
        question = _decoded(read_stdin("the question")).strip()
    elif question is None and (not words or is_picture_word(words[-1])):
        question = DESCRIBE
    elif question is None:
        *words, question = words
        if looks_like_a_name(question) or not (words or alone or " " in question):
            raise _no_question(question)
    if not question.strip():
        raise UsageError("the question is empty")
    if not _is_text(question):
        raise UsageError("the question is no text in UTF-8")
    return list(words), question


def _no_question(word: str) -> UsageError:
    isdir = os.path.isdir(path_of(word))
    what = "this is a folder; name a picture in it" if isdir else "there is no such file"
    return UsageError(f"{word}: {what} (if it is the question, say so: -q {shlex.quote(word)})")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the question on standard input is no text in UTF-8") from error


def _picture(name: str, url_hosts: Sequence[str]) -> Image:
    """The picture that a word names; a bare word that is none may belong to a question without quotes."""
    try:
        return read_picture(name, url_hosts)
    except BadImage as error:
        if error.rule == "not_found" and not looks_like_a_name(name):
            detail = f"{error.detail} (a question of several words stands in quotes)"
            raise BadImage(error.rule, detail, name) from error
        raise


def _asked(llava: Llava | Relay, system: str | None, question: str, pictures: Sequence[Image]) -> list[Message]:
    turn = llava.question(question, pictures)
    return [Message("system", system), turn] if system is not None else [turn]


def _ask_each(
    names: Sequence[str],
    pasted: bool,
    url_hosts: Sequence[str],
    llava: Llava | Relay,
    *,
    question: str,
    system: str | None,
    as_json: bool,
    sampling: Sampling,
    going: Going,
) -> int:
    """Asks about every picture by itself and shows each answer; how many were refused, which is told."""
    refused = 0
    for name in ["clipboard", *names] if pasted else names:
        try:
            picture = clipboard() if pasted and name == "clipboard" else read_picture(name, url_hosts)
            messages = _asked(llava, system, question, [picture])
            if as_json:
                reply = llava.complete(messages, sampling)
                click.echo(json.dumps({"file": name, **describe(reply)}, ensure_ascii=not _is_text(name)))
            else:
                stream = llava.stream(messages, sampling)
                click.echo(f"{name}: ", nl=False)
                reply = collect(_shown(stream))
                click.echo()
            sys.stdout.flush()
            _tell_left_out(reply.end)
            going.put(llava.name, [*messages, Message("assistant", reply.text)])
        except UsageError as error:
            tell_refused(str(error) if isinstance(error, BadImage) else f"{name}: {error}")
            refused += 1
    return refused


def _tell_left_out(end: End) -> None:
    """What is missing, and what was done otherwise than asked."""
    for line in told_of(end):
        click.echo(line, err=True)


def _shown(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
    """The chunks, each printed as it comes."""
    for chunk in chunks:
        click.echo(chunk.text, nl=False)
        sys.stdout.flush()
        yield chunk


def _draw(llava: Llava | Relay, messages: Sequence[Message], sampling: Sampling, path: Path) -> None:
    """Draws where it looked for an answer's main words. The question stays whole, so that its pictures are the last."""
    from trifocal.cli.overlay import save_overlay

    explained = llava.explain(messages, max_tokens=sampling.max_tokens)
    kept = len(explained.pictures)
    pictures = [image for message in messages for image in message.images]
    save_overlay(explained, pictures[len(pictures) - kept :], path)
    click.echo(f"where it looked: {path}", err=True)


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
        "guessed_tokens": end.guessed,
        "images": end.images,
        "cached_images": end.cached_images,
        "left_out": list(end.left_out),
    }


def _timings(end: End) -> dict[str, float]:
    later = max(end.completion_tokens - 1, 1)
    seconds = {name: round(value, 6) for name, value in end.timings.items()}
    return {**seconds, "per_token": round(end.timings.get("generate", 0.0) / later, 6)}
