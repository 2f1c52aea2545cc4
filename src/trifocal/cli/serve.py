"""``trifocal serve``: the model behind HTTP, for clients of OpenAI, text-generation-webui, Anthropic and Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trifocal.api.settings import KEY_VARIABLE, ServerSettings
from trifocal.cli.configuration import Configured
from trifocal.cli.options import Number, models_options, url_host_option
from trifocal.errors import UsageError
from trifocal.model.settings import Settings

__all__ = ["host_options", "serve", "server_options", "server_settings"]

_DEFAULT = ServerSettings()
MEMORY = "Of several models, keep loaded what fits; those not used for longest go.  [default: one model at a time]"


def server_options(command: Any) -> Any:
    """Adds the server's options; the command gets them by the names of `ServerSettings`, and ``api_key_file``."""
    for option in reversed([*_HOST, *_MODEL]):
        command = option(command)
    return command


def host_options(command: Any) -> Any:
    """Adds those of any server of ours, whatever it serves."""
    for option in reversed(_HOST):
        command = option(command)
    return command


def server_settings(api_key_file: Path | None, **values: Any) -> ServerSettings:
    """The settings that these options stand for.

    Raises:
        UsageError: no key for an address that others can reach, or a key file that can't be used.
    """
    open_first = ServerSettings(**{**values, "open_to_all": True}).with_keys(api_key_file)
    return ServerSettings(**values, keys=open_first.keys)


_HOST = [
    click.option("--host", default=_DEFAULT.host, show_default=True, help="Address to listen on."),
    click.option("--port", default=_DEFAULT.port, show_default=True, type=click.IntRange(0, 65535), help="Port."),
    click.option(
        "--api-key-file",
        type=click.Path(path_type=Path),
        help=f"Keys, one a line; without it the variable {KEY_VARIABLE} is read.",
    ),
    click.option("--open-to-all", is_flag=True, help="Serve other machines without any key."),
    click.option("--public-host", "public_hosts", multiple=True, metavar="NAME", help="Name clients ask for it by."),
    click.option("--slots", type=click.IntRange(1), help="At once at most; as many as fit, up to 32."),
    click.option("--queue", default=_DEFAULT.queue, show_default=True, type=click.IntRange(0), help="In the queue."),
    click.option(
        "--per-key", default=_DEFAULT.per_key, show_default=True, type=click.IntRange(1), help="Both, per key."
    ),
    click.option(
        "--share-caches",
        is_flag=True,
        help="Let keys find again what others asked: faster, and they can tell by it that it was asked.",
    ),
    click.option("--deadline", default=_DEFAULT.deadline, show_default=True, type=float, help="Seconds a request."),
    click.option("--drain", default=_DEFAULT.drain, show_default=True, type=float, help="Seconds to finish."),
    click.option("--log-format", default="text", show_default=True, type=click.Choice(["text", "json"]), help="Log."),
]
_MODEL = [
    click.option(
        "--legacy-port", type=click.IntRange(1, 65535), help="Listen here too: old websocket clients use 5005."
    ),
    click.option("--origin", "origins", multiple=True, metavar="URL", help="Web page that may call it (CORS)."),
    url_host_option,
    click.option("--image-embeds", is_flag=True, help="Take pictures as embeddings, too: rows that a vision made."),
    click.option(
        "--replicas",
        default=_DEFAULT.replicas,
        show_default=True,
        type=click.IntRange(0, 1024),
        help="Processes that the language model runs in, one a GPU; 0 is the server's own.",
    ),
    click.option(
        "--step-limit",
        default=_DEFAULT.step_limit,
        show_default=True,
        type=Number(1),
        help="Seconds without a step before such a process is started again.",
    ),
    click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Another name of the model for clients."),
]


@click.command(
    cls=Configured,
    short_help="Serve the model over HTTP.",
    epilog="""\b
Examples:
  trifocal serve --open                              the page in the browser, http://127.0.0.1:5000
  trifocal serve -m A -m B --memory 24               two models, both loaded while they fit in 24 GB
  trifocal serve --legacy-port 5005                  old websocket clients too
  openssl rand -hex 32 > keys; trifocal serve --host 0.0.0.0 --api-key-file keys --public-host llava.example
  curl -s http://127.0.0.1:5000/v1/limits            what it takes""",
)
@click.option("--page/--no-page", default=True, help="Show the page for people at / (it is shown unless told not to).")
@click.option("--open", "open_page", is_flag=True, help="Open the page in the browser.")
@click.option("--memory", type=Number(0), default=0, metavar="GB", help=MEMORY)
@server_options
@models_options
def serve(settings: Settings, others: list[str], page: bool, open_page: bool, memory: float, **values: Any) -> None:
    """Serves the model until Ctrl-C, on this machine alone unless a key is set.

    At / is a page to chat with it in the browser. The dialects of OpenAI (/v1), text-generation-webui (/api/v1),
    Anthropic (/v1/messages) and Ollama (/api) answer on the same port. Keys come from a file or from the environment,
    never from the command line.
    """
    if open_page and not page:
        raise UsageError("--open opens the page, and --no-page leaves it out: give one of them")
    server = server_settings(**values, memory_bytes=int(memory * 1e9))
    from trifocal.api import serve as run
    from trifocal.web import routes

    run(settings, server, routes if page else None, open_in_browser if open_page else None, others)


def open_in_browser(address: str) -> None:
    """Opens an address in the desktop's browser; where there is none, says so. A browser in the terminal is none."""
    import webbrowser

    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        browser = None
    if browser is None or type(browser) is webbrowser.GenericBrowser:
        click.echo(f"there is no browser to open here; the page is at {address}", err=True)
    else:
        browser.open(address)
