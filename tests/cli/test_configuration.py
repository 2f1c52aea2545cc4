"""Options in the environment and in trifocal.toml, misspelt ones, and help for narrow terminals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from processes import trifocal

from trifocal import __version__, cli
from trifocal.cli.configuration import Configured
from trifocal.cli.options import model_options, sampling_options
from trifocal.cli.serve import server_options
from trifocal.errors import UsageError
from trifocal.messages import Sampling
from trifocal.model.settings import Settings
from trifocal.placement import Placement


@pytest.fixture(autouse=True)
def _empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(*words: str, name: str = "ask") -> dict[str, Any]:
    """What a command with all these options is given."""
    got: dict[str, Any] = {}

    @click.command(name, cls=Configured)
    @server_options
    @sampling_options
    @model_options
    def command(**values: Any) -> None:
        got.update(values)

    CliRunner().invoke(command, list(words), catch_exceptions=False)
    return got


def test_flags_over_the_environment_over_the_table_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trifocal.toml").write_text(
        'temperature = 0.25\nmax-tokens = 7\nstop = ["a b", "c"]\nimages = 2\ntower = "cpu/float16"\nport = 1234\n'
        "cache_bytes = 5\nlegacy_port = 9\n[engine_options]\ndelay = 0.5\n[serve]\nport = 4321\n[ask]\nport = 1\n"
    )
    got = read(name="serve")
    assert got["sampling"] == Sampling(temperature=0.25, max_tokens=7, stop=("a b", "c"))
    assert got["settings"] == Settings(
        images=2, tower=Placement.parse("cpu/float16"), engine_options={"delay": 0.5}, cache_bytes=5
    )
    assert (got["port"], got["legacy_port"]) == (4321, 9)
    monkeypatch.setenv("TRIFOCAL_TEMPERATURE", "0.5")
    monkeypatch.setenv("TRIFOCAL_STOP", "one stop\ntwo")
    monkeypatch.setenv("TRIFOCAL_PORT", "99")
    monkeypatch.setenv("TRIFOCAL_OPEN_TO_ALL", "yes")
    monkeypatch.setenv("TRIFOCAL_ENGINE_OPTION", "delay=2")
    monkeypatch.setenv("TRIFOCAL_TOWER", "")
    got = read(name="serve")
    assert got["sampling"] == Sampling(temperature=0.5, max_tokens=7, stop=("one stop", "two"))
    assert got["settings"].engine_options == {"delay": 2}
    assert got["settings"].tower == Placement.parse("cpu/float16")
    assert (got["port"], got["open_to_all"]) == (99, True)
    got = read("--temperature", "0", "--stop", "x", "--port", "7", name="serve")
    assert got["sampling"] == Sampling(temperature=0, max_tokens=7, stop=("x",))
    assert got["port"] == 7


def test_another_file_is_read_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trifocal.toml").write_text("nonsense = ")
    (tmp_path / "other.toml").write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert read("--config", "other.toml")["sampling"].seed == 3
    monkeypatch.setenv("TRIFOCAL_CONFIG", "other.toml")
    assert read()["sampling"].seed == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("temprature = 1", "trifocal.toml: unknown setting 'temprature'; did you mean temperature?"),
        ("chekpoint = 'x'", "did you mean checkpoint?"),
        ("[srve]\nport = 1", "there is no command for the table [srve]; did you mean serve?"),
        ("[ask]\nprot = 1", "trifocal.toml: unknown setting 'prot' in [ask]; did you mean port?"),
        ("temperature = 'warm'", "trifocal.toml: temperature: 'warm' is not a valid float"),
        ("temperature = true", "True is no value"),
        ("top_k = 1.5", "trifocal.toml: top_k: '1.5' is not a valid integer"),
        ("allow_pickle = 'perhaps'", "is neither true nor false"),
        ("tower = ['cpu', 'cuda']", "one value was expected"),
        ("seed = 2020-01-01", "is no value"),
        ("port = 99999", "trifocal.toml: port: 99999 is not in the range"),
        ("x = ", "is not TOML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "trifocal.toml").write_text(text)
    with pytest.raises(UsageError) as refused:
        read()
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("TRIFOCAL_TEMPRATURE", "1", "TRIFOCAL_TEMPRATURE is no setting; did you mean TRIFOCAL_TEMPERATURE?"),
        ("TRIFOCAL_CHECKPOINTS", "1", "did you mean TRIFOCAL_CHECKPOINT?"),
        ("TRIFOCAL_API_KEYS", "1", "did you mean TRIFOCAL_API_KEY?"),
        ("TRIFOCAL_TOP_P", "most", "TRIFOCAL_TOP_P: 'most' is not a valid float"),
        ("TRIFOCAL_ALLOW_PICKLE", "si", "TRIFOCAL_ALLOW_PICKLE: 'si' is neither true nor false"),
    ],
)
def test_a_wrong_variable_is_told(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError) as refused:
        read()
    assert told in str(refused.value)


def test_variables_of_other_commands_are_no_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_WORKERS", "4")
    assert read()["settings"] == Settings()


def test_in_a_process() -> None:
    done = trifocal("ask", "none.png", TRIFOCAL_TEMPRATURE="1")
    assert done.returncode == 2
    assert b"did you mean TRIFOCAL_TEMPERATURE?" in done.stderr
    done = trifocal("captoin", "x")
    assert (done.returncode, b"did you mean caption?" in done.stderr) == (2, True)
    done = trifocal("convert", "deltta")
    assert (done.returncode, b"did you mean delta?" in done.stderr) == (2, True)
    assert trifocal("-V").stdout.decode() == f"trifocal, version {__version__}\n"
    done = trifocal(_TRIFOCAL_COMPLETE="bash_source")
    assert b"complete -o nosort -F" in done.stdout
    done = trifocal(_TRIFOCAL_COMPLETE="bash_complete", COMP_WORDS="trifocal cap", COMP_CWORD="1")
    assert done.stdout == b"plain,caption\n"


def commands(command: click.Command, path: str = "trifocal") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            each = command.get_command(ctx, name)
            assert each
            yield from commands(each, f"{path} {name}")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits_its_terminal(width: int) -> None:
    for path, command in commands(cli.cli):
        shown = command.get_help(click.Context(command, info_name=path, terminal_width=width, max_content_width=110))
        wide = [line for line in shown.splitlines() if len(line) > width]
        assert not wide, (path, wide)
