"""What a configuration of the LLaMA family says, as numbers; a family is an entry in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

__all__ = [
    "FAMILIES",
    "Family",
    "Shape",
    "odd_value",
    "rotary_factors",
    "rotary_table",
    "shape_of",
    "unfit",
    "unfit_for_gguf",
]


@dataclass(frozen=True, slots=True)
class Family:
    """How a model type differs from LLaMA: what its configuration leaves unsaid, and its tensors.

    ``qkv`` and ``gate_up`` are the names of the projections, one where the family stores them as one. ``window`` says
    what gives its layers one: ``sliding_window`` alone, ``use_sliding_window`` too, or nothing, whatever is written
    there. ``partial`` says that a part of each head may be turned by the position.
    """

    unsaid: Mapping[str, Any] = field(default_factory=dict)
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    gate_up: tuple[str, ...] = ("gate_proj", "up_proj")
    qk_norm: bool = False
    window: Literal["never", "said", "used"] = "said"
    partial: bool = False


_UNSAID: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "max_window_layers": 28,
}
_QWEN = {"num_key_value_heads": 32, "intermediate_size": 22016, "max_position_embeddings": 32768}
FAMILIES = {
    "llama": Family(window="never"),
    "mistral": Family(
        unsaid={
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        }
    ),
    "qwen2": Family(unsaid=_QWEN, window="used"),
    "qwen3": Family(unsaid={**_QWEN, "head_dim": 128}, qk_norm=True, window="used"),
    "phi3": Family(
        unsaid={
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
        },
        qkv=("qkv_proj",),
        gate_up=("gate_up_proj",),
        partial=True,
    ),
}
# what we don't compute: each switched off, or not there
_OTHER = (
    "attention_multiplier",
    "embedding_multiplier",
    "logits_scaling",
    "residual_multiplier",
    "final_logit_softcapping",
)
_SIZES = (
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "max_position_embeddings"),
)
_LARGEST = 1 << 24
_ROPES = ("default", "linear", "llama3")
_ROPE_NUMBERS = (
    *("rope_theta", "partial_rotary_factor"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a language model: ``heads`` of queries over ``kv_heads`` of ``dim`` each; ``window`` 0 is none."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    dim: int
    inner: int
    epsilon: float
    window: int
    context: int
    tied: bool
    rope: Mapping[str, Any]

    @property
    def parameters(self) -> int:
        """Weights of the linear layers."""
        attention = (2 * self.heads + 2 * self.kv_heads) * self.dim
        return self.layers * self.hidden * (attention + 3 * self.inner)


def unfit(config: Mapping[str, Any]) -> str | None:
    """Why a configuration is none that is computed here, as half a sentence; None where it is one."""
    if config.get("model_type", "llama") not in FAMILIES:
        return f"model_type {config.get('model_type')!r} is not of the LLaMA family"
    said = _said(config)
    odd = _odd(said)
    if odd:
        return odd
    if said["hidden_act"] != "silu":
        return f"its activation is {said['hidden_act']!r}"
    for key in _OTHER:
        if said.get(key) not in (None, 1.0):
            return f"it has {key}"
    if _windows(said) == "some":
        return "only some of its layers have a window"
    rope = _rope(said)
    if rope["rope_type"] not in _ROPES:
        return f"its rotary positions are of the kind {rope['rope_type']!r}"
    shape = shape_of(config)
    if shape.dim % 8 or shape.dim > 256 or shape.heads % shape.kv_heads or rope["rotated"] % 2:
        return f"its heads are {shape.dim} wide, {shape.heads} over {shape.kv_heads}"
    return None


def unfit_for_gguf(config: Mapping[str, Any]) -> str | None:
    """Why a configuration is none for which a GGUF file can be written, as half a sentence; None where it is one."""
    if reason := unfit(config):
        return reason
    shape = shape_of(config)
    return "only a part of each head is turned by the position" if shape.rope["rotated"] != shape.dim else None


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The sizes that a configuration tells, with what its family leaves unsaid."""
    said = _said(config)
    heads, kv_heads = int(said["num_attention_heads"]), said.get("num_key_value_heads")
    return Shape(
        layers=int(said["num_hidden_layers"]),
        hidden=int(said["hidden_size"]),
        heads=heads,
        kv_heads=heads if kv_heads is None else int(kv_heads),
        dim=int(said.get("head_dim") or said["hidden_size"] // heads),
        inner=int(said["intermediate_size"]),
        epsilon=float(said["rms_norm_eps"]),
        window=int(said.get("sliding_window") or 0) if _windows(said) == "all" else 0,
        context=int(said["max_position_embeddings"]),
        tied=bool(said.get("tie_word_embeddings", False)),
        rope=_rope(said),
    )


def _odd(said: Mapping[str, Any]) -> str | None:
    """A value that is no size, or so large that no tensor has it."""
    for key in _SIZES:
        value = said.get(key)
        unsaid = value is None and key in ("num_key_value_heads", "head_dim")
        if not unsaid and not (type(value) is int and 0 < value <= _LARGEST):
            return f"{key} is {value!r}"
    epsilon = said["rms_norm_eps"]
    if not isinstance(epsilon, int | float):
        return f"rms_norm_eps is {epsilon!r}"
    if not _is_count(said.get("max_window_layers")):
        return f"max_window_layers is {said['max_window_layers']!r}"
    if not isinstance(said.get("layer_types") or [], list):
        return f"layer_types is {said['layer_types']!r}"
    return odd_value(said) or _lacking(said)


def odd_value(config: Mapping[str, Any]) -> str | None:
    """A window or a rotary setting that is none, as half a sentence; of such transformers makes odd numbers."""
    window = config.get("sliding_window")
    if window is not None and not _is_count(window):
        return f"sliding_window is {window!r}, a number of positions was expected"
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, Mapping):
            return f"{key} is {config[key]!r}, a JSON object was expected"
    for key, value in ({key: config.get(key) for key in _ROPE_NUMBERS[:2]} | _rope_keys(config)).items():
        if key in _ROPE_NUMBERS and value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
            return f"{key} is {value!r}, a number above 0 was expected"
    return None


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _lacking(said: Mapping[str, Any]) -> str | None:
    """What a way of scaling needs and is not told."""
    rope = _rope_keys(said)
    needed = {"linear": ("factor",), "llama3": _ROPE_NUMBERS[2:]}.get(
        str(rope.get("rope_type") or rope.get("type")), ()
    )
    return next((f"its rotary positions have no {key}" for key in needed if rope.get(key) is None), None)


def _rope_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}


def _windows(said: Mapping[str, Any]) -> Literal["no", "some", "all"]:
    """Which layers see a window of the positions before them alone."""
    rule = FAMILIES[said["model_type"]].window
    if rule == "never" or not said.get("sliding_window"):
        return "no"
    if rule == "said":
        return "all"
    if not said.get("use_sliding_window"):
        return "no"
    first, layers = int(said.get("max_window_layers") or 0), int(said["num_hidden_layers"])
    kinds = set(said.get("layer_types") or ()) or {
        *(("full_attention",) if first > 0 else ()),
        *(("sliding_attention",) if first < layers else ()),
    }
    return "some" if len(kinds) > 1 else "all" if kinds == {"sliding_attention"} else "no"


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(config.get("model_type", "llama"))
    return {"model_type": kind, **_UNSAID, **FAMILIES[kind].unsaid, **config}


def rotary_table(shape: Shape, positions: int) -> torch.Tensor:
    """Cosines and then sines of every position, float32 ``[positions, rotated]``, as transformers computes them."""
    import torch

    rope = shape.rope
    width = int(rope["rotated"])
    inverse = 1.0 / (rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width))
    if rope["rope_type"] == "linear":
        inverse = inverse / float(rope["factor"])
    elif rope["rope_type"] == "llama3":
        inverse = _stretched(inverse, rope)
    angles = torch.arange(positions).float()[:, None] * inverse  # [positions, rotated / 2]
    return torch.cat([angles.cos(), angles.sin()], -1)


def rotary_factors(shape: Shape) -> torch.Tensor | None:
    """What each frequency is divided by, float32 ``[rotated / 2]``; None where it is none, or one for all."""
    rope = shape.rope
    if rope["rope_type"] != "llama3":
        return None
    import torch

    inverse = 1.0 / (rope["rope_theta"] ** (torch.arange(0, int(rope["rotated"]), 2).float() / int(rope["rotated"])))
    factors: torch.Tensor = inverse / _stretched(inverse, rope)
    return factors


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings under their newest names, whichever year wrote the configuration."""
    said = _rope_keys(config)
    kind = str(said.get("rope_type") or said.get("type") or "default")
    dim = int(config.get("head_dim") or config["hidden_size"] // int(config["num_attention_heads"]))
    part = float(said.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0)
    part = part if FAMILIES[config["model_type"]].partial else 1.0
    theta = said.get("rope_theta") or config.get("rope_theta") or 10000.0
    return {**said, "rope_type": kind, "rope_theta": float(theta), "rotated": int(dim * part)}


def _stretched(inverse: torch.Tensor, rope: Mapping[str, Any]) -> torch.Tensor:
    """Llama 3.1's frequencies: long waves by the factor, short ones as they are, smoothly between."""
    import torch

    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    old = float(rope["original_max_position_embeddings"])
    wave = 2 * math.pi / inverse
    smooth = (old / wave - low) / (high - low)
    between = (1 - smooth) * inverse / factor + smooth * inverse
    stretched = torch.where(wave > old / low, inverse / factor, inverse)
    return torch.where((wave <= old / low) & (wave >= old / high), between, stretched)
