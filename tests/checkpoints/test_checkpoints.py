"""Checkpoints as data: what a folder's configuration says, part by part, and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig

import trifocal
from checkpoint_maker import TEXT, V0, llama_tokenizer, make_hf15, make_v0, preprocessor, save_tokenizer, tensors_of
from trifocal.checkpoints import (
    CLIP_MEAN,
    KNOWN,
    Checkpoint,
    Preprocessing,
    find_checkpoint,
    from_folder,
    language_recipe,
)
from trifocal.checkpoints.configs import text_part, tower_part
from trifocal.conversation.templates import get_template
from trifocal.engines.language import open_language
from trifocal.engines.tokenizer import FileTokenizer
from trifocal.errors import CheckpointError, UsageError
from trifocal.images import Image
from trifocal.model.composer import Composer
from trifocal.placement import Placement
from trifocal.tokens.folder import read_words
from trifocal.vision import Gallery, Look, open_vision

OPENAI_CLIP = {  # openai/clip-vit-large-patch14
    "model_type": "clip",
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
    },
}
LLAVA_V0 = {  # liuhaotian/LLaVA-13b-delta-v0, merged
    "architectures": ["LlavaLlamaForCausalLM"],
    "model_type": "llava",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-06,
    "vocab_size": 32003,
    "use_mm_proj": True,
    "mm_vision_tower": "openai/clip-vit-large-patch14",
    "mm_hidden_size": 1024,
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": True,
}
HF_7B = {  # llava-hf/llava-1.5-7b-hf, as sparse as it is on the hub
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "ignore_index": -100,
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}


def folder_of(folder: Path, config: object, **files: object) -> Path:
    """A folder with a configuration and other JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def changed(folder: Path, file: str = "config.json", **values: object) -> Path:
    """The folder with other values in one of its JSON files; ``part__key`` reaches into a part."""
    config = json.loads((folder / file).read_text())
    for name, value in values.items():
        *parts, key = name.split("__")
        inner = config
        for part in parts:
            inner = inner[part]
        inner[key] = value
    (folder / file).write_text(json.dumps(config))
    return folder


@pytest.fixture
def own(hf15: Path, tmp_path: Path) -> Path:
    """A llava-hf folder of one's own, to be spoilt."""
    return Path(shutil.copytree(hf15, tmp_path / "own"))


def read_v0(places: V0) -> Checkpoint:
    return from_folder(places.language, tower=str(places.tower), projector=str(places.projector))


def test_a_sparse_hf_configuration_is_filled_with_its_class_s_values(tmp_path: Path) -> None:
    checkpoint = from_folder(folder_of(tmp_path, HF_7B, preprocessor_config=preprocessor(336)), name="7b")
    tower = checkpoint.tower
    assert (tower.hidden, tower.layers, tower.heads, tower.mlp, tower.patches, tower.blocks) == (
        1024,
        24,
        16,
        4096,
        576,
        23,
    )
    assert (tower.act, tower.eps, tower.keep_first) == ("quick_gelu", 1e-5, False)
    assert (checkpoint.projector.kind, checkpoint.projector.act) == ("mlp2x", "gelu")
    assert checkpoint.preprocessing == Preprocessing(336, "crop")
    assert (checkpoint.language.hidden, checkpoint.language.context) == (4096, 4096)
    wanted = LlamaConfig(**HF_7B["text_config"])
    filled = LlamaConfig(**checkpoint.language.config)
    for key in (
        "num_hidden_layers",
        "num_key_value_heads",
        "intermediate_size",
        "rms_norm_eps",
        "vocab_size",
        "head_dim",
    ):
        assert getattr(filled, key) == getattr(wanted, key)
    assert (checkpoint.family, checkpoint.template) == ("llava-1.5", "llava_v1")
    assert (checkpoint.image_start, checkpoint.image_end, checkpoint.strip_around_images) == ("", "", False)


@pytest.mark.parametrize(
    ("kind", "tower", "text"),
    [
        ("llava", ("clip", 24, 1024, 336), "llama"),
        ("llava_next", ("clip", 24, 1024, 336), "llama"),
        ("llava_onevision", ("siglip", 26, 1152, 384), "qwen2"),
    ],
)
@pytest.mark.parametrize("half", ["vision_config", "text_config"])
def test_a_half_that_is_not_told_is_that_of_the_class(
    tmp_path: Path, kind: str, tower: tuple[Any, ...], text: str, half: str
) -> None:
    told = json.loads(AutoConfig.for_model(kind).to_json_string())
    del told[half]
    (tmp_path / "config.json").write_text(json.dumps(told))
    read = from_folder(tmp_path)
    assert (read.tower.kind, read.tower.layers, read.tower.hidden, read.tower.image_size) == tower
    assert read.language.config["model_type"] == text


@pytest.mark.parametrize("kind", ["llava", "llava_next", "llava_onevision"])
def test_halves_of_an_untold_kind_are_of_the_class_s(tmp_path: Path, kind: str) -> None:
    told = json.loads(AutoConfig.for_model(kind).to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(told))
    wanted = from_folder(tmp_path)
    for half in ("vision_config", "text_config"):
        del told[half]["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(told))
    read = from_folder(tmp_path)
    assert read.tower == wanted.tower
    assert read.language.config == wanted.language.config


@pytest.mark.parametrize("kind", ["clip_vision_model", "siglip_vision_model"])
def test_a_tower_s_missing_keys_are_those_of_its_class(tmp_path: Path, kind: str) -> None:
    whole, sparse = AutoConfig.for_model(kind, hidden_size=1152).to_dict(), {"model_type": kind, "hidden_size": 1152}
    towers = [tower_part(tmp_path, config, -2, keep_first=False) for config in (whole, sparse)]
    assert towers[0] == towers[1]
    assert towers[1].heads == 12  # not those of the tower that LLaVA has


@pytest.mark.parametrize("kind", ["perceiver", "qformer", "dynamic_compressor"])
def test_a_resampler_is_refused_by_its_name(tmp_path: Path, kind: str) -> None:
    folder_of(tmp_path, {**LLAVA_V0, "mm_resampler_type": kind})
    with pytest.raises(CheckpointError, match=f"mm_resampler_type is '{kind}'.* set it to null"):
        from_folder(tmp_path)


@pytest.mark.parametrize("kind", [None, "masked_drop", "spatial_pool"])
def test_a_resampler_that_computes_nothing_is_none(v0: V0, tmp_path: Path, kind: str | None) -> None:
    folder_of(tmp_path, {**LLAVA_V0, "mm_resampler_type": kind})
    read = from_folder(tmp_path, tower=str(v0.tower), projector=str(v0.projector))
    assert read.tower.patches == 16


def test_v0_takes_its_parts_from_three_places(v0: V0) -> None:
    checkpoint = read_v0(v0)
    assert (checkpoint.tower.source, checkpoint.projector.source, checkpoint.language.source) == (
        v0.tower,
        v0.projector,
        v0.language,
    )
    assert (checkpoint.family, checkpoint.template, checkpoint.projector.kind) == (
        "llava-v0",
        "llava_v0_webui",
        "linear",
    )
    assert (checkpoint.image_start, checkpoint.image_end) == ("<im_start>", "<im_end>")
    assert checkpoint.strip_around_images
    assert checkpoint.preprocessing == Preprocessing(56, "crop")
    assert (checkpoint.tower.patches, checkpoint.tower.blocks) == (16, 3)


class Counted:
    """A vision that knows its positions and sees nothing."""

    hidden, identity = 64, "none"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.rows = checkpoint.tower.patches

    def looks(self, images: Sequence[Image]) -> list[Look]:
        return [Look(image, (self.rows,)) for image in images]

    def see(self, looks: object) -> list[torch.Tensor]:
        raise AssertionError("counting looks at no picture")


@pytest.mark.parametrize("pads", [False, True])
def test_v0_pictures_take_258_positions_whatever_the_ids(
    tmp_path: Path, drawn: Callable[..., Image], pads: bool
) -> None:
    """The 7B release has a ``[PAD]`` in front, so that all of its ids are one higher."""
    tower = folder_of(tmp_path / "clip", OPENAI_CLIP, preprocessor_config={"size": 224, "crop_size": 224})
    save_file({"model.mm_projector.weight": torch.ones(1)}, tmp_path / "mm_projector.safetensors")
    added = ["[PAD]"] * pads + ["<im_patch>", "<im_start>", "<im_end>"]
    tokenizer = llama_tokenizer(added)
    save_tokenizer(tokenizer, tmp_path / "llama")
    folder_of(tmp_path / "llama", {"model_type": "llama", **TEXT})
    checkpoint = from_folder(tmp_path / "llama", tower=str(tower), projector=str(tmp_path / "mm_projector.safetensors"))
    assert checkpoint.tower.patches == 256
    ours = FileTokenizer(read_words(tmp_path / "llama"))
    first = tokenizer.get_vocab_size() - 3
    assert [ours.token(name) for name in added[-3:]] == [first, first + 1, first + 2]
    composer = Composer(
        ours, Gallery(Counted(checkpoint)), image_start=checkpoint.image_start, image_end=checkpoint.image_end
    )
    assert len(composer.outline([drawn(1)])) - len(composer.outline([""])) == 258


def test_an_original_folder_says_where_its_tower_is(tmp_path: Path) -> None:
    folder_of(tmp_path / "clip", OPENAI_CLIP)
    folder = folder_of(tmp_path / "llava", {**LLAVA_V0, "mm_vision_tower": str(tmp_path / "clip")})
    save_file({"model.mm_projector.weight": torch.ones(1), "model.a": torch.ones(1)}, folder / "model.safetensors")
    checkpoint = from_folder(folder)
    assert checkpoint.tower.source == tmp_path / "clip"
    assert checkpoint.projector.source == checkpoint.language.source == folder
    assert checkpoint.image_start == "<im_start>"
    config = checkpoint.language.config
    assert config["model_type"] == "llama"
    assert not [key for key in config if key.startswith("mm_")]


def test_an_original_folder_may_hold_its_tower(tmp_path: Path) -> None:
    folder_of(tmp_path / "clip", OPENAI_CLIP)
    folder = folder_of(tmp_path / "llava", {**LLAVA_V0, "mm_vision_tower": str(tmp_path / "clip")})
    names = ("model.mm_projector.weight", "model.vision_tower.vision_tower.vision_model.post_layernorm.bias")
    save_file({name: torch.ones(1) for name in names}, folder / "model.safetensors")
    assert from_folder(folder).tower.source == folder
    assert from_folder(folder, tower=str(tmp_path / "clip")).tower.source == tmp_path / "clip"


@pytest.mark.parametrize("name", ["mm_projector.bin", "mm_projector.safetensors"])
def test_a_projector_beside_the_shards_is_found(tmp_path: Path, name: str) -> None:
    folder_of(tmp_path / "clip", OPENAI_CLIP)
    index = {"weight_map": {"model.a": "pytorch_model-00001-of-00001.bin"}}
    config = {**LLAVA_V0, "mm_vision_tower": str(tmp_path / "clip")}
    folder = folder_of(tmp_path / "llava", config, **{"pytorch_model.bin.index": index})
    with pytest.raises(CheckpointError, match="which is not there"):
        from_folder(folder)
    (folder / name).write_bytes(b"")
    assert from_folder(folder).projector.source == folder / name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("linear", ("linear", "llava-v0")), ("mlp2x_gelu", ("mlp2x", "llava-1.5")), (None, ("linear", "llava-v0"))],
)
def test_original_projector_kinds(tmp_path: Path, kind: str | None, expected: tuple[str, str]) -> None:
    folder_of(tmp_path / "clip", OPENAI_CLIP)
    config = {
        **LLAVA_V0,
        "mm_vision_tower": str(tmp_path / "clip"),
        "mm_projector_type": kind,
        "image_aspect_ratio": "pad",
    }
    folder = folder_of(tmp_path / "llava", config)
    save_file({"model.mm_projector.0.weight": torch.ones(1)}, folder / "model.safetensors")
    checkpoint = from_folder(folder)
    assert (checkpoint.projector.kind, checkpoint.family) == expected
    assert checkpoint.preprocessing == Preprocessing(224, "pad")


def test_parts_of_an_hf_folder_can_be_taken_from_elsewhere(hf15: Path, v0: V0, tmp_path: Path) -> None:
    other = make_hf15(tmp_path / "other", seed=5)
    checkpoint = from_folder(hf15, tower=str(v0.tower), projector=str(other), language=str(v0.language))
    assert (checkpoint.tower.source, checkpoint.projector.source, checkpoint.language.source) == (
        v0.tower,
        other,
        v0.language,
    )
    assert (
        checkpoint.language.config["vocab_size"] == json.loads((v0.language / "config.json").read_text())["vocab_size"]
    )


def test_trifocal_s_own_keys_choose_template_frame_and_fit(own: Path) -> None:
    keys = {"trifocal_template": "llava_v0", "mm_use_im_start_end": True, "image_aspect_ratio": "pad"}
    checkpoint = from_folder(changed(own, **keys))
    assert (checkpoint.template, checkpoint.image_start, checkpoint.preprocessing.fit) == (
        "llava_v0",
        "<im_start>",
        "pad",
    )
    assert from_folder(own, template="llava_v1").template == "llava_v1"


def test_do_pad_of_the_processor_is_heard(own: Path) -> None:
    assert from_folder(own).preprocessing.fit == "crop"
    padding = {"do_pad": True, "image_processor_type": "LlavaImageProcessor"}
    assert from_folder(changed(own, "preprocessor_config.json", **padding)).preprocessing.fit == "pad"


def test_the_pad_colour_is_the_mean() -> None:
    assert Preprocessing(224, "pad").pad_colour == (122, 116, 104)
    assert Preprocessing(384, "pad", mean=(0.5, 0.5, 0.5)).pad_colour == (127, 127, 127)
    assert Preprocessing(384, "pad").mean == CLIP_MEAN


@pytest.mark.parametrize(
    ("layer", "strategy", "blocks", "rows"),
    [(-1, "default", 4, 16), (-2, "full", 3, 17), (2, "default", 2, 16), (0, "full", 0, 17)],
)
def test_layer_and_strategy_say_how_far_the_tower_runs(
    own: Path, layer: int, strategy: str, blocks: int, rows: int
) -> None:
    tower = from_folder(changed(own, vision_feature_layer=layer, vision_feature_select_strategy=strategy)).tower
    assert (tower.blocks, tower.patches) == (blocks, rows)


@pytest.mark.parametrize("name", ["thimble", *KNOWN])
def test_every_known_checkpoint_names_a_template_that_exists(name: str) -> None:
    if name == "thimble":
        get_template(find_checkpoint(name).template)
    else:
        assert KNOWN[name].needs
        get_template(KNOWN[name].template or "llava_v1")


def test_thimble_is_read_by_the_ordinary_path() -> None:
    checkpoint = find_checkpoint("thimble")
    assert (checkpoint.name, checkpoint.preprocessing.fit) == ("thimble", "pad")
    tokenizer = FileTokenizer(read_words(checkpoint.language.source))
    assert [tokenizer.token(name) for name in ("<im_patch>", checkpoint.image_start, checkpoint.image_end)] == [
        3069,
        3070,
        3071,
    ]


def test_a_folder_s_name_is_the_checkpoint_s(hf15: Path) -> None:
    assert find_checkpoint(str(hf15)).name == hf15.name


def test_a_hub_id_is_the_checkpoint_s_name(hf15: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trifocal.checkpoints.finding.locate", lambda name, patterns: hf15)
    assert find_checkpoint("somebody/llava").name == "somebody/llava"


def test_the_seed_s_release_is_known_by_name(v0: V0, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    places = {
        "wojtab/llava-13b-v0-4bit-128g": v0.language,
        "openai/clip-vit-large-patch14": v0.tower,
        "liuhaotian/LLaVA-13b-delta-v0/mm_projector.bin": v0.projector,
    }

    def locate(name: str, patterns: object) -> Path:
        asked.append(name)
        return places[name]

    monkeypatch.setattr("trifocal.checkpoints.finding.locate", locate)
    checkpoint = find_checkpoint("wojtab/llava-13b-v0-4bit-128g")
    assert sorted(asked) == sorted(places)
    assert (checkpoint.projector.source, checkpoint.template) == (v0.projector, "llava_v0_webui")


def test_the_language_half_for_engines(hf15: Path) -> None:
    language = open_language(language_recipe(from_folder(hf15)))
    stored = tensors_of(hf15)
    assert language.folder == hf15
    assert language.config["model_type"] == "llama"
    assert torch.equal(language.weights["model.norm.weight"], stored["language_model.model.norm.weight"])
    assert all(name.startswith(("model.", "lm_head.")) for name in language.weights)


def test_a_checkpoint_can_t_be_changed(hf15: Path) -> None:
    with pytest.raises(FrozenInstanceError):
        from_folder(hf15).template = "another"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (
            "config.json",
            {"model_type": "llava_next_video", "image_grid_pinpoints": [[56, 112]], "spatial_pool_mode": "conv"},
            "spatial_pool_mode is 'conv'; known: average, max",
        ),
        ("config.json", {"vision_feature_select_strategy": "middle"}, "'middle'; known: default, full"),
        ("config.json", {"vision_feature_layer": [-2, "-5"]}, r"vision_feature_layer is \[-2, '-5'\]"),
        ("config.json", {"vision_feature_layer": -6}, "feature layer -6 of a tower with 4 blocks"),
        ("config.json", {"image_aspect_ratio": "stretch"}, "image_aspect_ratio 'stretch'"),
        ("config.json", {"vision_config": 3}, "vision_config is 3"),
        ("config.json", {"text_config": []}, r"text_config is \[\]"),
        ("config.json", {"vision_config__model_type": "swin"}, "type 'swin' is not supported"),
        ("config.json", {"vision_config__hidden_size": "32"}, "hidden_size is '32', a whole number"),
        (
            "config.json",
            {"vision_config__num_attention_heads": 5},
            "hidden_size 32 does not go with num_attention_heads 5",
        ),
        ("config.json", {"vision_config__patch_size": 100}, "image_size 56 does not go with patch_size 100"),
        ("config.json", {"vision_config__num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("config.json", {"vision_config__layer_norm_eps": None}, "layer_norm_eps is None"),
        ("config.json", {"text_config__hidden_size": None}, "hidden_size is None"),
        ("config.json", {"text_config__max_position_embeddings": -1}, "max_position_embeddings is -1"),
        ("preprocessor_config.json", {"crop_size": 64}, "pictures of 64 pixels for a tower that takes 56"),
        ("preprocessor_config.json", {"image_mean": [0.5, 0.5]}, r"image_mean is \[0.5, 0.5\], three numbers"),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0]}, "image_std is 0"),
        ("preprocessor_config.json", {"rescale_factor": "1/255"}, "rescale_factor is '1/255'"),
        ("preprocessor_config.json", {"resample": "cubic"}, "resample is 'cubic'"),
    ],
)
def test_what_contradicts_is_told_with_its_key(own: Path, file: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_folder(changed(own, file, **values))


@pytest.mark.parametrize("junk", [None, "", "x", -1, 0, 2.5, 10**30, True, [], [1], {}, {"a": 1}], ids=repr)
@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json"])
def test_no_value_of_any_key_makes_another_error(own: Path, file: str, junk: object) -> None:
    sound = json.loads((own / file).read_text())
    keys = [(key,) for key in sound] + [
        (key, inner) for key in sound if isinstance(sound[key], dict) for inner in sound[key]
    ]
    refused = 0
    for key in keys:
        try:
            from_folder(changed(own, file, **{"__".join(key): junk}))
        except CheckpointError:
            refused += 1
        (own / file).write_text(json.dumps(sound))
    assert refused


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"a": NaN'])
def test_a_configuration_that_is_no_json_object_is_refused(own: Path, text: str) -> None:
    (own / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        from_folder(own)


def test_what_is_not_there_is_named(tmp_path: Path, hf15: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json is not there"):
        from_folder(tmp_path)
    with pytest.raises(CheckpointError, match="a checkpoint is a folder"):
        from_folder(hf15 / "config.json")
    with pytest.raises(UsageError, match="no file or folder here"):
        from_folder(hf15, tower=str(tmp_path / "absent"))


def test_a_bare_language_model_needs_a_projector(tmp_path: Path) -> None:
    places = make_v0(tmp_path)
    with pytest.raises(CheckpointError, match="there is no projector in it; name one with projector_from"):
        from_folder(places.language, tower=str(places.tower))


def test_a_projector_of_another_model_is_refused(hf15: Path, tmp_path: Path) -> None:
    save_file({"model.mm_projector.weight": torch.ones(48, 32)}, tmp_path / "mm_projector.safetensors")
    places = make_v0(tmp_path / "v0")
    with pytest.raises(CheckpointError, match="makes rows of 48, the language model takes rows of 64"):
        trifocal.load(
            checkpoint=str(places.language),
            tower_from=str(places.tower),
            projector_from=str(tmp_path / "mm_projector.safetensors"),
        )


@pytest.mark.parametrize(
    ("named", "kind", "wanted"),
    [
        ("LlavaQwenForCausalLM", "llava", "qwen2"),
        ("LlavaQwen2ForCausalLM", "llava_qwen2", "qwen2"),
        ("TinyLlavaQwen2ForCausalLM", "tiny_llava_qwen2", "qwen2"),
        ("TinyLlavaLlamaForCausalLM", "tiny_llava", "llama"),
        ("", "llava_qwen2", "qwen2"),
        ("", "tiny_llava_llama", "llama"),
        ("Gemma2ForCausalLM", "gemma2", "gemma2"),
    ],
)
def test_the_class_says_which_language_model_it_is_whoever_named_it(named: str, kind: str, wanted: str) -> None:
    config = {**TEXT, "architectures": [named], "model_type": kind, "mm_vision_tower": "tower"}
    assert text_part(Path("one"), config).config["model_type"] == wanted


@pytest.mark.parametrize("kind", ["tiny_llava_phi", "tiny_llava_stablelm", "llava_phi", "llava_gemma2"])
def test_a_language_model_that_is_not_among_them_is_named(kind: str) -> None:
    """Transformers would only list the hundreds of kinds that it knows."""
    config = {"architectures": ["OtherForCausalLM"], "model_type": kind, "mm_vision_tower": "tower"}
    with pytest.raises(CheckpointError, match=rf"class 'OtherForCausalLM' in model_type '{kind}'.* llama.* llava-hf"):
        text_part(Path("one"), config)


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("encoder.layers.0.self_attn.q_norm.weight", False),
        ("encoder.layers.0.layer_scale", False),
        ("embeddings.register_tokens", False),
        ("neck.weight", False),
        ("encoder.layers.9.mlp.fc3.weight", True),  # behind the last block that is computed
        ("post_layernorm.scale", True),
        ("head.probe", True),
    ],
)
def test_what_a_tower_has_no_place_for_is_told(hf15: Path, tmp_path: Path, name: str, fits: bool) -> None:
    folder = shutil.copytree(hf15, tmp_path / "one")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, f"vision_tower.vision_model.{name}": torch.zeros(2)}, folder / "model.safetensors")
    if fits:
        open_vision(find_checkpoint(str(folder)), Placement("cpu"), Placement("cpu"))
        return
    with pytest.raises(CheckpointError, match=f"1 tensors of the vision tower are unexpected, first '{name}'"):
        open_vision(find_checkpoint(str(folder)), Placement("cpu"), Placement("cpu"))
