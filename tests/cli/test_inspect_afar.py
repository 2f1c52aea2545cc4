"""What a checkpoint is and needs, told from its configuration alone before anything else is fetched; and fits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import trifocal as package
from layouts import LINEAR, family, quantised, save_hf, save_original
from little_hub import LittleHub, running_hub, trifocal
from seeing import count
from trifocal.checkpoints import find_checkpoint
from trifocal.cli.inspect import expected_facts, inspect, part_facts
from trifocal.errors import UsageError
from trifocal.images import Image


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LittleHub]:
    folder = tmp_path_factory.mktemp("hub")
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
    packed = quantised(family("1.6-mistral", **wide), "GPTQ 4 bits, act-order")
    repositories = {
        "some/next": save_hf(family("1.6-mistral"), folder / "next", shards=2),
        "some/original": save_original(family("1.6-vicuna"), folder / "original", shards=2),
        "some/packed": save_hf(packed, folder / "packed"),
    }
    config = folder / "original" / "config.json"
    named = {**json.loads(config.read_text()), "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    named["image_grid_pinpoints"] = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    config.write_text(json.dumps(named))
    with running_hub(repositories) as made:
        yield made


@pytest.mark.parametrize("name", ["some/next", "some/original", "some/packed"])
def test_only_configurations_are_fetched(hub: LittleHub, tmp_path: Path, name: str) -> None:
    hub.asked.clear()
    said = trifocal(hub, tmp_path, "inspect", name, "--json")
    told, _ = json.JSONDecoder().raw_decode(said[said.index("{") :])
    assert {file for file, _ in hub.asked if not file.endswith((".json", ".model", ".jinja", ".txt"))} == set()
    assert told["family"] == "llava-1.6"
    assert f"trifocal pull {name}" in told["on this machine"]
    assert "in tiles" in told["pictures"]
    assert "(1920 x 1080)" in told["positions per picture"]
    if name == "some/original":
        assert "1948 (1920 x 1080)" in told["positions per picture"]
        assert "the original's rounding" in told["pictures"]
    if name == "some/packed":
        assert told["quantised"] == "GPTQ, 4 bits, groups of 64, act-order"


def test_two_checkpoints_are_one_too_many() -> None:
    with pytest.raises(UsageError, match="FOLDER is thimble and --checkpoint some/other: give one of them"):
        CliRunner().invoke(inspect, ["thimble", "-m", "some/other"], catch_exceptions=False)


@pytest.mark.parametrize("name", ["1.5", "1.6-vicuna", "1.6-mistral", "onevision", "onevision-tied", *LINEAR])
def test_what_is_expected_is_what_the_files_hold(tmp_path: Path, name: str) -> None:
    save_original(family(name), tmp_path, tower=tmp_path / "clip" if name in LINEAR else None)
    checkpoint = find_checkpoint(str(tmp_path))
    expected = {part.name: part.numbers for part in expected_facts(checkpoint)}
    held = {part.name: part.numbers for part in part_facts(checkpoint)}
    assert expected == held


@pytest.mark.parametrize("name", ["1.5", "1.6-vicuna", "onevision", "interleave", "mpt"])
def test_every_family_is_told(tmp_path: Path, name: str) -> None:
    save_original(family(name), tmp_path, tower=tmp_path / "clip" if name in ("1.5", "mpt") else None)
    result = CliRunner().invoke(inspect, [str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "positions per picture" in result.output


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_fit_of_ones_own(tmp_path: Path, drawn: Callable[..., Image], fit: str) -> None:
    folder = save_hf(family("1.6-vicuna"), tmp_path)
    with package.load(checkpoint=str(folder), fit=fit) as llava:
        assert count(llava.gallery.vision, drawn(1, 300, 100)) == 16
        (view,) = llava.gallery.vision.views(*llava.gallery.looks([drawn(1, 300, 100)]))
        assert view.picture.size == (56, 56)
    with pytest.raises(UsageError, match="known: crop, pad, stretch"):
        package.load(checkpoint=str(folder), fit="squeeze")
