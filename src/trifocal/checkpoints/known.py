"""Checkpoints known by name: where their parts come from, what their files don't say, and what each needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trifocal.checkpoints.parts import CLIP_TOWER

__all__ = ["KNOWN", "Release", "delta_known_as"]

CLIP_336 = "openai/clip-vit-large-patch14-336"
SCIENCE = "LLaVA-13b-delta-v0-science_qa"  # trained without marks around pictures, and evaluated as ``simple``
_EARLY_TURNS = {
    SCIENCE: "simple",
    "LLaVA-13b-delta-v1-1": "llava_v1_mm",
    "LLaVA-Lightning-7B-delta-v1-1": "llava_v1_mm",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """Where the parts of a known checkpoint come from, what its files don't say, and what it needs.

    ``says`` are keys of a configuration that its own lacks. ``family``, ``context`` (positions of prompt and answer)
    and ``positions`` (of a picture) are what its files will say. ``needs`` is the memory of all three parts on one
    device, or what has to be done first.
    """

    language: str
    tower: str | None = None
    projector: str | None = None
    template: str | None = None
    says: Mapping[str, Any] = field(default_factory=dict, hash=False)
    family: str = ""
    context: int = 0
    positions: str = ""
    needs: str = ""


def _half(billions: float) -> str:
    """What so many billions of numbers need at 16 bits, with a tower, a projector and room for a talk."""
    return f"{2 * billions + (1.5 if billions < 3 else 2):.0f} GB in float16"


def _four(billions: float) -> str:
    """The same with the language model in four bits and a bit for scales."""
    return f"{0.6 * billions + 1.7:.0f} GB"


def _delta(size: int) -> str:
    return f"LLaMA-{size}B, to which trifocal convert delta adds it; then {_half(size)}"


def _early() -> Iterator[tuple[str, Release]]:
    """v0, v1.1, Lightning, v1 and the LLaMA-2 preview: a linear projector on the stock tower."""
    marked = "258"
    for name, size, family in (
        ("LLaVA-7b-delta-v0", 7, "llava-v0"),
        ("LLaVA-13b-delta-v0", 13, "llava-v0"),
        (SCIENCE, 13, "llava-v0"),
        ("LLaVA-13b-delta-v1-1", 13, "llava-v1.1"),
        ("LLaVA-Lightning-7B-delta-v1-1", 7, "llava-v1.1"),
    ):
        yield (
            f"liuhaotian/{name}",
            Release(
                language=f"liuhaotian/{name}",
                template=_EARLY_TURNS.get(name),
                says={"mm_use_im_start_end": False} if name == SCIENCE else {},
                family=family,
                context=2048,
                positions="256" if name == SCIENCE else marked,
                needs=_delta(size),
            ),
        )
    for size in (7, 13):
        yield (
            f"wojtab/llava-{size}b-v0-4bit-128g",
            Release(
                language=f"wojtab/llava-{size}b-v0-4bit-128g",
                tower=CLIP_TOWER,
                projector=f"liuhaotian/LLaVA-{size}b-delta-v0/mm_projector.bin",
                template="llava_v0_webui",
                family="llava-v0",
                context=2048,
                positions=marked,
                needs={13: "9.5 GB on one GPU, or 8.5 GB with the tower on the CPU", 7: "5.4 GB on one GPU"}[size],
            ),
        )
    yield _plain("mmaaz60/LLaVA-7B-Lightening-v1-1", "llava-v1.1", 2048, marked, _half(6.7), template="llava_v1_mm")
    yield _plain("liuhaotian/LLaVA-Lightning-MPT-7B-preview", "llava-mpt", 2048, marked, _half(6.7))
    for name in ("lora-vicuna-13b-v1.3", "lora-merge-vicuna-13b-v1.3"):
        yield _plain(f"liuhaotian/llava-v1-0719-336px-{name}", "llava-v1", 2048, "576", _half(13), "llava_v1")
    preview = "liuhaotian/llava-llama-2-13b-chat-lightning"
    yield _plain(f"{preview}-preview", "llava-llama-2", 4096, "256", _half(13))
    yield _plain("liuhaotian/llava-llama-2-7b-chat-lightning-lora-preview", "llava-llama-2", 4096, "256", _half(6.7))
    yield (
        f"{preview}-gptq",
        Release(
            language=f"{preview}-gptq",
            tower=CLIP_TOWER,
            projector=f"{preview}-preview/mm_projector.bin",
            template="llava_llama_2",
            family="llava-llama-2",
            context=4096,
            positions="256",
            needs=_four(13),
        ),
    )


def _line_1_5() -> Iterator[tuple[str, Release]]:
    """LLaVA 1.5, BakLLaVA, TinyLLaVA, and others of the same shape."""
    for size, billions in ((7, 6.7), (13, 13.0)):
        for name in (f"liuhaotian/llava-v1.5-{size}b", f"llava-hf/llava-1.5-{size}b-hf"):
            yield _plain(name, "llava-1.5", 4096, "576", _half(billions))
        yield _plain(f"liuhaotian/llava-v1.5-{size}b-lora", "llava-1.5", 4096, "576", _half(billions))
        yield _plain(f"Lin-Chen/ShareGPT4V-{size}B", "llava-1.5", 4096, "576", _half(billions))
        home = f"mys/ggml_llava-v1.5-{size}b"
        yield _pair(home, "ggml-model-q4_k.gguf", "mmproj-model-f16.gguf", "llava-1.5", 4096, "576", _half(billions))
    for kind in ("GPTQ", "AWQ"):
        yield (
            f"TheBloke/llava-v1.5-13B-{kind}",
            Release(
                language=f"TheBloke/llava-v1.5-13B-{kind}",
                tower=CLIP_336,
                projector="liuhaotian/llava-v1.5-13b/mm_projector.bin",
                template="llava_v1",
                says={"mm_projector_type": "mlp2x_gelu", "image_aspect_ratio": "pad"},
                family="llava-1.5",
                context=4096,
                positions="576",
                needs=_four(13),
            ),
        )
    for name in ("SkunkworksAI/BakLLaVA-1", "llava-hf/bakLlava-v1-hf"):
        yield _plain(name, "llava-1.5", 32768, "576", _half(7.2))
    yield _plain("bczhou/tiny-llava-v1-hf", "llava-1.5", 2048, "576", _half(1.1))


_NEXT_TURNS = {"mistral-7b": "mistral_instruct", "34b": "chatml_direct"} | dict.fromkeys(
    ("vicuna-7b", "vicuna-13b"), "llava_v1"
)


def _line_1_6() -> Iterator[tuple[str, Release]]:
    """LLaVA 1.6 (NeXT): tiles, and a tower of its own inside."""
    tiled = "776 to 2928"
    for name, context, billions in (
        ("vicuna-7b", 4096, 6.7),
        ("vicuna-13b", 4096, 13.0),
        ("mistral-7b", 32768, 7.2),
        ("34b", 4096, 34.4),
    ):
        for whole in (f"liuhaotian/llava-v1.6-{name}", f"llava-hf/llava-v1.6-{name}-hf"):
            yield _plain(whole, "llava-1.6", context, tiled, _half(billions), template=_NEXT_TURNS[name])
    for name, context, billions in (
        ("lmms-lab/llama3-llava-next-8b", 8192, 8.0),
        ("llava-hf/llama3-llava-next-8b-hf", 8192, 8.0),
        ("lmms-lab/llava-next-72b", 32768, 72.3),
        ("llava-hf/llava-next-72b-hf", 32768, 72.3),
        ("lmms-lab/llava-next-110b", 32768, 111.2),
        ("llava-hf/llava-next-110b-hf", 32768, 111.2),
    ):
        yield _plain(name, "llava-1.6", context, tiled, _half(billions))
    yield _plain("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava-next-video", 4096, f"{tiled}; 144 a frame", _half(6.7))
    home = "cjpais/llava-1.6-mistral-7b-gguf"
    yield _pair(
        home, "llava-v1.6-mistral-7b.Q4_K_M.gguf", "mmproj-model-f16.gguf", "llava-1.6", 32768, tiled, _half(7.2)
    )


def _line_qwen() -> Iterator[tuple[str, Release]]:
    """OneVision and interleave: SigLIP and Qwen."""
    for size, billions in (("0.5b", 0.5), ("7b", 7.6), ("72b", 72.7)):
        for kind in ("si", "ov"):
            name = f"llava-onevision-qwen2-{size}-{kind}"
            for whole in (f"lmms-lab/{name}", f"llava-hf/{name}-hf"):
                yield _plain(whole, "llava-onevision", 32768, "1485 to 7371; 196 a frame", _half(billions))
    for name, billions in (
        ("lmms-lab/llava-next-interleave-qwen-0.5b", 0.5),
        ("lmms-lab/llava-next-interleave-qwen-7b", 7.7),
        ("lmms-lab/llava-next-interleave-qwen-7b-dpo", 7.7),
        ("llava-hf/llava-interleave-qwen-0.5b-hf", 0.5),
        ("llava-hf/llava-interleave-qwen-7b-hf", 7.7),
    ):
        rows = "730" if name.startswith("lmms-lab/") else "729"  # the original's own code ends them with a newline
        yield _plain(name, "llava-interleave", 32768, rows, _half(billions))


def _plain(
    name: str, family: str, context: int, positions: str, needs: str, template: str | None = None
) -> tuple[str, Release]:
    """A checkpoint that tells all by itself."""
    return name, Release(
        language=name, template=template, family=family, context=context, positions=positions, needs=needs
    )


def _pair(
    name: str, language: str, mmproj: str, family: str, context: int, positions: str, needs: str
) -> tuple[str, Release]:
    """A pair of GGUF files; the language model is unpacked to 16 bits."""
    return name, Release(
        language=f"{name}/{language}",
        projector=f"{name}/{mmproj}",
        family=family,
        context=context,
        positions=positions,
        needs=needs,
    )


KNOWN: dict[str, Release] = dict((*_early(), *_line_1_5(), *_line_1_6(), *_line_qwen()))


def delta_known_as(name: str) -> Release | None:
    """The release that a delta is, by its hub id or by a folder of its repository's name, as a clone has.

    Nothing in its files tells v1.1 and Lightning from v0; LLaVA's own programs went by the name, too.
    """
    last = Path(name).expanduser().resolve().name
    return next((KNOWN[each] for each in KNOWN if "-delta-" in each and each.partition("/")[2] == last), None)
