"""Ways in which a checkpoint can be wrong or damaged: each is told in words, quickly, and runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from damage import (
    ABSENT,
    HTML,
    LFS,
    Sample,
    Spoil,
    both,
    changed,
    cut,
    folder_instead,
    gone,
    grown,
    header,
    holds,
    link,
    make,
    pipe,
    says,
    swapped,
    tensor,
    torch_file,
)
from hostile import Runs, no_side_effects, zipped
from trifocal.cli import main
from trifocal.errors import CheckpointError, UsageError
from trifocal.model.llava import load

MOST_MEMORY = 512 << 20

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
BIN, TOKENIZER = "pytorch_model.bin", "tokenizer.json"
SHARD, LAST = "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"
NORM = "language_model.model.norm.weight"
UP = "language_model.model.layers.1.mlp.up_proj.weight"
TABLE = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
EYES = "vision_tower.vision_model"
HANDS = "multi_modal_projector.linear_2.weight"
QUERY = "model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class Way:
    """One way to spoil a layout, and what the error must name: file, tensor, expected and found."""

    layout: str
    spoil: Spoil
    names: tuple[str, ...]
    pickles: bool = False


def way(layout: str, spoil: Spoil, *names: str, pickles: bool = False) -> Way:
    return Way(layout, spoil, names, pickles)


def entry(name: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    """A header in which a tensor's entry says something else."""
    return lambda table: {**table, name: {**table[name], **values}}


def twice(table: dict[str, Any]) -> bytes:
    """A header in which the first tensor stands twice."""
    first = next(name for name in table if name != "__metadata__")
    return b"{" + f"{json.dumps(first)}: {json.dumps(table[first])}, ".encode() + json.dumps(table).encode()[1:]


def overlapping(table: dict[str, Any]) -> dict[str, Any]:
    """A header in which the language model's last norm lies where its first one does."""
    other = table["language_model.model.layers.0.input_layernorm.weight"]
    return {**table, NORM: other}


def first(rows: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda values: values[:rows]


def nan(values: torch.Tensor) -> torch.Tensor:
    values.view(-1)[-1] = float("nan")
    return values


def infinite(values: torch.Tensor) -> torch.Tensor:
    values.view(-1)[0] = float("-inf")
    return values


def indexed(file: str, *, name: str = NORM) -> Spoil:
    """The index says that a tensor is in this file."""

    def spoil(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][name] = file
        (folder / INDEX).write_text(json.dumps(index))

    return spoil


HEADERS = {
    "weights cut to nothing": way("hf", cut(WEIGHTS, 0), WEIGHTS, "the file has 0"),
    "weights cut inside of the header's length": way("hf", cut(WEIGHTS, 5), WEIGHTS, "the file has 5"),
    "weights cut inside of the header": way("hf", cut(WEIGHTS, 900), WEIGHTS, "the file has 900"),
    "weights cut inside of a tensor": way("hf", cut(WEIGHTS, -100), WEIGHTS, "ends at byte", "cut short"),
    "weights with bytes over": way("hf", grown(WEIGHTS, 64), WEIGHTS, "64 bytes"),
    "weights of zeros": way("hf", holds(WEIGHTS, bytes(100_000)), WEIGHTS, "header"),
    "a header that claims 2**63 bytes": way("hf", changed(WEIGHTS, 0, struct.pack("<Q", 1 << 63)), WEIGHTS, "header"),
    "a header that claims all but 8 bytes": way(
        "hf",
        lambda folder: changed(WEIGHTS, 0, struct.pack("<Q", (folder / WEIGHTS).stat().st_size - 8))(folder),
        WEIGHTS,
        "header",
    ),
    "a header that is no JSON": way("hf", changed(WEIGHTS, 8, b"["), WEIGHTS, "no JSON"),
    "a header that is a list": way("hf", header(WEIGHTS, list), WEIGHTS, "no table"),
    "a tensor twice in a header": way("hf", header(WEIGHTS, twice), WEIGHTS, "twice"),
    "two tensors in one place": way("hf", header(WEIGHTS, overlapping), WEIGHTS, NORM),
    "a type that nobody knows": way("hf", header(WEIGHTS, entry(NORM, dtype="F12")), WEIGHTS, NORM, "F12"),
    "a type of another size": way("hf", header(WEIGHTS, entry(NORM, dtype="F64")), WEIGHTS, NORM, "512", "256"),
    "a shape larger than its place": way("hf", header(WEIGHTS, entry(NORM, shape=[65])), WEIGHTS, NORM, "260", "256"),
    "a shape of astronomic size": way("hf", header(WEIGHTS, entry(NORM, shape=[1 << 60, 1 << 60])), WEIGHTS, NORM),
    "a shape of a million sides": way("hf", header(WEIGHTS, entry(NORM, shape=[1 << 40] * 1_000_000)), WEIGHTS, NORM),
    "a shape below zero": way("hf", header(WEIGHTS, entry(NORM, shape=[-8, -8])), WEIGHTS, NORM),
    "a shape of fractions": way("hf", header(WEIGHTS, entry(NORM, shape=[64.0])), WEIGHTS, NORM),
    "offsets beyond the file": way(
        "hf", header(WEIGHTS, entry(NORM, data_offsets=[1 << 50, (1 << 50) + 256])), WEIGHTS, NORM, str((1 << 50) + 256)
    ),
    "offsets that run backwards": way("hf", header(WEIGHTS, entry(NORM, data_offsets=[256, 0])), WEIGHTS, NORM),
    "offsets that are words": way("hf", header(WEIGHTS, entry(NORM, data_offsets=["0", "256"])), WEIGHTS, NORM),
}
INSTEAD = {
    "a Git LFS pointer for the weights": way("hf", holds(WEIGHTS, LFS), WEIGHTS, "Git LFS"),
    "a page of an error for the weights": way("hf", holds(WEIGHTS, HTML), WEIGHTS, "HTML"),
    "a Git LFS pointer for a shard": way("hf shards", holds(SHARD, LFS), SHARD, "Git LFS"),
    "a Git LFS pointer for the projector": way("v0", holds("mm_projector.safetensors", LFS), "mm_projector", "Git LFS"),
    "a Git LFS pointer for a pickle": way("pickle", holds(BIN, LFS), BIN, "Git LFS", pickles=True),
    "a page of an error for a pickle": way("pickle", holds(BIN, HTML), BIN, "HTML", pickles=True),
    "a Git LFS pointer for a GGUF file": way("gguf", holds("tiny-f16.gguf", LFS), "tiny-f16.gguf", "Git LFS"),
    "a page of an error for a mmproj file": way("gguf", holds("mmproj-tiny-f16.gguf", HTML), "mmproj-tiny", "HTML"),
    "a page of an error for the configuration": way("hf", holds(CONFIG, HTML), CONFIG, "no JSON"),
    "a Git LFS pointer for the tokenizer": way("hf", holds(TOKENIZER, LFS), TOKENIZER),
    "a folder for the weights": way("hf", folder_instead(WEIGHTS), WEIGHTS, "directory"),
    "a folder for a shard": way("hf shards", folder_instead(SHARD), SHARD),
    "a folder for the configuration": way("hf", folder_instead(CONFIG), CONFIG, "directory"),
    "a folder for the tokenizer": way("hf", folder_instead(TOKENIZER), "tokenizer"),
    "a folder for a GGUF file": way("gguf", folder_instead("tiny-f16.gguf"), "tiny-f16.gguf", "directory"),
    "a folder for a pickle": way("pickle", folder_instead(BIN), BIN, "directory", pickles=True),
    "a pipe for the weights": way("hf", pipe(WEIGHTS), WEIGHTS, "no ordinary file"),
    "a pipe for the configuration": way("hf", pipe(CONFIG), CONFIG, "no ordinary file"),
    "a pipe for a pickle": way("pickle", pipe(BIN), BIN, "no ordinary file", pickles=True),
    "a pipe for a mmproj file": way("gguf", pipe("mmproj-tiny-f16.gguf"), "mmproj-tiny-f16.gguf", "no ordinary file"),
    "a link to an endless device": way("hf", link(CONFIG, "/dev/zero"), CONFIG, "no ordinary file"),
    "weights that are an endless device": way("hf", link(WEIGHTS, "/dev/zero"), WEIGHTS, "no ordinary file"),
    "a link that leads nowhere": way("hf", link(WEIGHTS, "nowhere"), WEIGHTS, "No such file"),
    "a link that leads to itself": way("hf", link(WEIGHTS, WEIGHTS), WEIGHTS),
    "a configuration that is a link to itself": way("hf", link(CONFIG, CONFIG), CONFIG),
    "a link to a file that is no configuration": way("hf", link(CONFIG, "/etc/passwd"), CONFIG, "no JSON"),
    "a link to a file that is no weights": way("hf", link(WEIGHTS, "/etc/passwd"), WEIGHTS, "header"),
}
INDEXES = {
    "an index that names a file outside": way("hf shards", indexed("../../secret.safetensors"), INDEX, "../../secret"),
    "an index that names a file by its path": way("hf shards", indexed("/etc/passwd"), INDEX, "/etc/passwd"),
    "an index that names the folder above": way("hf shards", indexed(".."), INDEX, "'..'"),
    "an index that names a file that is not there": way("hf shards", indexed("m.safetensors"), INDEX, "m.safetensors"),
    "an index that names a tensor nobody holds": way(
        "hf shards", indexed(LAST, name="language_model.model.layers.2.mlp.up_proj.weight"), INDEX, LAST, "layers.2.mlp"
    ),
    "an index that says a wrong shard": way("hf shards", indexed(LAST, name=TABLE), INDEX, LAST, TABLE),
    "an index of numbers": way("hf shards", says(INDEX, "weight_map", 7), INDEX, "no index"),
    "an index without a map": way("hf shards", says(INDEX, "weight_map", ABSENT), INDEX, "no index"),
    "an index that is empty": way("hf shards", holds(INDEX, ""), INDEX),
    "an index of nothing": way("hf shards", says(INDEX, "weight_map", {}), INDEX),
    "an index nested without end": way("hf shards", holds(INDEX, "[" * 200_000), INDEX),
    "a shard that is missing": way("hf shards", gone(SHARD), INDEX, SHARD, "not there"),
    "a shard that is missing, without an index": way("hf shards", gone(SHARD, INDEX), "missing"),
    "a shard that is cut short": way("hf shards", cut(SHARD, -64), SHARD, "cut short"),
    "shards that have each other's names": way("hf shards", swapped(SHARD, LAST), INDEX, "hold"),
    "a shard that stands there twice": way(
        "hf shards",
        both(
            gone(INDEX),
            lambda folder: (folder / "copy.safetensors").write_bytes((folder / SHARD).read_bytes()) and None,
        ),
        "copy.safetensors",
        SHARD,
    ),
    "no weights at all": way("hf", gone(WEIGHTS), "no weights"),
}
TENSORS = {
    "a tensor of another shape": way("hf", tensor(WEIGHTS, NORM, lambda t: t[:3]), "model.norm.weight", "[3]", "[64]"),
    "a tensor that lies on its side": way(
        "hf", tensor(WEIGHTS, UP, lambda t: t.T), "up_proj", "[64, 128]", "[128, 64]"
    ),
    "a tensor that is missing": way("hf", tensor(WEIGHTS, UP, None), "layers.1.mlp.up_proj.weight", "missing"),
    "a tensor that is too much": way(
        "hf",
        tensor(WEIGHTS, "language_model.model.layers.7.mlp.up_proj.weight", lambda t: t),
        CONFIG,
        "is 2",
        "3 blocks",
        "7",
    ),
    "a tensor of no part": way("hf", tensor(WEIGHTS, "audio_tower.weight", lambda t: t), WEIGHTS, "audio_tower.weight"),
    "a language model with a number that is none": way("hf", tensor(WEIGHTS, UP, nan), WEIGHTS, "up_proj", "finite"),
    "a language model without end": way("hf", tensor(WEIGHTS, TABLE, infinite), WEIGHTS, "embed_tokens", "finite"),
    "a language model of whole numbers": way("hf", tensor(WEIGHTS, UP, torch.Tensor.int), WEIGHTS, "up_proj", "int32"),
    "a language model of yes and no": way("hf", tensor(WEIGHTS, NORM, torch.Tensor.bool), WEIGHTS, "norm", "bool"),
    "an embedding that is no table": way("hf", tensor(WEIGHTS, TABLE, lambda t: t[0]), "embed_tokens", "[64]"),
    "an embedding that is a number": way("hf", tensor(WEIGHTS, TABLE, torch.Tensor.sum), "embed_tokens"),
    "an embedding without rows": way("hf", tensor(WEIGHTS, TABLE, lambda t: t[:0]), "embed_tokens"),
    "an embedding with fewer rows than the head": way(
        "hf", tensor(WEIGHTS, TABLE, lambda t: t[:99]), "lm_head.weight", "[448, 64]", "[99, 64]"
    ),
    "an embedding with fewer rows than tokens": way(
        "hf", both(tensor(WEIGHTS, TABLE, first(99)), tensor(WEIGHTS, HEAD, first(99))), TOKENIZER, "399", "99 rows"
    ),
    "a tower with a number that is none": way(
        "hf",
        tensor(WEIGHTS, f"{EYES}.embeddings.position_embedding.weight", nan),
        WEIGHTS,
        "position_embedding",
        "finite",
    ),
    "a tower of whole numbers": way(
        "hf", tensor(WEIGHTS, f"{EYES}.pre_layrnorm.weight", torch.Tensor.long), WEIGHTS, "pre_layrnorm", "int64"
    ),
    "a tower without its norm": way("hf", tensor(WEIGHTS, f"{EYES}.pre_layrnorm.weight", None), "pre_layrnorm.weight"),
    "position rows of another picture size": way(
        "hf",
        tensor(WEIGHTS, f"{EYES}.embeddings.position_embedding.weight", lambda t: t[:10]),
        WEIGHTS,
        "position_embedding",
        "[10, 32]",
        "[17, 32]",
    ),
    "patches of another size": way(
        "hf",
        tensor(WEIGHTS, f"{EYES}.embeddings.patch_embedding.weight", lambda t: t[..., :7, :7]),
        WEIGHTS,
        "patch_embedding",
        "[32, 3, 7, 7]",
        "[32, 3, 14, 14]",
    ),
    "a projector for another tower": way(
        "hf", tensor(WEIGHTS, "multi_modal_projector.linear_1.weight", lambda t: t[:, :31]), WEIGHTS, "31", "32"
    ),
    "a projector for another language model": way(
        "hf",
        both(
            tensor(WEIGHTS, HANDS, lambda t: t[:48]),
            tensor(WEIGHTS, HANDS.replace("weight", "bias"), lambda t: t[:48]),
        ),
        WEIGHTS,
        "48",
        "64",
    ),
    "a projector whose layers do not meet": way("hf", tensor(WEIGHTS, HANDS, lambda t: t[:, :48]), WEIGHTS, "48", "64"),
    "a projector with a bias of another length": way(
        "hf", tensor(WEIGHTS, HANDS.replace("weight", "bias"), lambda t: t[:48]), WEIGHTS, "2.bias", "[48]", "[64]"
    ),
    "a projector that is a row": way("hf", tensor(WEIGHTS, HANDS, lambda t: t[0]), WEIGHTS, "2.weight", "[64]"),
    "a projector without its second layer": way("hf", tensor(WEIGHTS, HANDS, None), "2.weight"),
    "a projector with a third layer": way(
        "hf", tensor(WEIGHTS, "multi_modal_projector.linear_3.weight", lambda t: t), WEIGHTS, "linear_3.weight"
    ),
    "a projector of numbers that are none": way("hf", tensor(WEIGHTS, HANDS, nan), WEIGHTS, "2.weight", "finite"),
    "a newline of another length": way(
        "1.6 hf", tensor(WEIGHTS, "image_newline", lambda t: t[:5]), "image_newline", "[5]", "[64]"
    ),
    "a newline that is missing": way("1.6", tensor(WEIGHTS, "model.image_newline", None), "image_newline", "missing"),
    "the tower that a configuration names is another's": way(
        "original", says("tower/config.json", "hidden_size", 48), "tower", "[32]", "[48]"
    ),
    "v0 with the tower's file for the projector's": way(
        "v0",
        lambda folder: (
            (folder / "mm_projector.safetensors").write_bytes((folder / "clip" / WEIGHTS).read_bytes()) and None
        ),
        "mm_projector.safetensors",
        "projector",
    ),
    "v0 with a projector of two layers": way(
        "v0",
        both(
            tensor("mm_projector.safetensors", "model.mm_projector.0.weight", lambda t: torch.ones(64, 32)),
            tensor("mm_projector.safetensors", "model.mm_projector.weight", None),
        ),
        "mm_projector.safetensors",
        "weight",
    ),
    "v0 with a language model that is not there": way("v0", gone(f"llama/{WEIGHTS}"), "llama"),
    "v0 with a tower that is not there": way("v0", gone(f"clip/{WEIGHTS}"), "clip", "no weights"),
    "v0 with a projector that is not there": way("v0", gone("mm_projector.safetensors"), "mm_projector.safetensors"),
}
TEXT, VISION = "text_config", "vision_config"
CONFIGS = {
    "a configuration that is missing": way("hf", gone(CONFIG), CONFIG, "not there"),
    "a configuration that is empty": way("hf", holds(CONFIG, ""), CONFIG, "no JSON"),
    "a configuration that is no text": way("hf", holds(CONFIG, b"\xff\xfe\x00"), CONFIG, "no JSON"),
    "a configuration that is a list": way("hf", holds(CONFIG, "[]"), CONFIG, "list"),
    "a configuration nested without end": way("hf", holds(CONFIG, "[" * 200_000), CONFIG, "no JSON"),
    "a configuration that says nothing": way("hf", holds(CONFIG, "{}"), "preprocessor_config.json", "56", "224"),
    "a language part that is a word": way("hf", says(CONFIG, TEXT, "llama"), CONFIG, TEXT, "'llama'"),
    "a vision part that is a number": way("hf", says(CONFIG, VISION, 7), CONFIG, VISION, "7"),
    "a kind of model that nobody knows": way("hf", says(CONFIG, "model_type", "llava_ultra"), CONFIG, "llava_ultra"),
    "a kind of language model that nobody knows": way(
        "hf", says(CONFIG, f"{TEXT}.model_type", "hal"), CONFIG, "model_type", "'hal'"
    ),
    "a kind of language model that is none": way("hf", says(CONFIG, f"{TEXT}.model_type", "vit"), CONFIG, "'vit'"),
    "a kind of tower that nobody knows": way("hf", says(CONFIG, f"{VISION}.model_type", "eva"), "'eva'", "clip"),
    "code to be run, and a kind that nobody knows": way(
        "hf",
        both(
            says(CONFIG, f"{TEXT}.model_type", "hal"),
            says(
                CONFIG, f"{TEXT}.auto_map", {"AutoConfig": "run_canary.Config", "AutoModelForCausalLM": "run_canary.M"}
            ),
        ),
        CONFIG,
        "'hal'",
    ),
    "a width of zero": way("hf", says(CONFIG, f"{TEXT}.hidden_size", 0), "hidden_size", "0"),
    "a width below zero": way("hf", says(CONFIG, f"{VISION}.hidden_size", -32), "hidden_size", "-32"),
    "a width in words": way("hf", says(CONFIG, f"{TEXT}.hidden_size", "64"), "hidden_size", "'64'"),
    "a width that is a fraction": way("hf", says(CONFIG, f"{VISION}.hidden_size", 32.5), "hidden_size", "32.5"),
    "a width of astronomic size": way("hf", says(CONFIG, f"{TEXT}.hidden_size", 1 << 60), CONFIG, str(1 << 60)),
    "a tower of astronomic width": way(
        "hf", says(CONFIG, f"{VISION}.hidden_size", 1 << 60), "hidden_size", str(1 << 60)
    ),
    "a billion blocks": way("hf", says(CONFIG, f"{TEXT}.num_hidden_layers", 10**9), CONFIG, "num_hidden_layers"),
    "a tower of a billion blocks": way("hf", says(CONFIG, f"{VISION}.num_hidden_layers", 10**9), CONFIG, str(10**9)),
    "a tower of more blocks than there are": way(
        "hf", says(CONFIG, f"{VISION}.num_hidden_layers", 1_000_000), WEIGHTS, "4 blocks", "999999"
    ),
    "one block more than there is": way("hf", says(CONFIG, f"{TEXT}.num_hidden_layers", 3), CONFIG, "3", "2"),
    "one block less than there is": way("hf", says(CONFIG, f"{TEXT}.num_hidden_layers", 1), CONFIG, "1", "2"),
    "no heads": way("hf", says(CONFIG, f"{TEXT}.num_attention_heads", 0), CONFIG),
    "heads that do not divide the width": way("hf", says(CONFIG, f"{VISION}.num_attention_heads", 5), "heads", "5"),
    "key heads that do not divide the heads": way(
        "hf", says(CONFIG, f"{TEXT}.num_key_value_heads", 3), "k_proj", "[48, 64]"
    ),
    "an inner width of another model": way("hf", says(CONFIG, f"{TEXT}.intermediate_size", 96), "96", "128"),
    "an inner width of astronomic size": way("hf", says(CONFIG, f"{TEXT}.intermediate_size", 1 << 61), CONFIG),
    "an activation that nobody knows": way("hf", says(CONFIG, f"{TEXT}.hidden_act", "gulp"), CONFIG, "gulp"),
    "a tower's activation that nobody knows": way("hf", says(CONFIG, f"{VISION}.hidden_act", "gulp"), "gulp"),
    "a projector's activation that nobody knows": way("hf", says(CONFIG, "projector_hidden_act", "gulp"), "gulp"),
    "a norm's epsilon in words": way("hf", says(CONFIG, f"{TEXT}.rms_norm_eps", "small"), CONFIG),
    "a context of zero": way("hf", says(CONFIG, f"{TEXT}.max_position_embeddings", 0), "max_position_embeddings"),
    "positions scaled in no known way": way(
        "hf", says(CONFIG, f"{TEXT}.rope_parameters", {"rope_type": "spiral"}), CONFIG
    ),
    "pictures of another size than the position rows": way(
        "hf", says(CONFIG, f"{VISION}.image_size", 112), "112", "56"
    ),
    "pictures smaller than a patch": way("hf", says(CONFIG, f"{VISION}.image_size", 7), "image_size", "patch_size"),
    "a patch size of another tower": way("hf", says(CONFIG, f"{VISION}.patch_size", 28), "patch_embedding", "28", "14"),
    "pictures of astronomic size": way(
        "hf", both(says(CONFIG, f"{VISION}.image_size", 1 << 60), gone("preprocessor_config.json")), str(1 << 60)
    ),
    "a feature layer that is not there": way("hf", says(CONFIG, "vision_feature_layer", 9), "9", "4"),
    "several feature layers": way("hf", says(CONFIG, "vision_feature_layer", [-2, -5]), CONFIG, "[-2, -5]"),
    "a selection that nobody knows": way("hf", says(CONFIG, "vision_feature_select_strategy", "most"), CONFIG, "most"),
    "an end that is a word": way("hf", says(CONFIG, f"{TEXT}.eos_token_id", "</s>"), "eos_token_id", "'</s>'"),
    "an end beyond the vocabulary": way(
        "hf", says("generation_config.json", "eos_token_id", 99_999), "generation_config.json", "eos_token_id", "99999"
    ),
    "a beginning beyond the vocabulary": way(
        "hf",
        both(
            says(CONFIG, f"{TEXT}.bos_token_id", 99_999),
            both(says("tokenizer_config.json", "bos_token", None), says(TOKENIZER, "post_processor", None)),
        ),
        "bos_token_id",
        "99999",
    ),
    "a beginning that is a word": way("hf", says(CONFIG, f"{TEXT}.bos_token_id", "<s>"), "bos_token_id", "'<s>'"),
    "generation settings that are a list": way("hf", holds("generation_config.json", "[1]"), "generation_config.json"),
    "generation settings that are no text": way(
        "hf", holds("generation_config.json", b"\xff"), "generation_config.json"
    ),
    "a processor for other pictures": way(
        "hf", says("preprocessor_config.json", "crop_size", 336), "preprocessor_config.json", "336", "56"
    ),
    "a processor that is no JSON": way("hf", holds("preprocessor_config.json", "{"), "preprocessor_config.json"),
    "a processor with two colours": way(
        "hf", says("preprocessor_config.json", "image_mean", [1, 2]), "image_mean", "[1, 2]"
    ),
    "a processor that divides by zero": way(
        "hf", says("preprocessor_config.json", "image_std", [0, 1, 1]), "image_std", "0"
    ),
    "no canvases": way("1.6 hf", says(CONFIG, "image_grid_pinpoints", []), CONFIG, "image_grid_pinpoints"),
    "canvases of broken tiles": way(
        "1.6", says(CONFIG, "image_grid_pinpoints", [[57, 112]]), "image_grid_pinpoints", "57"
    ),
    "canvases of astronomic size": way(
        "1.6", says(CONFIG, "image_grid_pinpoints", [[56 << 40, 56]]), "image_grid_pinpoints"
    ),
    "canvases as a program": way(
        "1.6", says(CONFIG, "image_grid_pinpoints", "__import__('os').system('touch canary')"), "image_grid_pinpoints"
    ),
    "canvases that the processor does not share": way(
        "1.6 hf", says("preprocessor_config.json", "image_grid_pinpoints", [[56, 56]]), "preprocessor_config.json"
    ),
    "tiles put together in no known way": way("1.6", says(CONFIG, "mm_patch_merge_type", "maxpool"), CONFIG, "maxpool"),
    "a bound on tiles that is no number": way(
        "onevision hf", says(CONFIG, "vision_aspect_ratio", "anyres_max_many"), CONFIG, "anyres_max_many"
    ),
    "a projector of a kind that nobody knows": way("original", says(CONFIG, "mm_projector_type", "qformer"), "qformer"),
    "a projector with more layers than its file": way(
        "original", says(CONFIG, "mm_projector_type", "mlp3x_gelu"), "4.weight"
    ),
    "a projector with fewer layers than its file": way(
        "original", says(CONFIG, "mm_projector_type", "linear"), "weight"
    ),
    "a tower that nobody has": way("original", says(CONFIG, "mm_vision_tower", "no-one/has-this"), "no-one/has-this"),
    "a tower by a path that leads out": way(
        "original", says(CONFIG, "mm_vision_tower", "../../../etc"), "../../../etc"
    ),
    "a tower that is a number": way("original", says(CONFIG, "mm_vision_tower", 7), "'7'"),
    "a tower whose configuration is missing": way("original", gone("tower/config.json"), "tower/config.json"),
    "pictures shown in no known way": way("original", says(CONFIG, "image_aspect_ratio", "spiral"), "spiral"),
}
TOKENIZERS = {
    "a tokenizer that is missing": way("hf", gone(TOKENIZER, "tokenizer_config.json"), "tokenizer"),
    "a tokenizer that is empty": way("hf", holds(TOKENIZER, ""), TOKENIZER),
    "a tokenizer that is cut short": way("hf", cut(TOKENIZER, 4000), TOKENIZER),
    "a tokenizer that is no tokenizer": way("hf", holds(TOKENIZER, "{}"), TOKENIZER),
    "a tokenizer that is no text": way("hf", holds(TOKENIZER, b"\xff\xfe"), TOKENIZER),
    "a tokenizer of a model that nobody knows": way("hf", says(TOKENIZER, "model.type", "Rebus"), TOKENIZER),
    "a tokenizer without a vocabulary": way("hf", says(TOKENIZER, "model.vocab", ABSENT), TOKENIZER),
    "a tokenizer whose merges nobody knows": way("hf", says(TOKENIZER, "model.merges", [["q", "qq"]]), TOKENIZER),
    "a token beyond the embedding": way("hf", says(TOKENIZER, "model.vocab.extra", 70_000), TOKENIZER, "70000"),
    "a tokenizer's settings that are a list": way("hf", holds("tokenizer_config.json", "[]"), "tokenizer_config.json"),
    "a tokenizer's settings that are no JSON": way("hf", holds("tokenizer_config.json", "{"), "tokenizer_config.json"),
    "a beginning without its text": way(
        "hf",
        both(says(CONFIG, f"{TEXT}.bos_token_id", None), says("tokenizer_config.json", "bos_token", {"id": 1})),
        "tokenizer_config.json",
        "bos_token",
    ),
    "a tokenizer that wants its own code": way(
        "hf",
        both(
            gone(TOKENIZER),
            says("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["run_canary.Tokenizer", None]}),
            says("tokenizer_config.json", "tokenizer_class", "RunTokenizer"),
        ),
        "tokenizer",
    ),
    "v0 whose control tokens have no rows": way(
        "v0",
        both(
            tensor(f"llama/{WEIGHTS}", "model.embed_tokens.weight", first(400)),
            tensor(f"llama/{WEIGHTS}", "lm_head.weight", first(400)),
        ),
        "llama",
        "<im_start>",
    ),
    "a tokenizer of tokens that are no text": way("original", holds("added_tokens.json", b"\xff"), "added_tokens.json"),
}


NAME = "model.mm_projector.0.weight"


def pickled(make: Callable[[Path], object], **packing: Any) -> Spoil:
    """The pickle is another one, made without torch."""
    return lambda folder: zipped(folder / BIN, pickle.dumps(make(folder), protocol=2), **packing)


def canary(folder: Path) -> str:
    return str(folder / "canary")


def rebuilt(sizes: tuple[int, ...]) -> Spoil:
    """A tensor of a few bytes that claims to have that shape, all its rows the same."""
    return torch_file(BIN, lambda t: {**t, "model.embed_tokens.weight": torch.zeros(1).expand(sizes)})


def squeezed(folder: Path) -> None:
    """A pickle's zip whose content is squeezed: two hundred times larger when it is opened."""
    (folder / BIN).write_bytes(bomb())


@cache
def bomb() -> bytes:
    """Larger inside than `MOST_MEMORY`, and made a piece at a time: `peak` is to tell of who opens it, not of us."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w") as program:
            program.write(b"\x80\x02}.")
            for _ in range(MOST_MEMORY // (1 << 20) + 64):
                program.write(bytes(1 << 20))
        archive.writestr("archive/version", "3")
        archive.writestr("archive/byteorder", "little")
    return made.getvalue()


PICKLES = {
    "a pickle that is not allowed": way("pickle", lambda folder: None, BIN, "--allow-pickle"),
    "a pickle with code, not allowed": way(
        "pickle", pickled(lambda f: {NAME: Runs(os.mkdir, canary(f))}), BIN, "--allow-pickle"
    ),
    "a pickle with code": way(
        "pickle", pickled(lambda f: {NAME: Runs(os.mkdir, canary(f))}), BIN, "not run", pickles=True
    ),
    "a pickle with a command": way(
        "pickle", pickled(lambda f: {NAME: Runs(os.system, f"touch {canary(f)}")}), BIN, "not run", pickles=True
    ),
    "a pickle with a command among its tensors": way(
        "pickle", torch_file(BIN, lambda t: {**t, "model.norm.weight": Runs(os.mkdir, "canary")}), BIN, pickles=True
    ),
    "an old pickle with code": way(
        "pickle", holds(BIN, pickle.dumps(Runs(os.mkdir, "canary"), protocol=2)), BIN, pickles=True
    ),
    "a pickle of a list": way("pickle", torch_file(BIN, lambda t: list(t.items())), BIN, "no table", pickles=True),
    "a pickle of numbers": way("pickle", torch_file(BIN, lambda t: dict.fromkeys(t, 1)), BIN, "no table", pickles=True),
    "a pickle whose names are numbers": way(
        "pickle", torch_file(BIN, lambda t: {**t, 7: t[NAME]}), BIN, "no table", pickles=True
    ),
    "a pickle with a table inside": way("pickle", torch_file(BIN, lambda t: {"model": t}), BIN, pickles=True),
    "a pickle that is empty": way("pickle", holds(BIN, ""), BIN, pickles=True),
    "a pickle that is cut short": way("pickle", cut(BIN, -5000), BIN, pickles=True),
    "a pickle without its end": way("pickle", cut(BIN, 40), BIN, pickles=True),
    "a pickle of tensors without numbers": way(
        "pickle", torch_file(BIN, lambda t: {k: v.to("meta") for k, v in t.items()}), BIN, pickles=True
    ),
    "a pickle with a tensor of gaps": way(
        "pickle",
        torch_file(BIN, lambda t: {**t, "model.norm.weight": torch.eye(8).to_sparse()}),
        BIN,
        "model.norm.weight",
        pickles=True,
    ),
    "a pickle with a tensor larger than the file": way(
        "pickle", rebuilt((1 << 40, 64)), BIN, "model.embed_tokens.weight", pickles=True
    ),
    "a zip bomb": way("pickle", squeezed, BIN, pickles=True),
    "a zip of something else": way("pickle", lambda f: zipfile.ZipFile(f / BIN, "w").close(), BIN, pickles=True),
    "a pickle of ten million words": way(
        "pickle", holds(BIN, b"\x80\x02" + b"N0" * 10_000_000 + b"."), BIN, pickles=True
    ),
    "a pickle with a number that is none": way(
        "pickle",
        torch_file(BIN, lambda t: {**t, "model.norm.weight": nan(t["model.norm.weight"])}),
        BIN,
        "model.norm.weight",
        "finite",
        pickles=True,
    ),
    "a pickle with a tensor of another shape": way(
        "pickle",
        torch_file(BIN, lambda t: {**t, "model.norm.weight": torch.ones(3)}),
        BIN,
        "model.norm.weight",
        "[3]",
        "[64]",
        pickles=True,
    ),
}
QUANTISED = {
    "GPTQ without its packed weights": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.qweight", None), WEIGHTS, f"{QUERY}.qweight"
    ),
    "GPTQ without its scales": way("gptq", tensor(WEIGHTS, f"{QUERY}.scales", None), WEIGHTS, f"{QUERY}.scales"),
    "GPTQ with half of its packed weights": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.qweight", lambda t: t[:16]), WEIGHTS, "qweight", "[16, 256]", "[32, 256]"
    ),
    "GPTQ packed into another type": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.qweight", torch.Tensor.long), "int64", "int32"
    ),
    "GPTQ with groups that are not there": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.g_idx", lambda t: t + 9), "g_idx", "12"
    ),
    "GPTQ with groups below zero": way("gptq", tensor(WEIGHTS, f"{QUERY}.g_idx", lambda t: t - 9), "g_idx", "-9"),
    "GPTQ with scales that are no numbers": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.scales", nan), WEIGHTS, "q_proj", "finite"
    ),
    "GPTQ with zeros of another layer": way(
        "gptq", tensor(WEIGHTS, f"{QUERY}.qzeros", lambda t: t[:, :3]), "qzeros", "[4, 3]"
    ),
    "GPTQ of five bits": way("gptq", says(CONFIG, "quantization_config.bits", 5), CONFIG, "5"),
    "GPTQ of bits in words": way("gptq", says(CONFIG, "quantization_config.bits", [4]), CONFIG, "[4]"),
    "GPTQ in a form that nobody knows": way(
        "gptq", says(CONFIG, "quantization_config.checkpoint_format", "x"), CONFIG, "'x'"
    ),
    "a way to quantise that nobody knows": way(
        "gptq", says(CONFIG, "quantization_config.quant_method", "zip"), CONFIG, "zip"
    ),
    "a way to quantise that is a list": way("gptq", says(CONFIG, "quantization_config.quant_method", ["a"]), CONFIG),
    "said to be quantised, and is not": way(
        "original", says(CONFIG, "quantization_config", {"quant_method": "gptq", "bits": 4}), CONFIG, "gptq", "qweight"
    ),
    "AWQ without its zeros": way("awq", tensor(WEIGHTS, f"{QUERY}.qzeros", None), WEIGHTS, f"{QUERY}.qzeros"),
    "AWQ that lies on its side": way(
        "awq", tensor(WEIGHTS, f"{QUERY}.qweight", lambda t: t.T), "[32, 256]", "[256, 32]"
    ),
    "AWQ in groups of another size": way(
        "awq", says(CONFIG, "quantization_config.group_size", 128), "qzeros", "[4, 32]", "[2, 32]"
    ),
    "AWQ in groups of nothing": way("awq", says(CONFIG, "quantization_config.group_size", 0), CONFIG, "0"),
    "AWQ of a version that nobody knows": way(
        "awq", says(CONFIG, "quantization_config.version", "marlin"), CONFIG, "marlin"
    ),
}
MODEL, SIGHT = "tiny-f16.gguf", "mmproj-tiny-f16.gguf"


def renamed(file: str, before: bytes, after: bytes) -> Spoil:
    """Some words of a file are others of the same length."""
    assert len(before) == len(after)

    def spoil(folder: Path) -> None:
        data = (folder / file).read_bytes()
        assert before in data
        (folder / file).write_bytes(data.replace(before, after, 1))

    return spoil


GGUF = {
    "GGUF without a mmproj file": way("gguf", gone(SIGHT), "mmproj"),
    "GGUF without a language model": way("gguf", gone(MODEL), "language model"),
    "GGUF cut to nothing": way("gguf", cut(MODEL, 0), MODEL),
    "GGUF cut inside of its head": way("gguf", cut(MODEL, 3000), MODEL, "follow"),
    "GGUF cut inside of a tensor": way("gguf", cut(MODEL, -64), MODEL, "cut short"),
    "GGUF with another magic": way("gguf", changed(MODEL, 0, b"GGML"), MODEL, "no GGUF file"),
    "GGUF of version 9": way("gguf", changed(MODEL, 4, struct.pack("<I", 9)), MODEL, "version 9"),
    "GGUF for machines with bytes turned round": way(
        "gguf", changed(MODEL, 4, struct.pack(">I", 3)), MODEL, "big-endian"
    ),
    "GGUF of a billion tensors": way("gguf", changed(MODEL, 8, struct.pack("<Q", 10**9)), MODEL, "1000000000"),
    "GGUF of 2**63 pairs": way("gguf", changed(MODEL, 16, struct.pack("<Q", 1 << 63)), MODEL, str(1 << 63)),
    "GGUF of another architecture": way(
        "gguf", renamed(MODEL, b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0rwkv7"), MODEL, "rwkv7"
    ),
    "GGUF without a key that is needed": way(
        "gguf", renamed(MODEL, b"llama.block_count", b"llama.block_cound"), MODEL, "block_count"
    ),
    "GGUF without a tensor that is needed": way(
        "gguf", renamed(MODEL, b"blk.1.ffn_up", b"blk.9.ffn_up"), MODEL, "layers"
    ),
    "GGUF with a tensor of no model": way(
        "gguf", renamed(MODEL, b"output_norm.weight", b"output_xorm.weight"), MODEL, "xorm"
    ),
    "GGUF without its tokens": way(
        "gguf", renamed(MODEL, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenz"), MODEL, "tokens"
    ),
    "GGUF with the two files swapped": way("gguf", swapped(MODEL, SIGHT), "gguf"),
    "mmproj cut inside of a tensor": way("gguf", cut(SIGHT, -64), SIGHT, "cut short"),
    "mmproj without its projector": way("gguf", renamed(SIGHT, b"mm.2.weight", b"mm.9.weight"), SIGHT, "9.weight"),
    "mmproj without a block": way(
        "gguf", renamed(SIGHT, b"v.blk.1.attn_q.weight", b"v.blk.8.attn_q.weight"), SIGHT, "block"
    ),
    "mmproj with a projector that nobody knows": way(
        "gguf", renamed(SIGHT, b"\x03\0\0\0\0\0\0\0mlp", b"\x03\0\0\0\0\0\0\0ldp"), SIGHT, "ldp"
    ),
}
SIGHTED = "vision_tower.encoder.layers.0.mlp.fc1.weight"
FOREIGN = {
    "foreign, a number that is none": way("foreign gemma3", tensor(WEIGHTS, SIGHTED, nan), WEIGHTS, SIGHTED, "finite"),
    "foreign, whole numbers": way(
        "foreign gemma3", tensor(WEIGHTS, SIGHTED, torch.Tensor.int), WEIGHTS, SIGHTED, "int32"
    ),
    "foreign, a tensor of another shape": way("foreign gemma3", tensor(WEIGHTS, SIGHTED, first(3)), "fc1", "3", "64"),
    "foreign, a tensor missing": way("foreign gemma3", tensor(WEIGHTS, SIGHTED, None), "mlp.fc1.weight", "missing"),
    "foreign, whose weights are cut short": way("foreign gemma3", cut(WEIGHTS, -64), WEIGHTS, "cut short"),
    "foreign, a tower of a billion blocks": way(
        "foreign gemma3", says(CONFIG, f"{VISION}.num_hidden_layers", 10**9), CONFIG, str(10**9)
    ),
    "foreign, a block that is not there": way(
        "foreign internvl", says(CONFIG, f"{VISION}.num_hidden_layers", 3), CONFIG, "is 3", "2 blocks"
    ),
    "foreign, pictures of astronomic size": way(
        "foreign gemma3", says(CONFIG, f"{VISION}.image_size", 1 << 40), CONFIG, "image_size", str(1 << 40)
    ),
    "foreign, whose vision part is a word": way("foreign gemma3", says(CONFIG, VISION, "eyes"), CONFIG, "gemma3"),
    "foreign, no heads": way("foreign gemma3", says(CONFIG, f"{VISION}.num_attention_heads", 0), "num_attention_heads"),
    "foreign, a processor that nobody knows": way(
        "foreign internvl", says("preprocessor_config.json", "image_processor_type", "Eyes"), "image processor"
    ),
    "foreign, a processor that wants its own code": way(
        "foreign internvl",
        both(
            says("preprocessor_config.json", "image_processor_type", "Eyes"),
            says("preprocessor_config.json", "auto_map", {"AutoImageProcessor": "run_canary.Eyes"}),
        ),
        "image processor",
    ),
    "foreign, a processor that is no JSON": way(
        "foreign internvl", holds("preprocessor_config.json", "{"), "checkpoint"
    ),
    "foreign, a family that can't fit": way("foreign gemma3", says(CONFIG, "model_type", "mllama"), CONFIG, "mllama"),
}
WAYS = {**FOREIGN, **HEADERS, **INSTEAD, **INDEXES, **TENSORS, **CONFIGS, **TOKENIZERS, **PICKLES, **QUANTISED, **GGUF}
LAYOUTS = sorted({each.layout for each in WAYS.values()})


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Sample]:
    """A sound checkpoint of a layout, made and loaded once."""
    made: dict[str, Sample] = {}

    def sample(layout: str) -> Sample:
        if layout not in made:
            made[layout] = make(layout, tmp_path_factory.mktemp("sound") / "checkpoint")
            load(**made[layout].settings, allow_pickle=layout == "pickle").close()
        return made[layout]

    return sample


@pytest.fixture
def spoilt(
    samples: Callable[[str], Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Way], Sample]:
    """A copy of the sample, spoilt, with code in it that nobody may run."""
    monkeypatch.chdir(tmp_path)

    def spoil(way: Way) -> Sample:
        copy = samples(way.layout).copy(tmp_path / "checkpoint")
        (copy.folder / "run_canary.py").write_text("open('canary', 'w')\n")
        way.spoil(copy.folder)
        return copy

    return spoil


def peak() -> int:
    """The most memory that this process has ever had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


@pytest.mark.parametrize("name", WAYS)
def test_it_is_told_in_words_at_once_and_runs_nothing(
    name: str, spoilt: Callable[[Way], Sample], tmp_path: Path
) -> None:
    way = WAYS[name]
    settings = spoilt(way).settings
    memory = peak()
    with no_side_effects() as effects, pytest.raises((CheckpointError, UsageError)) as caught:
        load(**settings, allow_pickle=way.pickles)
    assert peak() - memory < MOST_MEMORY
    assert effects == []
    assert not list(tmp_path.rglob("canary"))
    for word in way.names:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_there_are_many_ways_and_each_stands_once() -> None:
    groups = (FOREIGN, HEADERS, INSTEAD, INDEXES, TENSORS, CONFIGS, TOKENIZERS, PICKLES, QUANTISED, GGUF)
    assert len(WAYS) == sum(map(len, groups)) >= 200


def test_code_that_a_repository_brings_along_is_left_alone(
    samples: Callable[[str], Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sample = samples("hf").copy(tmp_path / "checkpoint")
    (sample.folder / "run_canary.py").write_text("open('canary', 'w')\n")
    code = {"AutoConfig": "run_canary.Config", "AutoModelForCausalLM": "run_canary.Model"}
    for key in ("auto_map", f"{TEXT}.auto_map", f"{VISION}.auto_map", f"{TEXT}.trust_remote_code"):
        says(CONFIG, key, code)(sample.folder)
    says("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["run_canary.Tokenizer", None]})(sample.folder)
    with no_side_effects() as effects:
        load(**sample.settings).close()
    assert effects == []
    assert not list(tmp_path.rglob("canary"))


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder that everybody may enter, and no right to read all files, not even for root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        before = os.geteuid()
        yield Path(name)
        os.seteuid(before)


@pytest.mark.parametrize(
    ("layout", "file"),
    [
        ("hf", CONFIG),
        ("hf", WEIGHTS),
        ("hf", TOKENIZER),
        ("hf", "tokenizer_config.json"),
        ("hf", "preprocessor_config.json"),
        ("hf shards", INDEX),
        ("hf shards", SHARD),
        ("pickle", BIN),
        ("gguf", MODEL),
        ("gguf", SIGHT),
    ],
)
def test_a_file_that_may_not_be_read_is_named(
    layout: str, file: str, samples: Callable[[str], Sample], nobody: Path
) -> None:
    sample = samples(layout).copy(nobody / "checkpoint")
    for path in sample.folder.rglob("*"):
        path.chmod(0o755)
    (sample.folder / file).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(CheckpointError) as caught:
        load(**sample.settings, allow_pickle=True)
    assert file in str(caught.value)


SHOWN = [
    "weights cut inside of a tensor",
    "a Git LFS pointer for the weights",
    "a pipe for the configuration",
    "an index that names a file outside",
    "a configuration that is a list",
    "a width of zero",
    "a kind of tower that nobody knows",
    "a tensor of no part",
    "a pickle that is not allowed",
    "a pickle with code",
    "a zip bomb",
    "GGUF cut inside of a tensor",
    "mmproj without its projector",
]
ASKED = [
    *SHOWN,
    "a tokenizer that is cut short",
    "a projector of numbers that are none",
    "GPTQ with groups that are not there",
    "v0 with the tower's file for the projector's",
    "no heads",
]


@pytest.mark.parametrize(
    ("command", "name"), [*(("inspect", name) for name in SHOWN), *(("ask", name) for name in ASKED)]
)
def test_the_command_line_says_one_sentence(
    command: str,
    name: str,
    spoilt: Callable[[Way], Sample],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = spoilt(WAYS[name]).settings
    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    words = ["ask", "red.png", "What is it?"] if command == "ask" else ["inspect"]
    options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", value)]
    options += ["--allow-pickle"] * WAYS[name].pickles
    monkeypatch.setattr(sys, "argv", ["trifocal", *words, *options])
    with no_side_effects() as effects, pytest.raises(SystemExit) as left:
        main()
    shown = capsys.readouterr()
    assert left.value.code == 1
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert effects == []
    assert not list(tmp_path.rglob("canary"))
