"""The text-generation-webui extension: its settings, its picture field and its hooks, over `Composer`.

Here the host is the engine. It hands over a prompt as text, gets ids and embeddings back, and
generates. The hooks' names and shapes are the host's, at three of its ages: April 2023 (with
``input_hijack``), 2023 to 2025, and v4 (with pictures of its own chat box and API).
"""

from __future__ import annotations

import base64
import bisect
import functools
import html
import importlib
import io
import itertools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from trifocal.checkpoints import Checkpoint
from trifocal.conversation.templates import IMAGE_MARK
from trifocal.errors import BadMarkup, CheckpointError, TrifocalError, UsageError
from trifocal.images import Image, from_pil
from trifocal.messages import Part
from trifocal.model.composer import Composer
from trifocal.model.outline import Outline
from trifocal.placement import Placement
from trifocal.prompt import Prompt
from trifocal.vision import Gallery, load_vision
from trifocal.webui.attached import attached, brought, has_images, misplaced
from trifocal.webui.held import (
    MEDIA_MARK,
    Held,
    Turn,
    half_counted,
    newest,
    ours,
    outside,
    placed,
    read,
    stand_in,
    tagged,
    to_words,
)
from trifocal.webui.host import Host, HostTokenizer
from trifocal.webui.matching import ModelFacts, find_llava

if TYPE_CHECKING:
    import PIL.Image
    import torch

__all__ = ["PARAMS", "Extension"]

_V0_TURNS, _V0_STOP = ("### Human:", "### Assistant:"), "\n###"
_TURN = "trifocal_turn"  # where a chat's state keeps what is being answered, from prompt to tokens
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
    "cudnn_attention": False,  # see `Host.spare_cudnn_attention`
}
_PROJECTOR = "mm_projector.bin"
_PREFIXES = ("llava", "multimodal")
# what of the settings decides which tower and projector are loaded, and where
_LOADING = [key for key in PARAMS if key not in ("add_all_images_to_prompt", "upload_edge", "cudnn_attention")]
# as the seed's settings have them, and as torch and Trifocal's own options do
_BITS = {"32": "float32", "16": "float16", "float32": "float32", "float16": "float16", "bfloat16": "bfloat16"}
_BITS |= {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "auto": "auto"}
_SYNONYMS = {
    "device": ("vision_device", "clip_device"),
    "bits": ("vision_bits", "clip_bits"),
    "file": ("projector_filename", "projector_file"),
}

Asked = ParamSpec("Asked")
Given = TypeVar("Given")


@dataclass(frozen=True, slots=True)
class _LoadedVision:
    """The tower and projector that were loaded, and what they were loaded for."""

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
            if getattr(error, "is_told", False):  # by a hook that the host called while it was within this one
                raise
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
        self._building = threading.local()  # while the host builds a chat prompt: what it measured, and all messages
        self._loaded: _LoadedVision | None = None
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
        """Says what the host would trip over, no model or a picture of no user's, and where a v0 model's turn ends.

        v4 finds the letters after which an answer stops in the template, but not those of v0's.
        """
        if self.host.model is None and has_images(state):
            self.host.check_loader()
        place = None if self.host.sees_natively else misplaced(state)
        if place is not None:
            raise UsageError(f"{place}: this host takes pictures in the user's messages alone; move it into one")
        if state.get("mode") == "instruct" and all(
            turn in (state.get("instruction_template_str") or "") for turn in _V0_TURNS
        ):
            given = state.get("stopping_strings")
            state["stopping_strings"] = [*(given if isinstance(given, list) else ()), _V0_STOP]
        return state

    @_telling
    def input_modifier(self, text: str, state: Mapping[str, Any] | None = None, is_chat: bool = False) -> str:
        """Leaves the text as it is, but refuses a picture that the model would read as letters."""
        if any(ours(text)) or _unmarked(state or {}):
            self._check(text, beside=_unmarked(state or {}))
        at = None if self.host.sees_natively else outside(text)
        if at is not None:
            raise BadMarkup("a picture's base64 stands outside of an <img> tag", at)
        return text

    @_telling
    def custom_tokenized_length(self, prompt: str) -> int | None:
        """How many positions a prompt will take; None leaves the counting of plain text to the host.

        A picture of the host's own box is counted by its mark alone: exactly where all pictures of a
        family take the same positions, by a square picture where they don't.
        """
        watched = hasattr(self._building, "measured")
        if watched:
            self._building.measured.append(prompt)
        if self.host.model is None or not (any(ours(prompt)) or MEDIA_MARK in prompt):
            return None
        if self.host.sees_natively and not any(ours(prompt)):
            return None
        composer = self._composer(add_bos=True)
        texts = self._building.texts if watched else ()
        parts = half_counted(to_words(prompt, texts))
        marks = sum(part.count(MEDIA_MARK) for part in parts if isinstance(part, str))
        parts = placed(parts, [Held(stand_in)] * marks)
        return len(composer.outline(self._read(parts, Turn((), 0), composer)))

    @_telling
    def tokenizer_modifier(
        self, state: Mapping[str, Any], prompt: str, input_ids: Any, input_embeds: Any
    ) -> tuple[str, Any, Any]:
        """The prompt's ids ``[1, positions]`` and embeddings ``[1, positions, hidden]``.

        A prompt without pictures goes back as it came. Where another extension looks for pictures too, the prompt goes
        on without their data: what this one saw stands.
        """
        held = self._parts(prompt, state)
        turn = self._turn(prompt, state)
        asked = self._asked(held, turn, state)
        if not any(isinstance(part, Held) for part in held):
            self.host.note_length(len(input_ids[0]))
            return prompt, input_ids, input_embeds
        if input_embeds is not None:
            self.host.check_embeddings()
        started = time.perf_counter()
        composer = self._composer(add_bos=bool(state["add_bos_token"])).once()
        parts = self._read(held, turn, composer, tell=True)
        outline, left_out = fit(parts, self.host.room(state), composer.outline)
        if len(outline.looks) < min(asked, sum(isinstance(part, Image) for part in parts)):
            raise self._too_long(turn, state)
        if left_out:
            self.host.log.warning(f"Trifocal: left out of the prompt: {left_out}. Try decreasing max_new_tokens")
        spans = composer.seen(outline)
        ids, rows = self._tensors(spans, self.host.placeholder())
        self.host.note_length(len(spans))
        seconds = time.perf_counter() - started
        self.host.log.info(f"Trifocal: {len(spans.images)} picture(s) in {len(spans)} positions, {seconds:.2f} s")
        if self.host.others_that_see():
            prompt = "".join(part if isinstance(part, str) else IMAGE_MARK for part in held)
        return prompt, ids, rows

    @_telling
    def custom_generate_chat_prompt(self, user_input: str, state: dict[str, Any], **how: Any) -> Any:
        """The host's own chat prompt, of a message that stays whole; None leaves it to the host.

        Notes in the state what is being answered. A host that finds a message too long cuts off its end, pictures and
        question with it; the prompt that it measured before that goes on to `fit`, which cuts at the start, and not
        through a picture.
        """
        history = how.get("history") or state.get("history") or self.host.history
        turn = Turn.of(user_input, history, goes_on=bool(how.get("_continue")))
        state[_TURN] = turn
        if self.host.builds_by_text:
            return self._counted_rows(user_input, state, how)
        other = self.host.others_chat_prompt(self)
        build = other or self.host.chat_prompt
        if build is None or not turn.pictures or how.get("_continue"):
            return other(user_input, state, **how) if other else None
        self._building.texts, self._building.measured = turn.texts, []
        try:
            built = build(user_input, state, **how)
        except ValueError:  # not even the template fits
            built = None
        finally:
            measured = self._building.measured
            del self._building.texts, self._building.measured
        prompt = built[0] if isinstance(built, tuple) else built
        words = user_input.strip()
        marks = turn.pictures - sum(1 for _ in ours(words))

        def is_whole(one: str) -> bool:
            return words in one and one.count(MEDIA_MARK) >= marks

        # once it cuts, the host measures beginnings of the message, and the bare message for its log
        whole = [*itertools.takewhile(is_whole, measured)]
        if not whole or (prompt is not None and is_whole(prompt)):
            return built
        return (whole[-1], built[1] if isinstance(built, tuple) else []) if how.get("also_return_rows") else whole[-1]

    def _counted_rows(self, user_input: str, state: Mapping[str, Any], how: Mapping[str, Any]) -> Any:
        """The chat prompt of a host that counts by text (`Host.builds_by_text`): its own rows, counted right.

        The host writes all rows, and the oldest but the context go while the prompt is too long. A name that is to
        speak is followed by a space outside of instruct mode, as the seed's extension wrote it.
        """
        chat = importlib.import_module("modules.chat")
        boundless = {**state, "truncation_length": 1 << 30, "chat_prompt_size": 1 << 30}
        _, rows = chat.generate_chat_prompt(user_input, boundless, **{**how, "also_return_rows": True})
        speaker = state["name1"] if how.get("impersonate") else state["name2"]
        if state.get("mode") != "instruct" and rows[-1] == f"{speaker.strip()}:":
            rows[-1] += " "
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

        def with_tag(words: str) -> str:
            mark = next((mark for mark in (IMAGE_MARK, html.escape(IMAGE_MARK)) if mark in words), None)
            return words.replace(mark, tag) if mark else f"{words}\n{tag}"

        return with_tag(text), with_tag(visible_text or text)

    # prompts into parts

    def _parts(self, prompt: str, state: Mapping[str, Any]) -> list[str | Held]:
        """The prompt with its pictures: those in ``<img>`` tags, and those that the host keeps beside it."""
        turn = self._turn(prompt, state)
        try:
            parts = tagged(to_words(prompt, turn.texts if turn else ()))
        except BadMarkup as error:
            if turn and all(tag.source is not None for text in turn.texts for tag in ours(text)):
                raise UsageError(
                    f"the message was cut within its picture, since it is longer than the {self.host.room(state)} "
                    "positions that truncation_length less max_new_tokens leaves: shorten it, or lower max_new_tokens"
                ) from error
            raise
        if _unmarked(state):
            return placed(parts, attached(state, self.host.fetch), both=True)
        return placed(parts, attached(state, self.host.fetch)) if MEDIA_MARK in prompt else parts

    def _turn(self, prompt: str, state: Mapping[str, Any]) -> Turn | None:
        """What of a chat is being answered; None where the prompt is no chat's.

        Where the host writes in the user's name it tells no extension; then all that was said is past.
        """
        noted = state.get(_TURN)
        if isinstance(noted, Turn):
            return noted
        said = [str(row[0]) for row in (state.get("history") or {}).get("internal") or ()]
        known = said and not _unmarked(state)
        past = known and all(any(prompt[tag.start : tag.end] in text for text in said) for tag in ours(prompt))
        return Turn(tuple(said), 0) if past else None

    def _asked(self, held: Sequence[str | Held], turn: Turn | None, state: Mapping[str, Any]) -> int:
        """How many of the prompt's last pictures belong to what is to be answered, and may not be left out.

        Raises:
            UsageError: the host itself has left one of them out already.
        """
        own = brought(state)
        if sum(isinstance(part, Held) for part in held) < own:
            raise self._too_long(turn, state)
        if turn is not None:
            return max(own, turn.pictures)
        return newest([part for part in held if isinstance(part, Held)] if _unmarked(state) else held)

    def _too_long(self, turn: Turn | None, state: Mapping[str, Any]) -> UsageError:
        what = "message" if turn is not None else "prompt"
        return UsageError(
            f"the {what} is longer than the {self.host.room(state)} positions that truncation_length less "
            "max_new_tokens leaves, and its picture would be left out: shorten it, or write it behind the text"
        )

    def _read(
        self, parts: Sequence[str | Held], turn: Turn | None, composer: Composer, tell: bool = False
    ) -> list[Part]:
        """The parts with the pictures that are shown; those of earlier turns that are none are left out and told."""
        every = bool(self.params["add_all_images_to_prompt"])
        shown, left_out = read(parts, every=every, turn=turn, look=lambda image: composer.outline([image]))
        for sentence in left_out if tell else ():
            self.host.log.warning(f"Trifocal: a picture of an earlier message was left out: {sentence}")
        return shown

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
        tagged = any(ours(text))
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
            UsageError: no model, a loader that takes no embeddings, or no tower and projector are known to fit.
            CheckpointError: the parts are missing, damaged or of another model.
        """
        self.host.check_loader()
        facts = self.host.facts()
        asked = (facts, *(self.params[key] for key in _LOADING))
        with self._lock:
            if self._loaded is None or self._loaded.asked != asked:
                self._loaded = None  # frees the old ones before the new ones come
                self._loaded = _LoadedVision(asked, *self._load(facts))
            loaded = self._loaded
        return Composer(
            HostTokenizer(self.host, add_bos=add_bos),
            loaded.gallery,
            image_start=loaded.checkpoint.image_start,
            image_end=loaded.checkpoint.image_end,
            strip_around_images=loaded.checkpoint.strip_around_images,
        )

    def _load(self, facts: ModelFacts) -> tuple[Checkpoint, Gallery]:
        params, given = self.params, self._given
        checkpoint = find_llava(
            facts,
            checkpoint=params["checkpoint"],
            tower=params["clip_repo"],
            projector=_projector(params["projector_repo"], given("file")),
        )
        vision = load_vision(
            checkpoint,
            self._placement(_SYNONYMS["device"], _SYNONYMS["bits"]),
            self._placement(("projector_device",), ("projector_bits",)),
            allow_pickle=bool(params["allow_pickle"]),
        )
        if vision.hidden != facts.hidden:
            raise CheckpointError(
                f"the projector {checkpoint.projector.source} makes rows of {vision.hidden}, the model {facts.name} "
                f"takes rows of {facts.hidden}: set llava-checkpoint to the LLaVA that this model is the language "
                "half of"
            )
        for other in self.host.others_that_see():
            self.host.log.warning(
                f"Trifocal: the extension {other} is switched on too and looks for the same pictures; they are seen "
                f"by Trifocal, and what {other} has loaded for them takes memory for nothing"
            )
        self.host.log.info(
            f"Trifocal: {facts.name} sees with {checkpoint.tower.source} and {checkpoint.projector.source}"
        )
        if not params["cudnn_attention"]:
            self.host.spare_cudnn_attention()
        return checkpoint, Gallery(vision)

    def _placement(self, devices: tuple[str, ...], bits: tuple[str, ...]) -> Placement:
        """Where a part goes and how precise it is, from settings of these names, the first that was given.

        Raises:
            UsageError: a precision that is none; names the setting, and what it may be.
        """
        device, (name, given) = self._first(devices)[1], self._first(bits)
        dtype = _BITS.get(str(given).lower().removeprefix("torch."))
        if dtype is None:
            raise UsageError(f"the setting llava-{name} is {given!r}; it may be 32 or 16")
        return Placement(str(device or "auto"), dtype)

    def _first(self, names: tuple[str, ...]) -> tuple[str, Any]:
        return next(((name, self.params[name]) for name in names if self.params[name] is not None), (names[-1], None))

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


def _unmarked(state: Mapping[str, Any]) -> bool:
    """Whether this is a completion with pictures beside it, for which the host puts no marks into the text."""
    return has_images(state) and not (state.get("history") or {}).get("messages")


def _tag(picture: PIL.Image.Image, edge: int) -> str:
    """The picture as text, at most ``edge`` pixels on its short side, so that a history stays small."""
    whole = from_pil(picture, name="the uploaded picture").on((255, 255, 255))
    scale = min(1.0, edge / min(whole.size))
    small = whole.resize((max(1, round(whole.width * scale)), max(1, round(whole.height * scale))))
    file = io.BytesIO()
    small.save(file, format="JPEG", quality=90)
    return f'<img src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode("ascii")}">'


def _projector(repo: str | None, file: str | None) -> str | None:
    """A folder, a file, or a file of a hub repository, from the seed's two settings."""
    if not repo or not file:
        held = repo and Path(repo).is_dir() and not (Path(repo) / _PROJECTOR).is_file()
        return repo if held else f"{repo}/{_PROJECTOR}" if repo else file
    return f"{repo}/{file}"
