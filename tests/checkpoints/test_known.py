"""The table of known names: every released generation is in it, and what it says is what the checkpoints say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from layouts import family, save_original
from little_hub import LittleHub, running_hub, trifocal
from trifocal.checkpoints import KNOWN, Release, find_checkpoint, from_folder
from trifocal.checkpoints.known import delta_known_as
from trifocal.cli.inspect import inspect

FAMILIES = {
    "llava-v0",
    "llava-v1.1",
    "llava-v1",
    "llava-mpt",
    "llava-llama-2",
    "llava-1.5",
    "llava-1.6",
    "llava-next-video",
    "llava-onevision",
    "llava-interleave",
}


def test_every_generation_is_known_in_every_layout() -> None:
    assert {source.family for source in KNOWN.values()} == FAMILIES
    for kind in ("delta", "lora", "-hf", "ggml", "gguf", "GPTQ", "AWQ", "4bit", "BakLLaVA", "ShareGPT4V"):
        assert any(kind in name for name in KNOWN), kind


@pytest.mark.parametrize("name", KNOWN)
def test_every_name_says_what_it_needs(name: str) -> None:
    source = KNOWN[name]
    assert source.needs
    assert source.positions
    assert source.context >= 2048
    for place in filter(None, (source.language, source.tower, source.projector)):
        assert 1 <= place.count("/") <= 2


@pytest.mark.parametrize("place", ["liuhaotian/{}", "clones/{}/", "/home/me/{}"])
def test_a_delta_is_known_by_its_id_and_by_the_name_of_its_clone(place: str) -> None:
    for name, source in KNOWN.items():
        last = name.partition("/")[2]
        assert delta_known_as(place.format(last)) == (source if "-delta-" in last else None)
    assert delta_known_as(place.format("mine")) is None


def test_the_list_as_json_tells_what_is_here() -> None:
    rows = json.loads(CliRunner().invoke(inspect, ["--known", "--json"], catch_exceptions=False).stdout)
    assert [row["name"] for row in rows] == list(KNOWN)
    assert not any(row["on this machine"] for row in rows)
    assert {"name", "family", "context", "positions per picture", "needs", "on this machine"} == rows[0].keys()


def bare(folder: Path) -> Release:
    """A 1.5 whose language model forgot that it was one, as the quantised releases are: the rest lies elsewhere."""
    made = save_original(family("1.5"), folder / "made", tower=folder / "clip")
    config = json.loads((made / "config.json").read_text())
    plain = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_"))}
    (made / "config.json").write_text(json.dumps({**plain, "model_type": "llama"}))
    file = made / "model.safetensors"
    tensors = load_file(file)
    projector = {name: tensors.pop(name) for name in list(tensors) if "mm_projector" in name}
    save_file(tensors, file)
    save_file(projector, folder / "mm_projector.safetensors")
    says = KNOWN["TheBloke/llava-v1.5-13B-GPTQ"].says
    return Release(
        language=str(made), tower=str(folder / "clip"), projector=str(folder / "mm_projector.safetensors"), says=says
    )


def test_what_its_files_leave_out_the_table_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = bare(tmp_path)
    forgot = from_folder(Path(source.language), tower=source.tower, projector=source.projector)
    assert forgot.projector.kind == "linear"
    monkeypatch.setitem(KNOWN, "somebody/packed-1.5", source)
    found = find_checkpoint("somebody/packed-1.5")
    assert (found.name, found.family, found.projector.kind) == ("somebody/packed-1.5", "llava-1.5", "mlp2x")
    assert found.preprocessing.fit == "pad"


def test_a_pair_of_gguf_files_is_not_fetched_to_be_inspected(tmp_path: Path) -> None:
    with running_hub({}) as hub:
        assert isinstance(hub, LittleHub)
        said = trifocal(hub, tmp_path, "inspect", "mys/ggml_llava-v1.5-7b", code=1)
        assert "trifocal pull mys/ggml_llava-v1.5-7b" in said
        assert "15 GB" in said
        assert hub.asked == []
