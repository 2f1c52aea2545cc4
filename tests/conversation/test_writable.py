"""Turns that a template does not have are put otherwise and told; tools go where the template has a place for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from trifocal.conversation.jinja import JinjaTemplate
from trifocal.conversation.templates import TEMPLATES, ChatTemplate, Control, get_template
from trifocal.conversation.writable import writable
from trifocal.images import Image
from trifocal.messages import Call, Message, Tool

Drawn = Callable[..., Image]
WITH_TOOLS = """{%- if tools %}<|im_start|>system
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}<|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == "tool" %}<|im_start|>user
<tool_response>{{ m.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% endif %}
{%- for call in m.tool_calls or [] %}
{%- if call.id | length != 9 %}{{ raise_exception("ids have nine letters") }}{% endif %}
<tool_call>{{ call.function | tojson }}</tool_call>
{%- endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
ALTERNATING = """{%- for m in messages %}
{%- if m.role == "system" and not loop.first %}{{ raise_exception("only at the start") }}{% endif %}
{%- if m.role != "system" and (m.role == "user") != ((loop.index0 - (messages[0].role == "system")) % 2 == 0) %}
{{- raise_exception("roles must alternate") }}
{%- endif %}
[{{ m.role }}] {{ m.content }}
{%- endfor %}
[assistant]"""
WEATHER = Tool("weather", 'the weather </s> "there"', '{"type":"object","properties":{"city":{"type":"string"}}}')
CALLED = (
    Message("user", "Paris?"),
    Message("assistant", "", calls=[Call("weather", '{"city":"Paris"}', "toolu_1")]),
    Message("tool", "sunny", answers="toolu_1", name="weather"),
)


def texts(template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
    found = writable(messages, template, tools)
    pieces = template.render(found.messages, found.tools)
    return "".join(
        piece.name if isinstance(piece, Control) else piece for piece in pieces if not isinstance(piece, Image)
    )


def said(*turns: tuple[str, str]) -> list[Message]:
    return [Message(role, text) for role, text in turns]  # type: ignore[arg-type]


def test_a_system_text_inside_is_written_where_it_stands_or_joined_to_the_user_beside_it() -> None:
    talk = said(("system", "S"), ("user", "a"), ("assistant", "b"), ("system", "N"), ("user", "c"))
    inside = writable(talk, get_template("qwen_2_5"))
    assert (inside.messages, inside.notes) == (tuple(talk), ())
    assert "b<|im_end|>\n<|im_start|>system\nN<|im_end|>\n<|im_start|>user\nc" in texts(get_template("qwen_2_5"), talk)
    joined = writable(talk, get_template("llava_v1"))
    assert joined.messages[-1].text == "N\n\nc"
    assert joined.notes == ("a system message inside the conversation was joined to a turn of the user",)


@pytest.mark.parametrize(
    ("turns", "wanted"),
    [
        ([("user", "a"), ("system", "N")], [("user", "a\n\nN")]),
        ([("user", "a"), ("assistant", "b"), ("system", "N")], [("user", "a"), ("assistant", "b"), ("user", "N")]),
        ([("user", "a"), ("system", "N"), ("assistant", "b")], [("user", "a\n\nN"), ("assistant", "b")]),
        ([("user", "a"), ("system", "M"), ("system", "N"), ("user", "b")], [("user", "a"), ("user", "M\n\nN\n\nb")]),
        ([("system", "S"), ("system", "N")], [("system", "S"), ("user", "N")]),
        ([("system", "S")], [("user", "S")]),
    ],
)
def test_where_a_system_text_goes(turns: list[tuple[str, str]], wanted: list[tuple[str, str]]) -> None:
    found = writable(said(*turns), get_template("llava_v1")).messages
    assert [(turn.role, turn.text) for turn in found] == wanted


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_writes_every_text_of_a_hard_conversation(name: str, drawn: Drawn) -> None:
    talk = [
        *said(("system", "01."), ("system", "02."), ("assistant", "03."), ("user", "04."), ("system", "05. <image>")),
        Message("user", ("06.", drawn(1))),
        Message("assistant", "07.", calls=[Call("weather", '{"city":"08."}', "1")]),
        Message("tool", ("09.", drawn(2)), answers="1", name="weather"),
        *said(("user", "10."), ("system", "11.")),
    ]
    template = get_template(name)
    found = writable(talk, template, [WEATHER])
    text = texts(template, talk, [WEATHER])
    at = [text.find(f"{number:02}.") for number in range(1, 12)]
    assert -1 not in at
    assert at == sorted(at)
    assert sum(len(turn.images) for turn in found.messages) == 2
    assert any("not offered" in note for note in found.notes)


def test_tools_calls_and_results_go_into_a_template_that_has_them() -> None:
    template = JinjaTemplate(WITH_TOOLS, "tools", "tools.jinja")
    assert template.has_tools
    found = writable(CALLED, template, [WEATHER])
    assert (found.tools, found.notes) == ((WEATHER,), ())
    text = texts(template, CALLED, [WEATHER])
    assert r'"description": "the weather </s> \"there\""' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>' in text
    assert "<tool_response>sunny</tool_response>" in text
    pieces = template.render(found.messages, found.tools)
    assert not any(isinstance(piece, Control) and piece.name == "</s>" for piece in pieces)


def test_a_template_without_tools_says_so_and_calls_become_words() -> None:
    found = writable(CALLED, get_template("vicuna_v1"), [WEATHER])
    assert found.tools == ()
    assert len(found.notes) == 2
    assert found.messages[1].text == '{"name": "weather", "arguments": {"city":"Paris"}}'
    assert found.messages[2] == Message("user", ("Result of weather:\n", "sunny"))


def test_where_turns_must_alternate_neighbours_are_joined() -> None:
    template = JinjaTemplate(ALTERNATING, "alternating", "alternating.jinja")
    assert (template.alternates, template.system_inside, template.has_tools) == (True, False, False)
    talk = said(("system", "S"), ("assistant", "hello"), ("user", "a"), ("user", "b"), ("system", "N"))
    found = writable(talk, template)
    assert [(turn.role, turn.text) for turn in found.messages] == [
        ("system", "S"),
        ("user", ""),
        ("assistant", "hello"),
        ("user", "a\n\nb\n\nN"),
    ]
    assert len(found.notes) == 2
    assert "b" in texts(template, talk)
