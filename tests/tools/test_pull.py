"""Pulling from a hub that really answers over HTTP, cut connections and wrong bytes included; listing what is here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_maker import make_v0
from layouts import family, save_hf, save_lora, save_original
from little_hub import LittleHub, running_hub, trifocal
from trifocal.weights.names import canonical

Files = dict[str, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hub")
    v0 = make_v0(folder / "v0", pickle=True)
    pickled = folder / "pickled"
    pickled.mkdir()
    torch.save({"x": torch.ones(1)}, pickled / "pytorch_model.bin")
    (pickled / "config.json").write_text("{}")
    parts = folder / "parts"
    parts.mkdir()
    (parts / "mm_projector.bin").write_bytes(v0.projector.read_bytes())
    large = folder / "large"
    large.mkdir()
    (large / "config.json").write_text("{}")
    (large / "model.safetensors").write_bytes(os.urandom(1 << 20) * 25)
    by_part = save_hf(family("1.5"), folder / "by_part")
    tensors = load_file(by_part / "model.safetensors")
    (by_part / "model.safetensors").unlink()
    places = {name: f"{canonical(name)[0]}.safetensors" for name in tensors}  # type: ignore[index]
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, by_part / file)
    (by_part / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    original = save_original(family("1.5"), folder / "folders" / "original", tower=folder / "tower")
    config = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps({**config, "mm_vision_tower": "openai/clip-vit-large-patch14"}))
    lora = save_lora(family("1.5"), folder / "lora", folder / "base")
    for file, key, named in (
        ("config.json", "mm_vision_tower", "openai/clip-vit-large-patch14"),
        ("adapter_config.json", "base_model_name_or_path", "some/base"),
    ):
        (lora / file).write_text(json.dumps({**json.loads((lora / file).read_text()), key: named}))
    shutil.rmtree(lora / "clip")
    return {
        "some/lora": lora,
        "some/base": folder / "base",
        "some/original": original,
        "some/large": large,
        "some/by-part": by_part,
        "some/llava": save_hf(family("1.5"), folder / "llava", shards=4),
        "some/pickled": pickled,
        "wojtab/llava-13b-v0-4bit-128g": v0.language,
        "openai/clip-vit-large-patch14": v0.tower,
        "liuhaotian/LLaVA-13b-delta-v0": parts,
    }


@pytest.fixture
def hub(files: dict[str, Path]) -> Iterator[LittleHub]:
    with running_hub(files) as made:
        yield made


def test_pulled_checked_listed_and_used(hub: LittleHub, tmp_path: Path) -> None:
    said = trifocal(hub, tmp_path, "pull", "some/llava")
    assert "all is checked" in said
    rows = json.loads(trifocal(hub, tmp_path, "list", "--json"))
    assert [row["name"] for row in rows] == ["thimble", "some/llava"]
    assert rows[1]["family"] == "llava-1.5"
    assert rows[1]["missing"] == []
    assert "some/llava" in trifocal(hub, tmp_path, "list")
    hub.asked.clear()
    assert "llava-1.5" in trifocal(hub, tmp_path, "inspect", "some/llava")
    trifocal(hub, tmp_path, "pull", "some/llava")
    assert hub.asked == []  # what is here is not fetched again


def test_a_cut_connection_is_gone_on_with(hub: LittleHub, tmp_path: Path) -> None:
    hub.cut.add("model.safetensors")
    trifocal(hub, tmp_path, "pull", "some/large")
    ranges = [asked for file, asked in hub.asked if file == "model.safetensors"]
    assert ranges[0] is None
    assert ranges[1] is not None
    assert int(ranges[1].removeprefix("bytes=").partition("-")[0]) >= 10 << 20


def test_a_fetch_that_failed_is_gone_on_with_by_the_next_process(hub: LittleHub, tmp_path: Path) -> None:
    hub.dead.add("model.safetensors")
    said = trifocal(hub, tmp_path, "pull", "some/large", code=1)
    assert "goes on from there" in said
    hub.dead.clear()
    hub.asked.clear()
    trifocal(hub, tmp_path, "pull", "some/large")
    (asked,) = [asked for file, asked in hub.asked if file == "model.safetensors"]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").partition("-")[0]) >= 12 << 20


def test_what_was_here_is_checked_and_damage_is_taken_away(hub: LittleHub, tmp_path: Path) -> None:
    trifocal(hub, tmp_path, "pull", "some/large")
    (file,) = tmp_path.rglob("model.safetensors")
    file.resolve().write_bytes(b"damaged")
    assert "all of it was here." in trifocal(hub, tmp_path, "pull", "some/large", "--no-verify")
    assert "the hub promised" in trifocal(hub, tmp_path, "pull", "some/large", code=1)
    assert "all is checked" in trifocal(hub, tmp_path, "pull", "some/large")
    assert file.stat().st_size == 25 << 20


def test_an_original_checkpoint_brings_the_tower_that_it_names(hub: LittleHub, tmp_path: Path) -> None:
    trifocal(hub, tmp_path / "one", "pull", "some/original")
    rows = json.loads(trifocal(hub, tmp_path / "one", "list", "--json"))
    assert {row["name"]: (row["parts"], row["missing"]) for row in rows[1:]} == {
        "some/original": (["projector", "language"], []),
        "openai/clip-vit-large-patch14": (["tower"], []),
    }
    trifocal(hub, tmp_path / "two", "pull", "some/original", "--part", "tower")
    rows = json.loads(trifocal(hub, tmp_path / "two", "list", "--json"))
    assert {row["name"]: (row["parts"], row["missing"]) for row in rows[1:]} == {
        "some/original": ([], ["its weights"]),
        "openai/clip-vit-large-patch14": (["tower"], []),
    }


def test_a_lora_brings_its_base(hub: LittleHub, tmp_path: Path) -> None:
    trifocal(hub, tmp_path, "pull", "some/lora")
    rows = json.loads(trifocal(hub, tmp_path, "list", "--json"))[1:]
    assert {row["name"]: row["missing"] for row in rows} == {
        "some/lora": [],
        "some/base": [],
        "openai/clip-vit-large-patch14": [],
    }


def test_a_list_asks_nobody_and_tells_what_lies_elsewhere(hub: LittleHub, tmp_path: Path, files: Files) -> None:
    rows = json.loads(trifocal(hub, tmp_path, "list", "--json", str(files["some/original"].parent)))
    (row,) = [row for row in rows if row["name"] == "original"]
    assert row["parts"] == ["projector", "language"]
    assert row["missing"] == ["openai/clip-vit-large-patch14"]
    assert hub.asked == []


def test_the_token_is_never_told(hub: LittleHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIFOCAL_TEST_TOKEN", "hf_canary")
    hub.spoilt.add("model.safetensors")
    for name in ("some/large", "nobody/nothing"):
        assert "canary" not in trifocal(hub, tmp_path, "-vv", "pull", name, code=1)
    assert hub.tokens == {"Bearer hf_canary"}


def test_wrong_bytes_are_told_and_taken_away(hub: LittleHub, tmp_path: Path) -> None:
    name = "model-00003-of-00004.safetensors"
    hub.spoilt.add(name)
    said = trifocal(hub, tmp_path, "pull", "some/llava", code=1)
    assert name in said
    assert "the hub promised" in said
    assert json.loads(trifocal(hub, tmp_path, "list", "--json"))[1]["missing"] != []
    hub.spoilt.clear()
    trifocal(hub, tmp_path, "pull", "some/llava")
    assert json.loads(trifocal(hub, tmp_path, "list", "--json"))[1]["missing"] == []


def test_one_part_is_fewer_files(hub: LittleHub, tmp_path: Path) -> None:
    trifocal(hub, tmp_path, "pull", "some/by-part", "--part", "projector")
    assert {file for file, _ in hub.asked if file.endswith(".safetensors")} == {"projector.safetensors"}
    missing = json.loads(trifocal(hub, tmp_path, "list", "--json"))[1]["missing"]
    assert missing == ["language.safetensors", "tower.safetensors"]


def test_a_known_name_brings_its_three_parts_and_pickles_are_asked_for(hub: LittleHub, tmp_path: Path) -> None:
    name = "wojtab/llava-13b-v0-4bit-128g"
    assert "--allow-pickle" in trifocal(hub, tmp_path, "pull", name, code=2)
    trifocal(hub, tmp_path, "pull", name, "--allow-pickle")
    rows = json.loads(trifocal(hub, tmp_path, "list", "--json"))
    assert {row["name"] for row in rows[1:]} == {
        name,
        "openai/clip-vit-large-patch14",
        "liuhaotian/LLaVA-13b-delta-v0",
    }
    assert "--allow-pickle" in trifocal(hub, tmp_path, "pull", "some/pickled", code=2)


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("./here", 2, "no hub id"),
        ("nobody/nothing", 1, "is not on the hub"),
        ("some/llava/none.bin", 1, "has no file none.bin"),
    ],
)
def test_names_that_lead_nowhere_are_told(hub: LittleHub, tmp_path: Path, name: str, code: int, told: str) -> None:
    assert told in trifocal(hub, tmp_path, "pull", name, code=code)


def test_a_hub_that_is_away_is_told(hub: LittleHub, tmp_path: Path) -> None:
    hub.url = "http://127.0.0.1:9"
    said = trifocal(hub, tmp_path, "pull", "some/llava", code=1)
    assert "could not be fetched from the hub" in said
    assert "Traceback" not in said
