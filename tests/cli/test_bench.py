"""``trifocal bench``: every figure is there, of every engine, for a checkpoint that needs no download."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

import trifocal
from trifocal import tools
from trifocal.cli.bench import bench
from trifocal.engines.native import Native
from trifocal.engines.native.linear import Dense, Stored
from trifocal.errors import UnknownName
from trifocal.tools.bench import Device, Figure
from trifocal.tools.shapes import write

SEEN = ("picture decoded", "picture seen, text written")
FIRST = ("new picture", "same picture, other words", "second turn")


def test_two_engines_are_measured_on_the_same_random_weights(tmp_path: Path) -> None:
    out, drawn = tmp_path / "bench.json", tmp_path / "bench.svg"
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
        "--plot",
        str(drawn),
    ]
    ended = CliRunner().invoke(bench, asked, catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    told = json.loads(out.read_text("utf-8"))
    assert [one["engine"] for one in told] == ["native", "transformers"]
    wanted = {*SEEN, *(f"first token, {what}" for what in FIRST), "tokens, one stream", "tokens, 2 at once", "loaded"}
    wanted |= {f"memory of the {part}" for part in ("tower", "projector", "language")}
    wanted |= {"memory read", "products in float32"}
    for one in told:
        figures = {figure["name"]: figure for figure in one["figures"]}
        assert set(figures) == wanted
        assert all(figure["value"] > 0 for figure in figures.values())
        assert {name for name in figures if figures[name]["limit"]} == {
            "first token, new picture",
            "tokens, one stream",
            "tokens, 2 at once",
        }
    assert "first token" in ended.output
    bars = [rect for rect in ElementTree.parse(drawn).iter() if rect.tag.endswith("rect")]
    assert len(bars) == 1 + 2 + 2 * len(wanted)  # the ground, the key, and one a figure and engine
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


def test_the_device_is_measured_and_limits_are_arithmetic() -> None:
    device = Device.measured("cpu", "float32")
    assert device.read > 1e8
    assert device.products > 1e8
    device = Device(read=1e9, products=1e12)
    assert device.rate(weights=10**8, parameters=10**8, streams=1) == 10  # the weights ten times a second
    assert device.rate(weights=10**8, parameters=10**8, streams=4000) == 5000  # the products of each token
    assert device.prompt(weights=10**8, parameters=10**8, positions=1) == 100
    assert device.prompt(weights=10**8, parameters=10**8, positions=1000) == 200
    assert Figure("first", 400.0, "ms", 200.0).reached == Figure("tokens", 5.0, "a second", 10.0).reached == 0.5


def test_engines_are_measured_by_turns_and_each_is_the_first_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(tools.bench._Taking, "first_tokens", lambda self, turn: asked.append((self._llava, turn)))
    monkeypatch.setattr(tools.bench._Taking, "__init__", lambda self, llava, *_: setattr(self, "_llava", llava))
    monkeypatch.setattr(tools.bench._Taking, "bench", lambda self: self._llava)
    assert tools.bench.measure(["one", "two"], streams=()) == ["one", "two"]  # type: ignore[list-item]
    assert asked[:4] == [("one", 0), ("two", 0), ("two", 1), ("one", 1)]
