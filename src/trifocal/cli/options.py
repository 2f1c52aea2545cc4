"""The options that several commands share, gathered into `Settings` and `Sampling`."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from trifocal.cli.configuration import SETTINGS
from trifocal.messages import Sampling
from trifocal.model.settings import Settings

if TYPE_CHECKING:
    from trifocal.model.llava import Llava
    from trifocal.model.relay import Relay

__all__ = [
    "Number",
    "load_shown",
    "model_options",
    "models_options",
    "parse_engine_options",
    "sampling_options",
    "url_host_option",
    "vision_options",
]

Command = Callable[..., Any]
Option = Callable[[Command], Command]


class Number(click.FloatRange):
    """A finite number of a range; what is called nan is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number that can be counted with", param, ctx)
        return number


def _host_names(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    if names:
        from trifocal.api.settings import check_hosts

        check_hosts(param.opts[0], names)
    return names


url_host_option = click.option(
    "--url-host",
    "url_hosts",
    multiple=True,
    metavar="NAME",
    callback=_host_names,
    help="Fetch https pictures from this host.",
)


def _parameter(option: Option) -> str:
    """The name of the parameter that an option makes."""
    return str(option(lambda: None).__click_params__[0].name)  # type: ignore[attr-defined]


_MODEL: list[Option] = [
    click.option("-m", "--checkpoint", metavar="NAME", help="Folder, hub id or known name.  [default: thimble]"),
    click.option("--tower-from", metavar="WHERE", help="Take the vision tower from this folder or hub id."),
    click.option("--projector-from", metavar="WHERE", help="Take the projector from this file, folder or hub id."),
    click.option("--language-from", metavar="WHERE", help="Take the language model from this folder or hub id."),
    click.option("--tower", metavar="PLACE", help="Where the tower lives: cpu, cuda:0, mps, cuda:0/float16, ..."),
    click.option("--projector", metavar="PLACE", help="Where the projector lives."),
    click.option("--language", metavar="PLACE", help="Where the language model lives."),
    click.option("--engine", metavar="NAME", help="What runs the language model.  [default: auto]"),
    click.option("-e", "--engine-option", "engine_option", metavar="KEY=VALUE", multiple=True, help="Engine's own."),
    click.option("--template", metavar="NAME", help="Conversation template, or a file of Jinja.  [default: by family]"),
    click.option("--vision", metavar="WHERE", help="Addresses of trifocal see, or another package's vision by name."),
    click.option("--fit", metavar="HOW", help="Make pictures square by crop, pad or stretch.  [default: by family]"),
    click.option("--images", metavar="WHICH", help="Past pictures that stay: all, last or a number.  [default: all]"),
    click.option("--allow-pickle", is_flag=True, default=None, help="Read .bin weights (without running code)."),
]
_VISION = [
    option
    for option in _MODEL
    if _parameter(option) not in ("language_from", "language", "engine", "engine_option", "template", "images")
]
_SAMPLING: list[Option] = [
    click.option("--max-tokens", type=int, help="At most this many tokens.  [default: as many as fit, up to 1024]"),
    click.option("--temperature", type=float, help="0 is greedy.  [default: 0]"),
    click.option("--top-p", type=float, help="Likeliest tokens that make up this much.  [default: 1]"),
    click.option("--top-k", type=int, help="This many likeliest tokens; 0 is off.  [default: 0]"),
    click.option("--min-p", type=float, help="Tokens at least this likely, against the likeliest.  [default: 0]"),
    click.option("--repetition-penalty", type=float, help="Above 1 repeats less.  [default: 1]"),
    click.option("--seed", type=int, help="Draw the same answer again."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer where this text would come."),
]


def model_options(command: Command) -> Command:
    """Adds the options that choose and place a model; the command gets ``settings``."""

    return _with(_MODEL, _gathering(command, _MODEL))


def _gathering(command: Command, options: list[Option]) -> Command:
    @functools.wraps(command)
    def gathered(engine_option: tuple[str, ...], **values: Any) -> Any:
        flags = {name: values.pop(name) for name in _names(options) if name in values}
        if engine_option:
            flags["engine_options"] = parse_engine_options(engine_option)
        return command(settings=_settings(flags), **values)

    return gathered


def models_options(command: Command) -> Command:
    """As `model_options`, for several models: the command gets the first one's ``settings``, and ``others``."""
    several = click.option(
        "-m",
        "--model",
        "--checkpoint",
        "checkpoint",
        metavar="NAME",
        multiple=True,
        help="Folder, hub id or known name; several are loaded as they are asked for.  [default: thimble]",
    )

    @functools.wraps(command)
    def gathered(settings: Settings, checkpoint: tuple[str, ...], **values: Any) -> Any:
        first, *others = checkpoint or (settings.checkpoint,)
        return command(settings=settings.with_values({"checkpoint": first}), others=others, **values)

    return several(_with(_MODEL[1:], _gathering(gathered, _MODEL[1:])))


def vision_options(command: Command) -> Command:
    """Adds the options that choose and place a vision alone; the command gets ``settings``."""

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        return command(settings=_settings({name: values.pop(name) for name in _names(_VISION)}), **values)

    return _with(_VISION, gathered)


def sampling_options(command: Command) -> Command:
    """Adds the options of an answer; the command gets ``sampling``."""

    @functools.wraps(command)
    def gathered(**values: Any) -> Any:
        flags = {name: values.pop(name) for name in _names(_SAMPLING)}
        given = {name: value for name, value in flags.items() if value is not None}
        return command(sampling=Sampling(**given), **values)

    return _with(_SAMPLING, gathered)


def load_shown(settings: Settings) -> Llava | Relay:
    """Opens the model; a terminal shows that it is under way."""
    if not sys.stderr.isatty():
        return _load(settings)
    from rich.console import Console

    with Console(stderr=True).status(f"loading {settings.checkpoint}"):
        return _load(settings)


def _load(settings: Settings) -> Llava | Relay:
    from trifocal.engines import PASSED_ON
    from trifocal.model.finding import find

    if settings.engine == PASSED_ON:
        from trifocal.model.relay import open_relay

        return open_relay(settings)
    found = find(settings)  # a wrong name is told before torch is imported, which takes two seconds
    from trifocal.model.llava import load_found

    return load_found(settings, found)


def parse_engine_options(words: tuple[str, ...]) -> dict[str, Any]:
    """``KEY=VALUE`` words as a mapping; numbers, true and false are read as such, except in a ``key``.

    Raises:
        click.BadParameter: a word without ``=``.
    """
    options: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{word!r} is not KEY=VALUE", param_hint="--engine-option")
        options[key] = text if key == "key" else _literal(text)
    return options


def _literal(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _settings(flags: dict[str, Any]) -> Settings:
    """Settings from the flags that were given, over those of the file that have no flag."""
    given = {name: value for name, value in flags.items() if value is not None}
    without_option = click.get_current_context().meta.get(SETTINGS, {})
    return Settings().with_values({**without_option, **given})


def _with(options: list[Option], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def _names(options: list[Option]) -> list[str]:
    """The parameter names that these options make, but for the one that is gathered by hand."""
    probe = _with(options, lambda: None)
    names = [str(param.name) for param in probe.__click_params__]  # type: ignore[attr-defined]
    return [name for name in names if name != "engine_option"]
