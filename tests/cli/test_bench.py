"""``trifocal bench``: every figure is there, of every engine, for a checkpoint that needs no download."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import trifocal
from trifocal.cli.bench import bench
from trifocal.engines.native import Native
from trifocal.engines.native.linear import Dense, Stored
from trifocal.errors import UnknownName
from trifocal.tools.bench import read_rate
from trifocal.tools.shapes import write

SEEN = ("picture decoded", "picture seen, text written")
FIRST = ("new picture", "same picture, other words", "second turn")


def test_two_engines_are_measured_on_the_same_random_weights(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    asked = [
        "--shape",
        "toy",
        "--tokens",
        "4",
        "--streams",
        "1,2",
        "--against",
        "transformers,openai",
        "--json",
        str(out),
    ]
    ended = CliRunner().invoke(bench, asked, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    told = json.loads(out.read_text("utf-8"))
    assert [one["engine"] for one in told] == ["native", "transformers"]
    wanted = {*SEEN, *(f"first token, {what}" for what in FIRST), "tokens, one stream", "tokens, 2 at once", "loaded"}
    wanted |= {f"memory of the {part}" for part in ("tower", "projector", "language")}
    for one in told:
        figures = {figure["name"]: figure for figure in one["figures"]}
        assert set(figures) == wanted
        assert all(figure["value"] > 0 for figure in figures.values())
        assert figures["tokens, one stream"]["limit"] > 0
    assert "first token" in ended.output
    assert "openai: left out: " in ended.output  # it needs an address: the figures of the others are not lost for that


def test_a_shape_in_four_bits_is_read_as_the_release_would_be(tmp_path: Path) -> None:
    folder = write("toy", "gptq", tmp_path / "toy")
    for int4, kind in ((True, Stored), (False, Dense)):
        with trifocal.load(checkpoint=str(folder), engine_options={"int4": int4}) as llava:
            assert isinstance(llava.engine, Native)
            assert isinstance(llava.engine.runner.model.layers[0].qkv, kind)


def test_what_is_no_shape_and_no_number_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"known: .*llava-1\.5-13b"):
        write("llava-9-90b", "none", tmp_path)
    ended = CliRunner().invoke(bench, ["--streams", "many"])
    assert "numbers with commas between them" in str(ended.exception)
    ended = CliRunner().invoke(bench, ["--against", "transformers,warp"])
    assert "warp" in str(ended.exception)


def test_the_rate_of_the_memory_is_measured() -> None:
    assert read_rate("cpu") > 1e8
