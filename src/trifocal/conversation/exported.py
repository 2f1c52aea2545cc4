"""Our conversation families as Jinja templates, for programs that render a chat themselves."""

from __future__ import annotations

import json
import re

from trifocal.conversation.templates import IMAGE_MARK, Template

__all__ = ["exported", "takes_text"]

_PARTS = re.compile(r"\btype\b")
_STRINGS = re.compile(r"\bis\s+string\b")


def takes_text(source: str) -> bool:
    """Whether a chat template writes a message whose content is one string, as far as its letters tell.

    Those that processors bring look at each part's type, and write nothing of a string.
    """
    return not _PARTS.search(source) or bool(_STRINGS.search(source))


def exported(template: Template) -> str:
    """A conversation family in Jinja2, in as many lines as it has statements, none of which writes a line break.

    A message's content is a string, or a list of parts as processors have it; a picture among them is written
    ``<image>`` on a line of its own. The beginning token is the template's affair in text-generation-webui from 2025
    on; hosts before that give no ``bos_token``, which writes nothing. The greeting belongs to the family's own system
    text: a system text of the user's own stands alone.
    """
    q = json.dumps
    system = template.system_before + template.system + template.system_after + template.greeting
    own = f"{q(template.system_before)} + said(messages[0]['content']) + {q(template.system_after)}"
    first, turns = ("framed", "''") if template.system_in_user else ("''", "framed")
    lines = [
        "{%- macro said(content) -%}",
        "{%- if content is string -%}",
        "{{- content -}}",
        "{%- else -%}",
        "{%- for part in content -%}",
        f"{{{{- part['text'] if part['type'] == 'text' else {q(IMAGE_MARK + chr(10))} -}}}}",
        "{%- endfor -%}",
        "{%- endif -%}",
        "{%- endmacro -%}",
        f"{{{{- bos_token -}}}}{{{{- {q(template.begin)} -}}}}" if template.begin else "{{- bos_token -}}",
        "{%- if messages and messages[0]['role'] == 'system' -%}",
        f"{{%- set framed = {own} -%}}",
        "{%- else -%}",
        f"{{%- set framed = {q(system if template.system else template.greeting)} -%}}",
        "{%- endif -%}",
        f"{{{{- {turns} -}}}}",
        "{%- set turns = messages | rejectattr('role', 'equalto', 'system') | list -%}",
        "{%- for message in turns -%}",
        "{%- if message['role'] == 'user' -%}",
        f"{{{{- ({q(template.between)} if not loop.first else '') + {q(template.user_before)}"
        f" + ({first} if loop.first else '') + said(message['content']) + {q(template.user_after)} -}}}}",
        "{%- else -%}",
        f"{{{{- {q(template.assistant_before)} + said(message['content']) + {q(template.assistant_after)} -}}}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        f"{{%- if add_generation_prompt -%}}{{{{- {q(template.answer)} -}}}}{{%- endif -%}}",
    ]
    return "".join(f"{line}\n" for line in lines)
