"""A family's reference and the same weights loaded by us, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pictures
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import trifocal
from gguf_layout import save_gguf
from layouts import (
    LINEAR,
    NEXT_PINPOINTS,
    ONEVISION_PINPOINTS,
    QUANTISATIONS,
    TILE,
    Family,
    family,
    quantised,
    save_hf,
    save_lora,
    save_original,
)
from logits import ends_of, greedy
from trifocal.images import Image
from trifocal.model.llava import Llava
from trifocal.placement import Placement

# the reference stays on the CPU; TRIFOCAL_DEVICE=cuda:0 holds us on a GPU against it
EXACT = Placement(os.environ.get("TRIFOCAL_DEVICE", "cpu"), "float32")
SQUARE = {"height": TILE, "width": TILE}


@dataclass(frozen=True)
class Pair:
    """A family's reference and the same weights loaded by us; ``pad`` says that pictures are padded beforehand."""

    made: Family
    llava: Llava
    pad: bool

    @torch.no_grad()
    def reference_rows(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """The rows that transformers' class makes of the pictures of one prompt."""
        seen = self.made.model.get_image_features(**inputs_of(self, images))
        return list(getattr(seen, "pooler_output", seen))

    def greedy(self, ids: torch.Tensor, inputs: dict[str, torch.Tensor], said: list[int]) -> list[int]:
        """What transformers' class says where we said that, with the end tokens forbidden."""
        return greedy(self.made.model, said, ends_of(self.llava.engine), input_ids=ids, **inputs)


def inputs_of(pair: Pair, images: Sequence[Image]) -> dict[str, torch.Tensor]:
    """What transformers' own image processor makes of the pictures of one prompt."""
    name = pair.made.name
    pictures = [image.pixels for image in images]
    processor: Any
    if name.startswith("onevision"):
        half = [0.5, 0.5, 0.5]
        processor = LlavaOnevisionImageProcessorPil(
            size=SQUARE, image_mean=half, image_std=half, image_grid_pinpoints=ONEVISION_PINPOINTS
        )
        return dict(processor([pictures], return_tensors="pt"))
    if name.startswith("1.6"):
        processor = LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE}, crop_size=SQUARE, image_grid_pinpoints=NEXT_PINPOINTS
        )
    elif name == "interleave":
        processor = SiglipImageProcessorPil(size=SQUARE)
    else:
        processor = CLIPImageProcessorPil(size={"shortest_edge": TILE}, crop_size=SQUARE)
    return dict(processor([padded(p) if pair.pad else p for p in pictures], return_tensors="pt"))


def padded(picture: Pictures.Image) -> Pictures.Image:
    """On a square of CLIP's mean colour, as original LLaVA 1.5 shows it."""
    side = max(picture.size)
    square = Pictures.new("RGB", (side, side), (122, 116, 104))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


@contextmanager
def load_pair(name: str, layout: str, half: str, folder: Path, *, engine: str = "auto", **dims: int) -> Iterator[Pair]:
    """A family saved in a layout, its language half ``dense`` or quantised, loaded in float32."""
    made = family(name, **dims)
    made = quantised(made, half) if half in QUANTISATIONS else made
    if layout == "GGUF pair":
        save_gguf(made, folder, half)
        places = dict.fromkeys(("tower", "projector", "language"), EXACT)
        with trifocal.load(checkpoint=str(folder), engine=engine, **places) as llava:
            yield Pair(made, llava, pad=name == "1.5")
        return
    outside = name in ("1.5", "bakllava", *LINEAR)  # these come without their tower
    original = layout.startswith("original")
    pickle = "pickles" in layout
    if layout.startswith("LoRA"):
        save_lora(made, folder, folder / "base", rslora="rslora" in layout, pickle=pickle)
    elif original:
        save_original(made, folder, tower=folder / "clip" if outside else None, pickle=pickle)
    elif "new names" in layout:
        save_hf(made, folder, spelling="raw", shards=2)
    else:
        save_hf(made, folder)
    places = dict.fromkeys(("tower", "projector", "language"), EXACT)
    with trifocal.load(checkpoint=str(folder), allow_pickle=pickle, engine=engine, **places) as llava:
        yield Pair(made, llava, pad=not layout.startswith("llava-hf") and name in ("1.5", "bakllava"))
