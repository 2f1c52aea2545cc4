"""Small random models of other families of LLaVA's design, as transformers saves them, with their processors."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import DeepseekVLImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from checkpoint_maker import TEXT, bytes_tokenizer, shaken

HALF = [0.5, 0.5, 0.5]
SMALL = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
FOREIGN = [
    *("internvl", "idefics3", "smolvlm", "pixtral", "mistral3", "gemma3", "paligemma", "paligemma2", "vipllava"),
    "aya_vision",
]
# families that no line of the package names
NEWCOMERS = ["deepseek_vl", "lighton_ocr", "got_ocr2"]
TOKENS: dict[str, list[str]] = {
    "internvl": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
    "idefics3": ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"],
    "smolvlm": ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"],
    "pixtral": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "mistral3": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "gemma3": ["<start_of_image>", "<end_of_image>", "<image_soft_token>", "<start_of_turn>", "<end_of_turn>"],
}
TOKENS |= {name: ["<bos>", "<image>"] for name in ("paligemma", "paligemma2")}
TOKENS |= {name: ["<image>"] for name in ("vipllava", "deepseek_vl", "ovis2")}
TOKENS["aya_vision"] = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<image>"]
TOKENS["aya_vision"] += ["TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 5))]
TOKENS["got_ocr2"] = ["<img>", "</img>", "<imgpad>"]
TOKENS["ovis2"] += [f"<{name}>" for name in ("IMG_ATOM", "IMG_START", "IMG_GRID", "IMG_COL", "IMG_ROW", "IMG_END")]
TOKENS["lighton_ocr"] = ["<|image_pad|>", "<|vision_pad|>", "<|vision_end|>"]
for _name in ("idefics3", "smolvlm"):
    TOKENS[_name] += [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]


def processor_of(kind: str, name: str) -> Any:
    """A processor's class from its own module, which imports torchvision and uses nothing of it here."""
    names = ("torchvision", "torchvision.transforms", "torchvision.transforms.v2")
    held = {each: ModuleType(each) for each in names if each not in sys.modules}
    if held:
        held[names[-1]].functional = None  # type: ignore[attr-defined]
    sys.modules.update(held)
    try:
        return getattr(importlib.import_module(f"transformers.models.{kind}.processing_{kind}"), name)
    finally:
        for each in held:
            del sys.modules[each]


def make_foreign(kind: str, folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """The model and its processor, saved in ``folder`` in the ordinary way."""
    tokenizer = _tokenizer(kind)
    config, processor = globals()[f"_{kind}"](tokenizer)
    torch.manual_seed(seed)
    model = shaken(_CLASSES[kind](config), seed).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


_CLASSES: dict[str, Any] = {
    "internvl": InternVLForConditionalGeneration,
    "idefics3": Idefics3ForConditionalGeneration,
    "smolvlm": SmolVLMForConditionalGeneration,
    "pixtral": LlavaForConditionalGeneration,
    "mistral3": Mistral3ForConditionalGeneration,
    "gemma3": Gemma3ForConditionalGeneration,
    "paligemma": PaliGemmaForConditionalGeneration,
    "paligemma2": PaliGemmaForConditionalGeneration,
    "vipllava": VipLlavaForConditionalGeneration,
    "aya_vision": AyaVisionForConditionalGeneration,
    "deepseek_vl": DeepseekVLForConditionalGeneration,
    "lighton_ocr": LightOnOcrForConditionalGeneration,
    "got_ocr2": GotOcr2ForConditionalGeneration,
    "ovis2": Ovis2ForConditionalGeneration,
}


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = ["<unk>", "<s>", "</s>", "<pad>", *TOKENS[kind]]
    names: dict[str, Any] = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    extra: dict[str, str] = {}
    if kind == "internvl":
        extra = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    if kind == "gemma3":
        extra = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    if kind in ("deepseek_vl", "lighton_ocr", "got_ocr2"):
        extra = {"image_token": TOKENS[kind][-1] if kind == "got_ocr2" else TOKENS[kind][0]}
    if kind == "lighton_ocr":
        extra |= {"image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    if kind.startswith("paligemma"):
        names["bos_token"] = "<bos>"
        extra = {"image_token": "<image>"}
    return PreTrainedTokenizerFast(tokenizer_object=bytes_tokenizer(special), **names, extra_special_tokens=extra)


def _text(tokenizer: Any, kind: str, **more: Any) -> dict[str, Any]:
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 2048, "vocab_size": len(tokenizer) + 8}
    return {"model_type": kind, **SMALL, **heads, **ids, "tie_word_embeddings": False, **more}


def _internvl(tokenizer: Any) -> tuple[Any, Any]:
    vision = {**EYES, "image_size": [28, 28], "patch_size": [7, 7], "model_type": "internvl_vision"}
    config = InternVLConfig(
        vision_config=vision,
        text_config=_text(tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(
        # as the released repositories say, which the processor knows better
        size={"height": 28, "width": 28},
        crop_to_patches=False,
        min_patches=1,
        max_patches=4,
    )
    return config, without_videos("internvl", "InternVLProcessor")(images, tokenizer, None, image_seq_length=4)


def without_videos(kind: str, name: str) -> Any:
    """A processor's class that does without the part for videos, which needs torchvision."""

    class Pictures(processor_of(kind, name)):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

        def save_pretrained(self, folder: Path, **more: Any) -> None:
            self.image_processor.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            values = {"processor_class": name, "image_seq_length": self.image_seq_length}
            (folder / "processor_config.json").write_text(json.dumps(values))

    return Pictures


def _smolvlm_marks(inputs: Any) -> str:
    """As ``SmolVLMProcessor`` writes it, which needs num2words."""
    rows, columns = inputs["rows"][0][0], inputs["cols"][0][0]
    around, whole = "<fake_token_around_image>", "<image>" * 4
    text = ""
    for row in range(rows):
        text += "".join(f"{around}<row_{row + 1}_col_{column + 1}>{whole}" for column in range(columns)) + "\n"
    return text + ("\n" if rows else "") + f"{around}<global-img>{whole}{around}"


class ByHand:
    """A processor whose text half is written here: one picture's marks in the place of ``image_token``."""

    def __init__(self, images: Any, tokenizer: Any, marks: Callable[[Any], str], image_token: str) -> None:
        self.images, self.tokenizer, self.marks, self.image_token = images, tokenizer, marks, image_token

    def __call__(self, text: str, images: list[Any], return_tensors: str) -> dict[str, Any]:
        more = {"return_row_col_info": True} if self.marks is _smolvlm_marks else {}
        each = [dict(self.images([image], return_tensors="pt", **more)) for image in images]
        pieces = text.split(self.image_token)
        whole = pieces[0] + "".join(self.marks(inputs) + piece for inputs, piece in zip(each, pieces[1:], strict=True))
        found = {"input_ids": torch.tensor([self.tokenizer(whole)["input_ids"]])}
        for name in ("pixel_values", "pixel_attention_mask"):
            if name in each[0]:
                at = 1 if each[0][name].dim() > (4 if name == "pixel_values" else 3) else 0
                found[name] = torch.cat([inputs[name] for inputs in each], at)
        return found

    def save_pretrained(self, folder: Path) -> None:
        self.images.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _idefics(tokenizer: Any, config: Any, images: Any, processor: Any, **more: Any) -> tuple[Any, Any]:
    made = config(
        vision_config={**EYES, "image_size": 28, "patch_size": 7},
        text_config=_text(tokenizer, "llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    seeing = images(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, image_mean=HALF, image_std=HALF)
    return made, processor(seeing, tokenizer, **more)


def _idefics3(tokenizer: Any) -> tuple[Any, Any]:
    return _idefics(
        tokenizer,
        Idefics3Config,
        Idefics3ImageProcessorPil,
        processor_of("idefics3", "Idefics3Processor"),
        image_seq_len=4,
    )


def _smolvlm(tokenizer: Any) -> tuple[Any, Any]:
    def by_hand(images: Any, tokenizer: Any) -> ByHand:
        return ByHand(images, tokenizer, _smolvlm_marks, "<image>")

    return _idefics(tokenizer, SmolVLMConfig, SmolVLMImageProcessorPil, by_hand)


def _pixtral_eyes() -> dict[str, Any]:
    return {**EYES, "model_type": "pixtral", "image_size": 56, "patch_size": 7, "head_dim": 16, "hidden_act": "silu"}


def _pixtral_processor(tokenizer: Any, merge: int) -> Any:
    images = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 7, "width": 7})
    return processor_of("pixtral", "PixtralProcessor")(images, tokenizer, patch_size=7, spatial_merge_size=merge)


def _pixtral(tokenizer: Any) -> tuple[Any, Any]:
    config = LlavaConfig(
        vision_config=_pixtral_eyes(),
        text_config=_text(tokenizer, "mistral", sliding_window=None, head_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, _pixtral_processor(tokenizer, 1)


def _mistral3(tokenizer: Any) -> tuple[Any, Any]:
    config = Mistral3Config(
        vision_config=_pixtral_eyes(),
        text_config=_text(tokenizer, "mistral", sliding_window=None, head_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return config, _pixtral_processor(tokenizer, 2)


def _gemma3(tokenizer: Any) -> tuple[Any, Any]:
    config = Gemma3Config(
        vision_config={**EYES, "image_size": 28, "patch_size": 7, "model_type": "siglip_vision_model"},
        text_config=_text(tokenizer, "gemma3_text", head_dim=16, sliding_window=8, num_hidden_layers=6),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
    )
    images = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, image_mean=HALF, image_std=HALF)
    return config, processor_of("gemma3", "Gemma3Processor")(images, tokenizer, image_seq_length=4)


def _paligemma(tokenizer: Any, text: str = "gemma") -> tuple[Any, Any]:
    images = SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_mean=HALF, image_std=HALF)
    images.image_seq_length = 16
    processor = processor_of("paligemma", "PaliGemmaProcessor")(images, tokenizer)  # adds words, which have their rows
    config = PaliGemmaConfig(
        vision_config={**EYES, "image_size": 28, "patch_size": 7, "model_type": "siglip_vision_model"},
        text_config=_text(tokenizer, text, head_dim=16, **({"sliding_window": 8} if text == "gemma2" else {})),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=SMALL["hidden_size"],
        hidden_size=SMALL["hidden_size"],
        bos_token_id=tokenizer.convert_tokens_to_ids("<bos>"),
    )
    config.text_config.tie_word_embeddings = True
    return config, processor


def _paligemma2(tokenizer: Any) -> tuple[Any, Any]:
    return _paligemma(tokenizer, "gemma2")


def _vipllava(tokenizer: Any) -> tuple[Any, Any]:
    config = VipLlavaConfig(
        vision_config={**EYES, "num_hidden_layers": 4, "image_size": 28, "patch_size": 7, "projection_dim": 32}
        | {"model_type": "clip_vision_model"},
        text_config=_text(tokenizer, "llama"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=[-2, -3, 1],
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = processor_of("llava", "LlavaProcessor")
    more = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return config, processor(images, tokenizer, **more)


def _aya_vision(tokenizer: Any) -> tuple[Any, Any]:
    config = AyaVisionConfig(
        vision_config={**EYES, "image_size": 28, "patch_size": 7, "model_type": "siglip_vision_model"}
        | {"vision_use_head": False},
        text_config=_text(tokenizer, "cohere2", sliding_window=8, logit_scale=1.0),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        adapter_layer_norm_eps=1e-6,
        alignment_intermediate_size=64,
    )
    size = {"height": 28, "width": 28}
    images = GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = processor_of("aya_vision", "AyaVisionProcessor")
    return config, processor(images, tokenizer, patch_size=7, img_size=28, downsample_factor=2)


def _deepseek_vl(tokenizer: Any) -> tuple[Any, Any]:
    config = DeepseekVLConfig(
        vision_config={**EYES, "image_size": 28, "patch_size": 7, "model_type": "siglip_vision_model"}
        | {"vision_use_head": False},
        text_config=_text(tokenizer, "llama"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = DeepseekVLImageProcessorPil(size={"height": 28, "width": 28}, min_size=14)
    return config, processor_of("deepseek_vl", "DeepseekVLProcessor")(images, tokenizer, num_image_tokens=16)


def _lighton_ocr(tokenizer: Any) -> tuple[Any, Any]:
    config = LightOnOcrConfig(
        vision_config=_pixtral_eyes(),
        text_config=_text(tokenizer, "qwen3", head_dim=16),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        spatial_merge_size=2,
    )
    images = PixtralImageProcessorPil(size={"longest_edge": 56}, patch_size={"height": 14, "width": 14})
    processor = processor_of("lighton_ocr", "LightOnOcrProcessor")
    return config, processor(images, tokenizer, patch_size=7, spatial_merge_size=2)


def _got_ocr2(tokenizer: Any) -> tuple[Any, Any]:
    # its processor has 256 rows stand for a picture, which takes 4,096 patches: one head looks at all of them
    eyes = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 1, "mlp_dim": 64}
    config = GotOcr2Config(
        vision_config={**eyes, "image_size": 256, "patch_size": 4, "global_attn_indexes": [1], "window_size": 8},
        text_config=_text(tokenizer, "qwen2"),
        image_token_index=tokenizer.convert_tokens_to_ids("<imgpad>"),
    )
    images = GotOcr2ImageProcessorPil(size={"height": 256, "width": 256}, crop_to_patches=False)
    return config, processor_of("got_ocr2", "GotOcr2Processor")(images, tokenizer)


def _ovis2(tokenizer: Any) -> tuple[Any, Any]:
    marks = [tokenizer.convert_tokens_to_ids(name) for name in TOKENS["ovis2"][2:]]
    config = Ovis2Config(
        vision_config={**EYES, "image_size": 28, "patch_size": 7, "vocab_size": 40, "hidden_stride": 2},
        text_config=_text(tokenizer, "qwen2"),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=marks,
        hidden_size=SMALL["hidden_size"],
    )
    images = Ovis2ImageProcessorPil(size={"height": 28, "width": 28})
    return config, processor_of("ovis2", "Ovis2Processor")(images, tokenizer, image_seq_length=4)


__all__ = ["FOREIGN", "NEWCOMERS", "make_foreign"]
