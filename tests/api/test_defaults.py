"""What clients send by default is taken, what was cut is told, what would change the answer is refused."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from live import HIDDEN, Live, data_uri, error_of, events_of, make_llava, png, running, user

import trifocal
from trifocal.api.errors import Refusal
from trifocal.api.openai import ChatRequest
from trifocal.api.places import place_of
from trifocal.api.settings import ServerSettings
from trifocal.api.stored import Stored, StoredResponses
from trifocal.api.tools import Offer, Reader, allowed_of, choice_of, offer_of
from trifocal.conversation.jinja import JinjaTemplate
from trifocal.engines.echo import Echo
from trifocal.errors import UsageError
from trifocal.messages import Tool
from trifocal.prompt import Prompt

CHAT = "/v1/chat/completions"
PICTURE = base64.b64encode(png("red")).decode()
FUNCTION = {"type": "function", "function": {"name": "paint", "description": "p", "parameters": {"type": "object"}}}
WITH_TOOLS = """{% for t in tools or [] %}[tool]{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}
{%- if m.name %}:{{ m.name }}{% endif %}]
{%- if m.content is string %}{{ m.content }}{% endif %}
{%- for c in m.tool_calls or [] %}[call]{{ c.function | tojson }}{% endfor %}{% endfor %}[assistant]"""


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": None, "stop": None, "tools": None, "logit_bias": None, "response_format": None, "n": None},
        {"reasoning_effort": "high", "verbosity": "low", "safety_identifier": "x", "prompt_cache_key": "x"},
        {"store": True, "metadata": {"a": "b"}, "service_tier": "flex", "user": "x", "parallel_tool_calls": True},
        {"top_p": 0, "top_k": -1, "seed": -1, "max_tokens": 5.0, "stop": "", "n": 1.0},
        {"stop": [""], "logit_bias": {}, "tools": [], "functions": [], "modalities": ["text"], "audio": {}},
        {
            "typical_p": 1.0,
            "mirostat": 0,
            "mirostat_tau": 5.0,
            "num_beams": 1,
            "suffix": "",
            "echo": False,
            "best_of": 1,
        },
        {"max_tokens": -1, "top_logprobs": 0, "logprobs": False, "stream_options": {"include_usage": True}},
        {"tools": [FUNCTION], "tool_choice": "auto"},
        {"tools": [FUNCTION, {"type": "web_search"}], "tool_choice": "none"},
        {"keep_alive": "5m", "ttl": 60, "priority": 0, "cache_salt": "x", "usage": {"include": True}, "random_seed": 1},
        {"provider": {"order": ["x"]}, "models": ["x"], "route": "fallback", "transforms": [], "plugins": []},
        {"continue_final_message": False, "include_stop_str_in_output": False, "documents": [], "safe_prompt": False},
    ],
)
def test_what_changes_no_answer_is_taken(client: httpx.Client, options: dict[str, Any]) -> None:
    response = client.post(CHAT, json={"messages": [user("Hi")], **options})
    assert response.status_code == 200, response.text


# what pages and clients of other servers send with every request, their settings untouched
PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama.cpp's page": (
        CHAT,
        {
            "messages": [user("Hi")],
            "backend_sampling": False, "dry_allowed_length": 2, "dry_base": 1.75, "dry_multiplier": 0,
            "dry_penalty_last_n": -1, "dynatemp_exponent": 1, "dynatemp_range": 0, "max_tokens": -1,
            "reasoning_format": "auto", "repeat_last_n": 64, "repeat_penalty": 1, "return_progress": True,
            "samplers": ["top_k", "temperature"], "timings_per_token": True, "typ_p": 1, "xtc_probability": 0,
            "xtc_threshold": 0.1,
        },
    ),
    "vLLM's clients": (
        CHAT,
        {
            "messages": [user("Hi")],
            "bad_words": [], "chat_template_kwargs": {}, "kv_transfer_params": {}, "length_penalty": 0.8,
            "logits_processors": [], "mm_processor_kwargs": {}, "return_token_ids": False, "stream_interval": 1,
            "thinking_token_budget": 10, "truncate_prompt_tokens": -1, "vllm_xargs": {}, "watermarking": False,
        },
    ),
    "SillyTavern's text completion": (
        "/v1/completions",
        {
            "prompt": "Hi",
            "adaptive_decay": 0.9, "adaptive_target": -0.01, "add_bos_token": True, "api_server": "x",
            "api_type": "ooba", "ban_eos_token": False, "banned_strings": [], "custom_token_bans": "",
            "do_sample": True, "dry_penalty_last_n": 0, "dynamic_temperature": False, "dynatemp_high": 1.5,
            "early_stopping": False, "guidance_scale": 1, "max_new_tokens": 9, "max_tokens": 9,
            "max_tokens_second": 0, "min_p": 0.05, "n_predict": 9, "n_probs": 0, "negative_prompt": "", "nsigma": 0,
            "num_ctx": 2048, "num_predict": 9, "rep_pen": 1, "rep_pen_range": 0, "rep_pen_slope": 1,
            "repeat_penalty": 1, "repetition_penalty": 1, "sampler_order": [6, 0], "sampler_priority": ["top_k"],
            "sampler_seed": -1, "seed": -1, "skew": 0, "stop": ["x"], "stopping_strings": ["x"],
            "temperature_last": False, "truncation_length": 2048, "typical": 1, "typical_p": 1,
        },
    ),
    "KoboldAI Lite": (
        "/api/v1/generate",
        {
            "prompt": "Hi",
            "banned_tokens": [], "bypass_eos": False, "dynatemp_range": 0, "genkey": "K", "logit_bias": {},
            "logprobs": False, "max_context_length": 4096, "max_length": 9, "memory": "", "min_p": 0, "n": 1,
            "presence_penalty": 0, "quiet": True, "render_special": False, "rep_pen": 1.07, "rep_pen_range": 360,
            "rep_pen_slope": 0.7,
            "sampler_order": [6, 0], "stop_sequence": ["x"], "temperature": 0.75, "tfs": 1, "top_a": 0, "top_k": 100,
            "trim_stop": True, "typical": 1, "use_default_badwordsids": False,
        },
    ),
    "Zed with LM Studio's provider": (
        "/api/v0/chat/completions",
        {"model": "echo", "messages": [user("Hi")], "stream": True, "max_tokens": None, "stop": [], "temperature": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAGES)
def test_what_other_servers_clients_send_is_taken(client: httpx.Client, name: str) -> None:
    path, body = PAGES[name]
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    assert ("rep_pen_range" in response.headers.get("x-trifocal-notes", "")) == (name == "KoboldAI Lite")


def test_one_thing_that_is_said_twice_is_not_contradicted(client: httpx.Client) -> None:
    body = {"prompt": "Hi", "repetition_penalty": 1.1, "rep_pen": 1.2}
    assert error_of(client.post("/v1/completions", json=body))["param"] == "rep_pen"
    bounds = {"prompt": "Hi you all", "max_tokens": 9, "n_predict": 3}
    assert client.post("/v1/completions", json=bounds).json()["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize(("drawn", "temperature"), [(False, 0.0), (True, 1.5), (None, 1.5)])
def test_what_is_not_drawn_is_greedy(live: Live, drawn: bool | None, temperature: float) -> None:
    asked = ChatRequest.model_validate({"messages": [user("Hi")], "do_sample": drawn, "temperature": 1.5})
    assert asked.job(live.server).sampling.temperature == temperature


def test_models_are_listed_as_openai_vllm_and_anthropic_do(client: httpx.Client, live: Live) -> None:
    found = client.get("/v1/models").json()
    (model,) = found["data"]
    assert (found["object"], found["has_more"], found["first_id"], found["last_id"]) == ("list", False, "echo", "echo")
    assert (model["object"], model["type"], model["display_name"]) == ("model", "model", "echo")
    assert model.get("max_model_len") == live.llava.context
    assert model["created_at"].endswith("Z")
    assert client.get("/v1/models/echo").json() == model


def test_models_are_listed_as_lm_studio_does(client: httpx.Client) -> None:
    (model,) = client.get("/api/v0/models").json()["data"]
    assert (model["id"], model["type"], model["state"], model["capabilities"]) == ("echo", "vlm", "loaded", ["vision"])
    assert client.get("/api/v0/models/echo").json() == model
    assert error_of(client.get("/api/v0/models/x"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"typical_p": 0.5}, "typical_p"),
        ({"web_search_options": {"a": 1}}, "web_search_options"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"format": "json"}, "format"),
        ({"tools": [FUNCTION], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_would_change_it_is_refused_by_name(client: httpx.Client, options: dict[str, Any], param: str) -> None:
    assert error_of(client.post(CHAT, json={"messages": [user("Hi")], **options}))["param"] == param


def test_what_has_no_effect_or_was_cut_is_told(client: httpx.Client) -> None:
    body = {"messages": [user("Hi")], "max_tokens": 5000, "reasoning_effort": "high", "tools": [FUNCTION]}
    notes = client.post(CHAT, json=body).json()["trifocal"]["notes"]
    assert notes[0] == "reasoning_effort has no effect here"
    assert any("not the 5000" in note for note in notes)
    assert any("tools were not offered" in note for note in notes)
    assert client.post(CHAT, json={"messages": [user("Hi")]}).json()["trifocal"]["notes"] == []


ECHO = {
    "role": "assistant",
    "content": "Well",
    "refusal": None,
    "annotations": [],
    "audio": None,
    "function_call": None,
    "tool_calls": None,
    "reasoning_content": "hm",
}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "paint", "arguments": '{"a":1}'}}],
}


@pytest.mark.parametrize(
    "more",
    [
        [ECHO],
        [CALLED, {"role": "tool", "tool_call_id": "c1", "content": "done"}],
        [{**CALLED, "tool_calls": None, "function_call": {"name": "paint", "arguments": "{}"}}],
        [{"role": "function", "name": "paint", "content": "done"}],
        [
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Well"}, {"type": "refusal", "refusal": "n"}],
            }
        ],
        [{"role": "tool", "tool_call_id": "c1", "content": [{"type": "image_url", "image_url": {"url": data_uri()}}]}],
        [{"role": "developer", "content": "Be brief."}, {"role": "system", "content": "More."}],
        [{"role": "user", "content": [], "name": "Eve"}],
    ],
)
def test_answers_calls_and_results_that_are_sent_back_are_read(client: httpx.Client, more: list[Any]) -> None:
    response = client.post(CHAT, json={"messages": [user("Hi"), *more, user("And?")]})
    assert response.status_code == 200, response.text
    if "data:" in str(more):
        assert "mean 85" in response.text


def test_a_secret_of_kubernetes_is_text_and_bare_base64_is_told(client: httpx.Client) -> None:
    secret = "data:\n  tls.crt: " + "QUJD" * 300
    assert client.post(CHAT, json={"messages": [user(secret)]}).status_code == 200
    part = {"type": "image_url", "image_url": {"url": PICTURE}, "cache_control": {"type": "ephemeral"}}
    error = error_of(client.post(CHAT, json={"messages": [user(part)]}))
    assert error["param"] == "messages[0].content[0]"
    assert "data:image/png;base64," in error["message"]


def test_ollama_takes_its_own_options_and_tells_of_others(client: httpx.Client) -> None:
    options = {"num_ctx": 8192, "num_predict": 9999, "top_k": 40.0, "num_gpu": 1, "penalize_newline": True, "new": 1}
    body = {
        "model": "echo",
        "prompt": "Hi",
        "options": options,
        "template": "",
        "context": [],
        "suffix": "",
        "format": "",
    }
    response = client.post(
        "/api/generate", json={**body, "images": [f"data:image/png;base64,{PICTURE}"], "stream": False}
    )
    assert response.status_code == 200, response.text
    assert "mean 85" in response.json()["response"]
    assert "new has no effect here" in response.headers["x-trifocal-notes"]
    assert "num_gpu" not in response.headers["x-trifocal-notes"]
    unpadded = client.post("/api/generate", json={"model": "echo", "images": [PICTURE.rstrip("=")], "stream": False})
    assert "mean 85" in unpadded.json()["response"]


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/api/generate", {}, "load"),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, "unload"),
        ("/api/chat", {"messages": []}, "load"),
        ("/api/chat", {"messages": [], "keep_alive": "0s"}, "unload"),
    ],
)
def test_ollama_loads_and_unloads_without_an_answer(
    client: httpx.Client, path: str, body: dict[str, Any], reason: str
) -> None:
    found = client.post(path, json={"model": "echo", **body}).json()
    assert (found["done"], found["done_reason"]) == (True, reason)
    assert found.get("response", found.get("message", {}).get("content")) == ""


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/json; charset=utf-8"])
def test_json_needs_no_content_type(client: httpx.Client, kind: str | None) -> None:
    headers = {"content-type": kind} if kind else {}
    body = b'{"model":"echo","prompt":"Hi","stream":false}'
    assert client.post("/api/generate", content=body, headers=headers).status_code == 200
    assert client.post("/api/generate", content=body, headers={"content-type": "text/html"}).status_code == 415


def test_ollama_s_lists_are_stable(client: httpx.Client) -> None:
    first, second = (client.get("/api/tags").json()["models"][0] for _ in range(2))
    assert first == second
    assert len(first["digest"]) == 64
    assert isinstance(first["size"], int)
    for path in ("/", "/api/tags", "/api/version"):
        assert client.head(path).status_code == 200
    assert "embeddings" in error_of(client.post("/api/embed", json={"model": "echo"}))["message"]


@pytest.fixture(scope="module")
def tools() -> Iterator[tuple[Live, dict[str, str]]]:
    """A server whose model is offered tools, says what it is told to, and notes what it was asked."""
    engine, told = Echo(hidden=HIDDEN), {"said": ""}
    runner, spoken = engine._runner, engine._runner.say

    def say(prompt: Prompt) -> str:
        told["asked"] = spoken(prompt)
        return told["said"]

    runner.say = say  # type: ignore[method-assign]
    llava = make_llava(engine)
    llava.template = JinjaTemplate(WITH_TOOLS, "tools", "tools.jinja")
    with running(llava) as live:
        yield live, told


CALL = '<tool_call>\n{"name": "paint", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize("said", [CALL, f"Well. {CALL}", '{"name": "paint", "parameters": {"a": 1}}'])
def test_calls_are_read_from_answers_whole_and_streamed(tools: tuple[Live, dict[str, str]], said: str) -> None:
    live, told = tools
    told["said"] = said
    question = f"Hi {len(said)}"  # the engine knows what it said to the same prompt
    text = "Well. " if said.startswith("Well") else None
    with live.client() as client:
        body = {"messages": [user(question)], "tools": [FUNCTION]}
        choice = client.post(CHAT, json=body).json()["choices"][0]
        assert '"name": "paint"' in told["asked"]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == text
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "paint", "arguments": '{"a":1}'}
        events = events_of(client.post(CHAT, json={**body, "stream": True}))[:-1]
        deltas = [event["choices"][0]["delta"] for event in events]
        assert "".join(delta.get("content") or "" for delta in deltas) == (text or "")
        assert [d["tool_calls"][0]["function"]["name"] for d in deltas if "tool_calls" in d] == ["paint"]
        blocks = {"model": "echo", "max_tokens": 4096, "messages": [user(question)]}
        blocks["tools"] = [{"name": "paint", "input_schema": {"type": "object"}}]
        assert client.post("/v1/messages", json=blocks).json()["content"][-1]["input"] == {"a": 1}
        turn = {"model": "echo", "messages": [user(question)], "tools": [FUNCTION], "stream": False}
        message = client.post("/api/chat", json=turn).json()["message"]
        assert message["tool_calls"][0]["function"]["arguments"] == {"a": 1}
        items = {"input": question, "tools": [{"type": "function", "name": "paint", "parameters": {"type": "object"}}]}
        assert client.post("/v1/responses", json=items).json()["output"][-1]["arguments"] == '{"a":1}'


def _space(name: str, *functions: str) -> dict[str, Any]:
    """A namespace as Codex sends its own and those of its MCP servers."""
    tools = [
        {"type": "function", "name": each, "strict": False, "parameters": {"type": "object"}} for each in functions
    ]
    return {"type": "namespace", "name": name, "description": "d", "tools": tools}


@pytest.mark.parametrize(("name", "known"), [("agents", "agents__wait"), ("mcp__files__", "mcp__files__wait")])
@pytest.mark.parametrize("stream", [False, True])
def test_a_function_of_a_namespace_is_called_in_it(
    tools: tuple[Live, dict[str, str]], name: str, known: str, stream: bool
) -> None:
    live, told = tools
    told["said"] = f'<tool_call>\n{{"name": "{known}", "arguments": {{}}}}\n</tool_call>'
    body = {"input": f"Wait for {name} {stream}", "tools": [_space(name, "wait"), _space("other", "wait")]}
    with live.client() as client:
        answer = client.post("/v1/responses", json={**body, "stream": stream})
        whole = events_of(answer)[-1]["response"] if stream else answer.json()
        (call,) = whole["output"]
        assert (call["namespace"], call["name"]) == (name, "wait")
        result = {"type": "function_call_output", "call_id": call["call_id"], "output": "done"}
        again = {**body, "input": [user(body["input"]), call, result]}
        assert client.post("/v1/responses", json=again).status_code == 200
        assert f'[call]{{"name": "{known}"' in told["asked"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"tools": [FUNCTION], "parallel_tool_calls": False}),
        ("/v1/responses", {"tools": [FUNCTION], "parallel_tool_calls": False}),
        (
            "/v1/messages",
            {"tools": [{"name": "paint"}], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
    ],
)
def test_one_call_at_a_time_is_one(tools: tuple[Live, dict[str, str]], path: str, body: dict[str, Any]) -> None:
    live, told = tools
    told["said"] = f"{CALL}\n{CALL}"
    asked = {"input": f"Two {path}"} if path == "/v1/responses" else {"messages": [user(f"Two {path}")]}
    more = {"model": "echo", "max_tokens": 4096} if path == "/v1/messages" else {}
    with live.client() as client:
        assert client.post(path, json={**asked, **more, **body}).text.count('"name":"paint"') == (
            2 if path == "/v1/responses" else 1  # a response repeats the functions that it was offered
        )


def _allowed(mode: str, *names: Any, inside: bool = True) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": name}} if inside else {"name": name} for name in names]
    allowed = {"mode": mode, "tools": functions}
    return {"type": "allowed_tools", **({"allowed_tools": allowed} if inside else allowed)}


@pytest.mark.parametrize("inside", [False, True])
def test_functions_that_are_not_allowed_are_not_offered(inside: bool) -> None:
    given = [{"type": "function", "name": name} for name in "abc"]
    some, forced, none = (_allowed(*each, inside=inside) for each in (("auto", "a", "c"), ("required", "b"), ("auto",)))
    assert [tool.name for tool in offer_of(given, choice_of(some), allowed=allowed_of(some)).tools] == ["a", "c"]
    assert [tool.name for tool in offer_of(given, choice_of(forced), allowed=allowed_of(forced)).forced] == ["b"]
    assert offer_of(given, choice_of(none), allowed=allowed_of(none)).tools == ()
    assert len(offer_of(given, "auto", allowed=allowed_of("auto")).tools) == 3


@pytest.mark.parametrize(
    "choice",
    [
        _allowed("auto", "none of them"),
        _allowed("auto", 5),
        {"type": "allowed_tools", "mode": "required", "tools": ["paint"]},
        {"type": "allowed_tools", "allowed_tools": "paint"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": {"paint": 1}}},
        {"type": ["function"]},
        {"type": "function", "function": "paint"},
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_tool_choice_that_is_none_is_refused(client: httpx.Client, path: str, choice: dict[str, Any]) -> None:
    body = {"input": "Hi"} if path == "/v1/responses" else {"messages": [user("Hi")]}
    assert (
        error_of(client.post(path, json={**body, "tools": [FUNCTION], "tool_choice": choice}))["param"] == "tool_choice"
    )


def test_functions_of_namespaces_are_chosen_and_counted() -> None:
    spaces = [_space("a", "wait"), _space("b", "see")]
    assert [tool.name for tool in offer_of(spaces, ("see",)).forced] == ["b__see"]
    assert [tool.name for tool in offer_of(spaces, ("b__see",)).forced] == ["b__see"]
    for given, words in (
        ([_space("a", "wait", "wait")], "two functions called a__wait"),
        ([_space("a", *map(str, range(513)))], "up to 512 functions"),
        ([{"type": "namespace", "name": "a", "tools": {"b": {}}}], "a list of functions"),
    ):
        with pytest.raises(Refusal) as refused:
            offer_of(given, "auto")
        assert words in refused.value.message


@pytest.mark.parametrize(
    "said", ["{curly} words", '{"name": "other", "arguments": {}}', "see <tool_call>", "```py\n1\n```"]
)
def test_what_is_no_call_stays_text(said: str) -> None:
    for size in (1, 3, 99):
        reader = Reader(Offer((Tool("paint"),)))
        text = "".join(reader.push(said[at : at + size]) for at in range(0, len(said), size))
        rest, calls = reader.finish()
        assert (text + rest, calls) == (said, ())


def test_one_of_several_functions_is_forced_by_name_and_arguments() -> None:
    given = [
        {**FUNCTION, "function": {"name": name, "parameters": {"$ref": "#/$defs/A", "$defs": {"A": {}}}}}
        for name in "ab"
    ]
    offer = offer_of(given, "required")
    assert offer.schema is not None
    assert '"$ref":"#/$defs/tool1/$defs/A"' in offer.schema
    assert offer.forced_call('{"name":"b","arguments":{"x":1}}').arguments == '{"x":1}'
    assert offer.forced_call('{"name":"b","arguments":{"x').arguments == '{"x'


def test_responses_are_kept_for_their_caller_and_bounded() -> None:
    with running(responses=2) as live, live.client() as client:
        ids = [client.post("/v1/responses", json={"input": f"say {at}"}).json()["id"] for at in range(3)]
        assert error_of(client.get(f"/v1/responses/{ids[0]}"), 404)["code"] == "response_not_found"
        again = client.post("/v1/responses", json={"input": "And?", "previous_response_id": ids[2]}).json()
        assert "say 2" in again["output"][0]["content"][0]["text"]
        assert client.delete(f"/v1/responses/{ids[2]}").json()["deleted"] is True
        gone = error_of(client.post("/v1/responses", json={"input": "x", "previous_response_id": ids[2]}))
        assert (gone["code"], gone["param"]) == ("previous_response_not_found", "previous_response_id")
        unkept = client.post("/v1/responses", json={"input": "x", "store": False}).json()["id"]
        assert client.get(f"/v1/responses/{unkept}").status_code == 404


def test_items_are_counted_as_they_are_answered(client: httpx.Client) -> None:
    body = {"input": "Say seven", "instructions": "Be brief."}
    answered = client.post("/v1/responses", json=body).json()
    again = {**body, "input": "And?", "previous_response_id": answered["id"]}
    for asked in (body, again):
        used = client.post("/v1/responses", json=asked).json()["usage"]["input_tokens"]
        counted = client.post("/v1/responses/input_tokens", json=asked).json()
        assert counted == {"object": "response.input_tokens", "input_tokens": used}


def test_an_item_of_a_kept_answer_is_meant_by_its_id(client: httpx.Client) -> None:
    first = client.post("/v1/responses", json={"input": "Say seven"}).json()
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    asked = [user("Say seven"), reference, user("And?")]
    sent = [user("Say seven"), first["output"][0], user("And?")]
    by_id, whole = (client.post("/v1/responses", json={"input": each}).json()["output"] for each in (asked, sent))
    assert by_id[0]["content"] == whole[0]["content"]
    assert client.delete(f"/v1/responses/{first['id']}").status_code == 200
    gone = error_of(client.post("/v1/responses", json={"input": asked}))
    assert (gone["code"], gone["param"]) == ("item_not_found", "input[1]")


def test_what_a_kept_response_repeats_counts() -> None:
    stored = StoredResponses(8, 10_000)
    stored.put("me", "small", Stored({"output": []}, (), ()))
    stored.put("me", "large", Stored({"output": [{"id": "item"}], "tools": ["x" * 9_000]}, (), ()))
    assert (stored.get("me", "small"), stored.get("me", "large"), stored.item("me", "item")) == (None, None, None)


def test_log_probabilities_of_a_stream_count_among_what_is_kept() -> None:
    with trifocal.load() as llava, running(llava) as live, live.client() as client:
        asked = {"input": "Hi", "max_output_tokens": 16, "top_logprobs": 5, "include": ["message.output_text.logprobs"]}
        assert "response.completed" in client.post("/v1/responses", json={**asked, "stream": True}).text
        kept = live.server.responses
        [(key, stored)] = kept._kept.items()
        assert len(stored.response["output"][0]["content"][0]["logprobs"]) > 1
        assert kept._sizes[key] == stored.size


def test_a_truncation_that_is_not_followed_is_told(client: httpx.Client) -> None:
    notes = [
        client.post("/v1/responses", json={"input": "Hi", "truncation": each}).json()["trifocal"]["notes"]
        for each in ("auto", None, "disabled")
    ]
    assert notes[:2] == [[], []]
    assert "truncation disabled has no effect" in notes[2][0]


def test_a_kept_response_is_not_streamed_again(client: httpx.Client) -> None:
    id = client.post("/v1/responses", json={"input": "Hi"}).json()["id"]
    assert error_of(client.get(f"/v1/responses/{id}?stream=true"))["param"] == "stream"


def test_what_a_response_answers_is_listed_page_by_page(client: httpx.Client) -> None:
    first = client.post("/v1/responses", json={"input": "Say seven"}).json()
    turn = {"id": "mine", "role": "user", "content": [{"type": "image_url", "image_url": {"url": data_uri("red")}}]}
    body = {"previous_response_id": first["id"], "input": [turn, {"type": "reasoning", "summary": []}]}
    path = f"/v1/responses/{client.post('/v1/responses', json=body).json()['id']}/input_items"
    found = client.get(path, params={"order": "asc", "include[]": "message.input_image.image_url"}).json()
    items = found["data"]
    assert [item["type"] for item in items] == ["message", "message", "message", "reasoning"]
    assert [item.get("role") for item in items] == ["user", "assistant", "user", None]
    assert items[0]["content"] == [{"type": "input_text", "text": "Say seven"}]
    assert items[1] == first["output"][0]
    assert items[2]["id"] == "mine"
    assert items[2]["content"] == [{"type": "input_image", "image_url": data_uri("red"), "detail": "auto"}]
    ids = [item["id"] for item in items]
    assert (found["first_id"], found["last_id"], found["has_more"]) == (ids[0], ids[-1], False)
    pages = [
        {"limit": 3},
        {"limit": 3, "after": ids[1]},
        {"before": ids[2]},
        {"limit": 1, "before": ids[0], "order": "asc"},
    ]
    told = [client.get(path, params=page).json() for page in pages]
    assert [[item["id"] for item in page["data"]] for page in told] == [ids[:0:-1], ids[:1], ids[:2:-1], []]
    assert [page["has_more"] for page in told] == [True, False, False, False]
    assert error_of(client.get(path, params={"after": "x"}))["param"] == "after"
    assert error_of(client.get(path, params={"limit": 0}))["param"] == "limit"
    assert error_of(client.get("/v1/responses/resp_x/input_items"), 404)["code"] == "response_not_found"


def test_what_is_not_done_in_the_background_is_not_cancelled(client: httpx.Client) -> None:
    id = client.post("/v1/responses", json={"input": "Hi"}).json()["id"]
    assert error_of(client.post(f"/v1/responses/{id}/cancel"))["code"] == "not_in_background"
    assert error_of(client.post("/v1/responses/resp_x/cancel"), 404)["code"] == "response_not_found"
    compacted = error_of(client.post("/v1/responses/compact", json={"model": "echo", "input": "Hi"}))
    assert (compacted["code"], "oldest turns" in compacted["message"]) == ("not_supported", True)


@pytest.mark.parametrize("by_id", [False, True])
def test_a_result_knows_the_function_of_the_answer_that_it_follows(
    tools: tuple[Live, dict[str, str]], by_id: bool
) -> None:
    live, told = tools
    told["said"] = f"Well. {CALL}"
    body = {"tools": [{"type": "function", "name": "paint", "parameters": {"type": "object"}}]}
    with live.client() as client:
        first = client.post("/v1/responses", json={**body, "input": f"Paint {by_id}"}).json()
        result = {"type": "function_call_output", "call_id": first["output"][-1]["call_id"], "output": "done"}
        asked = {"previous_response_id": first["id"], "input": [result]}
        if not by_id:
            asked = {"input": [user(f"Paint {by_id}"), *first["output"], result]}
        told["said"] = "So."
        client.post("/v1/responses", json={**body, **asked}).raise_for_status()
    assert '[assistant]Well. [call]{"name": "paint"' in told["asked"]
    assert "[tool:paint]done" in told["asked"]


@pytest.mark.parametrize(
    ("path", "said", "param", "words"),
    [
        (CHAT, [{"type": "text", "text": "x", "more": 1}], "[0].more", "no such parameter"),
        (CHAT, [{"type": "text", "text": None}], "[0].text", "required"),
        (
            CHAT,
            [{"type": "image_url", "image_url": {"url": data_uri("red"), "more": 1}}],
            "[0].image_url.more",
            "no such",
        ),
        (CHAT, [{"type": "image_url", "image_url": None}], "[0].image_url", "required"),
        (CHAT, [{"type": "input_text", "text": 1}], "[0].text", "string"),
        (CHAT, [{"type": "image", "image": "x"}], "[0]", "there is no type 'image'; known: 'text'"),
        (CHAT, [{"text": "x"}], "[0]", "its type is required"),
        ("/v1/responses", [{"type": "text", "text": "x", "more": 1}], "[0].more", "no such parameter"),
    ],
)
def test_a_part_s_fault_is_told_with_its_place(
    client: httpx.Client, path: str, said: list[dict[str, Any]], param: str, words: str
) -> None:
    name = "input" if path == "/v1/responses" else "messages"
    error = error_of(client.post(path, json={name: [{"role": "user", "content": said}]}))
    assert error["param"] == f"{name}[0].content{param}"
    assert words in error["message"]


def test_an_item_of_another_kind_and_no_items_are_told_by_the_right_name(client: httpx.Client) -> None:
    kind = error_of(client.post("/v1/responses", json={"input": [{"type": "compaction", "id": "x"}]}))
    assert kind["param"] == "input[0]"
    assert "there is no type 'compaction'; known: 'message'" in kind["message"]
    assert error_of(client.post("/v1/responses", json={"input": []}))["param"] == "input"


def test_what_a_search_for_functions_found_is_read(client: httpx.Client) -> None:
    """Claude Code's own search answers with the names of functions."""
    found = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "tool_reference", "tool_name": "Fetch"}]}
    call = {"type": "tool_use", "id": "t", "name": "ToolSearch", "input": {"query": "fetch"}}
    turns = [user("Hi"), {"role": "assistant", "content": [call]}, {"role": "user", "content": [found]}]
    answer = client.post("/v1/messages", json={"model": "echo", "max_tokens": 4096, "messages": turns}).json()
    assert "found: Fetch" in answer["content"][0]["text"]


def test_responses_stream_in_the_order_that_is_specified(client: httpx.Client) -> None:
    part = {"type": "input_image", "image_url": data_uri("red")}
    body = {"input": [{"role": "user", "content": [part]}], "stream": True}
    events = events_of(client.post("/v1/responses", json=body))
    kinds = list(dict.fromkeys(event["type"].removeprefix("response.") for event in events))
    assert kinds == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert "mean 85" in events[-1]["response"]["output"][0]["content"][0]["text"]


def test_anthropic_tells_the_stop_string_the_input_and_counts(client: httpx.Client) -> None:
    body = {"model": "echo", "max_tokens": 4096, "messages": [user("Hi")]}
    cut = client.post("/v1/messages", json={**body, "stop_sequences": ["curious"]}).json()
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("stop_sequence", "curious")
    start = events_of(client.post("/v1/messages", json={**body, "stream": True}))[0]
    assert start["message"]["usage"]["input_tokens"] == cut["usage"]["input_tokens"]
    assert client.post("/v1/messages/count_tokens", json=body).json() == {"input_tokens": cut["usage"]["input_tokens"]}
    assert error_of(client.post("/v1/messages", json={**body, "model": "x"}), 404)["type"] == "not_found_error"


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/messages", "/v1/messages"),
        ("//v1/models/", "/v1/models"),
        ("/v1/api/tags", "/api/tags"),
        ("/api/v1/chat/completions", "/v1/chat/completions"),
        ("/api/v1/chat", "/api/v1/chat"),
        ("/api/chat", "/api/chat"),
        ("/api/embeddings", "/api/embeddings"),
        ("/openai/deployments/gpt-4o/chat/completions", "/v1/chat/completions"),
        ("/api/v0/chat/completions", "/v1/chat/completions"),
        ("/api/v0/models", "/api/v0/models"),
        ("/", "/"),
        ("/page/x/", "/page/x/"),
    ],
)
def test_addresses_by_other_names(asked: str, meant: str) -> None:
    assert place_of(asked) == meant


def test_what_is_not_there_names_what_is_near(client: httpx.Client) -> None:
    assert "/v1/chat/completions" in error_of(client.post("/v1/chat/completion", json={}), 404)["message"]
    assert error_of(client.get(CHAT), 405)["message"] == "POST is needed here"
    assert client.post("/v1/internal/token-count", json={"text": "four"}).json() == {"length": 5}
    assert client.post("/tokenize", json={"content": "four"}).json()["count"] == 4
    tokens = client.post("/v1/internal/encode", json={"text": "four"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["content"] == "four"
    error_of(client.post("/detokenize", json={"tokens": [2**40]}))


@pytest.mark.parametrize("origin", ["*", "https://*.example", "null", "page.example", "https://page.example/"])
def test_an_origin_that_no_browser_says_is_refused_at_start(origin: str) -> None:
    with pytest.raises(UsageError, match="--origin"):
        ServerSettings(origins=(origin,))


def test_a_preflight_allows_the_headers_that_are_asked_for() -> None:
    asked = "authorization,x-stainless-lang, x-api-key"
    with running(origins=("https://good.example",)) as live, live.client() as client:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Headers": asked}
        assert client.options("/v1/responses", headers=headers).headers["access-control-allow-headers"] == asked
