"""Every option of every command in ``trifocal.toml`` and in the environment, and help that fits the terminal."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from trifocal.cli.commands import COMMANDS, find_command
from trifocal.errors import UsageError
from trifocal.model.settings import FIELDS, read_boolean, read_file

__all__ = ["SETTINGS", "Configured", "ConfiguredGroup", "nearest"]

SETTINGS = "trifocal.settings"  # of a context's meta: settings that have no option
PREFIX = "TRIFOCAL_"
UNSHARED = {"help", "version", "config", "yes"}  # what is said each time, or read elsewhere
OTHERS = {"CONFIG", "API_KEY", "VISION_KEY", "ENGINE_KEY"}
WITHOUT_OPTION = [name for name in FIELDS if name in ("engine_options", "cache_bytes")]


class _Shown(click.Command):
    """A command whose examples are laid out for the terminal's width."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples; where a line does not fit, its comment comes below and its command is broken."""
        if self.epilog:
            formatter.write_paragraph()
            for line in self.epilog.replace("\b\n", "").splitlines():
                formatter.write("\n".join(_laid_out(line, formatter.width)) + "\n")


class Configured(_Shown):
    """A command whose options are also read from the environment and from the settings file."""

    def __init__(self, *given: Any, **values: Any) -> None:
        super().__init__(*given, **values)
        self.params.append(
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_configure,
                help="Settings file.  [default: ./trifocal.toml]",
            )
        )


class ConfiguredGroup(_Shown, click.Group):
    """A group of such commands."""

    command_class = Configured

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named, or an error with the nearest one."""
        known = self.list_commands(ctx)
        if args[0] not in known and not args[0].startswith("-"):
            told = nearest(args[0], known) or f"; {ctx.command_path} -h lists them"
            raise click.UsageError(f"No such command {args[0]!r}{told}", ctx)
        return super().resolve_command(ctx, args)


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean NAME?``, or nothing where none is near."""
    near = get_close_matches(name, known, 1, 0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _configure(ctx: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Gives the context what stands in the file, and over it what stands in the environment."""
    options = dict(_options(ctx.command))
    read = _from_file(ctx, options, file)
    read |= _from_environment(options)
    ctx.default_map = {}
    for name, (value, where) in read.items():
        if name in options:
            ctx.default_map[str(options[name].name)] = _value(ctx, options[name], value, where)
        elif name in WITHOUT_OPTION:
            ctx.meta.setdefault(SETTINGS, {})[name] = value


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """A command's options by the names that they have in a file: ``max_tokens`` for ``--max-tokens``."""
    for param in command.params:
        if isinstance(param, click.Option):
            name = max(param.opts, key=len).lstrip("-").replace("-", "_")
            if name not in UNSHARED:
                yield name, param


def _from_file(
    ctx: click.Context, options: Mapping[str, click.Option], file: Path | None
) -> dict[str, tuple[Any, str]]:
    """Values and where each stands. A table of a command's name is for that command alone, and goes first."""
    path, values = read_file(file, os.environ)
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping) and name != "engine_options"}
    read = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if key not in tables:
            if name not in options and name not in WITHOUT_OPTION and name not in _all_names():
                raise UsageError(f"{path}: unknown setting {key!r}{nearest(name, _all_names())}")
            read[name] = (value, f"{path}: {key}")
    own = _own_table(ctx, tables, path)
    for key, value in own.items():
        name = key.replace("-", "_")
        if name not in options:
            table = " ".join(_names_of(ctx))
            raise UsageError(f"{path}: unknown setting {key!r} in [{table}]{nearest(name, list(options))}")
        read[name] = (value, f"{path}: {key}")
    return read


def _own_table(ctx: click.Context, tables: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The table of the command that runs, without the tables of its own commands."""
    for name in tables:
        if name not in COMMANDS:
            raise UsageError(f"{path}: there is no command for the table [{name}]{nearest(name, list(COMMANDS))}")
    own: Any = tables
    for name in _names_of(ctx):
        own = own.get(name, {}) if isinstance(own, Mapping) else {}
    return own if isinstance(own, Mapping) else {}


def _names_of(ctx: click.Context) -> list[str]:
    """``["convert", "delta"]``, wherever the command was called from."""
    names: list[str] = []
    at: click.Context | None = ctx
    while at is not None and at.command.name not in (None, "cli"):
        names.insert(0, str(at.command.name))
        at = at.parent
    return names


def _from_environment(options: Mapping[str, click.Option]) -> dict[str, tuple[Any, str]]:
    """Values of the variables; those that are empty are not set. A misspelt one is refused, a strange one told."""
    read = {}
    for variable, text in sorted(os.environ.items()):
        name = variable.removeprefix(PREFIX)
        if name == variable or not text or name in OTHERS:
            continue
        if name.lower() in options or name.lower() in WITHOUT_OPTION:
            read[name.lower()] = (text, variable)
        elif name.lower() not in _all_names():
            near = get_close_matches(name, [*(each.upper() for each in _all_names()), *OTHERS], 1, 0.75)
            if near:
                raise UsageError(f"the variable {variable} is no setting; did you mean {PREFIX}{near[0]}?")
            click.echo(f"the variable {variable} is no setting", err=True)
    return read


def _all_names() -> list[str]:
    """The names of all options of all commands; to know them, all are imported."""
    names = set(WITHOUT_OPTION)
    waiting = [command for name in COMMANDS if (command := find_command(name))]
    while waiting:
        command = waiting.pop()
        names |= {name for name, _ in _options(command)}
        if isinstance(command, click.Group):
            waiting += command.commands.values()
    return sorted(names)


def _value(ctx: click.Context, option: click.Option, value: Any, where: str) -> Any:
    """A value as on the command line, of the option's type. In a variable, several stand one a line."""
    if option.is_flag:
        return read_boolean(where, value)
    several = value if isinstance(value, list) else str(value).splitlines() if option.multiple else [value]
    for each in several:
        if isinstance(each, bool) or not isinstance(each, (str, int, float)):
            raise UsageError(f"{where}: {each!r} is no value of --{where.rpartition(' ')[2].lower()}")
    if isinstance(value, list) and not option.multiple:
        raise UsageError(f"{where}: one value was expected, these are {len(several)}")
    texts = [str(each) for each in several]
    try:
        option.type_cast_value(ctx, texts if option.multiple else texts[0])
    except click.BadParameter as error:
        raise UsageError(f"{where}: {error.message}") from error
    return texts if option.multiple else texts[0]


def _laid_out(line: str, width: int) -> list[str]:
    match = re.fullmatch(r"(\s*)(\S.*?)(?:\s{3,}(\S.*))?", line)
    if len(line) <= width or not match:
        return [line]
    start, command, comment = match[1], match[2], match[3]
    lines = textwrap.wrap(
        command,
        width - 2,
        initial_indent=start,
        subsequent_indent=start + "    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    if start:
        lines = [f"{each} \\" for each in lines[:-1]] + lines[-1:]
    if not comment:
        return lines
    indent = start + "    # "
    return lines + textwrap.wrap(comment, width, initial_indent=indent, subsequent_indent=indent)
