"""One door to the vision halves of transformers' own models: their towers, projectors and image processors.

For families of LLaVA's design that need no class here: rows are what the model's ``get_image_features`` gives. What
stands around and between them is the one thing that differs, and stands in `FRAMES`.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from trifocal.checkpoints import Checkpoint
from trifocal.checkpoints.door import stored_parts
from trifocal.checkpoints.reading import LARGEST
from trifocal.errors import BadImage, CheckpointError, UsageError
from trifocal.images import Image
from trifocal.placement import Part, Placement
from trifocal.templates import Control
from trifocal.timing import Timings
from trifocal.vision.cache import FeatureCache
from trifocal.vision.placing import room

__all__ = ["FRAMES", "DoorVision", "load_door"]

log = logging.getLogger("trifocal")
Layout = tuple["str | Control | int", ...]
WHITE = (255, 255, 255)
_SIZES = ("hidden_size", "intermediate_size", "image_size", "patch_size", "num_attention_heads", "num_hidden_layers")
_BLOCK = re.compile(r"\.layers?\.(\d+)\.")


class DoorVision:
    """The vision half of a model of transformers, in one piece on one placement."""

    def __init__(
        self, model: Any, processor: Any, frame: Frame, *, hidden: int, identity: str, part: Part, cache: FeatureCache
    ) -> None:
        self.model, self.processor, self.cache = model, processor, cache
        self.hidden, self.identity, self._frame, self._part = hidden, identity, frame, part
        self._layouts: dict[tuple[int, int], Layout] = {}

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it is made of and where it is."""
        return (self._part,)

    def encode(self, images: Sequence[Image], timings: Timings | None = None) -> list[torch.Tensor]:
        """Rows of each picture, ``[positions, hidden]``, in order; pictures are seen one by one.

        Raises:
            BadImage: a video.
            OutOfMemory: the device has no room.
        """
        timings = Timings() if timings is None else timings
        return self.cache.fill(images, lambda new: [self._see(image, timings) for image in new])

    def positions(self, image: Image, among: int = 1) -> int:
        """How many rows a picture of this size has."""
        return sum(item for item in self.layout(image, among) if isinstance(item, int))

    def cached(self, image: Image, among: int = 1) -> bool:
        """Whether a picture's rows are known already."""
        return self.cache.has(image)

    def layout(self, image: Image, among: int = 1) -> Layout:
        """Tokens and numbers of rows of a picture; a blank one of its size tells them."""
        size = (image.width, image.height)
        if size not in self._layouts:
            from PIL import Image as Pictures

            inputs = self._inputs(Pictures.new("RGB", size))
            self._layouts[size] = self._frame(inputs, self.model.config)
        return self._layouts[size]

    @torch.inference_mode()
    def _see(self, image: Image, timings: Timings) -> torch.Tensor:
        if image.frames:
            raise BadImage("is_a_video", "this model takes pictures, not videos", image.name)
        with timings.step("preprocess"):
            inputs = self._inputs(image.on(WHITE))
        with timings.step("tower"), room("vision tower"):
            seen = self.model.get_image_features(**self._placed(inputs))
        rows = getattr(seen, "pooler_output", seen)
        if isinstance(rows, (list, tuple)):
            rows = torch.cat([each.flatten(0, -2) for each in rows])
        block: torch.Tensor = rows.flatten(0, -2)
        wanted = self.positions(image)
        if len(block) != wanted:
            raise CheckpointError(f"{image.name}: the tower made {len(block)} rows where {wanted} were reckoned with")
        return block.clone()

    def _inputs(self, picture: Any) -> dict[str, Any]:
        return dict(self.processor([picture], return_tensors="pt", **_more(self.processor, self.model.config)))

    def _placed(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What of the inputs the model takes, on its device and in its precision."""
        taken = inspect.signature(self.model.get_image_features).parameters
        first = next(self.model.parameters())
        found = {}
        for name, value in inputs.items():
            if name in taken:
                tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
                found[name] = tensor.to(first.device, first.dtype if tensor.is_floating_point() else None)
        return found


Frame = Callable[[Mapping[str, Any], Any], Layout]


def _more(processor: Any, config: Any) -> dict[str, Any]:
    """What transformers' processors tell their image processors besides."""
    if hasattr(processor, "max_image_size"):  # Idefics3's tells rows and columns of its tiles only when asked
        return {"return_row_col_info": True}
    merged = getattr(config, "spatial_merge_size", None)
    return {"patch_size": int(config.vision_config.patch_size) * merged} if merged else {}


def _internvl(inputs: Mapping[str, Any], config: Any) -> Layout:
    """All tiles between one pair of marks."""
    tiles = len(inputs["pixel_values"])
    return Control("<img>"), tiles * int(config.image_seq_length), Control("</img>")


def _idefics3(inputs: Mapping[str, Any], config: Any) -> Layout:
    """Each tile with its row and column, a line break a row of tiles, the whole picture last."""
    eyes = config.vision_config
    count = int((eyes.image_size // eyes.patch_size) ** 2 / config.scale_factor**2)
    rows, columns = int(inputs["rows"][0][0]), int(inputs["cols"][0][0])
    around = Control("<fake_token_around_image>")
    found: list[str | Control | int] = []
    for row in range(rows):
        for column in range(columns):
            found += [around, Control(f"<row_{row + 1}_col_{column + 1}>"), count]
        found.append("\n")
    found += ["\n"] if rows else []
    return (*found, around, Control("<global-img>"), count, around)


def _pixtral(inputs: Mapping[str, Any], config: Any) -> Layout:
    """A break after each row of patches, an end after the last."""
    side = int(config.vision_config.patch_size) * int(getattr(config, "spatial_merge_size", 1) or 1)
    high, wide = (int(value) // side for value in inputs["image_sizes"][0])
    found: list[str | Control | int] = []
    for _ in range(high):
        found += [wide, Control("[IMG_BREAK]")]
    return (*found[:-1], Control("[IMG_END]"))


def _gemma3(inputs: Mapping[str, Any], config: Any) -> Layout:
    return "\n\n", Control("<start_of_image>"), int(config.mm_tokens_per_image), Control("<end_of_image>"), "\n\n"


# model_type -> what stands around and between the rows of a picture
FRAMES: dict[str, Frame] = {
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
    "llava": _pixtral,  # with Pixtral's tower
    "mistral3": _pixtral,
    "gemma3": _gemma3,
}


def load_door(
    checkpoint: Checkpoint, tower: Placement, projector: Placement, *, cache_bytes: int = 256 << 20, **_: Any
) -> DoorVision:
    """Loads the vision half of a model of transformers; the language half is never built.

    Raises:
        CheckpointError: files that transformers can't make this model of.
        UsageError: tower and projector on different placements: here they are one part.
    """
    if tower.resolve() != projector.resolve():
        raise UsageError(f"{checkpoint.family}: tower and projector are one part here; place both alike")
    device, dtype = tower.resolve()
    started = time.perf_counter()
    folder = checkpoint.tower.source
    state = stored_parts(folder)
    with room("vision tower"):
        model = _model(folder, state, dtype).to(device).eval().requires_grad_(False)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    log.info("vision: %.1f MB on %s in %s, %.2f s", size / 1e6, device, dtype, time.perf_counter() - started)
    kind = str(model.config.model_type)
    return DoorVision(
        model,
        _processor(folder),
        FRAMES[kind],
        hidden=int(model.config.text_config.hidden_size),
        identity=_identity(state, dtype, folder),
        part=Part("tower", f"{kind}, tower and projector", str(device), str(dtype).removeprefix("torch."), size),
        cache=FeatureCache(cache_bytes),
    )


def _model(folder: Any, state: Mapping[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """transformers' own model with the stored vision half and hardly any language half."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _check_sizes(folder, config.vision_config, state)
        small = copy.deepcopy(config)
        _shrink(small.text_config)
        kind: Any = AutoModelForImageTextToText._model_mapping[type(config)]
        model, told = kind.from_pretrained(
            None,
            config=small,
            state_dict=dict(state),
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (CheckpointError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever wrong values make of the code that computes with them
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{folder}: transformers can't make the vision half of it ({said})") from error
    eyes = [name for name in told["missing_keys"] if not _is_language(name)]
    if eyes or told["mismatched_keys"]:
        wrong = eyes[:3] or [str(entry) for entry in told["mismatched_keys"]][:3]
        raise CheckpointError(
            f"{folder}: tensors of the vision half are missing or of another shape: {', '.join(wrong)}"
        )
    return model


def _check_sizes(folder: Any, config: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Sizes that a tower can have, and no more blocks than there are: nobody ever finishes building more."""
    for key, value in config.to_dict().items():
        least = 1 if key in _SIZES else -LARGEST
        if isinstance(value, int) and not least <= value <= LARGEST:
            raise CheckpointError(f"{folder / 'config.json'}: {key} of the tower is {value}: no tower has that")
    found = {match[1] for name in state if (match := _BLOCK.search(name))}
    told = getattr(config, "num_hidden_layers", len(found))
    if told > len(found):
        raise CheckpointError(
            f"{folder / 'config.json'}: num_hidden_layers of the tower is {told}, {len(found)} blocks are there"
        )


def _is_language(name: str) -> bool:
    return any(part in name.split(".") for part in ("language_model", "text_model", "lm_head"))


def _shrink(text: Any) -> None:
    """One narrow block and a few words: the language half is another part's affair."""
    text.num_hidden_layers = 1
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types[:1])
    text.vocab_size, text.intermediate_size, text.pad_token_id = 8, 8, 0


def _processor(folder: Any) -> Any:
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            folder, backend="pil", trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # transformers' own, of every kind
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"{folder}: transformers can't make its image processor ({said})") from error


def _identity(state: Mapping[str, torch.Tensor], dtype: torch.dtype, folder: Any) -> str:
    digest = hashlib.sha256(f"{dtype} {(folder / 'config.json').read_bytes()!r}".encode())
    for name in sorted(state):
        digest.update(name.encode() + state[name].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
