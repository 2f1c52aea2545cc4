"""Settings come from flags, the environment and a file, in this order, and nothing unknown passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trifocal.errors import UnknownName, UsageError
from trifocal.model.settings import Settings
from trifocal.placement import Placement


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_nothing_said_is_the_bundled_model() -> None:
    assert Settings.read(environ={}) == Settings()
    assert Settings().checkpoint == "thimble"


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'checkpoint = "from-file"\ntower = "cpu/bfloat16"\nimages = "last"\ncache_bytes = 5\n'
        'template = "llava_v1"\n[engine_options]\nprefix_cache = 2\n'
    )
    environ = {"TRIFOCAL_CONFIG": str(file), "TRIFOCAL_CHECKPOINT": "from-environment", "TRIFOCAL_IMAGES": "2"}
    settings = Settings.read(environ=environ, images="all", template=None)
    assert settings == Settings(
        checkpoint="from-environment",
        tower=Placement("cpu", "bfloat16"),
        images="all",
        cache_bytes=5,
        template="llava_v1",
        engine_options={"prefix_cache": 2},
    )


def test_the_file_beside_is_found(tmp_path: Path) -> None:
    (tmp_path / "trifocal.toml").write_text("allow_pickle = true")
    assert Settings.read(environ={}).allow_pickle


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"checkpiont": "x"}, "unknown setting 'checkpiont'; known: allow_pickle"),
        ({"tower": "cpu/float12"}, "no device is called|unknown"),
    ],
)
def test_a_misspelt_name_lists_the_known_ones(values: dict[str, str], message: str) -> None:
    if "tower" in values:
        with pytest.raises(UsageError, match=message):
            Settings().with_values(values).tower.resolve()
    else:
        with pytest.raises(UnknownName, match=message):
            Settings().with_values(values)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", "some"),
        ("allow_pickle", "perhaps"),
        ("cache_bytes", "-1"),
        ("cache_bytes", True),
        ("engine_options", "fast"),
        ("checkpoint", 3),
        ("tower", 3),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        Settings().with_values({name: value})


@pytest.mark.parametrize("text", ["checkpoint = ", "\x00", "= 1"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match="not TOML"):
        Settings.read(file, environ={})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        Settings.read(tmp_path / "none.toml", environ={})


@pytest.mark.parametrize(
    ("text", "placement"),
    [
        ("cpu", Placement("cpu", "auto")),
        ("bf16", Placement("auto", "bfloat16")),
        ("cuda:1/16", Placement("cuda:1", "float16")),
        ("float32/cpu", Placement("cpu", "float32")),
        ("", Placement()),
    ],
)
def test_a_placement_is_read(text: str, placement: Placement) -> None:
    assert Placement.parse(text) == placement


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"cuda:99: torch sees \d+ CUDA devices"):
        Placement("cuda:99").resolve()
    with pytest.raises(UsageError, match="no device is called 'toaster'"):
        Placement("toaster").resolve()
    with pytest.raises(UnknownName, match="known: auto, bfloat16"):
        Placement("cpu", "float12")
