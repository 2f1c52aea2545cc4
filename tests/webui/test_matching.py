"""Whose parts fit a language model: a checkpoint that is named, its own folder, its shape, its name last."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_parts import Parts

from trifocal.checkpoints import find_checkpoint
from trifocal.errors import CheckpointError, UsageError
from trifocal.tools.convert import split
from trifocal.webui.matching import ModelFacts, VisionParts, find_llava, known_parts, tells_its_vision


@pytest.mark.parametrize(
    ("name", "hidden", "vocabulary", "parts"),
    [
        ("llava-13b-v0-4bit-128g", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v0/mm_projector.bin"),
        ("whatever", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v0/mm_projector.bin"),
        ("llava-13b-v1-1", 5120, 32003, "liuhaotian/LLaVA-13b-delta-v1-1/mm_projector.bin"),
        ("mine", 4096, 32004, "liuhaotian/LLaVA-7b-delta-v0/mm_projector.bin"),
        ("mine", 4096, 32000, "liuhaotian/llava-v1.5-7b/mm_projector.bin"),
        ("mine", 5120, 32000, "liuhaotian/llava-v1.5-13b/mm_projector.bin"),
        ("llava-llama-2-13b", 5120, 32000, "liuhaotian/llava-llama-2-13b-chat-lightning-preview/mm_projector.bin"),
        ("llava-v1.6-mistral-7b", 4096, 32000, "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava-v1.6-vicuna-7b", 4096, 32064, "llava-hf/llava-v1.6-vicuna-7b-hf"),
        ("yi", 7168, 64000, "llava-hf/llava-v1.6-34b-hf"),
        ("tiny", 256, 3072, "thimble"),
        ("tiny", 257, 3072, None),
    ],
)
def test_a_shape_tells_whose_eyes_fit_and_a_name_only_where_shapes_are_alike(
    name: str, hidden: int, vocabulary: int, parts: str | None
) -> None:
    found = known_parts(ModelFacts(name, hidden, vocabulary))
    assert (found.projector if isinstance(found, VisionParts) else found) == parts


def test_the_families_differ_in_tower_projector_squaring_and_frame() -> None:
    v0, new = known_parts(ModelFacts("a", 4096, 32004)), known_parts(ModelFacts("b", 4096, 32000))
    assert isinstance(v0, VisionParts)
    assert isinstance(new, VisionParts)
    assert (v0.tower, v0.kind, v0.fit, v0.framed) == ("openai/clip-vit-large-patch14", "linear", "crop", True)
    assert (new.tower, new.kind, new.fit, new.framed) == ("openai/clip-vit-large-patch14-336", "mlp2x", "pad", False)


def test_eyes_tell_what_a_bare_configuration_leaves_unsaid(parts: Parts) -> None:
    facts = ModelFacts.of_folder(parts.models / "tiny-llava-13b-v0")
    bare = find_llava(facts, tower=str(parts.clip), projector=str(parts.llava / "mm_projector.bin"))
    worn = VisionParts("", "", "mlp2x", "pad").on(bare)
    assert (worn.projector.kind, worn.preprocessing.fit, worn.image_start) == ("mlp2x", "pad", "")
    assert not worn.strip_around_images
    framed = VisionParts("", "", framed=True).on(worn)
    assert (framed.projector.kind, framed.preprocessing.fit, framed.image_end) == ("linear", "crop", "<im_end>")
    assert framed.tower == bare.tower


@pytest.mark.parametrize("key", ["mm_vision_tower", "vision_config"])
def test_a_folder_may_tell_how_it_sees(tmp_path: Path, key: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", key: "something"}))
    assert tells_its_vision(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "nonsense"])
def test_a_plain_or_broken_configuration_tells_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert not tells_its_vision(tmp_path)
    assert not tells_its_vision(tmp_path / "nowhere")


def test_a_llava_that_was_made_a_language_model_by_its_model_type_still_sees(parts: Parts, tmp_path: Path) -> None:
    config = json.loads((parts.models / "tiny-llava-13b-v0" / "config.json").read_text())
    config |= {"mm_vision_tower": str(parts.clip), "mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "mm_projector.bin").write_bytes((parts.llava / "mm_projector.bin").read_bytes())
    found = find_llava(ModelFacts.of_folder(tmp_path))
    assert (found.projector.kind, found.preprocessing.fit) == ("mlp2x", "pad")
    assert found.tower.source == parts.clip


def test_parts_that_were_split_are_found_beside_their_language_model_even_through_a_link(tmp_path: Path) -> None:
    split(find_checkpoint("thimble"), tmp_path / "apart")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tmp_path / "apart" / "language")
    facts, whole = ModelFacts.of_folder(tmp_path / "models" / "mine"), find_checkpoint("thimble")
    found = find_llava(replace(facts, hidden=1))  # its shape tells nothing
    assert found.projector.source == tmp_path / "apart" / "projector"
    assert (found.tower.feature_layer, found.preprocessing) == (whole.tower.feature_layer, whole.preprocessing)
    assert (found.projector.kind, found.projector.act) == (whole.projector.kind, whole.projector.act)
    assert (found.image_start, found.template) == (whole.image_start, whole.template)


def test_a_checkpoint_that_is_named_comes_first(parts: Parts) -> None:
    assert find_llava(ModelFacts("tiny", 1, 1), checkpoint="thimble").name == "thimble"
    assert find_llava(ModelFacts("tiny", 256, 3072)).name == "thimble"


def test_a_model_of_no_known_shape_is_refused_with_the_setting_that_helps() -> None:
    with pytest.raises(UsageError, match=r"mine \(rows of 123, 456 tokens\): set llava-checkpoint"):
        find_llava(ModelFacts("mine", 123, 456))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"hidden_size": "wide", "vocab_size": 3}', "\xff"])
def test_a_folder_without_a_readable_configuration_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelFacts.of_folder(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        ModelFacts.of_folder(tmp_path / "nowhere")
