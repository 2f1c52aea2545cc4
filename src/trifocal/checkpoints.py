"""What a checkpoint is, as data: its three parts, its tokens, its preprocessing, its template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from trifocal.engines.base import Language
from trifocal.errors import CheckpointError
from trifocal.hub import CONFIGS, PICKLES, WEIGHTS, locate
from trifocal.quantised import open_weights
from trifocal.weights import canonical, part_weights, stored_names

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "KNOWN",
    "Checkpoint",
    "Preprocessing",
    "Projector",
    "Source",
    "Text",
    "Tower",
    "find_checkpoint",
    "from_folder",
    "load_language",
]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
CLIP_TOWER = "openai/clip-vit-large-patch14"


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP vision tower: a ViT with pre-norm blocks and a class token.

    ``feature_layer`` counts as in ``hidden_states``: 0 is the embedding, k the output of block k, and
    negative numbers count from the end. ``keep_class`` keeps the class token's row (``full`` or
    ``cls_patch``) and is off in every released LLaVA.
    """

    source: Path
    hidden: int
    layers: int
    heads: int
    mlp: int
    image_size: int
    patch_size: int
    act: str = "quick_gelu"
    eps: float = 1e-5
    feature_layer: int = -2
    keep_class: bool = False

    @property
    def patches(self) -> int:
        """Rows of a picture: patches of one tile, and the class token where it is kept."""
        return (self.image_size // self.patch_size) ** 2 + self.keep_class

    @property
    def blocks(self) -> int:
        """How many blocks have to run."""
        return self.feature_layer if self.feature_layer >= 0 else self.layers + 1 + self.feature_layer


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector: ``linear``, or ``mlp{n}x`` with ``act`` between its n linear layers."""

    source: Path
    kind: str
    act: str = "gelu"


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """From a picture to pixel values.

    ``fit`` is how a picture that is not square becomes one: ``crop`` (resize the short side, take the
    middle) or ``pad`` (onto a square of the mean colour, nothing is lost). ``background`` shows where
    the picture is transparent.
    """

    size: int
    fit: Literal["crop", "pad"]
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    rescale: float = 1 / 255
    resample: int = 3
    background: tuple[int, int, int] = (255, 255, 255)

    @property
    def pad_colour(self) -> tuple[int, int, int]:
        """The mean as a colour: (122, 116, 104) for CLIP."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class Text:
    """The language half: where it lies, and its own configuration."""

    source: Path
    config: Mapping[str, Any] = field(hash=False)

    @property
    def hidden(self) -> int:
        """The width of its embedding rows."""
        return int(self.config["hidden_size"])

    @property
    def context(self) -> int:
        """Positions of prompt and answer."""
        return int(self.config["max_position_embeddings"])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A LLaVA checkpoint.

    ``template`` names its conversation template. ``image_start`` and ``image_end`` name the control
    tokens around a picture, where it was trained with them. ``strip_around_images`` is for LLaVA v0,
    whose tokenizer took white space beside them away.
    """

    name: str
    family: str
    tower: Tower
    projector: Projector
    preprocessing: Preprocessing
    language: Text
    template: str
    image_start: str = ""
    image_end: str = ""
    strip_around_images: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the parts of a known checkpoint come from, and what its files don't say."""

    language: str
    tower: str | None = None
    projector: str | None = None
    template: str | None = None
    needs: str = ""


_V0_PROJECTOR = "liuhaotian/LLaVA-{}b-delta-v0/mm_projector.bin"

KNOWN = {
    "wojtab/llava-13b-v0-4bit-128g": Source(
        language="wojtab/llava-13b-v0-4bit-128g",
        tower=CLIP_TOWER,
        projector=_V0_PROJECTOR.format(13),
        template="llava_v0_webui",
        needs="9.5 GB on one GPU, or 8.5 GB with the tower on the CPU",
    ),
    "wojtab/llava-7b-v0-4bit-128g": Source(
        language="wojtab/llava-7b-v0-4bit-128g",
        tower=CLIP_TOWER,
        projector=_V0_PROJECTOR.format(7),
        template="llava_v0_webui",
        needs="5.4 GB on one GPU",
    ),
    "llava-hf/llava-1.5-7b-hf": Source(language="llava-hf/llava-1.5-7b-hf", needs="15 GB on one GPU in float16"),
    "llava-hf/llava-1.5-13b-hf": Source(language="llava-hf/llava-1.5-13b-hf", needs="28 GB on one GPU in float16"),
}

# what a sparse configuration leaves to its class: transformers' LlamaConfig, MistralConfig, Qwen2Config
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    },
}
_VISION_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 336,
    "patch_size": 14,
}


def find_checkpoint(
    name: str, *, tower: str | None = None, projector: str | None = None, language: str | None = None
) -> Checkpoint:
    """The checkpoint of that name: ``thimble``, a known name, a folder, or a hub id.

    ``tower``, ``projector`` and ``language`` take a part from elsewhere: a folder, a file or a hub id.

    Raises:
        CheckpointError: files that are missing, or that don't say what they must.
    """
    if name == "thimble":
        folder = Path(str(resources.files("trifocal") / "thimble"))
        return from_folder(folder, name=name, tower=tower, projector=projector, language=language)
    known = KNOWN.get(name, Source(language=name))
    folder = locate(known.language, (*CONFIGS, *WEIGHTS, *PICKLES))
    return from_folder(
        folder,
        name=folder.name if Path(name).expanduser().exists() else name,
        tower=tower or known.tower,
        projector=projector or known.projector,
        language=language,
        template=known.template,
    )


def from_folder(
    folder: Path,
    *,
    name: str | None = None,
    tower: str | None = None,
    projector: str | None = None,
    language: str | None = None,
    template: str | None = None,
) -> Checkpoint:
    """Reads what a checkpoint is from its ``config.json``; no weight is read.

    Three layouts are told apart by what the configuration says, never by a name: llava-hf
    (``vision_config`` and ``text_config``), original LLaVA (``mm_*`` keys), and a bare language model
    whose tower and projector come from elsewhere, as in the seed. A fourth needs no configuration: a
    pair of GGUF files, the language model's (or a folder with both) and the ``mmproj`` one.

    Raises:
        CheckpointError: a file or key that is missing or contradicts another.
    """
    pair = _gguf_pair(folder, projector)
    if pair is not None and tower is None:
        return _from_gguf(*pair, name=name, template=template)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: a checkpoint is a folder, or a pair of GGUF files")
    config = read_json(folder / "config.json")
    language_source = locate(language, (*CONFIGS, *WEIGHTS, *PICKLES)) if language else folder
    projector_source = locate(projector, (*CONFIGS, *WEIGHTS, *PICKLES)) if projector else None
    config |= _trained_with(projector_source)
    elsewhere = locate(tower, (*CONFIGS, *WEIGHTS, *PICKLES)) if tower else None
    if "vision_config" in config and "text_config" in config:
        read = _from_hf(folder, config, elsewhere, projector_source, language_source)
    else:
        read = _from_original(folder, config, elsewhere, projector_source, language_source)
    framed = bool(config.get("mm_use_im_start_end", read.pop("framed", False)))
    return Checkpoint(
        name=name or folder.name,
        template=template or config.get("trifocal_template") or read.pop("template"),
        image_start="<im_start>" if framed else "",
        image_end="<im_end>" if framed else "",
        **{key: value for key, value in read.items() if key != "template"},
    )


def load_language(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> Language:
    """The language half, as an engine's loader takes it; tensors are read when they are asked for.

    Quantised weights are presented as the dense ones they stand for: see `trifocal.quantised`.

    Raises:
        CheckpointError: weights missing, damaged, or pickles that are not allowed.
    """
    source, config = checkpoint.language.source, checkpoint.language.config
    weights = part_weights(source, "language", allow_pickle=allow_pickle)
    if source.suffix == ".gguf":
        from trifocal.quantised.gguf import GgufFile
        from trifocal.quantised.gguf_tokenizer import tokenizer

        return Language(source, config, weights, tokenizer(GgufFile(source)))
    dense = open_weights(weights, config, source, lambda name: str(weights.where(name)))
    return Language(source, config, dense)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is not there, or no JSON object.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is not there") from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: this is no JSON") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: a JSON object was expected, this is a {type(value).__name__}")
    return value


def _from_hf(
    folder: Path, config: dict[str, Any], tower: Path | None, projector: Path | None, language: Path
) -> dict[str, Any]:
    """llava-hf's ``LlavaForConditionalGeneration``."""
    kind = config.get("model_type", "llava")
    if kind != "llava":
        raise CheckpointError(f"{folder / 'config.json'}: model_type {kind!r} is not supported; supported: llava")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise CheckpointError(
            f"{folder / 'config.json'}: vision_feature_select_strategy {strategy!r}; known: default, full"
        )
    layer = _layer(folder, config, "vision_feature_layer")
    for key in ("vision_config", "text_config"):
        if not isinstance(config[key], dict):
            raise CheckpointError(f"{folder / 'config.json'}: {key} is {config[key]!r}, a JSON object was expected")
    vision = config["vision_config"] if tower is None else read_json(tower / "config.json")
    part = _tower(tower or folder, vision, layer, keep_class=strategy == "full")
    act = str(config.get("projector_hidden_act", "gelu"))
    return {
        "family": "llava-1.5",
        "tower": part,
        "projector": Projector(projector or folder, "mlp2x", act),
        "preprocessing": _preprocessing(tower or folder, part.image_size, config.get("image_aspect_ratio")),
        "language": _text(language, config["text_config"] if language == folder else _own_config(language)),
        "template": "llava_v1",
    }


def _from_original(
    folder: Path, config: dict[str, Any], tower: Path | None, projector: Path | None, language: Path
) -> dict[str, Any]:
    """Original LLaVA, or a bare language model with tower and projector from elsewhere."""
    names = [canonical(name) for name in stored_names(folder)]
    inside = {found[0] for found in names if found}
    named = config.get("mm_vision_tower") or CLIP_TOWER
    home = tower or locate(str(named), (*CONFIGS, *WEIGHTS, *PICKLES))
    vision = read_json(home / "config.json")
    layer = _layer(folder, config, "mm_vision_select_layer")
    select = config.get("mm_vision_select_feature", "patch")
    source = folder if tower is None and "tower" in inside else home
    part = _tower(source, vision, layer, keep_class=select == "cls_patch")
    where = projector or _own_projector(folder, config, inside)
    kind, _, act = str(config.get("mm_projector_type") or "linear").partition("_")
    first_family = kind == "linear"
    return {
        "family": "llava-v0" if first_family else "llava-1.5",
        "tower": part,
        "projector": Projector(where, kind, act or "gelu"),
        "preprocessing": _preprocessing(home, part.image_size, config.get("image_aspect_ratio")),
        "language": _text(language, config if language == folder else _own_config(language)),
        "template": "llava_v0_webui" if first_family else "llava_v1",
        "framed": first_family and _knows(language, "<im_start>"),
        "strip_around_images": first_family,
    }


def _own_projector(folder: Path, config: Mapping[str, Any], inside: set[str]) -> Path:
    """An original checkpoint's projector: among its tensors, or in a file beside them."""
    if "projector" in inside:
        return folder
    for name in ("mm_projector.safetensors", "mm_projector.bin"):
        if (folder / name).is_file():
            return folder / name
    if not inside and "mm_hidden_size" in config:
        return folder  # one pickle: what it holds is known when it is opened
    raise CheckpointError(f"{folder}: there is no projector in it; name one with projector_from (--projector-from)")


def _gguf_pair(folder: Path, projector: str | None) -> tuple[Path, Path] | None:
    """The language model's GGUF file and the ``mmproj`` one: named both, or the only two of a folder.

    Raises:
        CheckpointError: one of the two is missing, or there are several to choose from.
    """
    if folder.is_dir() and (folder / "config.json").is_file():
        return None
    files = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if not files:
        return None
    seeing = [file for file in files if "mmproj" in file.name.lower()]
    if projector is not None:
        seeing = [locate(projector, ("*.gguf",))]
    speaking = [file for file in files if "mmproj" not in file.name.lower() and not _later_part(file)]
    for found, what in ((speaking, "language model"), (seeing, "mmproj file")):
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "none"
            raise CheckpointError(
                f"{folder}: one GGUF {what} is wanted, here is {listed}; name the language model's file itself "
                "and the mmproj file with projector_from (--projector-from)"
            )
    return speaking[0], seeing[0]


def _later_part(file: Path) -> bool:
    """Whether it is the second part, or a later one, of a model in several files."""
    part = re.search(r"-(\d{5})-of-\d{5}\.gguf$", file.name)
    return part is not None and int(part[1]) > 1


def _from_gguf(language: Path, mmproj: Path, *, name: str | None, template: str | None) -> Checkpoint:
    """A pair of GGUF files; what they don't say is the recipe of their generation.

    A projector of one layer is LLaVA v0's (pictures cropped), one of two layers 1.5's (padded).
    """
    from trifocal.quantised.gguf import GgufFile
    from trifocal.quantised.mmproj import Mmproj

    seeing = Mmproj(GgufFile(mmproj))
    if "image_grid_pinpoints" in seeing.preprocessing or "image_newline" in seeing.projector:
        raise CheckpointError(
            f"{mmproj}: is of LLaVA 1.6 (pictures in tiles), which is not read from GGUF; 1.5 and v0 are"
        )
    first_family = "weight" in seeing.projector
    text = _text(language, _own_config(language))
    tower = _tower(mmproj, seeing.config, seeing.feature_layer, keep_class=False)
    mean, std = (tuple(map(float, seeing.preprocessing[f"image_{name}"])) for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3:
        raise CheckpointError(f"{mmproj}: image_mean and image_std are {mean} and {std}, expected three numbers each")
    framed = first_family and _knows(language, "<im_start>")
    return Checkpoint(
        name=name or language.stem,
        family="llava-v0" if first_family else "llava-1.5",
        tower=tower,
        projector=Projector(mmproj, "linear" if first_family else "mlp2x"),
        preprocessing=Preprocessing(tower.image_size, "crop" if first_family else "pad", mean, std),
        language=text,
        template=template or ("llava_v0_webui" if first_family else "llava_v1"),
        image_start="<im_start>" if framed else "",
        image_end="<im_end>" if framed else "",
        strip_around_images=first_family,
    )


def _own_config(language: Path) -> dict[str, Any]:
    """A language model's configuration: its ``config.json``, or what its GGUF file says."""
    if language.suffix != ".gguf":
        return read_json(language / "config.json")
    from trifocal.quantised.gguf import GgufFile
    from trifocal.quantised.gguf_language import language_config

    return language_config(GgufFile(language))


def _tower(source: Path, config: Mapping[str, Any], layer: int, *, keep_class: bool) -> Tower:
    own = config.get("vision_config", config)
    if not isinstance(own, dict):
        raise CheckpointError(f"{source}: vision_config is {own!r}, a JSON object was expected")
    kind = own.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "clip"):
        raise CheckpointError(
            f"{source}: a vision tower of type {kind!r} is not supported; supported: clip_vision_model"
        )
    values = {key: _whole(source, own, key, default) for key, default in _VISION_DEFAULTS.items()}
    for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
        if values[whole] < values[part] or (whole == "hidden_size" and values[whole] % values[part]):
            raise CheckpointError(f"{source}: {whole} {values[whole]} does not go with {part} {values[part]}")
    if not -values["num_hidden_layers"] - 1 <= layer <= values["num_hidden_layers"]:
        raise CheckpointError(f"{source}: feature layer {layer} of a tower with {values['num_hidden_layers']} blocks")
    return Tower(
        source=source,
        hidden=values["hidden_size"],
        layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp=values["intermediate_size"],
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        act=str(own.get("hidden_act", "quick_gelu")),
        eps=_real(source, own.get("layer_norm_eps", 1e-5), "layer_norm_eps"),
        feature_layer=layer,
        keep_class=keep_class,
    )


def _text(source: Path, config: Mapping[str, Any]) -> Text:
    """The language half's configuration with its class's defaults filled in and LLaVA's keys gone."""
    kind = str(config.get("model_type") or "llama")
    kind = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}.get(kind, kind)
    own = {key: value for key, value in config.items() if not key.startswith(("mm_", "image_", "trifocal_"))}
    filled = {**_TEXT_DEFAULTS.get(kind, {}), **own, "model_type": kind}
    for key in ("hidden_size", "max_position_embeddings"):
        _whole(source, filled, key)
    return Text(source, filled)


def _preprocessing(folder: Path, size: int, aspect: str | None) -> Preprocessing:
    """What ``preprocessor_config.json`` says, in either of its forms; CLIP's values where it is silent."""
    file = folder / "preprocessor_config.json"
    config = read_json(file) if file.is_file() else {}
    side = config.get("crop_size", config.get("size", size))
    if isinstance(side, dict):
        side = side.get("height", side.get("shortest_edge", size))
    if side != size:
        raise CheckpointError(f"{file}: pictures of {side} pixels for a tower that takes {size}")
    if aspect not in (None, "square", "pad"):
        raise CheckpointError(f"{folder}: image_aspect_ratio {aspect!r} is not supported; supported: square, pad")
    pad = aspect == "pad" or (aspect is None and bool(config.get("do_pad")))
    resample = config.get("resample", 3)
    if resample not in range(6):
        raise CheckpointError(f"{file}: resample is {resample!r}, one of PIL's numbers 0 to 5 was expected")
    return Preprocessing(
        size=size,
        fit="pad" if pad else "crop",
        mean=_colours(file, config.get("image_mean", CLIP_MEAN), "image_mean"),
        std=_colours(file, config.get("image_std", CLIP_STD), "image_std"),
        rescale=_real(file, config.get("rescale_factor", 1 / 255), "rescale_factor"),
        resample=int(resample),
    )


def _whole(source: Path, config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{source}: {key} is {value!r}, a whole number above 0 was expected")
    return value


def _real(source: Path, value: Any, key: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e6:
        raise CheckpointError(f"{source}: {key} is {value!r}, a number above 0 was expected")
    return float(value)


def _colours(source: Path, value: Any, key: str) -> tuple[float, float, float]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise CheckpointError(f"{source}: {key} is {value!r}, three numbers were expected")
    red, green, blue = (_real(source, one, key) for one in value)
    return red, green, blue


def _layer(folder: Path, config: Mapping[str, Any], key: str) -> int:
    value = config.get(key, -2)
    if not isinstance(value, int) or isinstance(value, bool):
        raise CheckpointError(f"{folder / 'config.json'}: {key} is {value!r}, one layer's number was expected")
    return value


def _trained_with(projector: Path | None) -> dict[str, Any]:
    """What a projector's own folder says about how pictures are to be shown to it, in original LLaVA's words."""
    file = projector / "config.json" if projector and projector.is_dir() else None
    config = read_json(file) if file and file.is_file() else {}
    named = ("image_aspect_ratio", "trifocal_template")
    return {key: value for key, value in config.items() if key.startswith("mm_") or key in named}


def _knows(folder: Path, token: str) -> bool:
    """Whether a tokenizer's files mention a token."""
    if folder.suffix == ".gguf":
        from trifocal.quantised.gguf import GgufFile

        return token in GgufFile(folder).metadata.get("tokenizer.ggml.tokens", [])
    files = ("added_tokens.json", "tokenizer.json", "tokenizer_config.json")
    return any(f'"{token}"' in (folder / file).read_text("utf-8") for file in files if (folder / file).is_file())
