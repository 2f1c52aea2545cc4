"""The command line: a group of commands, each imported when it is called."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import warnings

import click

from trifocal import __version__
from trifocal.cli.commands import COMMANDS, find_command
from trifocal.cli.configuration import ConfiguredGroup
from trifocal.cli.telling import tell_error
from trifocal.errors import TrifocalError, UsageError

__all__ = ["COMMANDS", "main"]


class _Late(ConfiguredGroup):
    """A group whose commands live in modules that are imported when one of them is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        return find_command(name)


@click.group(
    cls=_Late,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  trifocal ask cat.png "What is in the picture?"       ask the bundled model, offline
  trifocal ask a.png b.png "What differs?"             several pictures
  trifocal ask cat.png "Is this <image> a cat?"        say where the picture goes
  trifocal ask cat.png "Describe it." -m llava-hf/llava-1.5-7b-hf --tower cpu --language cuda:0/float16
  trifocal chat cat.png                                 a conversation; /help inside
  trifocal inspect llava-hf/llava-1.5-7b-hf             what a checkpoint is and what it needs
  trifocal pull llava-hf/llava-1.5-7b-hf                fetch it; trifocal list says what is here

Every option can also stand in trifocal.toml or in the environment: TRIFOCAL_MAX_TOKENS is --max-tokens.""",
)
@click.version_option(__version__, "-V", "--version", prog_name="trifocal")
@click.option("-v", "--verbose", count=True, help="Say what is loaded where, with times and memory (-vv: more).")
def cli(verbose: int) -> None:
    """Give a language model sight: ask pictures questions, chat about them, serve them.

    Without a checkpoint named, the tiny bundled model answers: it knows drawn shapes, things, colours, counts,
    places and short words, and says so when asked for more.
    """
    level = [logging.WARNING, logging.INFO, logging.DEBUG][min(verbose, 2)]
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("trifocal").setLevel(level)


def main() -> None:
    """Runs the command line; errors become one line on standard error and an exit code.

    0 done, 1 failed, 2 asked for something that can't be done as asked, 130 interrupted.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # what libraries tell those who program with them
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  (for as long as it runs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files need not be text, nor letters of this terminal
            stream.reconfigure(errors="backslashreplace")
    code = _run()
    try:
        sys.stdout.flush()
    except OSError as error:  # a reader that left, or a full disk
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno != errno.EPIPE:
            tell_error(f"standard output: {error.strerror}")
        code = code or 1
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that was asked for; what went wrong is told."""
    try:
        code = cli.main(prog_name="trifocal", standalone_mode=False)  # click returns the code that a command left with
        return code if isinstance(code, int) else 0
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("\nstopped", err=True)
        return 130
    except click.NoSuchOption as error:
        error.show()
        if any(word.startswith("-") and os.path.lexists(word) for word in sys.argv[1:]):
            click.echo("Names of files that begin with a dash go behind -- (or ./ before them).", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except TrifocalError as error:
        tell_error(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except SystemExit as leave:  # click's own way out of a pipe whose reader left
        return leave.code if isinstance(leave.code, int) else 1
    except OSError as error:
        if error.errno != errno.EPIPE:
            tell_error(
                f"{error.filename or 'what was to be written'}: {error.strerror or 'can not be read or written'}"
            )
        return 1
