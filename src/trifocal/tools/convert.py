"""Checkpoints from one layout to another, tensor by tensor: deltas applied, parts taken out and put together.

Nothing is held but the tensor at hand. The result is written into a folder beside the one asked for, which gets its
name when all is there: never half a result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trifocal.checkpoints import Checkpoint, Preprocessing, Release, Text, Tiling, Tower, read_json
from trifocal.conversation.brought import TOOLS, own_template, tool_template
from trifocal.conversation.exported import exported, takes_text
from trifocal.conversation.templates import ALIASES, TEMPLATES
from trifocal.errors import CheckpointError, UsageError
from trifocal.source import source_of
from trifocal.tokens.folder import grown, read_words
from trifocal.weights.lora import changed_weights
from trifocal.weights.names import canonical
from trifocal.weights.tensors import Weights, part_weights, weight_files
from trifocal.weights.unpacked import unpacked

if TYPE_CHECKING:
    import torch

__all__ = ["SHARD", "Converted", "apply_delta", "join", "split"]

SHARD = 5_000_000_000  # bytes of a shard, as transformers writes them
_COPIED = ("*token*", "vocab.json", "merges.txt", "generation_config.json", "chat_template.*", "quant*_config.json")
_TABLES = ("model.embed_tokens.weight", "lm_head.weight")
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM"}
_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_FOREIGN = ("mm_", "image_", "freeze_mm", "tune_mm", "unfreeze_mm", "use_mm", "vision_", "tokenizer_", "sep_image")
_AS_THEY_ARE = "the three folders can be used as they are (--tower-from, --projector-from, --language-from)"
_RELEASE = 1 << 29  # bytes read after which the pages of mapped files are let go

Tell = Callable[[int, int], None]  # bytes written, bytes in all


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: where, how many tensors, and how many bytes of them."""

    folder: Path
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """A tensor to be written: its type and shape are known before it is read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        size = _BYTES[self.dtype]
        for side in self.shape:
            size *= side
        return size


def apply_delta(
    base: Path,
    delta: Path,
    out: Path,
    *,
    release: Release | None = None,
    shard: int = SHARD,
    allow_pickle: bool = False,
    tell: Tell | None = None,
) -> Converted:
    """LLaMA plus a delta is a LLaVA v0, v1.1 or Lightning: writes that with the delta's configuration and tokenizer.

    Each tensor is the sum in the delta's own type. The embedding table and the head have more rows than the base's:
    rows past those of the base are final values. What only the delta has must be the projector, and is kept. Rotary
    frequencies are left out: they are computed. What its files don't say of the ``release`` is written into the
    configuration: its turns (``trifocal_template``) and keys that it lacks.

    Checked: the configurations' dims, that both have the same tensors with the same shapes, that the base is no LLaVA
    itself, that each sum is finite. Not checked, since the tensors do not tell: that the base is the original LLaMA
    and not Vicuna or another model of its shape.

    Raises:
        UsageError: ``out`` is there already, or the disk has no room.
        CheckpointError: a check failed; names the tensor and what was expected.
    """
    _check_dims(base, delta)
    changed = _all_weights(delta, allow_pickle)
    original = _all_weights(base, allow_pickle)
    entries = _sums(original, changed, base, delta)
    with _new_folder(out, sum(entry.bytes for entry in entries)) as folder:
        _copy_files(delta, folder, extra=("config.json", "preprocessor_config.json"))
        if release is not None and release.template is not None:
            said = {**release.says, "trifocal_template": release.template, **read_json(delta / "config.json")}
            _write_json(folder / "config.json", said)
        steps = _Steps(entries, tell, (original, changed))
        _write_shards(entries, folder, shard, steps)
    return Converted(out, len(entries), steps.total)


def split(
    checkpoint: Checkpoint, out: Path, *, shard: int = SHARD, allow_pickle: bool = False, tell: Tell | None = None
) -> Converted:
    """Takes a checkpoint apart: ``out/language``, ``out/tower`` and ``out/projector``.

    ``language`` is a bare causal language model that transformers (and so text-generation-webui) opens by itself;
    quantised weights stay as they are packed. ``tower`` is a ``CLIPVisionModel``, ``projector`` one file of
    ``model.mm_projector.*`` and what a reader of it must know.

    Raises:
        UsageError: ``out`` is there already, or the disk has no room.
        CheckpointError: a part is missing or damaged, or the tokenizer lies in a GGUF file.
    """
    kind = str(checkpoint.language.config.get("model_type", "llama"))
    if kind not in _CLASSES:
        raise CheckpointError(
            f"{checkpoint.name}: a language model of type {kind!r} can't be taken out; {', '.join(_CLASSES)} can"
        )
    container = source_of(checkpoint.language.source).container
    if container:
        raise CheckpointError(
            f"{checkpoint.name}: its tokenizer lies in a {container} file and can't be written as a folder's files; "
            "use the pair as it is, or take the checkpoint apart that it was made of"
        )
    text, eyes, between = checkpoint.language, checkpoint.tower, checkpoint.projector
    language = changed_weights(text.source, "language", text.adapter, allow_pickle=allow_pickle)
    tower = unpacked(changed_weights(eyes.source, "tower", eyes.adapter, allow_pickle=allow_pickle), eyes.source)
    rows = changed_weights(between.source, "projector", between.adapter, allow_pickle=allow_pickle)
    projector = unpacked(rows, between.source)
    plans = {
        "language": _entries(language),
        "tower": _entries(tower, "vision_model."),
        "projector": [*_projector_entries(projector)],
    }
    for part, entries in plans.items():
        if not entries:
            raise CheckpointError(f"{checkpoint.name}: there is no {part} in it")
    everything = [entry for entries in plans.values() for entry in entries]
    with _new_folder(out, sum(entry.bytes for entry in everything)) as folder:
        for part in plans:
            (folder / part).mkdir()
        steps = _Steps(everything, tell, (language, tower, projector))
        _copy_words(text, folder / "language")
        _write_template(checkpoint, folder / "language")
        _write_json(folder / "language" / "config.json", _language_config(checkpoint, language))
        _write_shards(plans["language"], folder / "language", shard, steps)
        _write_json(folder / "tower" / "config.json", _tower_config(checkpoint.tower))
        _write_json(folder / "tower" / "preprocessor_config.json", _preprocessor(checkpoint.preprocessing))
        if checkpoint.preprocessing.of_frames is not checkpoint.preprocessing:
            frames = _preprocessor(checkpoint.preprocessing.of_frames)
            _write_json(folder / "tower" / "video_preprocessor_config.json", frames)
        _write_shards(plans["tower"], folder / "tower", shard, steps)
        _write_json(folder / "projector" / "config.json", _projector_config(checkpoint))
        _write_file(folder / "projector" / "mm_projector.safetensors", plans["projector"], steps)
    return Converted(out, len(everything), steps.total)


def join(folder: Path, out: Path, *, shard: int = SHARD, tell: Tell | None = None) -> Converted:
    """Puts ``language``, ``tower`` and ``projector`` of a folder together: a checkpoint in llava-hf's 1.5 layout.

    That layout has a token ``<image>``, which original checkpoints lack: then it is added to the tokenizer, and where
    the embedding table and the head have no row for it, they get some more, as llava-hf's own conversion does: up to
    the next multiple of 64, each the mean of the others. No picture ever uses these rows.

    Raises:
        UsageError: ``out`` is there already, or the disk has no room.
        CheckpointError: a part is missing, or the layout has no place for it: a projector of other than two layers,
            a row of image separators.
    """
    parts = {part: part_weights(_there(folder / part), part) for part in ("language", "tower", "projector")}
    token, rows = _image_token(folder / "language", parts["language"])
    config = _joined_config(folder, parts["projector"], token)
    config["text_config"]["vocab_size"] = rows
    linears = {"0.": "linear_1.", "2.": "linear_2."}
    entries = [
        *_renamed(parts["tower"], lambda name: f"vision_tower.vision_model.{name}"),
        *_renamed(parts["projector"], lambda name: f"multi_modal_projector.{linears[name[:2]]}{name[2:]}"),
        *(_grown(entry, rows) for entry in _renamed(parts["language"], lambda name: f"language_model.{name}")),
    ]
    with _new_folder(out, sum(entry.bytes for entry in entries)) as place:
        _copy_files(folder / "language", place)
        _teach_image_token(place, token)
        shutil.copyfile(folder / "tower" / "preprocessor_config.json", place / "preprocessor_config.json")
        _write_json(place / "config.json", config)
        _write_json(place / "processor_config.json", _processor_config(config))
        steps = _Steps(entries, tell, tuple(parts.values()))
        _write_shards(entries, place, shard, steps)
    return Converted(out, len(entries), steps.total)


def _all_weights(folder: Path, allow_pickle: bool) -> Weights:
    """Every tensor of a folder but rotary frequencies, under ``part/canonical name``."""

    def rename(stored: str) -> str | None:
        found = canonical(stored)
        if found is None and not stored.endswith("inv_freq"):
            raise CheckpointError(f"{folder}: {stored!r} is no tensor of LLaMA or of a delta to it")
        return "/".join(found) if found else None

    return Weights(weight_files(folder), rename, allow_pickle=allow_pickle)


def _check_dims(base: Path, delta: Path) -> None:
    """The two configurations describe models of one shape."""
    ours, theirs = read_json(base / "config.json"), read_json(delta / "config.json")
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if ours.get(name, theirs.get(name)) != theirs.get(name):
            found, wanted = ours.get(name), theirs.get(name)
            raise CheckpointError(
                f"{base / 'config.json'}: {name} is {found}, the delta's is {wanted}: take another base"
            )


def _sums(original: Weights, changed: Weights, base: Path, delta: Path) -> list[_Entry]:
    """A plan of the whole result; every name and shape is checked before anything is written."""
    for name in original:
        if not name.startswith("language/"):
            raise CheckpointError(
                f"{base}: holds {name.partition('/')[2]!r}: it is a LLaVA itself, the original LLaMA is wanted"
            )
    absent = sorted(set(original) - set(changed))
    if absent:
        raise CheckpointError(
            f"{delta}: lacks {len(absent)} tensors of the base, first {absent[0].partition('/')[2]!r}"
        )
    return [_sum(original, changed, name, base, delta) for name in changed]


def _sum(original: Weights, changed: Weights, key: str, base: Path, delta: Path) -> _Entry:
    part, _, name = key.partition("/")
    dtype, shape = changed.spec(key)
    if key not in original:
        if part != "projector":
            raise CheckpointError(f"{delta}: {name!r} is not in the base {base}; only the projector may be new")
        spelt = f"model.{name}" if name == "image_newline" else f"model.mm_projector.{name}"
        return _Entry(spelt, dtype, shape, lambda: _finite(changed[key], name, delta))
    _, rows = original.spec(key)
    grown = name in _TABLES and len(rows) == len(shape) == 2 and rows[0] <= shape[0] and rows[1] == shape[1]
    if rows != shape and not grown:
        raise CheckpointError(f"{original.where(key)}: {name!r} is {list(rows)}, the delta's is {list(shape)}")

    def add() -> torch.Tensor:
        total = changed[key].clone()
        total[: rows[0]] += original[key]
        return _finite(total, name, delta)

    return _Entry(name, dtype, shape, add)


def _finite(tensor: torch.Tensor, name: str, delta: Path) -> torch.Tensor:
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(
            f"{delta}: with this base, {name!r} holds numbers that are not finite: base and delta don't belong together"
        )
    return tensor


def _entries(weights: Weights, prefix: str = "") -> list[_Entry]:
    return _renamed(weights, lambda name: prefix + name)


def _projector_entries(weights: Weights) -> list[_Entry]:
    return _renamed(weights, lambda name: f"model.{name}" if name == "image_newline" else f"model.mm_projector.{name}")


def _renamed(weights: Weights, rename: Callable[[str], str]) -> list[_Entry]:
    def reader(name: str) -> Callable[[], torch.Tensor]:
        return lambda: weights[name]

    return [_Entry(rename(name), *weights.spec(name), reader(name)) for name in weights]


def _language_config(checkpoint: Checkpoint, weights: Weights) -> dict[str, Any]:
    """A bare language model's own ``config.json``, which transformers of today and of years ago can read."""
    source = checkpoint.language.config
    config = {name: value for name, value in source.items() if not name.startswith(_FOREIGN)}
    kind = str(config["model_type"])
    dtype, shape = weights.spec(_TABLES[0]) if _TABLES[0] in weights else ("F16", (config["vocab_size"],))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    original = checkpoint.language.source / "config.json"
    if original.is_file() and "quantization_config" in (whole := read_json(original)):
        config["quantization_config"] = whole["quantization_config"]
    return config | {
        "architectures": [_CLASSES[kind]],
        "vocab_size": shape[0],  # configurations are wrong about it, tensors are not
        "torch_dtype": _TORCH.get(dtype, "float16"),
        "tie_word_embeddings": "lm_head.weight" not in weights,
    }


def _tower_config(tower: Tower) -> dict[str, Any]:
    siglip = tower.kind == "siglip"
    return {
        "architectures": ["SiglipVisionModel" if siglip else "CLIPVisionModel"],
        "model_type": "siglip_vision_model" if siglip else "clip_vision_model",
        "hidden_size": tower.hidden,
        "intermediate_size": tower.mlp,
        # of SigLIP original LLaVA always takes the output of the last block but one
        "num_hidden_layers": tower.blocks + 1 if siglip and len(tower.taken) == 1 else tower.layers,
        "num_attention_heads": tower.heads,
        "image_size": tower.image_size,
        "patch_size": tower.patch_size,
        "hidden_act": tower.act,
        "layer_norm_eps": tower.eps,
    }


def _preprocessor(preprocessing: Preprocessing) -> dict[str, Any]:
    """``preprocessor_config.json`` in the form that every version of transformers reads."""
    square = {"height": preprocessing.size, "width": preprocessing.size}
    resized = preprocessing.resized or preprocessing.size
    shapes: dict[str, Any] = {
        # CLIP's own does not hear do_pad
        "image_processor_type": "LlavaImageProcessor" if preprocessing.fit == "pad" else "CLIPImageProcessor",
        "size": {"shortest_edge": resized},
        "do_center_crop": True,
        "crop_size": square,
    }
    video = preprocessing.video
    if preprocessing.fit == "stretch" or (video is not None and video.fit == "stretch"):
        exact = {"height": resized, "width": resized}
        crop = {"do_center_crop": True, "crop_size": square} if preprocessing.resized else {"do_center_crop": False}
        shapes = {"image_processor_type": "SiglipImageProcessor", "size": exact, **crop}
    return {
        **shapes,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": preprocessing.rescale,
        "do_normalize": preprocessing.normalise,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
        "resample": preprocessing.resample,
        "do_convert_rgb": True,
        "do_pad": preprocessing.fit == "pad",
    }


def _projector_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """What tower and projector were trained with, in the words of the original LLaVA."""
    projector, tower, marks = checkpoint.projector, checkpoint.tower, checkpoint.language.marks
    return {
        "mm_projector_type": projector.kind if projector.kind == "linear" else f"{projector.kind}_{projector.act}",
        "mm_hidden_size": tower.width,
        "hidden_size": checkpoint.language.hidden,
        "mm_vision_select_layer": tower.feature_layer if len(tower.taken) == 1 else list(tower.taken),
        "mm_vision_select_feature": "cls_patch" if tower.keep_first else "patch",
        "mm_use_im_start_end": bool(checkpoint.image_start),
        **({"mm_use_im_patch_token": "<im_patch>" in marks} if marks else {}),
        **_tiling_config(checkpoint.preprocessing),
        "trifocal_template": checkpoint.template,
        "trifocal_original": checkpoint.original,  # whose way of cutting text the tokenizer's files don't tell
    }


def _tiling_config(preprocessing: Preprocessing) -> dict[str, Any]:
    """How pictures are cut into tiles, in the words of the original LLaVA; its rounding is ours to tell."""
    tiling, video = preprocessing.tiles, preprocessing.video
    said: dict[str, Any] = {"image_aspect_ratio": "pad" if preprocessing.fit == "pad" else None}
    if preprocessing.newline:
        said["mm_patch_merge_type"] = "spatial_unpad"
    if video is not None:
        said |= {
            "mm_spatial_pool_mode": video.pool,
            "mm_spatial_pool_stride": video.stride,
            "mm_newline_position": video.newline,
            "trifocal_pool_early": video.early,
        }
    if tiling is None:
        return said
    return {
        **said,
        "image_aspect_ratio": "anyres" if tiling.most is None else f"anyres_max_{tiling.most}",
        "image_grid_pinpoints": [list(pair) for pair in tiling.pinpoints],
        "mm_patch_merge_type": _merge_type(tiling, preprocessing.newline),
        "trifocal_unpad_digits": tiling.digits,
    }


def _merge_type(tiling: Tiling, newline: bool) -> str:
    """``mm_patch_merge_type`` in the original's words, which say of a single square, too, whether a newline ends it."""
    pooled = tiling.merge == "spatial_maxpool2x2"
    return tiling.merge + "_unpad" * (pooled and newline) + "_nobase" * (not tiling.base)


def _joined_config(folder: Path, projector: Weights, token: int) -> dict[str, Any]:
    """llava-hf's ``config.json`` from those of the three parts."""
    text, seen = read_json(folder / "language" / "config.json"), read_json(folder / "projector" / "config.json")
    vision = read_json(folder / "tower" / "config.json")
    kind = str(seen.get("mm_projector_type", "linear"))
    if set(projector) != {"0.weight", "0.bias", "2.weight", "2.bias"} or not kind.startswith("mlp2x_"):
        raise CheckpointError(
            f"{folder / 'projector'}: {kind} with {sorted(projector)} has no place in llava-hf's 1.5 layout, which has "
            f"two linear layers; {_AS_THEY_ARE}"
        )
    whole, layer = seen.get("mm_vision_select_feature") == "cls_patch", seen.get("mm_vision_select_layer", -2)
    siglip = str(vision["model_type"]).startswith("siglip")
    if siglip and isinstance(layer, int):  # of whose blocks the last is not there: llava-hf counts those that are
        vision["num_hidden_layers"] -= 1
        layer = -1
    patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2 + (whole and not siglip)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": token,
        "image_seq_length": patches,
        "image_aspect_ratio": seen.get("image_aspect_ratio"),
        "projector_hidden_act": kind.removeprefix("mlp2x_"),
        "multimodal_projector_bias": True,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": "full" if whole else "default",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "torch_dtype": text.get("torch_dtype", "float16"),
        "trifocal_template": seen.get("trifocal_template"),
        "trifocal_original": seen.get("trifocal_original"),
        "text_config": text,
        "vision_config": vision,
    }


def _image_token(language: Path, weights: Weights) -> tuple[int, int]:
    """The id of ``<image>``, which llava-hf's own classes put pictures at, and the rows that it needs."""
    if _TABLES[0] not in weights:
        raise CheckpointError(f"{language}: the tensor {_TABLES[0]!r} is missing")
    rows = weights.spec(_TABLES[0])[1][0]
    known = _token_ids(language)
    token = known.get("<image>", max(known.values(), default=rows - 1) + 1)
    return token, rows if token < rows else -(-(token + 1) // 64) * 64


def _token_ids(language: Path) -> dict[str, int]:
    """Every token that the tokenizer's files name, with its id; none for one that is in ``tokenizer.model`` alone."""
    file = language / "tokenizer.json"
    if not file.is_file():
        added = language / "added_tokens.json"
        return read_json(added) if added.is_file() else {}
    tokenizer = read_json(file)
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    pieces = vocabulary if isinstance(vocabulary, dict) else {piece: at for at, (piece, _) in enumerate(vocabulary)}
    return pieces | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def _teach_image_token(folder: Path, token: int) -> None:
    """Adds ``<image>`` to the tokenizer's files, if it is not there."""
    known = _token_ids(folder)
    if "<image>" in known:
        return
    file = folder / "tokenizer.json"
    if not file.is_file():
        _write_json(folder / "added_tokens.json", known | {"<image>": token})
        return
    tokenizer = read_json(file)
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"id": token, "content": "<image>", **plain, "special": True}
    tokenizer["added_tokens"] = [*tokenizer.get("added_tokens", []), added]
    file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def _grown(entry: _Entry, rows: int) -> _Entry:
    """A table with more rows, each the mean of those there are; any other tensor as it is."""
    if not entry.name.endswith(_TABLES) or entry.shape[0] == rows:
        return entry

    def read() -> torch.Tensor:
        table = entry.read()
        mean = table.float().mean(0, keepdim=True).to(table.dtype)
        grown = mean.repeat(rows, 1)
        grown[: len(table)] = table
        return grown

    return _Entry(entry.name, entry.dtype, (rows, entry.shape[1]), read)


def _processor_config(config: Mapping[str, Any]) -> dict[str, Any]:
    siglip = str(config["vision_config"]["model_type"]).startswith("siglip")
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "patch_size": config["vision_config"]["patch_size"],
        "num_additional_image_tokens": int(not siglip),  # the class token, which SigLIP has not
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
    }


class _Steps:
    """Reads the planned tensors one after the other, tells how far it is, and lets go of what was read."""

    def __init__(self, entries: Sequence[_Entry], tell: Tell | None, sources: Sequence[Weights]) -> None:
        self.total = sum(entry.bytes for entry in entries)
        self._tell, self._sources = tell, sources
        self._done = self._held = 0

    def read(self, entry: _Entry) -> memoryview:
        """The tensor's bytes; it has to be of the type and shape that were planned."""
        import torch

        tensor = entry.read()
        assert tuple(tensor.shape) == entry.shape, entry.name
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data

    def done(self, entry: _Entry) -> None:
        self._done += entry.bytes
        self._held += entry.bytes
        if self._held >= _RELEASE:
            self._held = 0
            for source in self._sources:
                source.release()
        if self._tell is not None:
            self._tell(self._done, self.total)


def _write_shards(entries: Sequence[_Entry], folder: Path, shard: int, steps: _Steps) -> None:
    """safetensors files of at most ``shard`` bytes (or one tensor), with an index if there are several."""
    groups = list(_grouped(entries, shard))
    if len(groups) == 1:
        _write_file(folder / "model.safetensors", groups[0], steps)
        return
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        _write_file(folder / name, group, steps)
        places |= {entry.name: name for entry in group}
    total = sum(entry.bytes for entry in entries)
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def _grouped(entries: Sequence[_Entry], shard: int) -> Iterator[list[_Entry]]:
    group: list[_Entry] = []
    held = 0
    for entry in entries:
        if group and held + entry.bytes > shard:
            yield group
            group, held = [], 0
        group.append(entry)
        held += entry.bytes
    yield group


def _write_file(path: Path, entries: Sequence[_Entry], steps: _Steps) -> None:
    """One safetensors file, its tensors read as they are written: length, header, then the bytes in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, at + entry.bytes]}
        at += entry.bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in entries:
            file.write(steps.read(entry))
            steps.done(entry)
        file.flush()
        os.fsync(file.fileno())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    kept = {name: inner for name, inner in value.items() if inner is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")


def _copy_files(source: Path, target: Path, extra: Sequence[str] = ()) -> None:
    """The tokenizer's and generation's small files, and the chat template; never weights or code."""
    for pattern in (*_COPIED, str(TOOLS), *extra):
        for file in sorted(source.glob(pattern)):
            if file.is_file() and file.suffix in (".json", ".model", ".txt", ".jinja"):
                copy = target / file.relative_to(source)
                copy.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, copy)
    brought = own_template(source) if source.is_dir() else None
    if brought and brought[1].name == "processor_config.json":  # which says more than belongs to this part
        (target / "chat_template.jinja").write_text(brought[0], "utf-8")


def _copy_words(text: Text, target: Path) -> None:
    """A language model's small files; of a LoRA the tokenizer that has more tokens, and the template it brings."""
    _copy_files(text.source, target)
    if text.adapter is None:
        return
    if grown(read_words(text.source), text.source, text.adapter):
        _copy_files(text.adapter, target)
    brought = own_template(text.adapter)
    if brought is not None:
        (target / "chat_template.jinja").write_text(brought[0], "utf-8")


def _write_template(checkpoint: Checkpoint, language: Path) -> None:
    """The conversation family beside the language half, in both of the files in which programs look for it.

    Without it text-generation-webui takes Alpaca's. A template that the checkpoint brings is kept where it writes
    plain text; a processor's writes nothing of a message that is one string.
    """
    template = TEMPLATES.get(ALIASES.get(checkpoint.template, checkpoint.template))
    brought = own_template(language)
    kept = brought is not None and takes_text(brought[0])
    source = brought[0] if brought and kept else exported(template) if template else None
    if source is None:
        return
    if brought and kept and (for_tools := tool_template(brought[1])):
        (language / TOOLS).parent.mkdir(exist_ok=True)
        (language / TOOLS).write_text(for_tools, "utf-8")
    (language / "chat_template.json").unlink(missing_ok=True)
    (language / "chat_template.jinja").write_text(source, "utf-8")
    tokenizer = language / "tokenizer_config.json"
    if tokenizer.is_file():
        _write_json(tokenizer, {**read_json(tokenizer), "chat_template": source})


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is not there: a folder with language, tower and projector is wanted, as 'split' writes it"
        )
    return folder


@contextmanager
def _new_folder(out: Path, size: int) -> Iterator[Path]:
    """A folder that is called ``out`` only when all is in it; on any failure nothing stays."""
    if out.exists():
        raise UsageError(f"{out} is there already; name another folder, or take it away first")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is no folder")
    free = shutil.disk_usage(out.parent).free
    if free < size + (1 << 20):
        raise UsageError(f"{out.parent} has room for {free / 1e9:.1f} GB, the result takes {size / 1e9:.1f} GB")
    part = out.with_name(f".{out.name}.part-{os.getpid()}")
    part.mkdir()
    try:
        yield part
        part.rename(out)
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
