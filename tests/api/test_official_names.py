"""Every name that the newest official packages can send is known here: done, taken, or refused as not supported.

Each class of ours stands beside the package's own; what it has no name for is told as "there is no such parameter".
"""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

import httpx
import ollama._types as ollama
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from anthropic.types import beta as anthropic
from anthropic.types.beta.beta_content_block_param import BetaContentBlockParam
from anthropic.types.beta.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.beta.message_create_params import MessageCreateParamsBase
from live import error_of, user
from openai.types.chat import chat_completion_content_part_image_param as image_part
from openai.types.chat import chat_completion_content_part_param as part
from openai.types.chat.chat_completion_stream_options_param import ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as TextCreateParamsBase
from openai.types.responses import response_create_params
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.responses.response_input_item_param import ResponseInputItemParam

from trifocal.api import anthropic as messages
from trifocal.api import anthropic_messages as blocks
from trifocal.api import items, openai, openai_messages
from trifocal.api import ollama as ours
from trifocal.api import responses as respond
from trifocal.api.parameters import HINTS, NEUTRAL
from trifocal.api.wire import Wire

PAIRS = [
    (openai.ChatRequest, CompletionCreateParamsBase),
    (openai.CompletionRequest, TextCreateParamsBase),
    (openai.StreamOptions, ChatCompletionStreamOptionsParam),
    *(
        (openai_messages.ChatMessage, getattr(chat, f"ChatCompletion{role}MessageParam"))
        for role in ("System", "Developer", "User", "Assistant", "Tool", "Function")
    ),
    (openai_messages.ChatMessage, chat.ChatCompletionMessage),
    (openai_messages.ToolCall, chat.ChatCompletionMessageFunctionToolCallParam),
    (openai_messages.ToolCall, chat.ChatCompletionMessageCustomToolCallParam),
    (openai_messages.TextPart, chat.ChatCompletionContentPartTextParam),
    (openai_messages.ImagePart, chat.ChatCompletionContentPartImageParam),
    (openai_messages.ImageUrl, image_part.ImageURL),
    (openai_messages.FilePart, part.File),
    (openai_messages.FileData, part.FileFile),
    (respond.ResponseRequest, response_create_params.ResponseCreateParamsBase),
    (respond.ResponseRequest, InputTokenCountParams),
    (openai.StreamOptions, response_create_params.StreamOptions),
    (respond.Text, responses.ResponseTextConfigParam),
    (openai_messages.TextPart, responses.ResponseInputTextParam),
    (openai_messages.TextPart, responses.ResponseOutputTextParam),
    (openai_messages.InputImagePart, responses.ResponseInputImageParam),
    (openai_messages.FilePart, responses.ResponseInputFileParam),
    (messages.MessagesRequest, MessageCreateParamsBase),
    (messages.CountRequest, MessageCountTokensParams),
    (messages.OutputConfig, anthropic.BetaOutputConfigParam),
    (blocks.Base64Source, anthropic.BetaBase64ImageSourceParam),
    (blocks.Base64Source, anthropic.BetaPlainTextSourceParam),
    (blocks.UrlSource, anthropic.BetaURLImageSourceParam),
    (blocks.ContentSource, anthropic.BetaContentBlockSourceParam),
    (ours.ChatRequest, ollama.ChatRequest),
    (ours.GenerateRequest, ollama.GenerateRequest),
    (ours.Options, ollama.Options),
    (ours.Turn, ollama.Message),
    (ours.ToolCall, ollama.Message.ToolCall),
]
# kinds of items and blocks that are refused by their type: what is in them can't be read, or would have to be done
REFUSED = {"compaction_trigger", "tool_addition", "tool_removal"}
UNREAD = {"compaction"}  # of OpenAI's; Anthropic's is words


def names_of(theirs: Any) -> set[str]:
    """What a package's class can hold."""
    return set(getattr(theirs, "model_fields", None) or get_type_hints(theirs))


def unknown(ours: type[Wire], theirs: Any) -> set[str]:
    """What nobody here has a name for."""
    if ours.lenient:
        return set()
    fields = ours.model_fields.items()
    aliases = {str(field.validation_alias) for _, field in fields if isinstance(field.validation_alias, str)}
    return names_of(theirs) - {name for name, _ in fields} - aliases - ours.untold - HINTS - NEUTRAL.keys()


def kinds(union: Any) -> dict[str, Any]:
    """The members of a union by the types that they name."""
    found = {}
    for member in get_args(union):
        kind = get_type_hints(member).get("type") if isinstance(member, type) else None
        named = [each for part in (kind, *get_args(kind)) for each in get_args(part) if isinstance(each, str)]
        found |= dict.fromkeys(named, member)
    return found


def members(union: Any) -> dict[str, type[Wire]]:
    """Our classes by the types that they take."""
    classes = [get_args(each)[0] if hasattr(each, "__metadata__") else each for each in get_args(get_args(union)[0])]
    return {kind: each for each in classes for kind in get_args(each.model_fields["type"].annotation)}


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=lambda each: each.__name__)
def test_every_name_is_known(ours: type[Wire], theirs: Any) -> None:
    assert unknown(ours, theirs) == set()


@pytest.mark.parametrize(
    ("union", "theirs", "refused"),
    [(items.Item, ResponseInputItemParam, REFUSED | UNREAD), (blocks.Block, BetaContentBlockParam, REFUSED)],
    ids=["items", "blocks"],
)
def test_every_kind_is_known(union: Any, theirs: Any, refused: set[str]) -> None:
    own, known = members(union), kinds(theirs)
    assert len(known) > 20
    assert known.keys() - own.keys() <= refused
    assert [unknown(own[kind], known[kind]) for kind in known.keys() & own.keys()] == [set()] * len(own.keys() & known)


def test_a_name_that_nobody_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_official_names.HINTS", HINTS - {"reasoning_effort"})
    assert unknown(openai.ChatRequest, CompletionCreateParamsBase) == {"reasoning_effort"}


@pytest.mark.parametrize("name", ["image", "image_url", "images", "image_data", "video"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"])
def test_a_picture_where_nobody_looks_is_refused(client: httpx.Client, path: str, name: str) -> None:
    """Ollama's dialect takes names that it does not know; a picture is never passed over."""
    limit = {"max_tokens": 9} if path == "/v1/messages" else {}
    body = {"model": "echo", "messages": [user("Hi")], **limit}
    assert name in str(error_of(client.post(path, json={**body, name: "data:image/png;base64,AAAA"})))
    assert client.post(path, json={**body, name: []}).status_code == 200
