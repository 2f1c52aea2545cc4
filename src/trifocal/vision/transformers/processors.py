"""What a picture becomes on its way to transformers' tower: its tensors, and the tokens around and between its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trifocal.conversation.templates import Control
from trifocal.errors import CheckpointError
from trifocal.quiet import quiet
from trifocal.vision.base import Layout

__all__ = ["Processor", "count", "open_processor"]

Frame = Callable[[Mapping[str, Any], Any], Layout]


class Processor(Protocol):
    """What a picture becomes."""

    def inputs(self, picture: Any) -> dict[str, Any]:
        """The tensors of a PIL picture by their names, as transformers' processor makes them."""
        ...

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        """Tokens and numbers of rows, in prompt order."""
        ...


def open_processor(folder: Path, config: Any) -> Processor:
    """The processor in a model's folder; nothing but files is read.

    Raises:
        CheckpointError: transformers can't make it, or it does not say which token stands for a picture.
    """
    frame = FRAMES.get(str(config.model_type))
    try:
        images = _images(folder)
        if frame is not None:
            return _Framed(images, frame, config)
        return _Written(_processor(folder, config, images), config)
    except CheckpointError:
        raise
    except Exception as error:  # transformers' own, of every kind
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"{folder}: transformers can't make its image processor or its tokens ({said})"
        ) from error


def count(folder: Path, width: int, height: int) -> int:
    """Positions that a picture of this size takes, its marks among them; no weights are read.

    Raises:
        CheckpointError: transformers can't make the processor.
    """
    from PIL import Image as Pictures
    from transformers import AutoConfig

    with quiet():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        processor = open_processor(folder, config)
    layout = processor.layout(processor.inputs(Pictures.new("RGB", (width, height))))
    return sum(item if isinstance(item, int) else 1 for item in layout)


class _Written:
    """A processor that writes the tokens of a picture itself."""

    def __init__(self, processor: Any, config: Any) -> None:
        token = getattr(config, "image_token_id", None)
        mark = getattr(processor, "image_token", None)
        if not isinstance(token, int) or not isinstance(mark, str):
            raise CheckpointError(f"{config.model_type}: it does not say which token stands for a picture")
        self._processor, self._token, self._mark = processor, token, mark

    def inputs(self, picture: Any) -> dict[str, Any]:
        return dict(self._processor(images=[picture], text=self._mark, return_tensors="pt", add_special_tokens=False))

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        tokenizer, found = self._processor.tokenizer, list[str | Control | int]()
        controls = {token: str(added) for token, added in tokenizer.added_tokens_decoder.items()}
        run: list[int] = []
        for token in [*inputs["input_ids"][0].tolist(), None]:
            if run and (token is None or token == self._token or token in controls):
                found.append(tokenizer.decode(run, clean_up_tokenization_spaces=False))
                run = []
            if token == self._token:
                before = found[-1] if found else None
                if isinstance(before, int):
                    found[-1] = before + 1
                else:
                    found.append(1)
            elif token in controls:
                found.append(Control(controls[token]))
            elif token is not None:
                run.append(token)
        return tuple(found)


class _Framed:
    """An image processor whose pictures' tokens are written here."""

    def __init__(self, images: Any, frame: Frame, config: Any) -> None:
        self._images, self._frame, self._config = images, frame, config

    def inputs(self, picture: Any) -> dict[str, Any]:
        return dict(self._images([picture], return_tensors="pt", **self._more()))

    def layout(self, inputs: Mapping[str, Any]) -> Layout:
        return self._frame(inputs, self._config)

    def _more(self) -> dict[str, Any]:
        """What transformers' processors tell their image processors besides."""
        if hasattr(self._images, "max_image_size"):  # Idefics3's tells rows and columns of its tiles only when asked
            return {"return_row_col_info": True}
        merged = getattr(self._config, "spatial_merge_size", None)
        return {"patch_size": int(self._config.vision_config.patch_size) * merged} if merged else {}


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


def _paligemma(_: Mapping[str, Any], config: Any) -> Layout:
    return (int((config.vision_config.image_size // config.vision_config.patch_size) ** 2),)


# model_type -> what stands around and between the rows of a picture, where its processor asks for libraries that
# pictures don't need (torchvision, num2words), or writes the whole prompt
FRAMES: dict[str, Frame] = {
    "smolvlm": _idefics3,
    "llava": _pixtral,  # with Pixtral's tower
    "mistral3": _pixtral,
    "paligemma": _paligemma,
}


def _images(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False, local_files_only=True)


def _processor(folder: Path, config: Any, images: Any) -> Any:
    """The family's processor for pictures and text; the rest of it, for videos and sound, is not made."""
    from transformers import AutoTokenizer
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kind: Any = PROCESSOR_MAPPING[type(config)]
    made = {
        "image_processor": images,
        "tokenizer": AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True),
    }

    class Pictures(kind):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return None if argument is None else super().check_argument_for_proper_class(argument_name, argument)

    values, _ = kind.get_processor_dict(folder, local_files_only=True)
    parts = [made.get(name) for name in kind.get_attributes()]
    return Pictures.from_args_and_dict(parts, values)
