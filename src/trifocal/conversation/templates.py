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
from typing import Any, Literal, Protocol

from trifocal.errors import BadMessages, UnknownName
from trifocal.images import Image
from trifocal.messages import Message, Part, Tool

__all__ = [
    "ALIASES",
    "IMAGE_MARK",
    "TEMPLATES",
    "ChatTemplate",
    "Control",
    "Piece",
    "Template",
    "at_marks",
    "get_template",
    "opening",
    "place",
]

IMAGE_MARK = "<image>"
_CONTROLS = re.compile(r"(</s>|<s>|<bos>|<\|[a-z_]+\|>|<(?:start|end)_of_turn>)")


@dataclass(frozen=True, slots=True)
class Control:
    """A control token by its name, put by a template and never by a user: ``</s>``.

    ``needed`` says that a tokenizer without it is the wrong one; else the name is then text, as it is where
    a template that nobody here wrote only looks as if it meant a token. ``again`` says that it stands at the beginning
    even where the tokenizer puts the same token in front of it.
    """

    name: str
    needed: bool = True
    again: bool = False


Piece = str | Control | Image


class ChatTemplate(Protocol):
    """What writes a conversation down: one of our `TEMPLATES`, or a file of Jinja (`trifocal.conversation.jinja`)."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def system(self) -> str:
        """The system text it writes when none is given."""
        ...

    @property
    def pictures(self) -> Literal["first", "last"]:
        """Where pictures go that nobody placed."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        ...

    @property
    def system_inside(self) -> bool:
        """Whether a system turn may stand inside the conversation."""
        ...

    @property
    def has_tools(self) -> bool:
        """Whether it writes tools, calls of them and their results down."""
        ...

    @property
    def alternates(self) -> bool:
        """Whether only the user's and the assistant's turns by turns can be written."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """The conversation in prompt order; see `Template.render`."""
        ...

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn from a text and pictures that stand beside it; see `Template.question`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One conversation family as data; `render` is the same for all.

    A turn is ``before + content + after`` of its role, and the turn to be answered is ``answer``
    alone. Control tokens are written by their names (``</s>``) in these fields and become `Control`
    pieces; in anybody's content the same letters stay text.

    ``begin`` is a control token in front of all, behind the one that the tokenizer itself puts there.
    ``system`` is the default system text, ``system_before`` and ``system_after`` frame it, and
    ``greeting`` is an exchange that always follows. ``system_in_user`` puts the framed system text
    inside the first user turn. ``between`` stands before every user turn but the first. ``pictures``
    says where this family was trained to have pictures that nobody placed. ``picture_before`` and
    ``picture_after`` frame every picture; with ``received`` the pictures that begin a turn become an
    exchange of their own, to which the assistant says that. ``after_pictures`` stands once, behind the
    last picture of a prompt, at its beginning where there is none; without ``own_lines`` no line
    break comes between a picture and what stands beside it. ``stop`` are the strings that end an
    answer. ``trimmed`` takes the white space around a turn's content away. ``marks`` is a pattern of the
    role marks that are plain text here: content that contains one gets a space before the mark's last
    character, so that it can't open a turn.
    """

    name: str
    begin: str = ""
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
    picture_before: str = ""
    picture_after: str = ""
    received: str = ""
    after_pictures: str = ""
    own_lines: bool = True
    stop: tuple[str, ...] = ()
    trimmed: bool = False
    marks: str = r"(?!)"

    has_tools = False
    alternates = False

    @property
    def system_inside(self) -> bool:
        """Whether a system turn is a turn like any other here: one that a control token opens."""
        return not self.system_in_user and bool(_CONTROLS.match(self.system_before))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """The conversation in prompt order: text, control tokens and pictures.

        Ends with the open turn of the assistant, or, where the last message is the assistant's
        own, with that message left open, so that the model continues it.

        Raises:
            BadMessages: no turn at all, a turn that this family does not have (`trifocal.conversation.writable` puts it
                otherwise), or more ``<image>`` marks in a message than it has pictures.
        """
        system, turns = opening(messages, inside=self.system_inside)
        if tools or any(turn.role == "tool" or turn.calls for turn in turns):
            raise BadMessages(f"the template {self.name} has no tools")
        pieces = list(self._pieces(system, self._exchanges(turns)))
        last = max((at for at, piece in enumerate(pieces) if isinstance(piece, Image)), default=-1)
        return (*pieces[: last + 1], *_fragment(self.after_pictures), *pieces[last + 1 :])

    def question(self, text: str, images: Sequence[Image] = ()) -> Message:
        """A user's turn from a text and pictures that stand beside it.

        ``<image>`` in the text says where a picture goes; without it they go where the family was
        trained to have them (after the text in v0, as in the seed; before it from 1.0 on).
        """
        if not text or (self.pictures == "first" and IMAGE_MARK not in text):
            return Message("user", (*images, text) if text else tuple(images))
        return Message("user", (text, *images))

    def _exchanges(self, turns: list[Message]) -> list[Message]:
        """The turns, with leading pictures in an exchange of their own where the family has it so."""
        if not self.received:
            return turns
        return [one for turn in turns for one in _shown_first(turn, self.received)]

    def _pieces(self, system: str | None, turns: list[Message]) -> Iterator[Piece]:
        text = self.system if system is None else self._quoted(system.strip() if self.trimmed else system)
        framed = [*_fragment(self.system_before), text, *_fragment(self.system_after)] if text else []
        if self.begin:
            yield Control(self.begin, again=True)
        if not self.system_in_user:
            yield from framed
            yield from _fragment(self.greeting)
            framed = []
        elif framed and turns[0].role != "user":
            turns = [Message("user", ""), *turns]
        for number, turn in enumerate(turns):
            is_open = number == len(turns) - 1 and turn.role == "assistant"
            if turn.role == "user":
                yield from _fragment(self.between if number else "")
                yield from _fragment(self.user_before)
                yield from framed
                framed = []
                yield from self._content(turn)
                yield from _fragment(self.user_after)
            elif turn.role == "system":
                yield from (*_fragment(self.system_before), *self._content(turn), *_fragment(self.system_after))
            else:
                yield from _fragment(self.assistant_before)
                yield from self._content(turn, is_open=is_open)
                yield from _fragment("" if is_open else self.assistant_after)
        if turns[-1].role != "assistant":
            yield from _fragment(self.answer)

    def _content(self, turn: Message, *, is_open: bool = False) -> Iterator[Part]:
        parts = place(turn, own_lines=self.own_lines)
        for part in _trimmed(parts, ends=not is_open) if self.trimmed else parts:
            yield from [self._quoted(part)] if isinstance(part, str) else self._framed(part)

    def _framed(self, picture: Image) -> Iterator[Part]:
        yield from (part for part in (self.picture_before, picture, self.picture_after) if part)

    def _quoted(self, text: str) -> str:
        return re.sub(self.marks, lambda mark: f"{mark[0][:-1]} {mark[0][-1]}", text)


def _trimmed(parts: Sequence[Part], *, ends: bool) -> tuple[Part, ...]:
    """A turn's parts without white space at the beginning and, if it ``ends``, behind its last one."""
    made = list(parts)
    if made and isinstance(made[0], str):
        made[0] = made[0].lstrip()
    if ends and made and isinstance(made[-1], str):
        made[-1] = made[-1].rstrip()
    return tuple(part for part in made if part != "")


def opening(messages: Sequence[Message], *, inside: bool = False) -> tuple[str | None, list[Message]]:
    """A conversation's system text, None where there is none, and its turns.

    Raises:
        BadMessages: no turn at all, or a system text that is not at the start and may not stand ``inside``.
    """
    turns = list(messages)
    texts = []
    while turns and turns[0].role == "system":
        texts.append(turns.pop(0).text)
    if not turns:
        raise BadMessages("the conversation has no user turn")
    if not inside and any(turn.role == "system" for turn in turns):
        raise BadMessages("a system message stands inside the conversation; it belongs at the start")
    return ("\n\n".join(texts) if texts else None), turns


def place(message: Message, *, own_lines: bool = True) -> tuple[Part, ...]:
    """The message's content with every picture where it goes.

    ``<image>`` marks in the text take the pictures in order, exactly where they stand, and pictures
    beyond the marks go to the end. Without a mark the order of the parts holds, each picture on a
    line of its own if ``own_lines``. Without pictures ``<image>`` is text like any other.

    Raises:
        BadMessages: more marks than pictures.
    """
    parts, over = at_marks(message)
    if parts is not message.parts:
        return (*parts, *(part for image in over for part in (("\n", image) if own_lines else (image,))))
    if not message.images or not own_lines:
        return parts
    return tuple(_on_own_lines([part for part in parts if part != ""]))


def at_marks(message: Message) -> tuple[tuple[Part, ...], tuple[Image, ...]]:
    """The message's content with its pictures at their ``<image>`` marks, and the pictures beyond the marks.

    Without marks, or without pictures, it is the message's own parts.

    Raises:
        BadMessages: more marks than pictures.
    """
    images = list(message.images)
    marks = sum(part.count(IMAGE_MARK) for part in message.parts if isinstance(part, str))
    if not images or not marks:
        return message.parts, ()
    if marks > len(images):
        raise BadMessages(f"the text has {marks} {IMAGE_MARK} marks, but {len(images)} pictures came with it")
    placed: list[Part] = []
    for text, image in zip_longest(message.text.split(IMAGE_MARK), images[:marks]):
        placed += [part for part in (text, image) if part]
    return tuple(placed), tuple(images[marks:])


def _shown_first(turn: Message, received: str) -> Iterator[Message]:
    """A turn that begins with pictures as two: the pictures, which are received, and then the rest."""
    parts = list(place(turn)) if turn.images else []
    first = next((at for at, part in enumerate(parts) if isinstance(part, str) and part.strip()), len(parts))
    shown = [part for part in parts[:first] if isinstance(part, Image)]
    if not shown:
        yield turn
        return
    yield Message("user", shown)
    yield Message("assistant", received)
    rest = parts[first:]
    yield Message("user", (str(rest[0]).lstrip("\n"), *rest[1:]) if rest else "")


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
_LLAVA_FIRST = (
    "You are LLaVA, a large multimodal model trained by UW Madison WAIV Lab, based on LLaMA architecture."
    "You are able to understand the image and visual content that the user provides, "
    "and explain to human using natural language."
    "You are designed to assist human with a variety of tasks using natural language."
    "Follow the instructions carefully and explain your answers in detail.  Provide examples when necessary."
)
_TAGGED = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant is able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
    "The visual content will be provided with the following format: <Image>visual content</Image>."
)
_ABOUT_PICTURES = "Answer the questions about the visual content that the user provides."
_SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
_ENERGY = (
    "Human: What are the key differences between renewable and non-renewable energy sources?###"
    "Assistant: Renewable energy sources are those that can be replenished naturally in a relatively short amount of "
    "time, such as solar, wind, hydro, geothermal, and biomass. Non-renewable energy sources, on the other hand, are "
    "finite and will eventually be depleted, such as coal, oil, and natural gas. Here are some key differences between "
    "renewable and non-renewable energy sources:\n"
    "1. Availability: Renewable energy sources are virtually inexhaustible, while non-renewable energy sources are "
    "finite and will eventually run out.\n"
    "2. Environmental impact: Renewable energy sources have a much lower environmental impact than non-renewable "
    "sources, which can lead to air and water pollution, greenhouse gas emissions, and other negative effects.\n"
    "3. Cost: Renewable energy sources can be more expensive to initially set up, but they typically have lower "
    "operational costs than non-renewable sources.\n"
    "4. Reliability: Renewable energy sources are often more reliable and can be used in more remote locations than "
    "non-renewable sources.\n"
    "5. Flexibility: Renewable energy sources are often more flexible and can be adapted to different situations and "
    "needs, while non-renewable sources are more rigid and inflexible.\n"
    "6. Sustainability: Renewable energy sources are more sustainable over the long term, while non-renewable sources "
    "are not, and their depletion can lead to economic and social instability.\n###"
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


def _lines(name: str, system: str) -> Template:
    """``### Human: ...`` on lines of their own."""
    return Template(
        name=name,
        system=system,
        system_after="\n\n",
        user_before="### Human: ",
        user_after="\n",
        assistant_before="### Assistant: ",
        assistant_after="\n",
        answer="### Assistant:",
        stop=("\n###", "###"),
        marks=_MARKS_HUMAN,
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


def _llama_2(name: str, system: str, **more: object) -> Template:
    """LLaMA-2 chat: the system text inside the first turn, ``<s>`` before the later ones."""
    return _inst(name, "<s>", system=system, system_in_user=True, assistant_before=" ", assistant_after=" </s>", **more)


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


def _llama_3(name: str, begin: str = "") -> Template:
    """Llama 3's turns, with the system text of LLaVA's."""
    return Template(
        name=name,
        begin=begin,
        trimmed=True,
        system="You are a helpful language and vision assistant. " + _SEEING,
        system_before="<|start_header_id|>system<|end_header_id|>\n\n",
        system_after="<|eot_id|>",
        user_before="<|start_header_id|>user<|end_header_id|>\n\n",
        user_after="<|eot_id|>",
        assistant_before="<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant_after="<|eot_id|>",
        answer="<|start_header_id|>assistant<|end_header_id|>\n\n",
        stop=("<|eot_id|>",),
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


_IN_TAGS: dict[str, Any] = {"picture_before": "<Image>", "picture_after": "</Image>", "received": "Received."}

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
        _single("multimodal_first", _LLAVA_FIRST, pictures="last"),  # of the very first commit
        _lines("llava_v0_training", _HUMAN),  # as v0's training wrote it
        _two("llava_v1_mm", _LLAVA, pictures="last"),  # v1.1 and Lightning
        _chatml(
            "mpt_multimodal",
            "- You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab.\n"
            f"- {_SEEING}\n"
            "- You should follow the instructions carefully and explain your answers in detail.",
            "",
            pictures="last",
        ),
        # ScienceQA's; from 1.0 to 2023-08-27 it was llava_v0, with the picture first
        _single("simple", _HUMAN, "Human: Hi!###Assistant: Hi there! How can I help you today?###", pictures="last"),
        # from LLaVA 1.0 on: the picture comes first
        _single("llava_v0", _HUMAN),
        _two("llava_v1", _HUMAN),
        _two("vicuna_v1", _USER),
        _two("vicuna_v1_webui", _USER, system_after="\n\n", line="\n", end="</s>\n"),
        _single("v0", _HUMAN, _ENERGY),
        _single("v0_mmtag", _TAGGED, **_IN_TAGS),
        _two("v1_mmtag", _TAGGED, **_IN_TAGS),
        _llama_2("llava_llama_2", "You are a helpful language and vision assistant. " + _SEEING),
        _llama_2("llava_llama_2_simple", _ABOUT_PICTURES),
        _llama_2("llava_llama_2_mmtag", _ABOUT_PICTURES + _TAGGED[_TAGGED.index("The visual") :], **_IN_TAGS),
        _llama_2("llama_2", _SAFE),
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
        # the original writes by Llama 3's chat template, which has a beginning token, and reads what it wrote with
        # `tokenizer_image_token`, which puts the tokenizer's own in front of that
        _llama_3("llava_llama_3", begin="<|begin_of_text|>"),
        Template(
            name="gemma_instruct",  # it knows no system text; one that is given begins the first turn
            system_after="\n\n",
            system_in_user=True,
            user_before="<start_of_turn>user\n",
            user_after="<end_of_turn>\n",
            assistant_before="<start_of_turn>model\n",
            assistant_after="<end_of_turn>\n",
            answer="<start_of_turn>model\n",
            stop=("<end_of_turn>",),
        ),
        Template(name="paligemma", user_after="\n", assistant_after="\n", after_pictures="<bos>", own_lines=False),
        # the chat templates of the llava-hf repositories
        _two("llava_1_5_hf", "", line=" ", end=" "),
        _inst("mistral_instruct_hf", "", assistant_before=" ", assistant_after="</s> "),
        _chatml("chatml_hf", "", "\n"),
        _llama_3("llava_llama_3_hf"),
    )
}


# other names of the field for the same conversation
ALIASES = {
    "default": "v0",
    "v1": "vicuna_v1",
    "v0_plain": "plain",
    "llava_v0_mmtag": "v0_mmtag",
    "llava_v1_mmtag": "v1_mmtag",
    "mistral_direct": "chatml_direct",
    "llava_mistral_instruct": "mistral_instruct",
    "qwen_2": "qwen_1_5",
    "llava_1_6_vicuna_hf": "llava_1_5_hf",
    "llava_1_6_mistral_hf": "mistral_instruct_hf",
    "llava_1_6_34b_hf": "chatml_hf",
    "onevision_hf": "chatml_hf",
    "interleave_hf": "chatml_hf",
}


def get_template(name: str) -> Template:
    """The template of that name, or of that other name of the field (`ALIASES`).

    Raises:
        UnknownName: there is none; the message lists those there are.
    """
    found = TEMPLATES.get(ALIASES.get(name, name))
    if found is None:
        raise UnknownName("template", name, [*TEMPLATES, *ALIASES])
    return found
