"""Templates of other people's making: in transformers' shape, bounded, and never taken in by what users type."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_templates import BLUE, GOLDEN, RED, written

from checkpoint_maker import V0
from seeing import prompt_of
from trifocal import load
from trifocal.conversation import sandbox
from trifocal.conversation.jinja import JinjaTemplate, find_template
from trifocal.conversation.sandbox import rendered
from trifocal.conversation.templates import Control, Template
from trifocal.errors import BadMessages, CheckpointError, UnknownName, UsageError
from trifocal.images import Image
from trifocal.messages import Message, Tool
from twins import is_found

# the chat template of llava-hf's 1.5 repositories, and ChatML over plain texts
LLAVA_HF = """{% for message in messages %}
{%- if message['role'] != 'system' %}
{{- message['role'].upper() + ': '}}
{%- endif %}
{#- Render all images first #}
{%- for content in message['content'] | selectattr('type', 'equalto', 'image') %}
{{- '<image>\\n' }}
{%- endfor %}
{#- Render all text next #}
{%- for content in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- if message['role'] != 'assistant' %}
{{- content['text'] + ' '}}
{%- else %}
{%- generation %}{{ content['text'] + ' '}}{% endgeneration %}
{%- endif %}
{%- endfor %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- 'ASSISTANT:' }}
{%- endif %}"""
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TURNS = [Message("user", (RED, "Q1")), Message("assistant", "A1"), Message("user", "Q2")]
Make = Callable[..., JinjaTemplate]


def mine(source: str, **tokens: str) -> JinjaTemplate:
    return JinjaTemplate(source, "mine", "mine.jinja", tokens)


@pytest.mark.parametrize(("source", "name"), [(LLAVA_HF, "llava_1_5_hf"), (CHATML, "chatml_hf")])
def test_a_template_writes_what_ours_of_the_same_family_writes(source: str, name: str) -> None:
    template = mine(source)
    assert written(template.render(TURNS)) == GOLDEN[name]
    assert template.question("Q1", [RED]) == TURNS[0]


def test_stop_strings_are_what_follows_an_answer() -> None:
    assert mine(LLAVA_HF).stop == ("USER:",)
    assert mine(CHATML).stop == ("<|im_end|>",)
    marks = "{% for m in messages %}{{ '### ' + m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}### assistant:"
    assert mine(marks).stop == ("###",)


def test_pictures_stand_where_the_template_puts_them() -> None:
    chatml = mine(CHATML).render([Message("user", ("is <image> like <image>?", RED, BLUE))])
    assert [piece for piece in chatml if isinstance(piece, Image)] == [RED, BLUE]
    assert "is <image> like <image>?" in written(chatml)
    first = mine(LLAVA_HF).render([Message("user", ("is <image> like it?", RED))])
    assert written(first) == "USER: <image>\nis   like it? ASSISTANT:"


def test_an_answer_at_the_end_is_left_open() -> None:
    turns = [Message("user", "Q"), Message("assistant", "It is")]
    assert written(mine(CHATML).render(turns)) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nIt is"


@settings(deadline=None, max_examples=30)
@given(
    st.one_of(
        st.text(),
        st.text(alphabet="<|im_endstar>\U000f0021/imagevdo "),
        st.sampled_from(["<image>", "<video>", "</s>", "[INST]"]),
    )
)
def test_what_users_type_becomes_neither_token_nor_picture(typed: str) -> None:
    pieces = CHAT.render([Message("user", (RED, "x")), Message("assistant", typed), Message("user", typed)])
    plain = CHAT.render([Message("user", (RED, "x")), Message("assistant", "a"), Message("user", "a")])
    assert [p for p in pieces if not isinstance(p, str)] == [p for p in plain if not isinstance(p, str)]
    assert written(pieces).count(typed) >= 2 or not typed


CHAT = mine(CHATML)
PICTURE = "[picture: 16 positions, mean 0.341537]"


HOSTILE = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge text": "{{ 'x' * 10**9 }}",
    "a doubled text": "{% set n = namespace(t='x') %}{% for i in range(60) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "a huge number": "{{ 10 ** (10 ** 9) }}",
    "a wide format": "{{ '%1000000000d' % 1 }}",
    "much output": "{% for a in range(9999) %}{{ 'x' * 9999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "a class": "{{ ''.__class__.__mro__ }}",
    "subclasses": "{{ messages.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "a frame": "{{ (strftime_now | attr('__globals__'))['sys'] }}",
    "a format's class": "{{ '{0.__class__}'.format(messages) }}",
    "a changed list": "{{ messages.append(1) }}",
    "an include": "{% include '/etc/passwd' %}",
    "an import": "{% import 'os' as os %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE)
def test_a_template_that_does_harm_is_ended_and_told(source: str) -> None:
    with pytest.raises(UsageError, match=r"mine\.jinja"):
        mine(CHATML + source)
    assert written(CHAT.render([Message("user", "still there")])).count("still there") == 1


EACH = "{{% for m in messages %}}{{{{ {} }}}}{{% endfor %}}"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ messages }\nx", r"mine\.jinja, line 1: "),
        ("a\nb\n{{ nonsense }}", r"mine\.jinja, line 3: 'nonsense' is undefined"),
        ("a\n{{ messages[7].content }}", r"mine\.jinja, line 2: "),
        ("a\n{{ raise_exception('no pictures here') }}", r"mine\.jinja, line 2: no pictures here"),
        ("a\n{{ 'x' | nosuch }}", r"mine\.jinja, line 2: No filter named 'nosuch'"),
        ("no marks at all", r"mine\.jinja: it writes 0 <image> marks for 1 pictures"),
        ("<image>", r"mine\.jinja: it does not write a question down"),
        (
            EACH.format("m.content | upper"),
            r"mine\.jinja: it writes 0 <image> marks for 1 pictures \('<IMAGE>' is none",
        ),
        (EACH.format("m.content | truncate(3)"), r"mine\.jinja: it writes 0 <image> marks for 1 pictures$"),
        (EACH.format("m.content | capitalize"), r"mine\.jinja: it changes the letters of a question, as a filter"),
        (
            EACH.format("m.content.strip() ~ nothing"),
            r"as a list of parts \(mine.*'list object' has no attribute 'strip'\) nor as one text \(.*'nothing' is un",
        ),
    ],
)
def test_a_mistake_is_told_with_file_and_line(source: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        mine(source)


def test_letters_that_a_template_would_change_are_told_where_a_conversation_has_them() -> None:
    loud = mine(EACH.format("m.role ~ ': ' ~ (m.content | upper if m.role == 'assistant' else m.content)"))
    assert written(loud.render([Message("user", "a question")])) == "user: a question"
    with pytest.raises(BadMessages, match=r"mine\.jinja: it changes the letters of an answer"):
        loud.render(TURNS)


LATE = (  # the system text stands before the last of several questions
    "{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.s = m.content %}"
    "{% else %}{% if loop.last and messages | length > 2 %}{{ ns.s }} / {% endif %}{{ m.role }}: {{ m.content }} / "
    "{% endif %}{% endfor %}"
)


def test_what_is_not_written_everywhere_is_not_called_changed() -> None:
    talk = [Message("system", "told"), Message("user", "q"), Message("assistant", "a"), Message("user", "b")]
    assert written(mine(LATE).render(talk)) == "user: q / assistant: a / told / user: b / "
    with pytest.raises(BadMessages, match="it does not write the system text down"):
        mine(LATE).render(talk[:2])
    assert "<q>" in written(mine(EACH.format("'<' ~ m.content ~ '>'")).render([Message("user", "q")]))


def test_a_conversation_that_the_template_refuses_is_told() -> None:
    strict = CHATML + "{% if messages | length > 2 %}{{ raise_exception('two turns at most') }}{% endif %}"
    with pytest.raises(BadMessages, match=r"mine\.jinja, line 1: two turns at most"):
        mine(strict).render(TURNS)


# users' turns as lists, all others as texts, the system text in the last question: as in Pixtral's released template
PIXTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {{- "[INST]" + (system_message + "\n\n" if loop.last and system_message is defined else "") }}
        {%- for chunk in message["content"] %}
            {{- chunk["text"] if chunk["type"] == "text" else "[IMG]" }}
        {%- endfor %}
        {{- "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token }}
    {%- endif %}
{%- endfor %}"""
# and the other way about: the user's a text, the assistant's a list
TURNED = (
    "{% for m in messages %}{{ m.role ~ ': ' }}{% if m.role == 'user' %}{{ m.content | trim }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{{ '\n' }}{% endfor %}"
)
TRIMMED = "{% for m in messages %}{{ m.role + ': ' }}{{ m['content'] | trim + '\n' }}{% endfor %}"
# where one role's shape is refused by a sentence of the template's own
REFUSING = """{% for m in messages %}{% if m.role == 'assistant' and m.content is not string %}
{{- raise_exception('an answer is a text') }}{% endif %}
{%- if m.role == 'system' and m.content is string %}{{ raise_exception('a system text is a list') }}{% endif %}
{{- m.role + ': ' }}{% if m.content is string %}{{ m.content }}{% else %}
{%- for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endif %}{{ '\n' }}
{%- endfor %}"""


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PIXTRAL, "<s>[INST]<image>Q1[/INST]A1</s>[INST]be brief\n\nQ2[/INST]"),
        (TURNED, "system: be brief\nuser: <image>\nQ1\nassistant: A1\nuser: Q2\n"),
        (TRIMMED, "system: be brief\nuser: <image>\nQ1\nassistant: A1\nuser: Q2\n"),
        (REFUSING, "system: be brief\nuser: <image>Q1\nassistant: A1\nuser: Q2\n"),
    ],
)
def test_each_role_is_given_the_shape_that_it_takes(source: str, expected: str) -> None:
    template = mine(source, bos_token="<s>", eos_token="</s>")
    assert written(template.render([Message("system", "be brief"), *TURNS])) == expected
    # an answer that is to be continued has its role's shape, too
    half = template.render([*TURNS[:1], Message("assistant", "It is")])
    assert written(half).endswith("It is")
    assert written(half).startswith(written(template.render(TURNS)).split("A1")[0])


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_what_a_template_leaves_out_is_told(role: str) -> None:
    leaving = (
        "{% for m in messages %}{% if loop.length < 4 or m.role != '" + role + "' %}{{ m.role + m.content + '\n' }}"
        "{% elif '<image>' in m.content %}<image>{% endif %}{% endfor %}"
    )
    template = mine(leaving)
    assert written(template.render(TURNS)) == "user<image>\nQ1\nassistantA1\nuserQ2\n"
    with pytest.raises(
        BadMessages, match=r"mine\.jinja: it does not write (a question|an answer|the system text) down"
    ):
        template.render([Message("system", "be brief"), *TURNS])


SPELT = [
    "{{ C }}", "{{ messages }}", "{{ messages[0] }}", "{{ messages | first }}", "{{ C | trim }}", "{{ C | string }}",
    "{{ C | upper }}", "{{ C | indent(2) }}", "{{ C | replace('a', 'b') }}", "{{ C | e }}", "{{ C | urlencode }}",
    "{{ C | wordwrap(3) }}", "{{ C | join(', ') }}", "{{ C | tojson }}", "{{ messages[0] | tojson }}",
    "{{ [C] | tojson }}", "{{ {'a': messages[0]} | tojson }}", "{{ 'a' ~ C }}", "{{ 'a' ~ ['b'] }}", "{{ '%s' % C }}",
    "{{ '%s' % (C,) }}", "{{ '%(content)s' % messages[0] }}", "{{ '%s' | format(C) }}", "{{ '{}'.format(C) }}",
    "{{ '{0[content]}'.format(messages[0]) }}", "{{ '{content}'.format_map(messages[0]) }}", "{{ '%r' % 'x' }}",
    "{{ '%r' | format('x') }}", "{{ '{!r}'.format('x') }}", "{{ 'x' | replace('x', C) }}", "{{ 'x' | pprint }}",
    "{{ C | map(attribute='type') | list }}", "{{ C | map(attribute='type') | list | string }}",
    "{{ C | map(attribute='type') }}", "{{ 'a' ~ (C | map(attribute='type') | list) }}", "{{ C + ['a'] }}",
    "{{ C | map('string') | join }}", "{{ [['a']] | join }}", "{{ ('' | safe).join([['a']]) }}",
    "{{ ('%s' | safe) % ['a'] }}", "{{ ('x' | safe).replace('x', ['a']) }}", "{{ none }}", "{{ tools }}",
    "{{ tools ~ '' }}", "{{ range(3) }}", "{{ 'a b'.split() }}", "{{ 'ab' | list }}", "{{ C.index }}",
    "{{ 'a'.upper }}", "{{ namespace(a=1) }}", "{{ dict(a=1) }}", "{{ cycler('a') }}", "{{ self }}",
    "{{ raise_exception }}",
    "{% macro f() %}x{% endmacro %}{{ f }}", "{% for m in messages %}{{ loop }}{% endfor %}",
    "{% for m in messages %}{{ m }}{% endfor %}", "{% filter upper %}{{ C }}{% endfilter %}",
    "{% set x %}{{ C }}{% endset %}{{ x }}", "{{ messages | batch(2) | first }}", "{{ {'a': ['b']} | xmlattr }}",
]  # fmt: skip
WRITTEN = {
    "{{ 'a' ~ 1 ~ true }}": "a1True",
    "{{ '%s-%d' % ('a', 2) }}": "a-2",
    "{{ '{}:{:>3}'.format('a', 2) }}": "a:  2",
    "{{ ', '.join(['a', 'b']) }}": "a, b",
    "{{ C | selectattr('type', 'equalto', 'text') | map(attribute='text') | map('trim') | join('-') }}": "seen",
    "{{ messages | join('-', attribute='role') }}": "user",
    "{{ tools | tojson }}": "null",
    "{{ [1, 'a'] | tojson(indent=1) }}": '[\n 1,\n "a"\n]',
    "{{ 'a' | replace('a', 'b') | upper | indent(2, true) }}": "  B",
    "{{ missing | default('y') }}{{ none | default('z', true) }}": "yz",
    "{{ 'aXb'.split('X')[-1].strip() }}": "b",
    "{% if 'ab'.startswith(('a', 'c')) and C | length == 2 %}{{ 'a' | safe ~ '<' }}{% endif %}": "a<",
    "{% for m in messages %}{{ m.role.upper() }}{{ 'a' if loop.first and m.content is iterable }}{% endfor %}": "USERa",
}


@pytest.mark.parametrize("source", SPELT)
def test_nothing_is_written_as_python_spells_it(source: str) -> None:
    found = rendered(source.replace("C", "messages[0].content"), VALUES)
    assert re.search("as Python spells it|as JSON|format_map|No filter named", found["error"])


@pytest.mark.parametrize("source", WRITTEN)
def test_what_templates_write_of_parts_is_written(source: str) -> None:
    assert rendered(source.replace("C", "messages[0].content"), VALUES) == {"text": WRITTEN[source]}


@pytest.mark.parametrize(
    "text", ["plain", 'say "hi" \\ to\nme', '\\\\"', 'a</s>\t"b" \N{LATIN SMALL LETTER E WITH ACUTE}']
)
def test_json_of_what_people_typed_is_transformers(text: str) -> None:
    """As Llama 3's templates write a tool's result: quotes and backslashes were written without their escape."""
    for indent in ("", "(indent=1)"):
        source = f"{{% for m in messages %}}{{{{ {{'said': m.content}} | tojson{indent} }}}}{{% endfor %}}"
        (whole,) = mine(source).render([Message("user", text)])
        assert whole == json.dumps({"said": text}, ensure_ascii=False, indent=1 if indent else None)


def test_a_tool_is_written_as_it_was_told_with_and_without_json() -> None:
    source = CHATML + "{% if tools %}{{ tools[0].function.description }}|{{ tools[0].function | tojson }}{% endif %}"
    tool = Tool("look", 'finds "it"\nor \\', '{"type":"object"}')
    written = mine(source).render([Message("user", "Q")], [tool])[-1]
    asked = {"name": "look", "description": tool.description, "parameters": {"type": "object"}}
    assert written == f"assistant\n{tool.description}|{json.dumps(asked)}"


VALUES = {
    "messages": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "seen"}]}],
    "tools": None,
}


def test_names_may_be_asked_for_that_are_not_there() -> None:
    source = "{% if tools or nonsense is defined or other %}no{% endif %}{% for x in more %}no{% endfor %}yes"
    assert rendered(source, {"tools": None}) == {"text": "yes"}


@pytest.fixture
def disk(tmp_path: Path) -> Make:
    """Writes files into a checkpoint's folder, and finds a template in it."""

    def found(name: str = "checkpoint", **files: str) -> JinjaTemplate:
        for file, text in files.items():
            path = tmp_path / file.replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        template = find_template(name, tmp_path)
        assert isinstance(template, JinjaTemplate)
        return template

    return found


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template__jinja": CHATML},
        {"chat_template__json": json.dumps({"chat_template": CHATML})},
        {"chat_template__jinja": "\n", "chat_template__json": json.dumps({"chat_template": CHATML})},
        {"tokenizer_config__json": json.dumps({"chat_template": CHATML})},
        {
            "tokenizer_config__json": json.dumps(
                {"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": CHATML}]}
            )
        },
    ],
)
def test_a_checkpoints_own_template(disk: Make, files: dict[str, str]) -> None:
    assert written(disk(**files).render(TURNS)) == GOLDEN["chatml_hf"]


WITH_TOOLS = "{{ 'tools: ' + tools[0].function.name + ' ' }}" + CHATML


@pytest.mark.parametrize(
    "files",
    [
        {
            "tokenizer_config__json": json.dumps(
                {
                    "chat_template": [
                        {"name": "default", "template": CHATML},
                        {"name": "tool_use", "template": WITH_TOOLS},
                    ]
                }
            )
        },
        {"tokenizer_config__json": json.dumps({"chat_template": {"tool_use": WITH_TOOLS, "default": CHATML}})},
        {"chat_template__jinja": CHATML, "additional_chat_templates/tool_use__jinja": WITH_TOOLS},
    ],
)
def test_a_conversation_with_tools_is_written_by_the_template_for_it(disk: Make, files: dict[str, str]) -> None:
    """As transformers chooses; the default one, which may know no tools, was taken."""
    template = disk(**files)
    assert written(template.render(TURNS)) == GOLDEN["chatml_hf"]
    with_tools = template.render(TURNS, [Tool("look", "finds", "{}")])
    assert written(with_tools) == "tools: look " + GOLDEN["chatml_hf"]


@pytest.mark.parametrize("where", [None, "extra_special_tokens", "model_specific_special_tokens"])
def test_a_template_may_ask_for_the_mark_by_its_name(disk: Make, where: str | None) -> None:
    """As in transformers, which tells templates of every ``..._token``: it was a name that is not there."""
    source = (
        "{% for m in messages %}{% for c in m.content %}{{ c.text if c.text else image_token }}{% endfor %}{% endfor %}"
    )
    mark = {"image_token": "<|pic|>"}
    config = {"bos_token": "<s>", **(mark if where is None else {where: mark})}
    pieces = disk(chat_template__jinja=source, tokenizer_config__json=json.dumps(config)).render(TURNS[:1])
    assert pieces == (RED, "Q1")


def test_special_tokens_are_the_tokenizers(disk: Make) -> None:
    config = json.dumps({"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    pieces = disk(
        chat_template__jinja="{{ bos_token }}" + CHATML + "{{ eos_token }}", tokenizer_config__json=config
    ).render([Message("user", "Q")])
    assert (pieces[0], pieces[-1]) == (Control("<s>", needed=False), Control("</s>", needed=False))


def test_what_is_not_there_is_told(disk: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no chat template of its own"):
        disk()
    with pytest.raises(UsageError, match=r"away\.jinja is not there"):
        disk("./away.jinja")
    with pytest.raises(UnknownName, match="llava_v1"):
        disk("llava_v7")
    assert isinstance(find_template("llava_v1", tmp_path), Template)


def test_a_model_speaks_through_a_users_template(v0: V0, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ bos_token }}<|not_a_token|>" + CHATML)
    parts = {"tower_from": str(v0.tower), "projector_from": str(v0.projector)}
    with load(checkpoint=str(v0.language), engine="echo", template=str(file), **parts) as llava:
        prompt = prompt_of(llava.composer, llava.template.render([Message("user", (RED, "Q"))]))
        begin = llava.engine.tokenizer.token("<s>")
        assert [token for token in prompt.token_ids if token == begin] == [begin]
        said = llava.complete([Message("user", (RED, "say </s>"))]).text
    # what stands beside a picture of v0 is stripped
    assert said == f"<|not_a_token|>user{PICTURE}say </s>\nassistant\n"


def test_its_twin_without_bounds_is_found() -> None:
    def refused() -> None:
        assert "error" in rendered("{% for a in range(9) %}{{ 'x' * 10**6 }}{% endfor %}", {})

    is_found(refused, sandbox, "LONGEST", 1 << 40)


def test_its_twin_without_a_sandbox_is_found() -> None:
    def refused() -> None:
        sandbox._compiled.cache_clear()
        assert "error" in rendered("{{ (strftime_now | attr('__globals__'))['sys'].version }}", {})

    plain = type("Plain", (sandbox._Environment,), {"is_safe_attribute": lambda *_: True})
    is_found(refused, sandbox, "_Environment", plain)
    sandbox._compiled.cache_clear()
