"""Families of LLaVA's design that transformers has classes for: read by their configuration alone.

Their vision half comes through `trifocal.vision.transformers`, their language half is a language model like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trifocal.checkpoints.configs import text_part
from trifocal.checkpoints.parts import Checkpoint, ForeignVision
from trifocal.errors import CheckpointError
from trifocal.quiet import quiet
from trifocal.weights.names import LANGUAGE_OF_WHOLE
from trifocal.weights.tensors import Weights, weight_files

if TYPE_CHECKING:
    import torch

__all__ = ["MISFITS", "PROVEN", "check_fits", "from_transformers", "is_transformers", "stored_parts"]

# model_types whose rows, ids, logits and tokens are held against transformers' by our tests. Others come through
# too, and are held against it when they are loaded (`trifocal.vision.transformers.probe`); ``llava`` is Pixtral's tower
PROVEN = ("internvl", "idefics3", "smolvlm", "llava", "mistral3", "gemma3", "paligemma", "vipllava", "aya_vision")
# those that we see with our own classes
_OWN = ("llava", "llava_next", "llava_onevision", "llava_next_video")
# families that attend in another way than causally: see `Checkpoint.attention`
_ATTENDS: dict[str, Literal["images", "prompt"]] = {"gemma3": "images", "paligemma": "prompt"}
_ROPE = "its positions are threefold (m-rope), and rows alone don't say which picture's place they have"
_DEEP = "features of several blocks of its tower go into several layers of its language model (deepstack)"
_TOWER = "it tells how well a picture and a text match, and says nothing; a tower is what it can be (--tower-from)"
_CROSS = "its language model looks at pictures by cross-attention; they never stand in the prompt"
# model_type -> why rows in the prompt are not enough for it
MISFITS = {
    "clip": _TOWER,
    "siglip": _TOWER,
    "siglip2": _TOWER,
    "qwen2_vl": _ROPE,
    "qwen2_5_vl": _ROPE,
    "qwen3_vl": f"{_ROPE}, and {_DEEP}",
    "qwen3_vl_moe": f"{_ROPE}, and {_DEEP}",
    "qwen3_5": _ROPE,
    "qwen3_5_moe": _ROPE,
    "glm4v": _ROPE,
    "glm4v_moe": _ROPE,
    "glm46v": _ROPE,
    "ernie4_5_vl_moe": _ROPE,
    "paddleocr_vl": _ROPE,
    "granite4_vision": _DEEP,
    "mllama": _CROSS,
    "idefics": _CROSS,
    "cogvlm": "its language model has other weights for pictures' positions (visual experts)",
    "molmo": "rows are added to tokens' embeddings, not put in their place",
    "molmo2": "rows are added to tokens' embeddings, and pictures' positions see each other",
    "phi4_multimodal": "its language model changes its weights (adapters) when there is a picture",
    "blip-2": "its language model is asked through a Q-Former",
    "instructblip": "its Q-Former reads the question as well as the picture",
    "chameleon": "pictures are tokens of its vocabulary",
    "emu3": "pictures are tokens of its vocabulary",
    "gemma3n": "its language model asks for embeddings a layer",
    "gemma4": "its language model asks for embeddings a layer",
}


def check_fits(file: Path, config: Mapping[str, Any]) -> None:
    """Refuses, by name and with the reason, a family that rows in the prompt are not enough for.

    A family that is not in the table is refused by the marks of its configuration.

    Raises:
        CheckpointError: it does not fit.
    """
    kind = str(config.get("model_type"))
    text = config.get("text_config")
    text = text if isinstance(text, dict) else {}
    vision = config.get("vision_config")
    vision = vision if isinstance(vision, dict) else {}
    reason = MISFITS.get(kind)
    ropes = [text.get(key, config.get(key)) for key in ("rope_scaling", "rope_parameters")]
    if reason is None and any("mrope_section" in rope for rope in ropes if isinstance(rope, dict)):
        reason = _ROPE
    if reason is None and (vision.get("deepstack_visual_indexes") or config.get("deepstack_layer_map")):
        reason = _DEEP
    if reason is None and (text.get("cross_attention_layers") or config.get("cross_layer_interval")):
        reason = _CROSS
    if reason:
        raise CheckpointError(f"{file}: {kind} can't be read: {reason}")


def is_transformers(config: Mapping[str, Any]) -> bool:
    """Whether transformers' own classes see for this family."""
    vision = config.get("vision_config")
    if str(config.get("model_type")) == "llava":
        return isinstance(vision, dict) and vision.get("model_type") == "pixtral"
    has_both = isinstance(vision, dict) and isinstance(config.get("text_config"), dict)
    return has_both and str(config.get("model_type")) not in _OWN


def from_transformers(folder: Path, config: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint whose pictures are seen by transformers' own classes.

    Raises:
        CheckpointError: a family or values that the installed transformers does not know.
    """
    kind = str(config.get("model_type"))
    family = kind if kind != "llava" else "pixtral"
    vision, text = _filled(folder / "config.json", kind)
    sizes = [_first(vision.get(key), 0) for key in ("num_hidden_layers", "hidden_size", "image_size")]
    what = "{}'s, {} blocks of {}, {} px".format(family, *sizes)
    return Checkpoint(
        name=folder.name,
        family=family,
        vision=ForeignVision("transformers", folder, what, sizes[-1]),
        language=text_part(folder, text),
        template="paligemma" if kind == "paligemma" else "checkpoint",
        attention=_ATTENDS.get(kind, "causal"),
    )


def _filled(file: Path, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a configuration says of tower and language model, with the defaults of transformers' classes."""
    from transformers import AutoConfig
    from transformers import __version__ as version
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KINDS

    if kind not in KINDS:
        raise CheckpointError(
            f"{file}: model_type {kind!r} is not supported: transformers {version} has no model of pictures and text "
            "of that name"
        )
    try:
        with quiet():
            config = AutoConfig.from_pretrained(file.parent, trust_remote_code=False, local_files_only=True)
            text = config.get_text_config().to_dict()
            if getattr(config, "eos_token_id", None) is not None:  # what stands outside counts first
                text["eos_token_id"] = config.eos_token_id
            return config.vision_config.to_dict(), text
    except Exception as error:  # whatever wrong values make of the code that computes with them
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{file}: transformers can't read this configuration ({said})") from error


def stored_parts(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder's vision half under the names that its files have; they are read at once.

    Raises:
        CheckpointError: files missing or damaged, or tensors that hold no finite numbers.
    """

    def rename(stored: str) -> str | None:
        speaks = LANGUAGE_OF_WHOLE.match(stored) or stored.split(".")[-2:-1] == ["lm_head"]
        return None if speaks else stored

    weights = Weights(weight_files(folder), rename)
    return {name: _sound(weights, name) for name in weights}


def _sound(weights: Weights, name: str) -> torch.Tensor:
    """A tensor of finite floating point numbers."""
    tensor = weights[name]
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"{weights.where(name)}: {name} holds {tensor.dtype}, floating point numbers were expected"
        )
    if not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{weights.where(name)}: {name} holds numbers that are not finite")
    return tensor


def _first(value: Any, default: int) -> int:
    """A size that some configurations give for each side."""
    value = value[0] if isinstance(value, (list, tuple)) and value else value
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else default
