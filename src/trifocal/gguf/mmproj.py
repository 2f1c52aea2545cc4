"""The tower and the projector in an ``mmproj`` GGUF file, with the known errors of its makers put right."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trifocal.errors import CheckpointError
from trifocal.gguf.container import GgufFile, TensorInfo

__all__ = ["Mmproj", "MmprojPart"]

_TOP = {
    "v.class_embd": "embeddings.class_embedding",
    "v.patch_embd.weight": "embeddings.patch_embedding.weight",
    "v.patch_embd.bias": "embeddings.patch_embedding.bias",
    "v.position_embd.weight": "embeddings.position_embedding.weight",
    "v.pre_ln.weight": "pre_layrnorm.weight",
    "v.pre_ln.bias": "pre_layrnorm.bias",
    "v.post_ln.weight": "post_layernorm.weight",
    "v.post_ln.bias": "post_layernorm.bias",
}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
_SWAPPED = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
_NEWLINE = ("model.image_newline", "v.image_newline")


@dataclass(frozen=True, slots=True)
class MmprojPart(Mapping[str, torch.Tensor]):
    """Some of a file's tensors under other names: our name -> the file's."""

    file: GgufFile
    names: Mapping[str, str]

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.file[self.names[name]]

    def info(self, name: str) -> TensorInfo:
        """Shape and type of a tensor, without reading it."""
        return self.file.info(self.names[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Mmproj:
    """What an ``mmproj`` file holds, in the words and the arithmetic of the original checkpoint.

    ``tower`` has the names of a CLIP vision model (``embeddings...``, ``encoder.layers...``, ``pre_layrnorm``) or of a
    SigLIP one, ``projector`` those after ``mm_projector.`` (``0.weight``, ``2.weight`` or ``weight``) and 1.6's
    ``image_newline`` ``[hidden]``; ``parts`` has both by name. ``config`` is the tower's own, ``preprocessing`` its
    size, mean and deviation.

    ``feature_layer`` counts as ``hidden_states`` does: 0 is the embeddings, k the output of block k; several
    (Granite Vision) stand side by side in the order in which they are listed. Files without that key keep no block past
    the one that is wanted (23 of CLIP-L's 24), so there it is the number of blocks held; llama.cpp's own use of one
    block less is not copied.

    Raises:
        CheckpointError: no CLIP or SigLIP tower with a LLaVA projector, or tensors missing, unknown or of a wrong
            shape.
    """

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        if file.need("general.architecture") != "clip":
            found = file.metadata["general.architecture"]
            raise CheckpointError(f"{file.path}: general.architecture is {found!r}, expected 'clip' (a mmproj file)")
        kind = file.metadata.get("clip.projector_type", file.metadata.get("clip.vision.projector_type", "mlp"))
        if kind not in ("mlp", "linear"):
            raise CheckpointError(f"{file.path}: the projector is {kind!r}; 'mlp' (LLaVA's) can be read")
        self.config = _config(file)
        self.tower = MmprojPart(file, _tower(file, self.config))
        self.projector = MmprojPart(file, _projector(file))
        self.parts = {"tower": self.tower, "projector": self.projector}
        self.feature_layer = _feature_layer(file, self.config["num_hidden_layers"])
        self.preprocessing = _preprocessing(file)
        _check(self)


def _config(file: GgufFile) -> dict[str, Any]:
    """The tower's configuration, with the blocks that are really there."""
    vision = {name: file.need(f"clip.vision.{name}") for name in ("image_size", "patch_size", "embedding_length")}
    heads, inner = file.need("clip.vision.attention.head_count"), file.need("clip.vision.feed_forward_length")
    for name, value in {**vision, "head_count": heads, "feed_forward_length": inner}.items():
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{file.path}: {name} is {value!r}, expected a whole number above 0")
    clip = _is_clip(file)
    acts = [act for act in ("gelu", "silu") if file.metadata.get(f"clip.use_{act}", False)]
    if acts not in ([], ["gelu"]):
        raise CheckpointError(
            f"{file.path}: {' and '.join(f'clip.use_{act}' for act in acts)} is true; towers of CLIP's and SigLIP's "
            "design, which alone are read, compute with GELU"
        )
    return {
        "model_type": "clip_vision_model" if clip else "siglip_vision_model",
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "hidden_size": vision["embedding_length"],
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_hidden_layers": _blocks(file),
        "layer_norm_eps": file.metadata.get("clip.vision.attention.layer_norm_epsilon", 1e-5),
        "projection_dim": file.metadata.get("clip.vision.projection_dim", 768),
        # converters have no word for the only one that SigLIP has
        "hidden_act": (acts or ["quick_gelu"])[0] if clip else "gelu_pytorch_tanh",
    }


def _is_clip(file: GgufFile) -> bool:
    """Whether it is CLIP's: SigLIP has no class token and no norm before the blocks."""
    return any(name in file for name in ("v.class_embd", "v.pre_ln.weight"))


def _blocks(file: GgufFile) -> int:
    """How many blocks the file holds. Its ``block_count`` may also count the last one, which converters drop."""
    found = {int(match[1]) for name in file if (match := re.match(r"v\.blk\.(\d+)\.", name))}
    told = file.need("clip.vision.block_count")
    if found != set(range(len(found))) or not found or told not in (len(found), len(found) + 1):
        raise CheckpointError(f"{file.path}: block_count is {told}, but the tensors are of the blocks {sorted(found)}")
    return len(found)


def _feature_layer(file: GgufFile, blocks: int) -> int | tuple[int, ...]:
    given = file.metadata.get("clip.vision.feature_layer")
    if given in (None, []):
        return blocks
    if not isinstance(given, list) or not given or not all(type(at) is int and 0 <= at <= blocks for at in given):
        raise CheckpointError(f"{file.path}: feature_layer is {given!r}, expected a list of layers from 0 to {blocks}")
    return given[0] if len(given) == 1 else tuple(given)


def _tower(file: GgufFile, config: Mapping[str, Any]) -> dict[str, str]:
    """Our names -> the file's; refuses a tensor that has no place."""
    swapped = _is_swapped(file, config)
    names: dict[str, str] = {}
    for name in file:
        match = re.fullmatch(r"v\.blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if name in _TOP:
            names[_TOP[name]] = name
        elif match and match[2] in _BLOCK:
            layer = _SWAPPED.get(match[2], match[2]) if swapped else match[2]
            names[f"encoder.layers.{int(match[1])}.{_BLOCK[layer]}.{match[3]}"] = name
        elif not name.startswith("mm.") and name not in _NEWLINE:
            raise CheckpointError(f"{file.path}: the tensor {name!r} has no place in a CLIP or SigLIP tower")
    return names


def _is_swapped(file: GgufFile, config: Mapping[str, Any]) -> bool:
    """Whether ``ffn_down`` is the layer that widens, as the first LLaVA converters called it."""
    shape = file.info("v.blk.0.ffn_down.weight").shape if "v.blk.0.ffn_down.weight" in file else ()
    if shape not in ((wide := (config["intermediate_size"], config["hidden_size"])), wide[::-1]):
        raise CheckpointError(
            f"{file.path}: v.blk.0.ffn_down.weight has the shape {list(shape)}, expected {list(wide)} or turned"
        )
    if wide[0] == wide[1]:
        return "clip.vision.feature_layer" not in file.metadata
    return shape == wide


def _projector(file: GgufFile) -> dict[str, str]:
    """``mm.0``, ``mm.2`` are the two linears of 1.5; ``mm.0`` alone, or ``mm``, is the linear of before."""
    names = {name.removeprefix("mm."): name for name in file if name.startswith("mm.")}
    newline = dict([("image_newline", name) for name in _NEWLINE if name in file][:1])
    if set(names) == {"0.weight", "0.bias"}:
        return {name.removeprefix("0."): source for name, source in names.items()} | newline
    if set(names) not in ({"0.weight", "0.bias", "2.weight", "2.bias"}, {"weight", "bias"}):
        raise CheckpointError(f"{file.path}: {sorted(names)} are the tensors of no LLaVA projector")
    return names | newline


def _preprocessing(file: GgufFile) -> dict[str, Any]:
    """Size, mean and deviation, and what 1.6 adds, under the names of the original configurations."""
    read: dict[str, Any] = {
        name: file.need(f"clip.vision.{name}") for name in ("image_size", "image_mean", "image_std")
    }
    for name in ("image_aspect_ratio", "mm_patch_merge_type"):
        if (value := file.metadata.get(f"clip.vision.{name}")) is not None:
            read[name] = value
    if flat := file.metadata.get("clip.vision.image_grid_pinpoints"):
        read["image_grid_pinpoints"] = [flat[at : at + 2] for at in range(0, len(flat), 2)]
    return read


def _check(parts: Mmproj) -> None:
    """Every tensor that the tower and the projector need is there with its shape."""
    file, config = parts.file, parts.config
    width, inner = config["hidden_size"], config["intermediate_size"]
    clip = _is_clip(file)
    rows = (config["image_size"] // config["patch_size"]) ** 2 + clip
    expected: dict[str, tuple[int, ...]] = {
        "embeddings.patch_embedding.weight": (width, 3, config["patch_size"], config["patch_size"]),
        "embeddings.position_embedding.weight": (rows, width),
    }
    own = ("embeddings.class_embedding", "pre_layrnorm.weight", "pre_layrnorm.bias")
    expected |= dict.fromkeys(own if clip else ("embeddings.patch_embedding.bias",), (width,))
    for layer in range(config["num_hidden_layers"]):
        for name in ("q", "k", "v", "out"):
            expected[f"encoder.layers.{layer}.self_attn.{name}_proj.weight"] = (width, width)
            expected[f"encoder.layers.{layer}.self_attn.{name}_proj.bias"] = (width,)
        for name in (
            "layer_norm1.weight",
            "layer_norm1.bias",
            "layer_norm2.weight",
            "layer_norm2.bias",
            "mlp.fc2.bias",
        ):
            expected[f"encoder.layers.{layer}.{name}"] = (width,)
        expected[f"encoder.layers.{layer}.mlp.fc1.weight"] = (inner, width)
        expected[f"encoder.layers.{layer}.mlp.fc1.bias"] = (inner,)
        expected[f"encoder.layers.{layer}.mlp.fc2.weight"] = (width, inner)
    for name, shape in expected.items():
        if name not in parts.tower:
            raise CheckpointError(f"{file.path}: the tensor for {name!r} of the tower is missing")
        source = parts.tower.names[name]
        if file.info(source).shape != shape:
            raise CheckpointError(
                f"{file.path}: tensor {source!r} has the shape {list(file.info(source).shape)}, expected {list(shape)}"
            )
