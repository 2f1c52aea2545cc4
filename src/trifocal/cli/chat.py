"""``trifocal chat``: a conversation about pictures in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.log import Going, log_options
from trifocal.cli.options import load_shown, model_options, sampling_options, url_host_option
from trifocal.cli.pictures import path_of, read_picture
from trifocal.cli.reading import Typed, names_in
from trifocal.cli.telling import tell_error, told_of
from trifocal.conversation.history import parse_keep
from trifocal.errors import TrifocalError, UsageError
from trifocal.images import Image
from trifocal.messages import Message, Sampling
from trifocal.model.settings import Settings
from trifocal.tools.conversations import read_conversation, write_conversation

if TYPE_CHECKING:
    from trifocal.model.llava import Llava
    from trifocal.model.relay import Relay

__all__ = ["Conversation", "chat"]

HELP = """\
/image PATH...   add pictures to the next question
/images WHICH    which past pictures stay: all, last, N
/again           answer the last question again
/undo            take the last question and answer back
/system TEXT     the system text; /system alone shows it
/save FILE       keep the conversation, pictures and all
/load FILE       go on with one that was kept
/clear           start anew
/help            this
/quit            leave (or Ctrl-D)

A line that ends in \\ goes on in the next; so does all
between two \"\"\"."""


@click.command(cls=Configured, short_help="A conversation in the terminal.")
@click.argument("pictures", nargs=-1, metavar="[PICTURE]...")
@click.option("--system", metavar="TEXT", help="System text instead of the template's.")
@url_host_option
@log_options
@sampling_options
@model_options
def chat(
    pictures: tuple[str, ...],
    system: str | None,
    url_hosts: tuple[str, ...],
    going: Going,
    settings: Settings,
    sampling: Sampling,
) -> None:
    """Talks about the PICTUREs; `/image PATH` adds another at any time, `/help` lists the commands.

    Ctrl-C stops an answer and keeps what was said; Ctrl-D leaves.
    """
    images = [read_picture(name, url_hosts) for name in pictures]
    with load_shown(settings) as llava, closing(Typed(remember=going.kept)) as typed:
        conversation = Conversation(llava, sampling, system, images, going, url_hosts)
        click.echo(f"{llava.name} is listening. /help lists the commands.", err=True)
        while True:
            try:
                line = typed.next(len(conversation.waiting))
                if line is None or not conversation.take(line):
                    return
            except TrifocalError as error:
                tell_error(str(error))


class Conversation:
    """The turns so far, and the pictures that wait for the next question."""

    def __init__(
        self,
        llava: Llava | Relay,
        sampling: Sampling,
        system: str | None = None,
        waiting: Sequence[Image] = (),
        going: Going | None = None,
        url_hosts: Sequence[str] = (),
    ) -> None:
        self.llava, self.sampling, self.going = llava, sampling, going or Going(None)
        self.start, self.turns = _parted(self.going.before)
        if system is not None:
            self.start = [Message("system", system)]
        self.waiting, self.url_hosts = list(waiting), url_hosts
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
            "again": self._again,
            "retry": self._again,
            "system": self._system,
            "save": self._save,
            "load": self._load,
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
                for line in told_of(chunk.end) if chunk.end else ():
                    click.echo(f"\n{line}", nl=False, err=True)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False, err=True)
        finally:
            stream.close()
            click.echo()
        self.turns = [*turns, Message("assistant", "".join(said))]
        self.going.put(self.llava.name, [*self.start, *self.turns], same=True)

    def _image(self, rest: str) -> None:
        names = names_in(rest)
        if not names:
            raise UsageError("/image needs a path")
        added = [read_picture(name, self.url_hosts) for name in names]  # all of them or none
        self.waiting += added
        for name, picture in zip(names, added, strict=True):
            click.echo(f"[{name}: {picture.width} x {picture.height}, goes with your next question]", err=True)

    def _images(self, rest: str) -> None:
        self.images = parse_keep(rest.strip())
        click.echo(f"[past pictures that stay: {self.images}]", err=True)

    def _again(self, _: str) -> None:
        if not self.turns:
            raise UsageError("nothing was asked yet")
        self._answer(self.turns[:-1])

    def _undo(self, _: str) -> None:
        self.turns = self.turns[:-2]

    def _clear(self, _: str) -> None:
        self.turns, self.waiting = [], []
        self.going.forget()

    def _system(self, rest: str) -> None:
        if rest.strip():
            self.start = [Message("system", rest.strip())]
        shown = self.start[0].text if self.start else "the template's own"
        click.echo(f"[system: {shown}]", err=True)

    def _save(self, rest: str) -> None:
        path = _file_in(rest, "/save")
        if not self.turns:
            raise UsageError("nothing was said yet")
        write_conversation(path, [*self.start, *self.turns])
        click.echo(f"[{path}: {_exchanges(self.turns)}; /load goes on with them]", err=True)

    def _load(self, rest: str) -> None:
        path = _file_in(rest, "/load")
        self.start, self.turns = _parted(read_conversation(path))
        self.going.forget()
        click.echo(f"[{path}: {_exchanges(self.turns)}]", err=True)


def _exchanges(turns: Sequence[Message]) -> str:
    count = len(turns) // 2
    return "1 question and its answer" if count == 1 else f"{count} questions and answers"


def _parted(messages: Sequence[Message]) -> tuple[list[Message], list[Message]]:
    """The system text at the start, and the turns."""
    start = [each for each in messages[:1] if each.role == "system"]
    return start, list(messages[len(start) :])


def _file_in(rest: str, command: str) -> Path:
    names = names_in(rest)
    if len(names) != 1:
        raise UsageError(f"{command} needs one name of a file" + (" (in quotes, if it has spaces)" if names else ""))
    return Path(path_of(names[0]))
