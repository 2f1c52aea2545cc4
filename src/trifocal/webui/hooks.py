"""The text-generation-webui extension: its settings, its picture field and its hooks, over `Composer`.

Here the host is the engine. It hands over a prompt as text, gets ids and embeddings back, and
generates. The hooks' names and shapes are the host's, at three of its ages: April 2023 (with
``input_hijack``), 2023 to 2025, and v4 (with pictures of its own chat box and API).
"""

from __future__ import annotations

import base64
import bisect
import functools
import importlib
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from trifocal.checkpoints import Checkpoint
from trifocal.conversation.markup import Tag, parse, tags
from trifocal.conversation.templates import IMAGE_MARK
from trifocal.errors import BadImage, BadMarkup, CheckpointError, TrifocalError, UsageError
from trifocal.images import Image, from_pil
from trifocal.messages import Part
from trifocal.model.composer import Composer
from trifocal.model.outline import Outline
from trifocal.placement import Placement
from trifocal.prompt import Prompt
from trifocal.vision import Gallery, load_vision
from trifocal.webui.attached import attached, has_images
from trifocal.webui.eyes import ModelFacts, find_eyes
from trifocal.webui.host import Host, HostTokenizer

if TYPE_CHECKING:
    import PIL.Image
    import torch

__all__ = ["PARAMS", "Extension"]

MEDIA_MARK = "<__media__>"  # the host's own mark for a picture of its chat box or API, from v3.6 on
PARAMS: dict[str, Any] = {
    # the seed's names, with its defaults; None: chosen by the loaded model
    "add_all_images_to_prompt": False,
    "clip_device": None,
    "clip_bits": 32,
    "clip_repo": None,
    "projector_device": None,
    "projector_bits": 32,
    "projector_repo": None,
    "projector_file": None,
    "projector_filename": None,  # as the seed's README has it
    # the successor's names, which win where they are given
    "vision_device": None,
    "vision_bits": None,
    # our own
    "checkpoint": None,
    "allow_pickle": True,  # .bin files, as every original projector is one; no code in them is run
    "upload_edge": 336,
}
_PROJECTOR = "mm_projector.bin"
_PREFIXES = ("llava", "multimodal")
# what of the settings decides which eyes are loaded, and where
_LOADING = [key for key in PARAMS if key not in ("add_all_images_to_prompt", "upload_edge")]
_SYNONYMS = {
    "device": ("vision_device", "clip_device"),
    "bits": ("vision_bits", "clip_bits"),
    "file": ("projector_filename", "projector_file"),
}

Asked = ParamSpec("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class _Sight:
    """The eyes that were loaded, and what they were loaded for."""

    asked: tuple[object, ...]
    checkpoint: Checkpoint
    gallery: Gallery


def _telling(hook: Callable[Asked, Given]) -> Callable[Asked, Given]:
    """A hook whose errors are logged, and raised in the shape that the host shows to its user."""

    @functools.wraps(hook)
    def told(*args: Asked.args, **kwargs: Asked.kwargs) -> Given:
        host: Host = args[0].host  # type: ignore[attr-defined]
        try:
            return hook(*args, **kwargs)
        except TrifocalError as error:
            host.log.error(f"Trifocal: {error}")
            raise host.told(error) from error
        except Exception as error:  # of a library of the host's own date, which can be any; the host says nothing of it
            sentence = f"the picture can't be shown: {type(error).__name__}: {error} (the host's log says where)"
            host.log.error(f"Trifocal: {sentence}", exc_info=True)
            raise host.told(TrifocalError(sentence)) from error

    return told


class Extension:
    """One extension in one host. The shipped script gives the host these methods under their names."""

    def __init__(self, host: Host | None = None) -> None:
        self.host = host or Host()
        self.params = dict(PARAMS)
        self.input_hijack: dict[str, Any] = {"state": False, "value": ["", ""]}
        self._sight: _Sight | None = None
        self._lock = threading.Lock()

    # what the host calls at its start

    def setup(self) -> None:
        """Takes over settings that were written for the other of the two extension names."""
        for prefix in _PREFIXES:
            for key, default in PARAMS.items():
                value = self.host.shared.settings.get(f"{prefix}-{key}")
                if value is not None and self.params[key] == default:
                    self.params[key] = value

    def ui(self) -> None:
        """The picture field below the chat, and the box that keeps older pictures."""
        import gradio  # type: ignore[import-not-found, unused-ignore]

        with gradio.Column():
            field = gradio.Image(label="Send a picture", type="pil")
            every = gradio.Checkbox(
                value=bool(self.params["add_all_images_to_prompt"]), label="Embed all images, not only the last one"
            )
        # lambdas, since gradio evaluates the annotations of what it is given
        field.upload(lambda picture: self._arm(picture), [field], None)
        field.clear(lambda: self._disarm(), None, None)
        every.change(lambda on: self.params.update(add_all_images_to_prompt=on), every, None)
        for name, event in (("Generate", "click"), ("textbox", "submit")):
            if name in self.host.shared.gradio:
                getattr(self.host.shared.gradio[name], event)(lambda: None, None, field)

    # what the host calls for every message and prompt

    @_telling
    def chat_input_modifier(self, text: str, visible_text: str, state: Mapping[str, Any]) -> tuple[str, str]:
        """Puts the uploaded picture into the message; hosts before July 2023 do this by `input_hijack`."""
        if not self.input_hijack["state"]:
            return text, visible_text
        self.host.check_loader()
        add = self.input_hijack["value"]
        self._disarm()
        return add(text, visible_text)  # type: ignore[no-any-return]

    @_telling
    def state_modifier(self, state: dict[str, Any]) -> dict[str, Any]:
        """Leaves the state as it is, but says that no model is loaded before the host trips over a picture."""
        if self.host.model is None and has_images(state):
            self.host.check_loader()
        return state

    @_telling
    def input_modifier(self, text: str, state: Mapping[str, Any] | None = None, is_chat: bool = False) -> str:
        """Leaves the text as it is, but refuses a picture that this loader would read as letters."""
        if any(_ours(text)) or _unmarked(state or {}):
            self._check(text, beside=_unmarked(state or {}))
        return text

    @_telling
    def custom_tokenized_length(self, prompt: str) -> int | None:
        """How many positions a prompt will take; None leaves the counting of plain text to the host.

        A picture of the host's own box is counted by its mark alone: exactly where all pictures of a
        family take the same positions, by a square picture where they don't.
        """
        if self.host.model is None or not (any(_ours(prompt)) or MEDIA_MARK in prompt):
            return None
        if self.host.sees_natively and not any(_ours(prompt)):
            return None
        parts = _tagged(prompt)
        marks = sum(part.count(MEDIA_MARK) for part in parts if isinstance(part, str))
        parts = self._chosen(_placed(parts, MEDIA_MARK, [_stand_in()] * marks))
        return len(self._composer(add_bos=True).outline(parts))

    @_telling
    def tokenizer_modifier(
        self, state: Mapping[str, Any], prompt: str, input_ids: Any, input_embeds: Any
    ) -> tuple[str, Any, Any]:
        """The prompt's ids ``[1, positions]`` and embeddings ``[1, positions, hidden]``.

        A prompt without pictures goes back as it came.
        """
        parts = self._chosen(self._parts(prompt, state))
        if not any(isinstance(part, Image) for part in parts):
            self.host.note_length(len(input_ids[0]))
            return prompt, input_ids, input_embeds
        if input_embeds is not None:
            raise UsageError("a soft prompt and a picture can't stand in one prompt: clear the soft prompt")
        started = time.perf_counter()
        composer = self._composer(add_bos=bool(state["add_bos_token"])).once()
        outline, left_out = fit(parts, self.host.room(state), composer.outline)
        if left_out:
            self.host.log.warning(f"Trifocal: left out of the prompt: {left_out}. Try decreasing max_new_tokens")
        spans = composer.seen(outline)
        ids, rows = self._tensors(spans, self.host.placeholder())
        self.host.note_length(len(spans))
        seconds = time.perf_counter() - started
        self.host.log.info(f"Trifocal: {len(spans.images)} picture(s) in {len(spans)} positions, {seconds:.2f} s")
        return prompt, ids, rows

    @_telling
    def custom_generate_chat_prompt(self, user_input: str, state: Mapping[str, Any], **how: Any) -> Any:
        """The chat prompt of a host that counts by text (`Host.builds_by_text`): its own rows, counted right.

        The host writes all rows, and the oldest but the context go while the prompt is too long.
        """
        chat = importlib.import_module("modules.chat")
        boundless = {**state, "truncation_length": 1 << 30, "chat_prompt_size": 1 << 30}
        _, rows = chat.generate_chat_prompt(user_input, boundless, **{**how, "also_return_rows": True})
        room = min(self.host.room(state), state["chat_prompt_size"])
        least = 2 if how.get("impersonate") else 3
        while len(rows) > least and self._length("".join(rows)) >= room:
            rows.pop(1)
        return ("".join(rows), rows) if how.get("also_return_rows") else "".join(rows)

    # pictures into messages

    def _arm(self, picture: PIL.Image.Image) -> None:
        self.input_hijack.update(state=True, value=functools.partial(self._add_picture, picture))

    def _disarm(self) -> None:
        self.input_hijack.update(state=False, value=["", ""])

    def _add_picture(self, picture: PIL.Image.Image, text: str, visible_text: str | None) -> tuple[str, str]:
        """The message with the picture where ``<image>`` stands, else at its end, in both of its versions."""
        tag = _tag(picture, int(self.params["upload_edge"]))
        shown = visible_text or text
        return tuple(  # type: ignore[return-value]
            words.replace(IMAGE_MARK, tag) if IMAGE_MARK in words else f"{words}\n{tag}" for words in (text, shown)
        )

    # prompts into parts

    def _parts(self, prompt: str, state: Mapping[str, Any]) -> list[Part]:
        """The prompt with its pictures: those in ``<img>`` tags, and those that the host keeps beside it."""
        parts = _tagged(prompt)
        if MEDIA_MARK in prompt:
            return _placed(parts, MEDIA_MARK, attached(state, self.host.fetch))
        pictures = attached(state, self.host.fetch) if _unmarked(state) else []
        unplaced = len(pictures) - sum(part.count(IMAGE_MARK) for part in parts if isinstance(part, str))
        front = [part for picture in pictures[: max(0, unplaced)] for part in (picture, "\n")]
        return [*front, *_placed(parts, IMAGE_MARK, pictures)] if pictures else parts

    def _chosen(self, parts: Sequence[Part]) -> list[Part]:
        """All pictures or only the last one; a picture that is not chosen takes no position."""
        pictures = [part for part in parts if isinstance(part, Image)]
        if self.params["add_all_images_to_prompt"] or len(pictures) < 2:
            return [*parts]
        last = max(at for at, part in enumerate(parts) if isinstance(part, Image))
        return [part for at, part in enumerate(parts) if isinstance(part, str) or at == last]

    def _length(self, text: str) -> int:
        counted = self.custom_tokenized_length(text)
        return len(self.host.encode(text, True)) if counted is None else counted

    def _tensors(self, spans: Prompt, filler: int) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        model = self.host.model
        ids = torch.tensor(spans.ids(filler), dtype=torch.int64, device=model.device)
        rows = spans.splice(self.host.embed).to(model.device, model.dtype)
        return ids[None], rows[None]

    # what is loaded for a language model

    def _check(self, text: str, beside: bool) -> None:
        """Refuses tags to models that see by themselves, and pictures to loaders that take no embeddings."""
        tagged = any(_ours(text))
        if self.host.sees_natively and tagged:
            raise UsageError(
                "this model has sight of its own: attach the picture in the chat box or send it as image_url; "
                "<img> tags are for models that the Transformers loader holds"
            )
        if tagged or (beside and not self.host.sees_natively):
            self.host.check_loader()

    def _composer(self, add_bos: bool) -> Composer:
        """A composer for the loaded model; tower and projector are loaded when they are first needed.

        Raises:
            UsageError: no model, a loader that takes no embeddings, or nobody knows whose eyes fit.
            CheckpointError: the parts are missing, damaged or of another model.
        """
        self.host.check_loader()
        facts = self.host.facts()
        asked = (facts, *(self.params[key] for key in _LOADING))
        with self._lock:
            if self._sight is None or self._sight.asked != asked:
                self._sight = None  # frees the old eyes before the new ones come
                self._sight = _Sight(asked, *self._load(facts))
            sight = self._sight
        return Composer(
            HostTokenizer(self.host, add_bos=add_bos),
            sight.gallery,
            image_start=sight.checkpoint.image_start,
            image_end=sight.checkpoint.image_end,
            strip_around_images=sight.checkpoint.strip_around_images,
        )

    def _load(self, facts: ModelFacts) -> tuple[Checkpoint, Gallery]:
        params, given = self.params, self._given
        checkpoint = find_eyes(
            facts,
            checkpoint=params["checkpoint"],
            tower=params["clip_repo"],
            projector=_projector(params["projector_repo"], given("file")),
        )
        vision = load_vision(
            checkpoint,
            Placement(given("device") or "auto", str(given("bits"))),
            Placement(params["projector_device"] or "auto", str(params["projector_bits"])),
            allow_pickle=bool(params["allow_pickle"]),
        )
        if vision.hidden != facts.hidden:
            raise CheckpointError(
                f"the projector of {checkpoint.name} makes rows of {vision.hidden}, the model {facts.name} takes rows "
                f"of {facts.hidden}: set llava-checkpoint to the LLaVA that this model is the language half of"
            )
        self.host.log.info(f"Trifocal: {facts.name} sees with the eyes of {checkpoint.name}")
        return checkpoint, Gallery(vision)

    def _given(self, what: str) -> Any:
        """A setting that has two names: the first of them that was given."""
        return next((self.params[name] for name in _SYNONYMS[what] if self.params[name] is not None), None)


def fit(parts: Sequence[Part], room: int, outlined: Callable[[Sequence[Part]], Outline]) -> tuple[Outline, str]:
    """The outline of the end of a prompt that fits into ``room`` positions, and what was left out, in words.

    Pictures stay whole or go; the text that comes before the first part that stays is cut at its
    start, as the host cuts a prompt without pictures, but the beginning token stays.

    Raises:
        UsageError: there is no room at all.
    """
    whole = outlined(parts)
    if len(whole) <= room:
        return whole, ""

    def fits(rest: Sequence[Part]) -> bool:
        return len(outlined(rest)) <= room

    if len(outlined([])) >= room:
        raise UsageError(f"max_new_tokens leaves {max(room, 0)} positions of the context for the prompt; lower it")
    at = next(i for i in range(len(parts)) if fits(parts[i + 1 :]))
    cut, rest = parts[at], [*parts[at + 1 :]]
    gone = [part for part in parts[: at + 1] if isinstance(part, Image)]
    letters = sum(len(part) for part in parts[: at + 1] if isinstance(part, str))
    if isinstance(cut, str):
        start = bisect.bisect_left(range(len(cut)), True, key=lambda i: fits([cut[i:], *rest]))
        rest = [cut[start:], *rest] if start < len(cut) else rest
        letters -= len(cut) - start
    told = [f"{len(gone)} picture{'s' * (len(gone) > 1)} ({', '.join(image.name for image in gone)})"] * bool(gone)
    told += [f"the first {letters} characters"] * bool(letters)
    return outlined(rest), " and ".join(told)


def _tagged(prompt: str) -> list[Part]:
    """The texts and the pictures in ``<img src="data:...">`` tags, in order; every other tag is text."""
    parts: list[Part] = []
    at = 0
    for number, tag in enumerate(_ours(prompt), start=1):
        try:
            parts += [prompt[at : tag.start], *parse(prompt[tag.start : tag.end])]
        except BadMarkup as error:
            raise BadMarkup(error.detail, tag.start) from error
        except BadImage as error:
            raise error.named(f"the picture of <img> tag {number}") from error
        at = tag.end
    return [part for part in (*parts, prompt[at:]) if part != ""]


def _ours(text: str) -> Iterator[Tag]:
    """Tags whose source is data; one that names an address is a text about web pages, and none of ours."""
    return (tag for tag in tags(text) if tag.holds_data)


def _unmarked(state: Mapping[str, Any]) -> bool:
    """Whether this is a completion with pictures beside it, for which the host puts no marks into the text."""
    return has_images(state) and not (state.get("history") or {}).get("messages")


def _placed(parts: Iterable[Part], mark: str, images: Sequence[Image]) -> list[Part]:
    """The parts with pictures where the marks stand, matched from the end: old turns are the first to go.

    A mark that no picture is left for stays as it is.
    """
    left, backwards = [*images], list[Part]()
    for part in reversed([*parts]):
        if isinstance(part, Image):
            backwards.append(part)
            continue
        first, *others = part.split(mark)
        for text in reversed(others):
            backwards += [text, left.pop() if left else mark]
        backwards.append(first)
    return [part for part in reversed(backwards) if part != ""]


def _tag(picture: PIL.Image.Image, edge: int) -> str:
    """The picture as text, at most ``edge`` pixels on its short side, so that a history stays small."""
    whole = from_pil(picture, name="the uploaded picture").on((255, 255, 255))
    scale = min(1.0, edge / min(whole.size))
    small = whole.resize((max(1, round(whole.width * scale)), max(1, round(whole.height * scale))))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=90)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'


@functools.cache
def _stand_in() -> Image:
    """A square picture, for counting one that can't be looked at yet."""
    import PIL.Image

    return from_pil(PIL.Image.new("RGB", (336, 336)))


def _projector(repo: str | None, file: str | None) -> str | None:
    """A folder, a file, or a file of a hub repository, from the seed's two settings."""
    if not repo or not file:
        held = repo and Path(repo).is_dir() and not (Path(repo) / _PROJECTOR).is_file()
        return repo if held else f"{repo}/{_PROJECTOR}" if repo else file
    return f"{repo}/{file}"
