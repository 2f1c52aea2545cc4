"""Every released checkpoint's folder in small: the files that the release has, and what the original makes of them.

A release is a row of `RELEASES`: a family of `layouts`, keys of its own configuration, how its tokenizer is written
and how the original cut text with it (`Words`), and what has to be done before it can be opened.
"""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import regex
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_generations import BARE, MODEL, Slow, folder, write

from checkpoint_maker import bytes_tokenizer
from layouts import (
    LLAMA_3,
    NEXT_PINPOINTS,
    ONEVISION_PINPOINTS,
    SENTINEL,
    Family,
    family,
    quantised,
    save_hf,
    save_lora,
    save_original,
)
from trifocal.checkpoints import KNOWN
from trifocal.cli import cli

PATCHES = ["<im_patch>", "<im_start>", "<im_end>"]
TURNS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VIDEO = {"mm_newline_position": "grid", "mm_spatial_pool_mode": "bilinear", "mm_spatial_pool_stride": 2}
ENDS = {"bos_token_id": 400, "eos_token_id": 404}  # the first and the last of LLAMA_3 behind 400 words
SPRING = {"mm_resampler_type": "spatial_pool", "mm_spatial_pool_mode": "average", "mm_spatial_pool_stride": 2}
INTERLEAVE = {
    "model_type": "llava_qwen",
    "image_aspect_ratio": "anyres",
    "image_grid_pinpoints": NEXT_PINPOINTS,
    "mm_newline_position": None,
}


class Words(Protocol):
    """A release's tokenizer: its files, and the ids that it gave; ``mark`` is a control token of its own."""

    mark: str
    rows: int
    marks: Sequence[str]

    def write(self, home: Path) -> None:
        """The files that the release has, in place of any others."""

    def encode(self, before: str, after: str, rows: int) -> list[int]:
        """The ids of a prompt with a picture of so many rows between two texts; `SENTINEL` stands for each row."""


@dataclass(frozen=True)
class Pieces:
    """``tokenizer.model`` and its small files, as a slow tokenizer of that version read them."""

    version: str
    legacy: bool = False
    plain: bool = False
    added: tuple[str, ...] = ()
    frame: tuple[str, str] = ("", "")
    row: str = ""  # the added token that stood for each row of a picture, where nothing else marked it
    mark: str = "</s>"
    more: bytes = b""  # fields that are added to the model
    own: int = 0  # how many pieces are among them

    @property
    def rows(self) -> int:
        return 600 + self.own + len(self.added)

    @property
    def marks(self) -> Sequence[str]:
        return ("<unk>", "<s>", "</s>", *self.added, *TURNS[1 : 1 + self.own])

    @property
    def ids(self) -> dict[str, int]:
        return {name: 600 + at for at, name in enumerate(self.added)}

    def write(self, home: Path) -> None:
        config = json.loads((home / "config.json").read_text())
        cleared(home)
        folder(home, self.version, self.legacy, self.plain, self.ids)
        (home / "tokenizer.model").write_bytes(MODEL.read_bytes() + self.more)
        write(home / "config.json", {**config, "transformers_version": self.version})

    def encode(self, before: str, after: str, rows: int) -> list[int]:
        slow = Slow(self.version, self.legacy, self.plain, self.ids, MODEL.read_bytes() + self.more, self.marks)
        if self.row:
            ids = slow.encode(f"{before}{self.row}{after}")
            first, last = ids[: ids.index(self.ids[self.row])], ids[ids.index(self.ids[self.row]) + 1 :]
        else:
            first, last = slow.encode(before + self.frame[0]), slow.encode(self.frame[1] + after)
        return [1, *first, *[SENTINEL] * rows, *last]


def piece(name: str, kind: int = 4) -> bytes:
    """A further piece of a SentencePiece model, by default one that its user defined; its id is the next one."""
    inner = bytes((0x0A, len(name))) + name.encode() + b"\x15\0\0\0\0" + bytes((0x18, kind))
    return bytes((0x0A, len(inner))) + inner


class Merges:
    """``vocab.json`` and ``merges.txt``, as the slow tokenizer of Qwen 2 read them: merged pair by pair, by rank."""

    _cut = regex.compile(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )

    def __init__(self) -> None:
        self.mark, self.marks = "<|im_end|>", TURNS
        self._source = bytes_tokenizer([])
        self.rows = self._source.get_vocab_size() + len(TURNS)
        model = json.loads(self._source.to_str())["model"]
        self._ids: dict[str, int] = model["vocab"]
        self._named = {name: len(self._ids) + at for at, name in enumerate(TURNS)}
        self._ranks = {tuple(pair): at for at, pair in enumerate(model["merges"])}
        plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
        rest = [byte for byte in range(256) if byte not in plain]
        self._letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(rest)}

    def write(self, home: Path) -> None:
        cleared(home)
        self._source.model.save(str(home))
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        listed = {str(at): {"content": name, **flags} for name, at in self._named.items()}
        write(home / "added_tokens.json", self._named)
        write(home / "special_tokens_map.json", {"eos_token": {"content": self.mark, **flags}})
        write(
            home / "tokenizer_config.json",
            {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "added_tokens_decoder": listed},
        )

    def encode(self, before: str, after: str, rows: int) -> list[int]:
        return [*self._text(before), *[SENTINEL] * rows, *self._text(after)]

    def _text(self, text: str) -> list[int]:
        found: list[int] = []
        for part in regex.split("(" + "|".join(map(regex.escape, TURNS)) + ")", text):
            if part in self._named:
                found.append(self._named[part])
            else:
                words = self._cut.findall(unicodedata.normalize("NFC", part))
                found += [self._ids[token] for word in words for token in self._merged(word)]
        return found

    def _merged(self, word: str) -> list[str]:
        tokens = [self._letters[byte] for byte in word.encode()]
        while pairs := [pair for pair in pairwise(tokens) if pair in self._ranks]:
            best, made, at = min(pairs, key=self._ranks.__getitem__), [], 0
            while at < len(tokens):
                both = tuple(tokens[at : at + 2]) == best
                made.append("".join(best) if both else tokens[at])
                at += 2 if both else 1
            tokens = made
        return tokens


class Whole:
    """A ``tokenizer.json``, as transformers' fast tokenizers read it: a new text behind a picture."""

    def __init__(self, tokens: list[str], mark: str, start: str = "") -> None:
        self._tokenizer, self._start = bytes_tokenizer(tokens), start
        self.mark, self.marks, self.rows = mark, tokens, self._tokenizer.get_vocab_size()

    def write(self, home: Path) -> None:
        cleared(home)
        self._tokenizer.save(str(home / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.mark}
        write(
            home / "tokenizer_config.json",
            settings | ({"bos_token": self._start, "add_bos_token": True} if self._start else {}),
        )
        write(home / "special_tokens_map.json", {"eos_token": self.mark})

    def encode(self, before: str, after: str, rows: int) -> list[int]:
        first, last = (self._tokenizer.encode(text).ids for text in (before, after))
        start = [self._tokenizer.token_to_id(self._start)] if self._start else []
        return [*start, *first, *[SENTINEL] * rows, *last]


class Inside:
    """llava-hf's ``tokenizer.json``, which `layouts` writes: a picture is a token in the text."""

    def __init__(self, made: Family) -> None:
        self._tokenizer = made.tokenizer
        self.mark = next(name for name in ("<|im_end|>", "<|eot_id|>", "</s>") if self._tokenizer.token_to_id(name))
        self.marks = [token.content for token in made.tokenizer.get_added_tokens_decoder().values()]
        self.rows = made.tokenizer.get_vocab_size()

    def write(self, home: Path) -> None:
        pass

    def encode(self, before: str, after: str, rows: int) -> list[int]:
        picture = self._tokenizer.token_to_id("<image>")
        ids = self._tokenizer.encode(f"{before}<image>{after}").ids
        at = ids.index(picture)
        return [*ids[:at], *[SENTINEL] * rows, *ids[at + 1 :]]


def cleared(home: Path) -> None:
    """Takes every file of a tokenizer away."""
    for pattern in ("*token*", "vocab.json", "merges.txt"):
        for file in home.glob(pattern):
            file.unlink()


@dataclass(frozen=True)
class Made:
    """A release on the disk: what it was made of, its tokenizer, the image processor's keys, and what opens it."""

    made: Family
    words: Words
    processor: dict[str, Any]
    places: dict[str, str]

    @property
    def config(self) -> dict[str, Any]:
        """The configuration's keys as the original reads them: a range of canvases one by one, interleave's as none."""
        keys = self.made.original
        pinpoints = keys.get("image_grid_pinpoints")
        told = ONEVISION_PINPOINTS if isinstance(pinpoints, str) else pinpoints
        siglip = self.made.model.config.vision_config.model_type.startswith("siglip")
        square = siglip and keys["image_aspect_ratio"] == "anyres"
        return {**keys, "image_grid_pinpoints": told, **({"image_aspect_ratio": None} if square else {})}


@dataclass(frozen=True)
class Release:
    """A released checkpoint: its family, its tokenizer, its turns, how it is laid down, and its own keys.

    ``half`` is how its language half is packed. One that is opened by its name on the ``hub`` lies in the hub's cache,
    as do the parts that the table of known names takes from other releases.
    """

    family: str
    words: Words | None
    template: str
    save: Callable[[Family, Words, Path], dict[str, str]]
    keys: Mapping[str, Any] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    half: str = ""
    hub: str = ""

    def make(self, home: Path) -> Made:
        """Its folder ``one`` under a new one, with what else it names beside it."""
        rows = {} if self.words is None or self.family == "mpt" else {"vocab_size": self.words.rows}
        made = family(self.family, **{**rows, **self.dims})
        made = replace(made, original={**made.original, **self.keys})
        if self.half:
            made = quantised(made, self.half)
        words = self.words or Inside(made)
        places = self.save(made, words, home)
        file = home / "clip" / "preprocessor_config.json"
        processor = json.loads(file.read_text()) if file.exists() else {}
        places = fetched(self.hub, home) if self.hub else {"checkpoint": str(home / "one"), **places}
        return Made(made, words, processor, places)


def fetched(name: str, home: Path) -> dict[str, str]:
    """What is in the home's folders as if it had been fetched under the names that a known release's parts have."""
    known = KNOWN[name]
    lie = {known.language: "one"}
    if known.tower and known.projector:
        lie |= {known.tower: "clip", known.projector.rpartition("/")[0]: "projector"}
    for repository, place in lie.items():
        cache = home / "hub" / f"models--{repository.replace('/', '--')}"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text("first")
        shutil.copytree(home / place, cache / "snapshots" / "first")
    return {"checkpoint": name}


def inside(made: Family, words: Words, home: Path) -> dict[str, str]:
    """safetensors with the tower among them, as from 1.6 on."""
    save_original(made, home / "one", shards=2)
    shutil.move(home / "one" / "tower", home / "clip")
    words.write(home / "one")
    told(home / "one", mm_vision_tower=str(home / "clip"))
    return {}


def outside(made: Family, words: Words, home: Path) -> dict[str, str]:
    """Pickles and the projector beside them, the tower on the hub, as up to 1.5."""
    save_original(made, home / "one", tower=home / "clip", pickle=True)
    words.write(home / "one")
    pickled(torch.load(home / "one" / "pytorch_model.bin"), home / "one")
    return {}


def delta(repository: str) -> Callable[[Family, Words, Path], dict[str, str]]:
    """Differences to a LLaMA of 600 rows in a clone of that repository, and what `convert delta` makes of the two."""

    def save(made: Family, words: Words, home: Path) -> dict[str, str]:
        clone = home / repository
        save_original(made, clone, tower=home / "clip", pickle=True)
        words.write(clone)
        tensors = torch.load(clone / "pytorch_model.bin")
        random = torch.Generator().manual_seed(5)
        first = {name: each[:600] if each.shape[0] == words.rows else each for name, each in tensors.items()}
        base = {
            name: torch.randn(each.shape, generator=random) * 0.1
            for name, each in first.items()
            if "mm_proj" not in name
        }
        for name, each in base.items():
            tensors[name][: len(each)] -= each
        pickled(tensors, clone)
        (home / "base").mkdir()
        save_file(base, home / "base" / "model.safetensors")
        write(home / "base" / "config.json", {**made.text, "vocab_size": 600, "model_type": "llama"})
        options = ["--base", home / "base", "--delta", clone, "--out", home / "one", "--allow-pickle"]
        CliRunner().invoke(cli, ["convert", "delta", *map(str, options)], catch_exceptions=False)
        return {}

    return save


def four_bits(made: Family, words: Words, home: Path) -> dict[str, str]:
    """The language half alone, packed and with no word of it in its configuration; the rest of it as in the seed."""
    whole = save_original(made, home / "whole", tower=home / "clip")
    tensors = load_file(whole / "model.safetensors")
    seen = {name: tensors.pop(name) for name in [*tensors] if "mm_projector" in name}
    torch.save(seen, home / "mm_projector.bin")
    (home / "one").mkdir()
    save_file(tensors, home / "one" / "llava-13b-v0-4bit-64g.safetensors")
    write(home / "one" / "config.json", {**made.text, "architectures": ["LlamaForCausalLM"]})
    words.write(home / "one")
    return {"tower_from": str(home / "clip"), "projector_from": str(home / "mm_projector.bin")}


def packed(file: str, *, whole: bool = False) -> Callable[[Family, Words, Path], dict[str, str]]:
    """The language half alone, packed by AutoGPTQ or AutoAWQ; ``whole`` keeps LLaVA's own keys in its configuration."""

    def save(made: Family, words: Words, home: Path) -> dict[str, str]:
        four_bits(made, words, home)
        shutil.move(next((home / "one").glob("*.safetensors")), home / "one" / file)
        (home / "projector").mkdir()
        shutil.move(home / "mm_projector.bin", home / "projector")
        kept = {**made.original, "mm_vision_tower": "openai/clip-vit-large-patch14-336"} if whole else {}
        quantisation = made.quantisation["quantization_config"]
        told(home / "one", **kept, **({} if file.startswith("gptq_") else made.quantisation))
        name = "quantize_config.json" if quantisation["quant_method"] == "gptq" else "quant_config.json"
        write(home / "one" / name, quantisation)
        return {}

    return save


def lora(made: Family, words: Words, home: Path) -> dict[str, str]:
    """Changes and the projector, over a base that an earlier transformers saved."""
    (home / "one").mkdir()
    save_lora(made, home / "one", home / "base", pickle=True)
    shutil.move(home / "one" / "clip", home / "clip")
    words.write(home / "base")
    day = json.loads((home / "base" / "config.json").read_text())["transformers_version"]
    told(home / "base", transformers_version="4.28.1")
    told(home / "one", mm_vision_tower=str(home / "clip"), transformers_version=day)
    return {}


def hf(made: Family, words: Words, home: Path) -> dict[str, str]:
    """llava-hf's folder, which has the slow tokenizer's files beside its ``tokenizer.json``."""
    save_hf(made, home / "one", shards=2)
    if made.tokenizer.token_to_id("<|eot_id|>"):
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": LLAMA_3[0], "eos_token": "<|eot_id|>"}
        write(home / "one" / "tokenizer_config.json", settings)
    elif made.tokenizer.token_to_id("</s>") is None:
        bytes_tokenizer(TURNS).model.save(str(home / "one"))
        settings = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>"}
        write(home / "one" / "tokenizer_config.json", settings)
    else:
        shutil.copyfile(MODEL, home / "one" / "tokenizer.model")
    return {}


def pickled(tensors: Mapping[str, torch.Tensor], home: Path) -> None:
    """Two pickles with their index, rotary frequencies among them, and the projector once more in its own file."""
    (home / "pytorch_model.bin").unlink()
    tensors = {**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    if any(name.startswith("transformer.") for name in tensors):
        del tensors["model.layers.0.self_attn.rotary_emb.inv_freq"]
    names = sorted(tensors)
    where = {name: f"pytorch_model-0000{1 + at % 2}-of-00002.bin" for at, name in enumerate(names)}
    for file in set(where.values()):
        torch.save({name: tensors[name] for name in names if where[name] == file}, home / file)
    write(home / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})
    torch.save({name: tensors[name] for name in names if "mm_projector" in name}, home / "mm_projector.bin")


def told(home: Path, **keys: Any) -> None:
    """A configuration with other keys."""
    config = json.loads((home / "config.json").read_text())
    write(home / "config.json", {**config, **keys})


V0 = Pieces("4.28.0.dev0", legacy=True, plain=True, added=tuple(PATCHES), frame=("<im_start>", "<im_end>"))
V0_7B = replace(V0, added=("[PAD]", *PATCHES))
SCIENCE = replace(V0, added=("<im_patch>",), row="<im_patch>", frame=("", ""))
V1 = Pieces("4.30.2", legacy=True, plain=True)
LLAMA_2 = Pieces("4.31.0", plain=True)
V1_5 = Pieces("4.31.0")
# Yi's model has the turns' marks among its own pieces, and puts no space in front of a text
YI = Pieces("4.37.2", legacy=True, mark="<|im_end|>", more=piece("<|im_start|>") + piece("<|im_end|>") + BARE, own=2)
BARE_PICTURES = {"mm_use_im_start_end": False}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4}
RELEASES = {
    "v0 13b delta": Release("v0-13b", V0, "llava_v0_webui", delta("LLaVA-13b-delta-v0")),
    "v0 7b delta": Release("v0-7b", V0_7B, "llava_v0_webui", delta("LLaVA-7b-delta-v0")),
    "v0 ScienceQA delta": Release("v0-13b", SCIENCE, "simple", delta("LLaVA-13b-delta-v0-science_qa"), BARE_PICTURES),
    "v0 13b 4-bit": Release("v0-13b", V0, "llava_v0_webui", four_bits, dims=WIDE, half="GPTQ 4 bits, old CUDA"),
    "v1.1 delta": Release("v0-13b", V0, "llava_v1_mm", delta("LLaVA-13b-delta-v1-1")),
    "Lightning delta": Release("v0-13b", V0, "llava_v1_mm", delta("LLaVA-Lightning-7B-delta-v1-1")),
    "Lightning merged": Release("v0-13b", V0, "llava_v1_mm", outside, hub="mmaaz60/LLaVA-7B-Lightening-v1-1"),
    "MPT preview": Release("mpt", Whole(["<|endoftext|>", *TURNS[1:]], "<|im_end|>"), "mpt", outside),
    "v1": Release("v1", V1, "llava_v1", outside),
    "v1 LoRA": Release("v1", V1, "llava_v1", lora),
    "LLaMA-2 preview": Release("llama-2", LLAMA_2, "llava_llama_2", outside),
    "LLaMA-2 LoRA": Release("llama-2", LLAMA_2, "llava_llama_2", lora),
    "LLaMA-2 GPTQ": Release(
        "llama-2",
        LLAMA_2,
        "llava_llama_2",
        packed("gptq_model-4bit-128g.safetensors"),
        dims=WIDE,
        half="GPTQ 4 bits",
        hub="liuhaotian/llava-llama-2-13b-chat-lightning-gptq",
    ),
    "1.5": Release("1.5", V1_5, "llava_v1", outside),
    "1.5 LoRA": Release("1.5", V1_5, "llava_v1", lora),
    "1.5 GPTQ": Release(
        "1.5",
        V1_5,
        "llava_v1",
        packed("model.safetensors"),
        dims=WIDE,
        half="GPTQ 4 bits, act-order",
        hub="TheBloke/llava-v1.5-13B-GPTQ",
    ),
    "1.5 AWQ": Release(
        "1.5",
        V1_5,
        "llava_v1",
        packed("model.safetensors", whole=True),
        dims=WIDE,
        half="AWQ GEMM",
        hub="TheBloke/llava-v1.5-13B-AWQ",
    ),
    "BakLLaVA": Release("bakllava", Pieces("4.34.1", legacy=True), "llava_v1", outside),
    "TinyLLaVA": Release("tiny", Pieces("4.37.2"), "llava_v1", inside),
    "1.6 Vicuna": Release("1.6-vicuna", Pieces("4.36.2"), "llava_v1", inside),
    "1.6 Mistral": Release("1.6-mistral", Pieces("4.37.2"), "mistral_instruct", inside),
    "1.6 34B": Release("1.6-34b", YI, "chatml_direct", inside),
    "NeXT Llama 3": Release("1.6-vicuna", Whole(LLAMA_3, "<|eot_id|>", LLAMA_3[0]), "llava_llama_3", inside, ENDS),
    "NeXT Qwen": Release("1.6-qwen", Merges(), "qwen_1_5", inside),
    "OneVision": Release("onevision", Merges(), "qwen_1_5", inside),
    "OneVision 0.5b": Release("onevision-tied", Merges(), "qwen_1_5", inside),
    "interleave": Release("onevision-tied", Merges(), "qwen_1_5", inside, INTERLEAVE),
    "NeXT-Video": Release("1.6-vicuna", Pieces("4.37.2"), "llava_v1", inside, SPRING),
    "LLaVA-Video": Release("onevision", Merges(), "qwen_1_5", inside, VIDEO),
    "llava-hf 1.5": Release("1.5", None, "llava_v1", hf),
    "llava-hf BakLLaVA": Release("bakllava", None, "llava_v1", hf),
    "llava-hf TinyLLaVA": Release("1.5", None, "llava_v1", hf, dims={"num_key_value_heads": 2}),
    "llava-hf 1.6 Vicuna": Release("1.6-vicuna", None, "llava_v1", hf),
    "llava-hf 1.6 Mistral": Release("1.6-mistral", None, "mistral_instruct", hf),
    "llava-hf 1.6 34B": Release("1.6-34b", None, "chatml_direct", hf),
    "llava-hf NeXT Llama 3": Release("1.6-llama-3", None, "llava_llama_3_hf", hf),
    "llava-hf NeXT Qwen": Release("1.6-qwen", None, "qwen_1_5", hf),
    "llava-hf NeXT-Video": Release("1.6-video", None, "llava_v1", hf),
    "llava-hf OneVision": Release("onevision", None, "qwen_1_5", hf),
    "llava-hf interleave": Release("interleave", None, "qwen_1_5", hf),
}
