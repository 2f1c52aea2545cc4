"""How a conversation is written down for a language model: one `Template` a conversation family.

The texts are those of the reference implementations (haotian-liu/LLaVA ``conversation.py`` before
and after 1.0, LLaVA-NeXT, text-generation-webui's instruction templates, the llava-hf chat
templates); `tests/test_templates.py` holds each against its golden rendering.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from trifocal.errors import BadMessages, UnknownName
from trifocal.images import Image
from trifocal.messages import Message, Part

__all__ = ["IMAGE_MARK", "TEMPLATES", "Control", "Piece", "Template", "get_template", "place"]

IMAGE_MARK = "<image>"
_CONTROLS = re.compile(r"(</s>|<s>|<\|[a-z_]+\|>|<(?:start|end)_of_turn>)")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by its name, put by a template and never by a user: ``</s>``."""

    name: str


Piece = str | Control | Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One conversation family as data; `render` is the same for all.

    A turn is ``before + content + after`` of its role, and the turn to be answered is ``answer``
    alone. Control tokens are written by their names (``</s>``) in these fields and become `Control`
    pieces; in anybody's content the same letters stay text.

    ``system`` is the default system text, ``system_before`` and ``system_after`` frame it, and
    ``greeting`` is an exchange that always follows. ``system_in_user`` puts the framed system text
    inside the first user turn. ``between`` stands before every user turn but the first. ``pictures``
    says where this family was trained to have pictures that nobody placed. ``stop`` are the strings
    that end an answer. ``marks`` is a pattern of the role marks that are plain text here: content
    that contains one gets a space before the mark's last character, so that it can't open a turn.
    """

    name: str
    system: str = ""
    system_before: str = ""
    system_after: str = ""
    system_in_user: bool = False
    greeting: str = ""
    user_before: str = ""
    user_after: str = ""
    assistant_before: str = ""
    assistant_after: str = ""
    answer: str = ""
    between: str = ""
    pictures: Literal["first", "last"] = "first"
    stop: tuple[str, ...] = ()
    marks: str = r"(?!)"

    def render(self, messages: Sequence[Message]) -> tuple[Piece, ...]:
        """The conversation in prompt order: text, control tokens and pictures.

        Ends with the open turn of the assistant, or, where the last message is the assistant's
        own, with that message left open, so that the model continues it.

        Raises:
            BadMessages: no turn at all, a system text that is not at the start, or more
                ``<image>`` marks in a message than it has pictures.
        """
        system, turns = self._split(messages)
        return tuple(self._pieces(system, turns))

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn from a text and pictures that stand beside it.

        ``<image>`` in the text says where a picture goes; without it they go where the family was
        trained to have them (after the text in v0, as in the seed; before it from 1.0 on).
        """
        if not text or (self.pictures == "first" and IMAGE_MARK not in text):
            return Message("user", (*images, text) if text else tuple(images))
        return Message("user", (text, *images))

    def _split(self, messages: Sequence[Message]) -> tuple[str | None, list[Message]]:
        turns = list(messages)
        texts = []
        while turns and turns[0].role == "system":
            texts.append(turns.pop(0).text)
        if not turns:
            raise BadMessages("the conversation has no user turn")
        if any(turn.role == "system" for turn in turns):
            raise BadMessages("a system message stands inside the conversation; it belongs at the start")
        return ("\n\n".join(texts) if texts else None), turns

    def _pieces(self, system: str | None, turns: list[Message]) -> Iterator[Piece]:
        text = self.system if system is None else self._quoted(system)
        framed = [*_fragment(self.system_before), text, *_fragment(self.system_after)] if text else []
        if not self.system_in_user:
            yield from framed
            yield from _fragment(self.greeting)
            framed = []
        for number, turn in enumerate(turns):
            is_open = number == len(turns) - 1 and turn.role == "assistant"
            if turn.role == "user":
                yield from _fragment(self.between if number else "")
                yield from _fragment(self.user_before)
                yield from framed
                framed = []
                yield from self._content(turn)
                yield from _fragment(self.user_after)
            else:
                yield from _fragment(self.assistant_before)
                yield from self._content(turn)
                yield from _fragment("" if is_open else self.assistant_after)
        if turns[-1].role == "user":
            yield from _fragment(self.answer)

    def _content(self, turn: Message) -> Iterator[Part]:
        for part in place(turn):
            yield self._quoted(part) if isinstance(part, str) else part

    def _quoted(self, text: str) -> str:
        return re.sub(self.marks, lambda mark: f"{mark[0][:-1]} {mark[0][-1]}", text)


def place(message: Message) -> tuple[Part, ...]:
    """The message's content with every picture where it goes.

    ``<image>`` marks in the text take the pictures in order, exactly where they stand, and pictures
    beyond the marks go to the end. Without a mark the order of the parts holds, each picture on a
    line of its own. Without pictures ``<image>`` is text like any other.

    Raises:
        BadMessages: more marks than pictures.
    """
    images = list(message.images)
    marks = sum(part.count(IMAGE_MARK) for part in message.parts if isinstance(part, str))
    if not images:
        return message.parts
    if marks > len(images):
        raise BadMessages(f"the text has {marks} {IMAGE_MARK} marks, but {len(images)} pictures came with it")
    if not marks:
        return tuple(_on_own_lines([part for part in message.parts if part != ""]))
    placed: list[Part] = []
    for text, image in zip_longest(message.text.split(IMAGE_MARK), images[:marks]):
        placed += [part for part in (text, image) if part]
    for image in images[marks:]:
        placed += ["\n", image]
    return tuple(placed)


def _on_own_lines(parts: Sequence[Part]) -> Iterator[Part]:
    """The parts, with a line break between a picture and whatever stands beside it."""
    for before, part in zip(("\n", *parts), parts, strict=False):
        beside = isinstance(before, Image) or isinstance(part, Image)
        broken = (isinstance(before, str) and before[-1].isspace()) or (isinstance(part, str) and part[0].isspace())
        if beside and not broken:
            yield "\n"
        yield part


def _fragment(text: str) -> Iterator[Piece]:
    """A template's own text, its control tokens apart."""
    for piece in _CONTROLS.split(text):
        if _CONTROLS.fullmatch(piece):
            yield Control(piece)
        elif piece:
            yield piece


_LLAVA_WEBUI = (
    "You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language. "
    "Follow the instructions carefully and explain your answers in detail."
)
_LLAVA = _LLAVA_WEBUI.replace(". ", ".")
_HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_USER = _HUMAN.replace("human", "user")
_SEEING = (
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
_MARKS_HUMAN = r"###\s*(?:Human|Assistant)\s*:"
_MARKS_USER = r"\b(?:USER|ASSISTANT):"
_MARKS_INST = r"\[/?INST\]|<</?SYS>>"


def _single(name: str, system: str, greeting: str = "", **more: object) -> Template:
    """``###Human: ...###Assistant:``: the separator ends every turn."""
    return Template(
        name=name,
        system=system,
        system_after="###",
        greeting=greeting,
        user_before="Human: ",
        user_after="###",
        assistant_before="Assistant: ",
        assistant_after="###",
        answer="Assistant:",
        stop=("###",),
        marks=_MARKS_HUMAN,
        **more,  # type: ignore[arg-type]
    )


def _two(
    name: str, system: str, system_after: str = " ", line: str = " ", end: str = "</s>", **more: object
) -> Template:
    """``USER: ... ASSISTANT: ...</s>``: two separators in turn."""
    return Template(
        name=name,
        system=system,
        system_after=system_after,
        user_before="USER: ",
        user_after=line,
        assistant_before="ASSISTANT: ",
        assistant_after=end,
        answer="ASSISTANT:",
        stop=("</s>",),
        marks=_MARKS_USER,
        **more,  # type: ignore[arg-type]
    )


def _inst(name: str, between: str, **more: object) -> Template:
    """``[INST] ... [/INST] ... </s>``, as LLaMA-2 chat and Mistral Instruct have it."""
    return Template(
        name=name,
        system_before="<<SYS>>\n",
        system_after="\n<</SYS>>\n\n",
        user_before="[INST] ",
        user_after=" [/INST]",
        between=between,
        stop=("</s>",),
        marks=_MARKS_INST,
        **more,  # type: ignore[arg-type]
    )


def _chatml(name: str, system: str, line: str, **more: object) -> Template:
    """``<|im_start|>user ... <|im_end|>``, with ``line`` after the end of a turn."""
    return Template(
        name=name,
        system=system,
        system_before="<|im_start|>system\n",
        system_after="<|im_end|>" + line,
        user_before="<|im_start|>user\n",
        user_after="<|im_end|>" + line,
        assistant_before="<|im_start|>assistant\n",
        assistant_after="<|im_end|>" + line,
        answer="<|im_start|>assistant\n",
        stop=("<|im_end|>",),
        **more,  # type: ignore[arg-type]
    )


TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # before LLaVA 1.0: the picture follows the question
        _single(
            "multimodal",
            _LLAVA,
            "Human: Hi!###Assistant: Hi there!  How can I help you today?\n###",
            pictures="last",
        ),
        Template(
            name="llava_v0_webui",  # the seed's own, with the roles on lines of their own
            system=_LLAVA_WEBUI,
            system_after="\n",
            greeting="### Human: \nHi!\n### Assistant: \nHi there! How can I help you today?\n",
            user_before="### Human: \n",
            user_after="\n",
            assistant_before="### Assistant: \n",
            assistant_after="\n",
            answer="### Assistant: \n",
            pictures="last",
            stop=("\n###", "###"),
            marks=_MARKS_HUMAN,
        ),
        Template(
            name="llava_v0_webui_inline",  # text-generation-webui's LLaVA-v0.yaml from May 2023 on
            system=_LLAVA_WEBUI,
            greeting="### Human: Hi!### Assistant: Hi there! How can I help you today?\n",
            user_before="### Human: ",
            assistant_before="### Assistant: ",
            assistant_after="\n",
            answer="### Assistant:",
            stop=("\n###", "###"),
            marks=_MARKS_HUMAN,
        ),
        _two("llava_v1_mm", _LLAVA, pictures="last"),  # v1.1 and Lightning
        _chatml(
            "mpt_multimodal",
            "- You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab.\n"
            f"- {_SEEING}\n"
            "- You should follow the instructions carefully and explain your answers in detail.",
            "",
            pictures="last",
        ),
        # from LLaVA 1.0 on: the picture comes first
        _single("llava_v0", _HUMAN),
        _two("llava_v1", _HUMAN),
        _two("vicuna_v1", _USER),
        _two("vicuna_v1_webui", _USER, system_after="\n\n", line="\n", end="</s>\n"),
        _inst(
            "llava_llama_2",
            "<s>",
            system="You are a helpful language and vision assistant. " + _SEEING,
            system_in_user=True,
            assistant_before=" ",
            assistant_after=" </s>",
        ),
        _inst("mistral_instruct", "", system_in_user=True, assistant_before=" ", assistant_after=" </s>"),
        _chatml("chatml_direct", "Answer the questions.", ""),
        _chatml(
            "mpt",
            "A conversation between a user and an LLM-based AI assistant. "
            "The assistant gives helpful and honest answers.",
            "",
        ),
        Template(name="plain", user_after="\n", assistant_after="\n", stop=("\n",)),
        _chatml("qwen_1_5", "You are a helpful assistant.", "\n"),
        _chatml("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", "\n"),
        # the chat templates of the llava-hf repositories
        _two("llava_1_5_hf", "", line=" ", end=" "),
        _inst("mistral_instruct_hf", "", assistant_before=" ", assistant_after="</s> "),
        _chatml("chatml_hf", "", "\n"),
    )
}


def get_template(name: str) -> Template:
    """The template of that name.

    Raises:
        UnknownName: there is none; the message lists those there are.
    """
    if name not in TEMPLATES:
        raise UnknownName("template", name, list(TEMPLATES))
    return TEMPLATES[name]
