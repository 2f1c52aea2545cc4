"""Names become canonical; damaged, foreign and dangerous files are refused by name, and nothing in them runs."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_maker import make_hf15
from safetensors.torch import save_file

from trifocal.checkpoints import from_folder, load_language
from trifocal.errors import CheckpointError
from trifocal.placement import Placement
from trifocal.vision import load_vision
from trifocal.weights import canonical, part_weights, read_header, weight_files


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("model.layers.0.mlp.up_proj.weight", ("language", "model.layers.0.mlp.up_proj.weight")),
        ("lm_head.weight", ("language", "lm_head.weight")),
        ("language_model.model.norm.weight", ("language", "model.norm.weight")),
        ("language_model.lm_head.weight", ("language", "lm_head.weight")),
        ("model.language_model.norm.weight", ("language", "model.norm.weight")),
        ("vision_tower.vision_model.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("model.vision_tower.vision_model.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("vision_tower.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("model.vision_tower.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("vision_model.pre_layrnorm.bias", ("tower", "pre_layrnorm.bias")),
        ("multi_modal_projector.linear_1.weight", ("projector", "0.weight")),
        ("model.multi_modal_projector.linear_2.bias", ("projector", "2.bias")),
        ("model.mm_projector.weight", ("projector", "weight")),
        ("model.mm_projector.2.bias", ("projector", "2.bias")),
        ("mm_projector.0.weight", ("projector", "0.weight")),
        ("image_newline", ("projector", "image_newline")),
        ("model.image_newline", ("projector", "image_newline")),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("vision_model.embeddings.position_ids", None),
        ("text_model.embeddings.token_embedding.weight", None),
        ("logit_scale", None),
    ],
)
def test_every_spelling_has_one_name(stored: str, expected: tuple[str, str] | None) -> None:
    assert canonical(stored) == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_hf15(tmp_path / "checkpoint")


def load_all(folder: Path, allow_pickle: bool = False) -> None:
    """Everything that a start reads."""
    from trifocal.engines import load_engine

    checkpoint = from_folder(folder)
    cpu = Placement("cpu", "float32")
    load_vision(checkpoint, cpu, cpu, allow_pickle=allow_pickle)
    load_engine("transformers", load_language(checkpoint, allow_pickle=allow_pickle), cpu).close()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, 50_000, -1])
def test_a_file_that_is_cut_short_is_told(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        load_all(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 4]},
        {"data_offsets": [8, 4]},
        {"data_offsets": [0, 10**12]},
        {"shape": [3, 3]},
        {"shape": [-1]},
        {"shape": "x"},
        {"dtype": "F7"},
        {"dtype": None},
        {"data_offsets": [0]},
    ],
)
def test_a_header_that_makes_no_sense_is_told(tmp_path: Path, change: dict[str, object]) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": torch.zeros(2, 2)}, file)
    header = {**read_header(file), "x": {**read_header(file)["x"], **change}}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    with pytest.raises(CheckpointError, match=r"model.safetensors: .*x"):
        read_header(file)


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff\xfe", b'"x"'])
def test_a_header_that_is_no_table_is_told(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointError, match="header"):
        read_header(file)


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes((100 << 20).to_bytes(8, "little") + bytes(64))
    with pytest.raises(CheckpointError, match="its header claims"):
        read_header(file)


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
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=match):
        load_all(folder)


class Runs:
    """A pickle of this writes a file when it is read carelessly."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (exec, (f"open({str(self.marker)!r}, 'w').close()",))


def test_a_pickle_is_refused_and_never_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": Runs(marker)}))
    with pytest.raises(CheckpointError, match="allow-pickle"):
        load_all(folder)
    torch.save({"model.norm.weight": Runs(marker)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="it was not run"):
        load_all(folder, allow_pickle=True)
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="pytorch_model.bin"):
        load_all(folder, allow_pickle=True)
    assert not marker.exists()


def test_an_index_names_files_beside_it_that_are_there(tmp_path: Path) -> None:
    folder = make_hf15(tmp_path / "sharded", shards=3)
    index = folder / "model.safetensors.index.json"
    assert len(weight_files(folder)) == 3
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names model-00002-of-00003.safetensors, which is not there"):
        load_all(folder)
    for broken in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"x": "../outside.safetensors"}}'):
        index.write_text(broken)
        with pytest.raises(CheckpointError, match="index"):
            load_all(folder)


def test_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights there"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"vision_config": None}, "config.json|vision"),
        ({"vision_feature_layer": -9}, "feature layer -9"),
        ({"vision_feature_layer": [-2, -5]}, "one layer's number was expected"),
        ({"vision_feature_select_strategy": "some"}, "known: default, full"),
        ({"projector_hidden_act": "swish9"}, "activation 'swish9'"),
        ({"model_type": "llava_warp"}, "llava_warp"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_told(folder: Path, change: dict[str, object], match: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=match):
        load_all(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", ""])
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_a_configuration_that_is_no_json_is_told(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=file):
        from_folder(folder)


def test_reading_runs_nothing(folder: Path) -> None:
    """No process, no code, no file written while a checkpoint is read."""
    load_all(folder)
    seen: list[str] = []
    watching = True

    def audit(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
        if watching and (event in ("subprocess.Popen", "os.system", "os.exec") or writes):
            seen.append(f"{event} {args}")

    sys.addaudithook(audit)
    load_all(folder)
    watching = False
    assert seen == []


def test_tensors_are_read_when_they_are_asked_for(folder: Path) -> None:
    weights = part_weights(folder, "tower")
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    with pytest.raises(CheckpointError, match="can't be read"):
        [weights[name] for name in part_weights_names(weights)]


def part_weights_names(weights: object) -> list[str]:
    return sorted(weights)  # type: ignore[call-overload,no-any-return]
