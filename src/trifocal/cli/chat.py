"""``trifocal chat``: a conversation about pictures in the terminal."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import load_shown, model_options, sampling_options
from trifocal.cli.pictures import read_picture
from trifocal.conversation.history import parse_keep
from trifocal.errors import TrifocalError
from trifocal.images import Image
from trifocal.messages import Message, Sampling
from trifocal.model.settings import Settings

if TYPE_CHECKING:
    from trifocal.model.llava import Llava

__all__ = ["Conversation", "chat"]

HELP = """\
/image PATH...   add pictures to the next question
/images WHICH    which past pictures stay: all, last or a number
/retry           answer the last question again
/undo            take the last question and its answer back
/clear           start anew
/help            this
/quit            leave (or Ctrl-D)"""


@click.command(cls=Configured, short_help="A conversation in the terminal.")
@click.argument("pictures", nargs=-1, metavar="[PICTURE]...")
@click.option("--system", metavar="TEXT", help="System text instead of the template's.")
@sampling_options
@model_options
def chat(pictures: tuple[str, ...], system: str | None, settings: Settings, sampling: Sampling) -> None:
    """Talks about the PICTUREs; `/image PATH` adds another at any time, `/help` lists the commands.

    Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves.
    """
    images = [read_picture(name) for name in pictures]
    with load_shown(settings) as llava:
        conversation = Conversation(llava, sampling, system, images)
        click.echo(f"{llava.checkpoint.name} is listening. /help lists the commands.", err=True)
        while (line := _read_line(len(conversation.waiting))) is not None:
            try:
                if not conversation.take(line):
                    return
            except TrifocalError as error:
                click.echo(f"{click.style('error:', fg='red')} {error}", err=True)


class Conversation:
    """The turns so far, and the pictures that wait for the next question."""

    def __init__(self, llava: Llava, sampling: Sampling, system: str | None, waiting: list[Image]) -> None:
        self.llava, self.sampling = llava, sampling
        self.start = [Message("system", system)] if system is not None else []
        self.turns: list[Message] = []
        self.waiting = waiting
        self.images = llava.images

    def take(self, line: str) -> bool:
        """Does what one line says; False when it says to leave."""
        line = line.strip()
        if not line.startswith("/"):
            if line:
                self.say(line)
            return True
        name, _, rest = line[1:].partition(" ")
        if name in ("quit", "exit", "q"):
            return False
        commands: dict[str, Callable[[str], None]] = {
            "image": self._image,
            "images": self._images,
            "retry": self._retry,
            "undo": self._undo,
            "clear": self._clear,
            "help": lambda _: click.echo(HELP),
        }
        if name in commands:
            commands[name](rest)
        else:
            click.echo(f"there is no /{name}; /help lists the commands", err=True)
        return True

    def say(self, text: str) -> None:
        """Asks and prints the answer; what was typed and attached is kept if it can't be answered."""
        self._answer([*self.turns, self.llava.question(text, self.waiting)])
        self.waiting = []

    def _answer(self, turns: list[Message]) -> None:
        stream = self.llava.stream([*self.start, *turns], self.sampling, images=self.images)
        said: list[str] = []
        try:
            for chunk in stream:
                said.append(chunk.text)
                click.echo(chunk.text, nl=False)
                sys.stdout.flush()
                if chunk.end and chunk.end.left_out:
                    click.echo(f"\n[left out: {'; '.join(chunk.end.left_out)}]", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False, err=True)
        finally:
            stream.close()
            click.echo()
        self.turns = [*turns, Message("assistant", "".join(said))]

    def _image(self, rest: str) -> None:
        names = shlex.split(rest)
        if not names:
            click.echo("/image needs a path", err=True)
        for name in names:
            self.waiting.append(read_picture(name))
            picture = self.waiting[-1]
            click.echo(f"[{name}: {picture.width} x {picture.height}, goes with your next question]", err=True)

    def _images(self, rest: str) -> None:
        self.images = parse_keep(rest.strip())
        click.echo(f"[past pictures that stay: {self.images}]", err=True)

    def _retry(self, _: str) -> None:
        if self.turns:
            self._answer(self.turns[:-1])

    def _undo(self, _: str) -> None:
        self.turns = self.turns[:-2]

    def _clear(self, _: str) -> None:
        self.turns, self.waiting = [], []


def _read_line(waiting: int) -> str | None:
    """A line from the user, with editing and history where the terminal has them; None at the end."""
    if sys.stdin.isatty():
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (importing it gives input() its line editing)
    try:
        return input(f"[{waiting} picture{'s' * (waiting > 1)}] > " if waiting else "> ")
    except EOFError:
        return None
    except KeyboardInterrupt:
        click.echo()
        return ""
