"""``trifocal deploy``: seeing, language and front as replicas on Ray, on this machine or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from trifocal.cli.configuration import Configured
from trifocal.cli.options import Number, model_options
from trifocal.errors import UsageError
from trifocal.model.settings import FIELDS, Settings
from trifocal.placement import Placement
from trifocal.tools.writing import check_place

__all__ = ["deploy"]


@click.command(
    cls=Configured,
    short_help="Deploy many replicas on Ray: one machine or a cluster.",
    epilog="""\b
Examples:
  trifocal deploy --language-replicas 2                                      on this machine, until Ctrl-C
  trifocal deploy -m NAME --language-replicas 8 --language-gpus 1 --seeing-gpus 0.25 --write serve.yaml
  serve run serve.yaml                                                       the same, from a file that was edited
  serve deploy serve.yaml                                                    on a cluster that runs""",
)
@click.option("--write", type=click.Path(path_type=Path), metavar="FILE", help="Write a serve.yaml; deploy nothing.")
@click.option("--address", metavar="WHERE", help="A cluster of Ray: auto, or ray://...  [default: this machine]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(1, 65535), help="Port.")
@click.option("--api-key-file", help="Keys, one a line, on every machine; else the variable TRIFOCAL_API_KEY.")
@click.option("--open-to-all", is_flag=True, help="Serve other machines without any key.")
@click.option("--public-host", "public_hosts", multiple=True, metavar="NAME", help="Name clients ask for it by.")
@click.option("--language-replicas", default=1, show_default=True, type=click.IntRange(1), help="That always run.")
@click.option("--language-most", type=click.IntRange(1), help="While positions wait.  [default: no more]")
@click.option("--language-cpus", default=0.5, show_default=True, type=Number(0), help="Each.")
@click.option("--language-gpus", default=0.0, show_default=True, type=Number(0), help="Each; a fraction, too.")
@click.option("--seeing-replicas", default=1, show_default=True, type=click.IntRange(1), help="That always run.")
@click.option("--seeing-most", type=click.IntRange(1), help="While pictures wait.  [default: no more]")
@click.option("--seeing-cpus", default=0.25, show_default=True, type=Number(0), help="Each.")
@click.option("--seeing-gpus", default=0.0, show_default=True, type=Number(0), help="Each; a fraction, too.")
@click.option("--fronts", default=1, show_default=True, type=click.IntRange(1), help="That speak HTTP.")
@model_options
def deploy(settings: Settings, write: Path | None, address: str | None, host: str, port: int, **values: Any) -> None:
    """Deploys a model with Ray Serve: some replicas see, some have the language model, some speak HTTP.

    A conversation meets the replica that holds its beginning. Of one that dies only those answers are lost that had
    begun. docs/scaling.md tells what a serve.yaml may say, and what to expect of it.
    """
    settings.check()
    if write is not None:
        check_place(write, "--write", "serve.yaml", once=True)
    plan = _plan(settings, host, values)
    if write is not None:
        write.write_text(plan.to_yaml(host, port), "utf-8")
        click.echo(f"{write} is written: serve run {write}", err=True)
        return
    from trifocal.deploy.application import run

    run(plan, host, port, address, lambda words: click.echo(words, err=True))


def _plan(settings: Settings, host: str, values: Any) -> Any:
    from trifocal.api.settings import ServerSettings
    from trifocal.deploy.plan import Front, Language, Plan, Seeing

    key_file, open_to_all, names = (values[name] for name in ("api_key_file", "open_to_all", "public_hosts"))
    opened = ServerSettings(open_to_all=True).with_keys(Path(key_file) if key_file else None)
    ServerSettings(host=host, keys=opened.keys, open_to_all=open_to_all)  # as trifocal serve refuses it
    server = {**({"public_hosts": list(names)} if names else {}), **({"open_to_all": True} if open_to_all else {})}
    return Plan(
        model=_given(settings),
        seeing=Seeing(**_many("seeing", values)),
        language=Language(**_many("language", values)),
        front=Front(least=values["fronts"], most=values["fronts"], api_key_file=key_file, server=server),
    )


def _many(role: str, values: Any) -> dict[str, Any]:
    least, most = values[f"{role}_replicas"], values[f"{role}_most"]
    if most is not None and most < least:
        raise UsageError(f"--{role}-most: {most} is less than the {least} that always run")
    return {"least": least, "most": most or least, **{each: values[f"{role}_{each}"] for each in ("cpus", "gpus")}}


def _given(settings: Settings) -> dict[str, Any]:
    """The settings that are not the default ones, as a file has them."""
    default, told = Settings(), dict[str, Any]()
    for name in FIELDS:
        value = getattr(settings, name)
        if name == "checkpoint" or value != getattr(default, name):
            told[name] = str(value) if isinstance(value, Placement) else value
    return told
