"""Weights: names of every layout, lazy reading, and files that are damaged, hostile or not there."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint_maker import make_hf15
from hostile import Runs, no_side_effects, zipped
from trifocal.checkpoints import from_folder, language_recipe
from trifocal.engines import load_engine
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.vision import load_vision
from trifocal.weights import pickles as own
from trifocal.weights.headers import HEADER_LIMIT, read_header
from trifocal.weights.names import canonical
from trifocal.weights.tensors import Weights, part_weights, stored_names, weight_files
from twins import is_found

NAMES = {
    "language_model.model.layers.0.mlp.up_proj.weight": ("language", "model.layers.0.mlp.up_proj.weight"),
    "model.language_model.layers.0.mlp.up_proj.weight": ("language", "model.layers.0.mlp.up_proj.weight"),
    "model.layers.0.mlp.up_proj.weight": ("language", "model.layers.0.mlp.up_proj.weight"),
    "language_model.lm_head.weight": ("language", "lm_head.weight"),
    "lm_head.weight": ("language", "lm_head.weight"),
    "vision_tower.vision_model.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "model.vision_tower.vision_model.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "vision_tower.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "model.vision_tower.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "vision_model.pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "pre_layrnorm.bias": ("tower", "pre_layrnorm.bias"),
    "encoder.layers.3.self_attn.q_proj.weight": ("tower", "encoder.layers.3.self_attn.q_proj.weight"),
    "multi_modal_projector.linear_1.weight": ("projector", "0.weight"),
    "model.multi_modal_projector.linear_2.bias": ("projector", "2.bias"),
    "model.mm_projector.0.weight": ("projector", "0.weight"),
    "model.mm_projector.weight": ("projector", "weight"),
    "mm_projector.bias": ("projector", "bias"),
    "image_newline": ("projector", "image_newline"),
    "model.image_newline": ("projector", "image_newline"),
    "model.layers.0.self_attn.rotary_emb.inv_freq": None,
    "vision_model.embeddings.position_ids": None,
    "logit_scale": None,
    "model.faster_token": None,  # of a LLaVA-Video whose frames have one size
    "text_model.encoder.layers.0.mlp.fc1.weight": None,
    "text_projection.weight": None,
    "visual_projection.weight": None,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two tensors in a sound safetensors file."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(64.0).reshape(8, 8), "b": torch.ones(16, dtype=torch.float16)}, path)
    return path


def opened(file: Path) -> dict[str, torch.Tensor]:
    """Everything in a file, as a loader would read it."""
    return dict(Weights([file], lambda name: name))


def written(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with a header of one's choosing."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


@pytest.mark.parametrize("stored", NAMES)
def test_every_spelling_has_one_name(stored: str) -> None:
    assert canonical(stored) == NAMES[stored]


def test_tensors_are_read_under_the_names_that_were_chosen(file: Path) -> None:
    weights = Weights([file], {"a": "first"}.get)
    assert list(weights) == ["first"]
    assert "a" not in weights
    assert weights.where("first") == file
    assert weights.spec("first") == ("F32", (8, 8))
    assert torch.equal(weights["first"], torch.arange(64.0).reshape(8, 8))
    with pytest.raises(KeyError):
        weights["b"]


def test_shards_are_found_with_and_without_their_index(tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"model.b": torch.zeros(1)}, tmp_path / "model-00002-of-00002.safetensors")
    bare = part_weights(tmp_path, "language")
    index = {
        "weight_map": {f"model.{name}": f"model-0000{at}-of-00002.safetensors" for at, name in ((1, "a"), (2, "b"))}
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"model.a": torch.zeros(9)}, tmp_path / "stray.safetensors")
    indexed = part_weights(tmp_path, "language")
    assert sorted(bare) == sorted(indexed) == sorted(stored_names(tmp_path)) == ["model.a", "model.b"]
    assert len(weight_files(tmp_path)) == 2


def test_one_tensor_in_two_files_is_an_error(tmp_path: Path) -> None:
    save_file({"model.a": torch.ones(1)}, tmp_path / "one.safetensors")
    save_file({"language_model.model.a": torch.zeros(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"two.safetensors holds language_model.model.a, which one.safetensors"):
        part_weights(tmp_path, "language")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "absent.safetensors"}}, "absent.safetensors, which is not there"),
        ({"weight_map": {"a": "../../secret"}}, "is no file beside the index"),
        ({"weight_map": {"a": 3}}, "is no file beside the index"),
        ({"weight_map": ["a"]}, "no index of weights"),
        ({}, "no index of weights"),
        ([], "no index of weights"),
    ],
)
def test_a_bad_index_is_refused(tmp_path: Path, index: object, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        weight_files(tmp_path)


def test_a_folder_without_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights there"):
        part_weights(tmp_path, "tower")
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "absent.safetensors")


def test_every_cut_of_a_file_is_noticed(file: Path) -> None:
    whole = file.read_bytes()
    for size in range(0, len(whole), 5):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
            opened(file)


def test_a_cut_names_the_tensor_and_both_sizes(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: \w ends at byte 288, the file has 280"):
        opened(file)


def entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}}


HOSTILE = {
    "no JSON": b"{" * 20,
    "deeply nested": b"[" * 200_000,
    "not UTF-8": b'{"\xff\xfe": 1}',
    "a list": [],
    "an entry that is a number": {"a": 1},
    "no shape": {"a": {"dtype": "F32", "data_offsets": [0, 16]}},
    "unknown type": entry(dtype="F31"),
    "type of another size": entry(dtype="F64"),
    "shape too large": entry(shape=[1 << 40, 1 << 40]),
    "shape negative": entry(shape=[-2, -2]),
    "shape of words": entry(shape=["a"]),
    "shape a number": entry(shape=4),
    "offsets backwards": entry(data_offsets=[16, 0]),
    "offsets negative": entry(data_offsets=[-16, 0]),
    "offsets beyond": entry(data_offsets=[1 << 50, (1 << 50) + 16]),
    "one offset": entry(data_offsets=[0]),
    "offsets of words": entry(data_offsets=["0", "16"]),
    "overlap": {**entry(), "b": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}},
    "gap": entry(data_offsets=[4, 20]),
    "bytes over": entry(shape=[2], data_offsets=[0, 8]),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_is_refused(tmp_path: Path, kind: str) -> None:
    file = written(tmp_path / "model.safetensors", HOSTILE[kind], bytes(32 if kind == "gap" else 16))
    with no_side_effects() as effects, pytest.raises(CheckpointError, match=r"model\.safetensors"):
        opened(file)
    assert effects == []


@pytest.mark.parametrize("length", [HEADER_LIMIT + 1, 100 << 20, 1 << 63, 2**64 - 1])
def test_a_header_that_claims_too_much_is_not_read(tmp_path: Path, length: int) -> None:
    file = written(tmp_path / "model.safetensors", b"{}", length=length)
    with file.open("r+b") as grown:
        grown.truncate(200 << 20)  # sparse
    with pytest.raises(CheckpointError, match=f"its header claims {length} bytes"):
        opened(file)


@pytest.mark.parametrize("container", ["zip", "bare"])
@pytest.mark.parametrize(
    "payload",
    [
        lambda marker: Runs(os.system, f"touch {marker}"),
        lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"),
        lambda marker: Runs(exec, f"open({str(marker)!r}, 'w')"),
        lambda marker: Runs(open, str(marker), "w"),
        lambda marker: Runs(os.mkdir, str(marker)),
        lambda marker: Runs(__import__, "this"),
        lambda marker: {"model.a": Runs(os.system, f"touch {marker}")},
    ],
)
def test_a_pickle_never_runs_code(tmp_path: Path, container: str, payload: Callable[[Path], object]) -> None:
    file, marker = tmp_path / "pytorch_model.bin", tmp_path / "marker"
    program = pickle.dumps(payload(marker), protocol=2)
    if container == "zip":
        zipped(file, program)
    else:
        file.write_bytes(program)
    with (
        no_side_effects() as effects,
        pytest.raises(CheckpointError, match=r"pytorch_model\.bin: damaged, or a pickle"),
    ):
        part_weights(tmp_path, "language", allow_pickle=True)
    assert effects == []
    assert not marker.exists()


def test_the_zip_of_these_tests_is_one_that_torch_reads(tmp_path: Path) -> None:
    zipped(tmp_path / "pytorch_model.bin", pickle.dumps({}, protocol=2))
    assert dict(part_weights(tmp_path, "language", allow_pickle=True)) == {}


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02.", b"not a pickle at all", bytes(1000)])
def test_a_damaged_pickle_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "mm_projector.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"mm_projector\.bin"):
        part_weights(tmp_path, "projector", allow_pickle=True)


@pytest.mark.parametrize("held", [[torch.ones(1)], {"a": 1}, {"state_dict": {"a": torch.ones(1)}}, torch.ones(1)])
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match="no table of tensors"):
        part_weights(tmp_path, "projector", allow_pickle=True)


@pytest.mark.parametrize("zip_format", [True, False])
def test_a_pickle_is_read_only_when_it_may_be(tmp_path: Path, zip_format: bool) -> None:
    file = tmp_path / "mm_projector.bin"
    projector = {"model.mm_projector.weight": torch.randn(4, 3), "model.embed_tokens.weight": torch.ones(2, 4)}
    torch.save(projector, file, _use_new_zipfile_serialization=zip_format)
    for source in (file, tmp_path):
        with pytest.raises(CheckpointError, match="is a pickle; say --allow-pickle"):
            part_weights(source, "projector")
        weights = part_weights(source, "projector", allow_pickle=True)
        assert list(weights) == ["weight"]
        assert weights.spec("weight") == ("F32", (4, 3))
        assert torch.equal(weights["weight"], projector["model.mm_projector.weight"])
        weights.release()
        assert torch.equal(weights["weight"], projector["model.mm_projector.weight"])


def test_names_are_known_without_opening_a_pickle(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever this is")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: damaged"):
        stored_names(tmp_path)
    index = {"weight_map": {"model.mm_projector.weight": "pytorch_model.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert stored_names(tmp_path) == ["model.mm_projector.weight"]


def test_a_part_is_what_belongs_to_it(hf15: Path) -> None:
    stored = load_file(hf15 / "model.safetensors")
    parts = {part: part_weights(hf15, part) for part in ("tower", "projector", "language")}
    assert sum(map(len, parts.values())) == len(stored)
    assert set(parts["projector"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert parts["tower"].files == {hf15 / "model.safetensors"}
    assert torch.equal(parts["language"]["lm_head.weight"], stored["language_model.lm_head.weight"])


@pytest.fixture
def folder(hf15: Path, tmp_path: Path) -> Path:
    """A whole checkpoint of one's own, to be spoilt."""
    return Path(shutil.copytree(hf15, tmp_path / "checkpoint"))


def load_all(folder: Path, allow_pickle: bool = False) -> None:
    """Everything that a start reads."""
    checkpoint = from_folder(folder)
    cpu = Placement("cpu", "float32")
    load_vision(checkpoint, cpu, cpu, allow_pickle=allow_pickle)
    load_engine(language_recipe(checkpoint, cpu, engine="transformers", allow_pickle=allow_pickle)).close()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, 50_000, -1])
def test_a_file_that_is_cut_short_is_told(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_all(folder)


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("vision_tower.vision_model.pre_layrnorm.bias", torch.zeros(3), r"pre_layrnorm.bias is \[3\], \[32\] was"),
        ("multi_modal_projector.linear_1.weight", torch.zeros(64, 31), "takes features of 31, the tower makes 32"),
        ("multi_modal_projector.linear_1.bias", torch.full((64,), float("nan")), "not finite"),
        ("language_model.model.norm.weight", torch.zeros(3), r"model.norm.weight is \[3\], \[64\] was"),
        ("vision_tower.vision_model.pre_layrnorm.bias", None, "pre_layrnorm.bias is missing"),
        ("multi_modal_projector.linear_2.weight", None, "the projector has no 2.weight"),
        ("language_model.model.layers.1.mlp.up_proj.weight", None, "missing, first 'model.layers.1.mlp.up_proj"),
    ],
)
def test_a_tensor_of_another_model_is_told_by_name(
    folder: Path, name: str, tensor: torch.Tensor | None, match: str
) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        load_all(folder)


def test_reading_a_whole_checkpoint_runs_nothing_and_writes_nothing(folder: Path) -> None:
    load_all(folder)
    with no_side_effects() as effects:
        load_all(folder)
    assert effects == []


def test_a_pickled_language_model_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Runs(os.mkdir, str(tmp_path / "marker"))}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="allow-pickle"):
        load_all(folder)
    with pytest.raises(CheckpointError, match="it was not run"):
        load_all(folder, allow_pickle=True)
    assert not (tmp_path / "marker").exists()


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = make_hf15(tmp_path, shards=3)
    assert len(weight_files(folder)) == 3
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        load_all(folder)


def test_tensors_are_read_when_they_are_asked_for(folder: Path) -> None:
    weights = part_weights(folder, "tower")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="can't be read"):
        dict(weights)


SETS: dict[str, tuple[dict[str, list[str]], list[str]]] = {
    "Mistral's own names beside": ({"model.safetensors": ["a"], "consolidated.safetensors": ["b"]}, ["a"]),
    "shards of Mistral's own": ({"model.safetensors": ["a"], "consolidated-00001-of-00002.safetensors": ["b"]}, ["a"]),
    "a stale index": ({"model.safetensors": ["a"], "model.safetensors.index.json -> old.safetensors": ["b"]}, ["a"]),
    "an index that lists it": (
        {"model.safetensors": ["a"], "more.safetensors": ["b"], "model.safetensors.index.json": ["a", "b"]},
        ["a", "b"],
    ),
    "an index beside Mistral's own": (
        {"one.safetensors": ["a"], "model.safetensors.index.json": ["a"], "consolidated.safetensors": ["b"]},
        ["a"],
    ),
    "pickles beside": ({"model.safetensors": ["a"], "pytorch_model.bin": ["b"]}, ["a"]),
    "an index of pickles beside": ({"model.safetensors": ["a"], "pytorch_model.bin.index.json": ["b"]}, ["a"]),
    "a projector beside pickles": ({"mm_projector.safetensors": ["b"], "pytorch_model.bin": ["a"]}, ["a"]),
    "a name of its own": ({"llava-4bit-128g.safetensors": ["a"], "adapter_model.safetensors": ["b"]}, ["a"]),
    "a projector alone": ({"mm_projector.safetensors": ["a"]}, ["a"]),
    "Mistral's own alone": ({"consolidated.safetensors": ["a"]}, ["a"]),
}


@pytest.mark.parametrize("case", SETS)
def test_of_several_sets_of_weights_the_one_of_transformers_is_read(tmp_path: Path, case: str) -> None:
    files, wanted = SETS[case]
    held = {"a": "model.a", "b": "model.b"}
    where = {name: file for file, names in files.items() if file.endswith(".safetensors") for name in names}
    for file, names in files.items():
        home, _, target = file.partition(" -> ")
        if home.endswith(".json"):
            values = {held[name]: target or where.get(name, "pytorch_model-1.bin") for name in names}
            (tmp_path / home).write_text(json.dumps({"weight_map": values}))
        elif home.endswith(".bin"):
            torch.save({held[name]: torch.ones(1) for name in names}, tmp_path / home)
        else:
            save_file({held[name]: torch.ones(1) for name in names}, tmp_path / home)
    # a pickle's words are more than its names
    assert [name for name in sorted(stored_names(tmp_path)) if name in held.values()] == [held[name] for name in wanted]
    assert sorted(part_weights(tmp_path, "language", allow_pickle=True)) == [held[name] for name in wanted]


def test_its_twin_that_unpickles_is_found(tmp_path: Path) -> None:
    """What torch would do of its own accord, without the flag and without our look at the instructions."""
    places = itertools.count()

    def nothing_runs() -> None:
        folder = tmp_path / str(next(places))
        folder.mkdir()
        test_a_pickle_never_runs_code(folder, "zip", lambda marker: Runs(os.mkdir, str(marker)))

    careless = lambda file, **how: pickles(file, **{**how, "weights_only": False})  # noqa: E731
    pickles = torch.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "_opcodes", lambda file: None)
        is_found(nothing_runs, torch, "load", careless)
