"""Checkpoints of a released shape with random weights: what speed and memory need, without a download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from trifocal.errors import UnknownName

__all__ = ["QUANTISATIONS", "SHAPES", "Quantisation", "Shape", "write"]

Quantisation = Literal["none", "gptq"]
QUANTISATIONS: tuple[Quantisation, ...] = ("none", "gptq")
GROUP = 128  # columns a scale
_SHARD = 8  # blocks of the language model a file
_COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a LLaVA: its language model's and its tower's."""

    hidden: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32064
    positions: int = 4096
    tower_hidden: int = 1024
    tower_inner: int = 4096
    tower_blocks: int = 24
    tower_heads: int = 16
    side: int = 336
    patch: int = 14


SHAPES = {
    "llava-1.5-7b": Shape(4096, 11008, 32, 32, 32),
    "llava-1.5-13b": Shape(5120, 13824, 40, 40, 40),
    "llava-1.1b": Shape(2048, 5632, 22, 32, 4),
    "llava-135m": Shape(576, 1536, 30, 9, 3, 49152, 8192, 768, 3072, 12, 12, 224, 16),
    "toy": Shape(256, 768, 4, 8, 4, 4096, 2048, 64, 128, 3, 4, 56),
}


def write(name: str, quantisation: Quantisation, folder: Path, tell: Callable[[int, int], None] | None = None) -> Path:
    """Writes a checkpoint in llava-hf's layout; ``tell`` hears of files written, of all.

    Weights are drawn so that activations stay in range: answers are nonsense, costs are not. The tokenizer is that of
    the bundled model.

    Raises:
        UnknownName: no such shape, or no such quantisation.
    """
    if name not in SHAPES:
        raise UnknownName("shape", name, sorted(SHAPES))
    if quantisation not in QUANTISATIONS:
        raise UnknownName("quantisation", quantisation, list(QUANTISATIONS))
    from safetensors.torch import save_file

    shape = SHAPES[name]
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_parts(shape, quantisation))
    index: dict[str, str] = {}
    for at, part in enumerate(parts):
        file = f"model-{at + 1:05}-of-{len(parts):05}.safetensors"
        tensors = part()
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(tensors, file)
        if tell is not None:
            tell(at + 1, len(parts))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}), "utf-8")
    (folder / "config.json").write_text(json.dumps(_config(shape, quantisation)), "utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(_preprocessing(shape)), "utf-8")
    bundled = Path(str(resources.files("trifocal") / "thimble"))
    for one in _COPIED:
        shutil.copyfile(bundled / one, folder / one)
    return folder


def _parts(shape: Shape, quantisation: Quantisation) -> Iterator[Callable[[], dict[str, Any]]]:
    """One after the other what goes into one file."""
    yield partial(_vision, shape)
    for first in range(0, shape.blocks, _SHARD):
        last = min(first + _SHARD, shape.blocks)
        yield partial(_language, shape, quantisation, range(first, last))


def _language(shape: Shape, quantisation: Quantisation, blocks: range) -> dict[str, Any]:
    import torch

    dim = shape.hidden // shape.heads
    linears = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (shape.kv_heads * dim, shape.hidden),
        "self_attn.v_proj": (shape.kv_heads * dim, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.inner, shape.hidden),
        "mlp.up_proj": (shape.inner, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.inner),
    }
    tensors: dict[str, Any] = {}
    for block in blocks:
        at = f"language_model.model.layers.{block}"
        for name, (outputs, inputs) in linears.items():
            linear = _gptq if quantisation == "gptq" else _dense
            tensors |= {f"{at}.{name}.{part}": tensor for part, tensor in linear(outputs, inputs).items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}.{name}.weight"] = torch.ones(shape.hidden, dtype=torch.float16)
    if blocks.stop == shape.blocks:
        tensors["language_model.model.embed_tokens.weight"] = _random(shape.vocabulary, shape.hidden) * 0.02
        tensors["language_model.lm_head.weight"] = _random(shape.vocabulary, shape.hidden) * 0.02
        tensors["language_model.model.norm.weight"] = torch.ones(shape.hidden, dtype=torch.float16)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _vision(shape: Shape) -> dict[str, Any]:
    import torch

    width, inner, side = shape.tower_hidden, shape.tower_inner, shape.side // shape.patch
    at = "vision_tower.vision_model"
    tensors: dict[str, Any] = {
        f"{at}.embeddings.class_embedding": _random(width),
        f"{at}.embeddings.patch_embedding.weight": _random(width, 3, shape.patch, shape.patch) * 0.02,
        f"{at}.embeddings.position_embedding.weight": _random(side * side + 1, width) * 0.02,
    }
    linears = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width, width)}
    linears |= {"self_attn.v_proj": (width, width), "self_attn.out_proj": (width, width)}
    linears |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    norms = [f"{at}.pre_layrnorm", f"{at}.post_layernorm"]
    for block in range(shape.tower_blocks):
        own = f"{at}.encoder.layers.{block}"
        norms += [f"{own}.layer_norm1", f"{own}.layer_norm2"]
        for name, (outputs, inputs) in linears.items():
            tensors[f"{own}.{name}.weight"] = _random(outputs, inputs) * inputs**-0.5
            tensors[f"{own}.{name}.bias"] = torch.zeros(outputs, dtype=torch.float16)
    for name in norms:
        tensors |= {f"{name}.weight": torch.ones(width, dtype=torch.float16)}
        tensors |= {f"{name}.bias": torch.zeros(width, dtype=torch.float16)}
    for name, inputs in (("linear_1", width), ("linear_2", shape.hidden)):
        tensors[f"multi_modal_projector.{name}.weight"] = _random(shape.hidden, inputs) * 0.02 * inputs**-0.5
        tensors[f"multi_modal_projector.{name}.bias"] = torch.zeros(shape.hidden, dtype=torch.float16)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _dense(outputs: int, inputs: int) -> dict[str, Any]:
    return {"weight": _random(outputs, inputs) * inputs**-0.5}


def _gptq(outputs: int, inputs: int) -> dict[str, Any]:
    """Random levels around the zero 8 (stored as 7), with scales that give the weight the size of a trained one."""
    import torch

    device, whole = _device(), torch.iinfo(torch.int32)
    groups = inputs // GROUP
    return {
        "qweight": torch.randint(whole.min, whole.max, (inputs // 8, outputs), dtype=torch.int32, device=device),
        "qzeros": torch.full((groups, outputs // 8), 0x77777777, dtype=torch.int32, device=device),
        "scales": torch.full((groups, outputs), inputs**-0.5 / 4.6, dtype=torch.float16, device=device),
        "g_idx": (torch.arange(inputs, device=device) // GROUP).int(),
    }


def _random(*size: int) -> Any:
    import torch

    return torch.randn(*size, dtype=torch.float16, device=_device())


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _config(shape: Shape, quantisation: Quantisation) -> dict[str, Any]:
    config: dict[str, Any] = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 32000,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "text_config": {
            "model_type": "llama",
            "hidden_size": shape.hidden,
            "intermediate_size": shape.inner,
            "num_hidden_layers": shape.blocks,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": shape.positions,
            "rms_norm_eps": 1e-5,
            "vocab_size": shape.vocabulary,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": shape.tower_hidden,
            "intermediate_size": shape.tower_inner,
            "num_hidden_layers": shape.tower_blocks,
            "num_attention_heads": shape.tower_heads,
            "image_size": shape.side,
            "patch_size": shape.patch,
        },
    }
    if quantisation == "gptq":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
    return config


def _preprocessing(shape: Shape) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": shape.side},
        "crop_size": {"height": shape.side, "width": shape.side},
        "resample": 3,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
