"""Every name that the newest official packages can send is known here: done, taken, or refused as not supported.

Each class of ours stands beside the package's own; what it has no name for is told as "there is no such parameter".
"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

import httpx
import pytest
from live import error_of, user

from trifocal.api import anthropic as messages
from trifocal.api import anthropic_messages as blocks
from trifocal.api import items, openai, openai_messages
from trifocal.api import ollama as ours
from trifocal.api import responses as respond
from trifocal.api.parameters import HINTS, NEUTRAL
from trifocal.api.wire import Wire

# theirs by name: only who runs these tests imports the packages, which takes seconds, not everybody who collects them
OPENAI, ANTHROPIC, OLLAMA = "openai.types", "anthropic.types.beta", "ollama._types"
PARTS = f"{OPENAI}.chat.chat_completion_content_part"
PAIRS = [
    (openai.ChatRequest, f"{OPENAI}.chat.completion_create_params:CompletionCreateParamsBase"),
    (openai.CompletionRequest, f"{OPENAI}.completion_create_params:CompletionCreateParamsBase"),
    (
        openai.StreamOptions,
        f"{OPENAI}.chat.chat_completion_stream_options_param:ChatCompletionStreamOptionsParam",
    ),
    *(
        (openai_messages.ChatMessage, f"{OPENAI}.chat:ChatCompletion{role}MessageParam")
        for role in ("System", "Developer", "User", "Assistant", "Tool", "Function")
    ),
    (openai_messages.ChatMessage, f"{OPENAI}.chat:ChatCompletionMessage"),
    (openai_messages.ToolCall, f"{OPENAI}.chat:ChatCompletionMessageFunctionToolCallParam"),
    (openai_messages.ToolCall, f"{OPENAI}.chat:ChatCompletionMessageCustomToolCallParam"),
    (openai_messages.TextPart, f"{OPENAI}.chat:ChatCompletionContentPartTextParam"),
    (openai_messages.ImagePart, f"{OPENAI}.chat:ChatCompletionContentPartImageParam"),
    (openai_messages.ImageUrl, f"{PARTS}_image_param:ImageURL"),
    (openai_messages.FilePart, f"{PARTS}_param:File"),
    (openai_messages.FileData, f"{PARTS}_param:FileFile"),
    (respond.ResponseRequest, f"{OPENAI}.responses.response_create_params:ResponseCreateParamsBase"),
    (respond.ResponseRequest, f"{OPENAI}.responses.input_token_count_params:InputTokenCountParams"),
    (openai.StreamOptions, f"{OPENAI}.responses.response_create_params:StreamOptions"),
    (respond.Text, f"{OPENAI}.responses:ResponseTextConfigParam"),
    (openai_messages.TextPart, f"{OPENAI}.responses:ResponseInputTextParam"),
    (openai_messages.TextPart, f"{OPENAI}.responses:ResponseOutputTextParam"),
    (openai_messages.InputImagePart, f"{OPENAI}.responses:ResponseInputImageParam"),
    (openai_messages.FilePart, f"{OPENAI}.responses:ResponseInputFileParam"),
    (messages.MessagesRequest, f"{ANTHROPIC}.message_create_params:MessageCreateParamsBase"),
    (messages.CountRequest, f"{ANTHROPIC}.message_count_tokens_params:MessageCountTokensParams"),
    (messages.OutputConfig, f"{ANTHROPIC}:BetaOutputConfigParam"),
    (blocks.Base64Source, f"{ANTHROPIC}:BetaBase64ImageSourceParam"),
    (blocks.Base64Source, f"{ANTHROPIC}:BetaPlainTextSourceParam"),
    (blocks.UrlSource, f"{ANTHROPIC}:BetaURLImageSourceParam"),
    (blocks.ContentSource, f"{ANTHROPIC}:BetaContentBlockSourceParam"),
    (ours.ChatRequest, f"{OLLAMA}:ChatRequest"),
    (ours.GenerateRequest, f"{OLLAMA}:GenerateRequest"),
    (ours.Options, f"{OLLAMA}:Options"),
    (ours.Turn, f"{OLLAMA}:Message"),
    (ours.ToolCall, f"{OLLAMA}:Message.ToolCall"),
]
ITEMS = f"{OPENAI}.responses.response_input_item_param:ResponseInputItemParam"
BLOCKS = f"{ANTHROPIC}.beta_content_block_param:BetaContentBlockParam"
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


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=[f"{own.__name__}-{name}" for own, name in PAIRS])
def test_every_name_is_known(ours: type[Wire], theirs: str) -> None:
    assert unknown(ours, resolve_name(theirs)) == set()


@pytest.mark.parametrize(
    ("union", "theirs", "refused"),
    [(items.Item, ITEMS, REFUSED | UNREAD), (blocks.Block, BLOCKS, REFUSED)],
    ids=["items", "blocks"],
)
def test_every_kind_is_known(union: Any, theirs: str, refused: set[str]) -> None:
    own, known = members(union), kinds(resolve_name(theirs))
    assert len(known) > 20
    assert known.keys() - own.keys() <= refused
    assert [unknown(own[kind], known[kind]) for kind in known.keys() & own.keys()] == [set()] * len(own.keys() & known)


def test_a_name_that_nobody_knows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_official_names.HINTS", HINTS - {"reasoning_effort"})
    assert unknown(openai.ChatRequest, resolve_name(PAIRS[0][1])) == {"reasoning_effort"}


@pytest.mark.parametrize("name", ["image", "image_url", "images", "image_data", "video"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"])
def test_a_picture_where_nobody_looks_is_refused(client: httpx.Client, path: str, name: str) -> None:
    """Ollama's dialect takes names that it does not know; a picture is never passed over."""
    limit = {"max_tokens": 9} if path == "/v1/messages" else {}
    body = {"model": "echo", "messages": [user("Hi")], **limit}
    assert name in str(error_of(client.post(path, json={**body, name: "data:image/png;base64,AAAA"})))
    assert client.post(path, json={**body, name: []}).status_code == 200
