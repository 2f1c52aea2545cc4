"""Plans: what is refused, that a file says what the command was told, and none of it needs Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from needs import has
from trifocal.cli import cli
from trifocal.deploy import Front, Language, Plan, Seeing, build
from trifocal.errors import MissingExtra, TrifocalError, UsageError

COMMAND = "--language-replicas 2 --language-most 8 --language-gpus 2 --seeing-gpus 0.25 --fronts 3 --engine vllm"


def test_the_file_says_what_the_command_was_told(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    words = [*COMMAND.split(), "-e", "tensor_parallel=2", "--write", str(file), "--language", "cuda:0/float16"]
    result = CliRunner().invoke(cli, ["deploy", *words])
    assert result.exit_code == 0, result.output
    document = yaml.safe_load(file.read_text("utf-8"))
    (application,) = document["applications"]
    assert application["import_path"] == "trifocal.deploy:build"
    assert document["http_options"] == {"host": "127.0.0.1", "port": 8000}
    plan = Plan.read(application["args"])
    assert plan.language == Language(least=2, most=8, gpus=2.0)
    assert plan.seeing == Seeing(gpus=0.25)
    assert plan.front == Front(least=3, most=3)
    assert plan.settings.engine_options == {"tensor_parallel": 2}
    assert str(plan.settings.language) == "cuda:0/float16"
    assert Plan.read(plan.args()) == plan


def test_a_plan_may_say_little() -> None:
    assert Plan.read({}) == Plan()
    assert Plan.read({"language": {"least": 2, "most": 2}, "front": None}).language.names == [
        "language-0",
        "language-1",
    ]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"tower": {}}, "unknown part of a plan 'tower'"),
        ({"language": {"replicas": 2}}, "unknown field of language 'replicas'"),
        ({"model": {"chekpoint": "x"}}, "unknown setting of model 'chekpoint'"),
        ({"model": {"cache_bytes": "many"}}, "whole number of bytes"),
        ({"front": {"server": {"port": 1}}}, "unknown setting of front.server 'port'"),
        ({"front": {"page": "yes"}}, "front.page: 'yes' is neither true nor false"),
        ({"front": {"api_key_file": 3}}, "front.api_key_file: 3 is no file"),
        ({"seeing": []}, "seeing"),
        ({"seeing": [1]}, r"seeing: \[1\] is no table"),
        ({"seeing": {"resources": 1}}, "seeing.resources: 1 is no table"),
        ({"language": {"least": 0}}, "1 <= least <= most"),
        ({"language": {"least": 3, "most": 2}}, "least is 3 and most is 2"),
        ({"language": {"least": 1.5}}, "language.least: 1.5 is no whole number"),
        ({"language": {"overload": 0}}, "language.overload: 0 is not above 0"),
        ({"language": {"idle": 0}}, "language.idle: 0 is not above 0"),
        ({"language": {"gpus": -1}}, "language.gpus: -1 is no number from 0 on"),
        ({"language": {"cpus": float("nan")}}, "language.cpus: nan is no number"),
        ({"language": {"cpus": True}}, "language.cpus: True is no number"),
        ({"model": {"vision": "http://127.0.0.1:1"}}, "sees already"),
        ({"model": {"engine": "openai"}}, "whole model elsewhere"),
    ],
)
def test_what_is_no_plan_is_told(args: dict[str, Any], words: str) -> None:
    if args == {"seeing": []}:
        assert Plan.read(args) == Plan()  # nothing was said
        return
    with pytest.raises(TrifocalError, match=words):
        Plan.read(args)


def test_who_is_reached_by_others_has_keys_or_says_that_he_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRIFOCAL_API_KEY", raising=False)
    named = Front(server={"public_hosts": ["llava.example"], "queue": 5})
    with pytest.raises(UsageError, match="no key is set"):
        named.settings(Language())
    file = tmp_path / "keys"
    file.write_text("k" * 32)
    settings = Front(server=named.server, api_key_file=str(file)).settings(Language(least=1, most=3))
    assert (settings.public_hosts, settings.queue, settings.slots) == (("llava.example",), 5, 96)
    assert len(settings.keys) == 1
    assert Front(server={**named.server, "open_to_all": True}).settings(Language()).open_to_all
    assert Front().settings(Language()).is_loopback
    assert Front(server={"slots": 3}).settings(Language()).slots == 3
    with pytest.raises(UsageError, match=r"front\.server"):
        Front(server={"queue": "many"}).settings(Language())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--language-replicas 3 --language-most 2", "--language-most: 2 is less than the 3 that always run"),
        ("--host 0.0.0.0", "no key is set"),
        ("--vision http://127.0.0.1:1", "sees already"),
    ],
)
def test_the_command_refuses(words: str, told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["deploy", *words.split(), "--write", str(tmp_path / "serve.yaml")])
    assert isinstance(result.exception, UsageError)
    assert told in str(result.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(has("ray"), reason="Ray is installed")
def test_without_ray_it_is_told_what_to_install() -> None:
    with pytest.raises(MissingExtra, match=r"trifocal\[ray\]"):
        build({})
