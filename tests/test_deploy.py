"""What deploy/ starts are commands that there are, and each role is asked where it listens. No cluster is run here."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from trifocal.cli import cli

FOLDER = Path(__file__).parents[1] / "deploy"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
CLUSTER = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text("utf-8")))
PODS = {one["metadata"]["name"]: one["spec"]["template"]["spec"] for one in CLUSTER if one["kind"] == "Deployment"}


def words(command: str | list[str]) -> list[str]:
    """A command as its arguments, variables at their defaults."""
    if isinstance(command, list):
        return command
    return shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", command))


COMMANDS = {
    **{f"compose {role}": words(service["command"]) for role, service in COMPOSE.items()},
    **{f"kubernetes {role}": words(pod["containers"][0]["command"]) for role, pod in PODS.items()},
}


def options(command: list[str]) -> dict[str, Any]:
    program, name, *rest = command
    assert program == "trifocal"
    outer = click.Context(cli, info_name="trifocal")
    found = cli.get_command(outer, name)
    assert found is not None
    return found.make_context(name, rest, parent=outer).params


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_one(command: list[str]) -> None:
    told = options(command)
    assert told["host"] == "0.0.0.0"
    assert told["public_hosts"]


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_one_that_answers_asks_the_one_that_sees_where_it_listens(where: str) -> None:
    see, serve = options(COMMANDS[f"{where} see"]), options(COMMANDS[f"{where} serve"])
    assert serve["vision"] == f"http://{see['public_hosts'][0]}:{see['port']}"
    assert see["public_hosts"][0] == "see"
    assert see["checkpoint"] in (serve["checkpoint"], serve["checkpoint"][0])


@pytest.mark.parametrize("role", PODS)
def test_probes_ask_by_a_name_that_is_answered(role: str) -> None:
    told, (container,) = options(COMMANDS[f"kubernetes {role}"]), PODS[role]["containers"]
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz"), ("startupProbe", "/livez")):
        asked = container[probe]["httpGet"]
        (header,) = asked["httpHeaders"]
        assert (asked["path"], asked["port"]) == (path, told["port"])
        assert (header["name"], header["value"]) == ("Host", told["public_hosts"][0])
    names = {one["metadata"]["name"]: one["spec"] for one in CLUSTER if one["kind"] == "Service"}
    assert names[role]["ports"][0]["port"] == told["port"]


def test_keys_come_from_secrets_and_match() -> None:
    keys = {name: {one["name"]: one for one in pod["containers"][0]["env"]} for name, pod in PODS.items()}
    own = keys["see"]["TRIFOCAL_API_KEY"]["valueFrom"]
    assert own == keys["serve"]["TRIFOCAL_VISION_KEY"]["valueFrom"] != keys["serve"]["TRIFOCAL_API_KEY"]["valueFrom"]
    assert all("valueFrom" in one for each in keys.values() for one in each.values())
    assert COMPOSE["see"]["environment"]["TRIFOCAL_API_KEY"] == COMPOSE["serve"]["environment"]["TRIFOCAL_VISION_KEY"]


def test_a_build_is_sent_what_it_copies_and_little_else() -> None:
    root = FOLDER.parent
    steps = [line.split() for line in (root / "Containerfile").read_text("utf-8").splitlines()]
    copied = {word for step in steps if step[:1] == ["COPY"] for word in step[1:-1]}
    told = (root / ".dockerignore").read_text("utf-8").splitlines()
    assert copied == {line[1:] for line in told if line.startswith("!")}
    assert "*" in told
    assert all((root / word).exists() for word in copied)
