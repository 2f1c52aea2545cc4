from __future__ import annotations

from typing import Any

import httpx
import pytest
from live import data_uri, error_of, events_of, make_llava, running, user

CHAT = "/v1/chat/completions"
TEXT = {"type": "text", "text": "What is it?"}
PICTURE = {"type": "image_url", "image_url": {"url": data_uri("red"), "detail": "high"}}


def ask(client: httpx.Client, *content: Any, **options: Any) -> Any:
    response = client.post(CHAT, json={"messages": [user(*content)], **options})
    assert response.status_code == 200, response.text
    return response.json()


def said(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"])


def test_an_answer_has_the_shape_of_openai(client: httpx.Client) -> None:
    body = ask(client, "Hello", model="echo", max_tokens=5)
    assert body["object"] == "chat.completion"
    assert body["id"].startswith("chatcmpl-")
    choice = body["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"] == {"role": "assistant", "content": "A cha", "refusal": None}
    assert body["usage"]["completion_tokens"] == 5
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 5


@pytest.mark.parametrize(
    "part",
    [
        PICTURE,
        {"type": "image_url", "image_url": data_uri("red")},
        {"type": "input_image", "image_url": data_uri("red"), "detail": "low"},
        {"type": "image_url", "image_url": {"url": data_uri("red", "jpeg")}},
    ],
)
def test_every_way_to_send_a_picture_is_seen(client: httpx.Client, part: dict[str, Any]) -> None:
    body = ask(client, TEXT, part)
    assert "[picture: 4 positions, mean 85.000000]" in said(body)
    assert body["trifocal"]["image_positions"] == [4]
    assert body["usage"]["prompt_tokens_details"]["image_tokens"] == 4


def test_the_early_message_with_image_url_beside_the_role_is_seen(client: httpx.Client) -> None:
    messages = [{"role": "user", "image_url": data_uri("red")}, user("And?")]
    response = client.post(CHAT, json={"messages": messages})
    assert "mean 85" in said(response.json())


def test_an_img_tag_in_a_text_is_a_picture(client: httpx.Client) -> None:
    assert "mean 85" in said(ask(client, f'Look: <img src="{data_uri("red")}"> there'))


def test_a_picture_that_was_seen_is_a_cache_hit_in_usage(client: httpx.Client) -> None:
    part = {"type": "image_url", "image_url": data_uri("blue")}
    ask(client, TEXT, part)
    body = ask(client, TEXT, part)
    assert body["trifocal"]["cached_images"] == 1
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 4


def test_images_says_which_pictures_stay(client: httpx.Client) -> None:
    messages = [
        user(TEXT, {"type": "image_url", "image_url": data_uri("red")}),
        {"role": "assistant", "content": "Red."},
        user(TEXT, {"type": "image_url", "image_url": data_uri("white")}),
    ]
    body = client.post(CHAT, json={"messages": messages, "trifocal": {"images": "last"}}).json()
    assert "mean 255" in said(body)
    assert "mean 85" not in said(body)
    assert body["trifocal"]["image_positions"] == [4]
    assert body["trifocal"]["left_out"] == ["1 earlier picture (images=last)"]


def test_a_stream_says_the_same_as_a_whole_answer(client: httpx.Client) -> None:
    request = {"messages": [user(TEXT, PICTURE)]}
    whole = client.post(CHAT, json=request).json()
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = events_of(client.post(CHAT, json={**request, **options}))
    assert events[-1] == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    deltas = [event["choices"][0]["delta"].get("content", "") for event in events[:-2]]
    assert "".join(deltas) == said(whole)
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


def test_usage_is_streamed_only_when_asked(client: httpx.Client) -> None:
    events = events_of(client.post(CHAT, json={"messages": [user("Hi")], "max_tokens": 2, "stream": True}))
    assert all("usage" not in event for event in events[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_n_answers_have_an_index_each(client: httpx.Client, stream: bool) -> None:
    response = client.post(CHAT, json={"messages": [user("Hi")], "max_tokens": 2, "n": 3, "stream": stream})
    if stream:
        indices = {event["choices"][0]["index"] for event in events_of(response)[:-1]}
        assert indices == {0, 1, 2}
    else:
        assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2]
        assert response.json()["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("stop", ["curious", ["nothing", "curious"]])
def test_stop_strings_end_the_answer_and_are_not_in_it(client: httpx.Client, stop: Any) -> None:
    body = ask(client, "Hi", stop=stop)
    assert said(body) == "A chat between a "
    assert body["choices"][0]["finish_reason"] == "stop"


def test_max_completion_tokens_is_max_tokens(client: httpx.Client) -> None:
    assert ask(client, "Hi", max_completion_tokens=3)["usage"]["completion_tokens"] == 3


def test_completions_go_on_with_the_prompt_alone(client: httpx.Client) -> None:
    prompt = f'Look <img src="{data_uri("red")}"> and say'
    assert client.post("/v1/completions", json={"prompt": prompt}).json()["choices"][0]["text"] == "Look [picture: 4"
    body = client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 99}).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == "Look [picture: 4 positions, mean 85.000000] and say"
    events = events_of(client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 99, "stream": True}))
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == body["choices"][0]["text"]


def test_models_are_the_served_one_and_its_other_names() -> None:
    with running(aliases=("gpt-4o",)) as live, live.client() as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["echo", "gpt-4o"]
        assert client.get("/v1/models/echo").json()["id"] == "echo"
        assert error_of(client.get("/v1/models/other"), 404)["code"] == "model_not_found"
        assert ask(client, "Hi", model="gpt-4o", max_tokens=1)["model"] == "echo"


@pytest.mark.parametrize(
    ("options", "code", "param"),
    [
        ({"temperatur": 1}, "unknown_parameter", "temperatur"),
        ({"temperature": "1"}, "invalid_type", "temperature"),
        ({"temperature": -1}, "invalid_value", "temperature"),
        ({"n": 9}, "invalid_value", "n"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].name"),
        ({"logit_bias": {"5": 1}}, "unsupported_parameter", "logit_bias"),
        ({"logprobs": True}, "invalid_value", "top_logprobs"),
        ({"top_logprobs": 2}, "invalid_value", "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ({"response_format": {"type": "json_object"}}, "invalid_value", "response_format"),
        ({"response_format": {"type": "json_schema"}}, "missing_required_parameter", "response_format.json_schema"),
        ({"stop": ["x" * 300]}, "invalid_value", "stop"),
        ({"trifocal": {"images": "some"}}, "invalid_value", "trifocal.images"),
        ({"model": "gpt-9"}, "model_not_found", "model"),
    ],
)
def test_what_can_not_be_done_is_refused_by_name(
    client: httpx.Client, options: dict[str, Any], code: str, param: str | None
) -> None:
    response = client.post(CHAT, json={"messages": [user("Hi")], **options})
    error = error_of(response, 404 if code == "model_not_found" else 400)
    assert (error["code"], error["param"]) == (code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_picture_is_refused_with_its_place_before_the_first_byte(client: httpx.Client, stream: bool) -> None:
    bad = {"type": "image_url", "image_url": "data:image/png;base64,AAAA"}
    messages = [user(TEXT, PICTURE), {"role": "assistant", "content": "x"}, user(TEXT, bad)]
    error = error_of(client.post(CHAT, json={"messages": messages, "stream": stream}))
    assert (error["code"], error["param"]) == ("invalid_image", "messages[2].content[1]")


def test_base64_in_a_text_is_refused(client: httpx.Client) -> None:
    text = "see data:image/png;base64," + "A" * 600
    assert error_of(client.post(CHAT, json={"messages": [user(text)]}))["param"] == "messages[0].content"


def test_the_page_may_be_mounted_and_has_a_policy() -> None:
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    from trifocal.api.app import create_app
    from trifocal.api.needs import needs
    from trifocal.api.settings import ServerSettings, hash_key

    page = Route("/", needs(key=False)(lambda request: PlainTextResponse("hello")), name="page")
    app = create_app(make_llava(), ServerSettings(keys=frozenset({hash_key("k" * 16)})), [page])
    transport = httpx.ASGITransport(app)

    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path)

    import asyncio

    response = asyncio.run(get("/"))
    assert response.text == "hello"
    assert "default-src 'self'" in response.headers["content-security-policy"]
    assert asyncio.run(get("/v1/models")).status_code == 401
