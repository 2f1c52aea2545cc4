"""The table of commands; each is imported when it is asked for."""

from __future__ import annotations

import importlib

import click

__all__ = ["COMMANDS", "find_command"]

COMMANDS = {
    "ask": "trifocal.cli.ask:ask",
    "chat": "trifocal.cli.chat:chat",
    "caption": "trifocal.cli.caption:caption",
    "serve": "trifocal.cli.serve:serve",
    "see": "trifocal.cli.see:see",
    "deploy": "trifocal.cli.deploy:deploy",
    "bench": "trifocal.cli.bench:bench",
    "inspect": "trifocal.cli.inspect:inspect",
    "pull": "trifocal.cli.pull:pull_command",
    "list": "trifocal.cli.pull:list_held",
    "rm": "trifocal.cli.pull:remove_held",
    "log": "trifocal.cli.log:log",
    "convert": "trifocal.cli.convert:convert",
    "extension": "trifocal.cli.extension:extension",
}


def find_command(name: str) -> click.Command | None:
    """The command of that name; None where there is none."""
    if name not in COMMANDS:
        return None
    module, attribute = COMMANDS[name].split(":")
    command: click.Command = getattr(importlib.import_module(module), attribute)
    return command
