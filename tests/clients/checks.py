"""What real packages do against a live server, each with its own defaults.

A check is a function of a `Place`; what it raises, or an answer that it would not take, is a failure. ``python
checks.py URL PICTURE [CLIENT ...]`` prints one line of JSON a check.
"""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

MODEL = "thimble"
QUESTION = "What colour is the picture?"
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "count": {"enum": [1, 2]}},
    "required": ["colour", "count"],
}
TOOL = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paints something.",
        "parameters": {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"]},
    },
}


@dataclass(frozen=True)
class Place:
    """Where the server is, and a red picture."""

    url: str
    picture: Path

    @property
    def data(self) -> str:
        """The picture in base64."""
        return base64.b64encode(self.picture.read_bytes()).decode()

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return f"data:image/png;base64,{self.data}"

    def asked(self) -> list[dict[str, Any]]:
        """A question about the picture as OpenAI's messages."""
        content = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": self.uri}}]
        return [{"role": "user", "content": content}]


Check = Callable[[Place], None]
CHECKS: dict[str, dict[str, Check]] = {}
PACKAGES = {
    "pydantic-ai": "pydantic-ai-slim",
    "openai (responses)": "openai",
    "langchain": "langchain-core",
    "llama-index": "llama-index-core",
}
NEEDS = {
    "instructor": ("instructor",),
    "litellm": ("litellm",),
    "llama-index": ("llama_index.llms.openai_like",),
    "llm": ("llm_ollama",),
    "openai-agents": ("agents",),
    "pydantic-ai": ("pydantic_ai",),
}


def check(client: str, name: str) -> Callable[[Check], Check]:
    """Enters a check into the table."""

    def entered(function: Check) -> Check:
        CHECKS.setdefault(client, {})[name] = function
        return function

    return entered


def red(text: object) -> None:
    """The answer names the picture's colour."""
    assert "red" in str(text).lower(), f"no red in {text!r}"


def shaped(value: Any) -> None:
    """The answer has the schema's shape."""
    value = json.loads(value) if isinstance(value, str) else value
    value = value if isinstance(value, dict) else value.model_dump()
    assert set(value) == {"colour", "count"}, value
    assert value["colour"] in ("red", "green")


def refused(call: Callable[[], object], *words: str) -> None:
    """The client raises an error of its own that holds the server's words."""
    try:
        call()
    except Exception as error:
        told = f"{error} {getattr(error, 'body', '')}"
        assert any(word in told for word in words), f"{type(error).__name__}: {told[:300]}"
        assert "object Object" not in told
    else:
        raise AssertionError("it was not refused")


def _openai(place: Place) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)


@check("openai", "text")
def _(place: Place) -> None:
    client = _openai(place)
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    messages.append(answer.choices[0].message.model_dump())  # the usual way to go on
    messages.append({"role": "user", "content": "And?"})
    assert client.chat.completions.create(model=MODEL, messages=messages, max_completion_tokens=100_000).choices
    assert [each.id for each in client.models.list()] == [MODEL]
    assert len(client.completions.create(model=MODEL, prompt=["Hello", "There"]).choices) == 2


@check("openai", "picture")
def _(place: Place) -> None:
    red(_openai(place).chat.completions.create(model=MODEL, messages=place.asked()).choices[0].message.content)


@check("openai", "stream")
def _(place: Place) -> None:
    with _openai(place).chat.completions.stream(model=MODEL, messages=place.asked()) as stream:
        red(stream.get_final_completion().choices[0].message.content)


@check("openai", "structured")
def _(place: Place) -> None:
    from pydantic import BaseModel

    class Seen(BaseModel):
        colour: Literal["red", "green"]
        count: Literal[1, 2]

    found = _openai(place).chat.completions.parse(model=MODEL, messages=place.asked(), response_format=Seen)
    shaped(found.choices[0].message.parsed)


@check("openai", "tools")
def _(place: Place) -> None:
    client, messages = _openai(place), place.asked()
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL]).choices[0].message.content
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[TOOL], tool_choice="required")
    message = answer.choices[0].message
    assert message.tool_calls[0].function.name == "paint"
    assert answer.choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "done"}
    assert client.chat.completions.create(model=MODEL, messages=[*messages, message, result], tools=[TOOL]).choices


@check("openai", "errors")
def _(place: Place) -> None:
    client, hello = _openai(place), [{"role": "user", "content": "Hi"}]
    refused(lambda: client.chat.completions.create(model="other", messages=hello), "there is no such model")
    refused(lambda: client.chat.completions.create(model=MODEL, messages=hello, temperature=-1), "temperature")
    refused(lambda: client.embeddings.create(model=MODEL, input="x"), "embeddings")


@check("openai (responses)", "text")
def _(place: Place) -> None:
    client = _openai(place)
    first = client.responses.create(model=MODEL, input="Hello", instructions="Be brief.")
    assert first.output_text
    assert client.responses.create(model=MODEL, input="And?", previous_response_id=first.id).output_text
    assert client.responses.retrieve(first.id).output_text == first.output_text
    client.responses.delete(first.id)
    refused(lambda: client.responses.retrieve(first.id), "no response")


def _items(place: Place) -> list[Any]:
    content = [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": place.uri}]
    return [{"role": "user", "content": content}]


@check("openai (responses)", "picture")
def _(place: Place) -> None:
    red(_openai(place).responses.create(model=MODEL, input=_items(place)).output_text)


@check("openai (responses)", "stream")
def _(place: Place) -> None:
    with _openai(place).responses.stream(model=MODEL, input=_items(place)) as stream:
        kinds = [event.type for event in stream]
        red(stream.get_final_response().output_text)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"


@check("openai (responses)", "structured")
def _(place: Place) -> None:
    written = {"format": {"type": "json_schema", "name": "seen", "schema": SCHEMA}}
    shaped(_openai(place).responses.create(model=MODEL, input=_items(place), text=written).output_text)


@check("openai (responses)", "tools")
def _(place: Place) -> None:
    client, tool = _openai(place), {"type": "function", **TOOL["function"], "strict": True}
    assert client.responses.create(model=MODEL, input="Hello", tools=[tool]).output_text
    answer = client.responses.create(model=MODEL, input="Paint", tools=[tool], tool_choice="required")
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "paint")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    assert client.responses.create(model=MODEL, input=[result], previous_response_id=answer.id).output_text


@check("openai (responses)", "errors")
def _(place: Place) -> None:
    client = _openai(place)
    refused(lambda: client.responses.create(model=MODEL, input="x", background=True), "background")
    refused(lambda: client.responses.create(model=MODEL, input="x", previous_response_id="resp_0"), "no response")


def _anthropic(place: Place) -> Any:
    import anthropic

    return anthropic.Anthropic(base_url=place.url, api_key="none", max_retries=0)


def _blocks(place: Place) -> list[Any]:
    source = {"type": "base64", "media_type": "image/png", "data": place.data}
    return [{"role": "user", "content": [{"type": "image", "source": source}, {"type": "text", "text": QUESTION}]}]


@check("anthropic", "text")
def _(place: Place) -> None:
    client, messages = _anthropic(place), [{"role": "user", "content": "Hello"}]
    answer = client.messages.create(model=MODEL, max_tokens=4096, messages=messages, system="Be brief.")
    more = [*messages, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "And?"}]
    assert client.messages.create(model=MODEL, max_tokens=4096, messages=more).content[0].text
    assert client.messages.count_tokens(model=MODEL, messages=more).input_tokens > 10


@check("anthropic", "picture")
def _(place: Place) -> None:
    red(_anthropic(place).messages.create(model=MODEL, max_tokens=4096, messages=_blocks(place)).content[0].text)


@check("anthropic", "stream")
def _(place: Place) -> None:
    with _anthropic(place).messages.stream(model=MODEL, max_tokens=4096, messages=_blocks(place)) as stream:
        red("".join(stream.text_stream))
        assert stream.get_final_message().usage.input_tokens > 10


@check("anthropic", "structured")
def _(place: Place) -> None:
    config = {"format": {"type": "json_schema", "schema": SCHEMA}}
    answer = _anthropic(place).messages.create(
        model=MODEL, max_tokens=4096, messages=_blocks(place), output_config=config
    )
    shaped(answer.content[0].text)


@check("anthropic", "tools")
def _(place: Place) -> None:
    client, function = _anthropic(place), TOOL["function"]
    tool = {"name": "paint", "description": function["description"], "input_schema": function["parameters"]}
    asked = {"model": MODEL, "max_tokens": 4096, "tools": [tool]}
    messages = _blocks(place)
    assert client.messages.create(messages=messages, **asked).content[0].text
    answer = client.messages.create(messages=messages, tool_choice={"type": "any"}, **asked)
    (call,) = answer.content
    assert (answer.stop_reason, call.name) == ("tool_use", "paint")
    assert call.input["colour"] in ("red", "green")
    result = [{"type": "tool_result", "tool_use_id": call.id, "content": "done"}]
    more = [*messages, {"role": "assistant", "content": answer.content}, {"role": "user", "content": result}]
    assert client.messages.create(messages=more, **asked).content


@check("anthropic", "errors")
def _(place: Place) -> None:
    client, hello = _anthropic(place), [{"role": "user", "content": "Hi"}]
    refused(lambda: client.messages.create(model="other", max_tokens=9, messages=hello), "not_found_error")
    refused(lambda: client.messages.create(model=MODEL, max_tokens=0, messages=hello), "max_tokens")


def _ollama(place: Place) -> Any:
    import ollama

    return ollama.Client(host=place.url)


@check("ollama", "text")
def _(place: Place) -> None:
    client = _ollama(place)
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    answer = client.chat(model=MODEL, messages=messages)
    more = [*messages, answer.message, {"role": "user", "content": "And?"}]
    options = {"num_ctx": 8192, "num_predict": 100_000, "top_k": 40.0, "repeat_last_n": 64, "num_gpu": 1}
    assert client.chat(model=MODEL, messages=more, options=options, keep_alive="5m").message.content
    assert client.list().models[0].digest
    assert client.ps().models[0].size is not None
    assert client.show(MODEL).capabilities
    assert client.generate(model=MODEL).done_reason == "load"
    assert client.pull(MODEL).status == "success"


@check("ollama", "picture")
def _(place: Place) -> None:
    asked = {"role": "user", "content": QUESTION, "images": [str(place.picture)]}
    red(_ollama(place).chat(model=MODEL, messages=[asked]).message.content)
    red(_ollama(place).generate(model=MODEL, prompt=QUESTION, images=[place.picture.read_bytes()]).response)


@check("ollama", "stream")
def _(place: Place) -> None:
    asked = {"role": "user", "content": QUESTION, "images": [place.data]}
    red("".join(part.message.content for part in _ollama(place).chat(model=MODEL, messages=[asked], stream=True)))


@check("ollama", "structured")
def _(place: Place) -> None:
    asked = {"role": "user", "content": QUESTION, "images": [place.data]}
    shaped(_ollama(place).chat(model=MODEL, messages=[asked], format=SCHEMA).message.content)


@check("ollama", "tools")
def _(place: Place) -> None:
    def paint(colour: str) -> str:
        """Paints.

        Args:
            colour: the colour
        """
        return colour

    assert _ollama(place).chat(model=MODEL, messages=[{"role": "user", "content": "Hi"}], tools=[paint]).message.content


@check("ollama", "errors")
def _(place: Place) -> None:
    client = _ollama(place)
    refused(lambda: client.chat(model="other", messages=[{"role": "user", "content": "Hi"}]), "there is no such model")
    refused(lambda: client.generate(model=MODEL, prompt="x", options={"mirostat": 1}), "mirostat")
    refused(lambda: client.embed(model=MODEL, input="x"), "embeddings")


@check("litellm", "text")
def _(place: Place) -> None:
    for name, base in _litellm(place):
        hello = [{"role": "user", "content": "Hello"}]
        assert _lite(model=name, api_base=base, messages=hello).choices[0].message.content is not None, name


def _litellm(place: Place) -> list[tuple[str, str]]:
    """Each of the ways in which it can be told of the server."""
    return [
        (f"openai/{MODEL}", f"{place.url}/v1"),
        (f"ollama/{MODEL}", place.url),
        (f"ollama_chat/{MODEL}", place.url),
        (f"anthropic/{MODEL}", place.url),
    ]


def _lite(**asked: Any) -> Any:
    import litellm

    return litellm.completion(api_key="none", num_retries=0, **asked)


@check("litellm", "picture")
def _(place: Place) -> None:
    for name, base in _litellm(place):
        red(_lite(model=name, api_base=base, messages=place.asked()).choices[0].message.content)


@check("litellm", "stream")
def _(place: Place) -> None:
    for name, base in _litellm(place):
        parts = _lite(model=name, api_base=base, messages=place.asked(), stream=True)
        red("".join(part.choices[0].delta.content or "" for part in parts))


@check("litellm", "structured")
def _(place: Place) -> None:
    written = {"type": "json_schema", "json_schema": {"name": "seen", "schema": SCHEMA}}
    for name, base in _litellm(place)[:3]:
        answer = _lite(model=name, api_base=base, messages=place.asked(), response_format=written)
        shaped(answer.choices[0].message.content)


@check("litellm", "tools")
def _(place: Place) -> None:
    for name, base in _litellm(place):
        assert _lite(model=name, api_base=base, messages=place.asked(), tools=[TOOL]).choices
    for name, base in (_litellm(place)[0], _litellm(place)[3]):
        answer = _lite(model=name, api_base=base, messages=place.asked(), tools=[TOOL], tool_choice="required")
        assert answer.choices[0].message.tool_calls[0].function.name == "paint"


@check("litellm", "errors")
def _(place: Place) -> None:
    for name, base in _litellm(place):
        hello = [{"role": "user", "content": "Hi"}]
        wrong = name.replace(MODEL, "other")
        asked = {"model": wrong, "api_base": base, "messages": hello}
        refused(lambda asked=asked: _lite(**asked), "no such model")


def _langchain(place: Place) -> list[Any]:
    from langchain_anthropic import ChatAnthropic
    from langchain_ollama import ChatOllama
    from langchain_openai import ChatOpenAI

    return [
        ChatOpenAI(model=MODEL, base_url=f"{place.url}/v1", api_key="none"),
        ChatOpenAI(model=MODEL, base_url=f"{place.url}/v1", api_key="none", use_responses_api=True),
        ChatAnthropic(model=MODEL, base_url=place.url, api_key="none"),
        ChatOllama(model=MODEL, base_url=place.url),
    ]


def _human(place: Place) -> list[Any]:
    from langchain_core.messages import HumanMessage

    picture = {"type": "image", "base64": place.data, "mime_type": "image/png"}
    return [HumanMessage(content=[{"type": "text", "text": QUESTION}, picture])]


@check("langchain", "text")
def _(place: Place) -> None:
    from langchain_core.messages import HumanMessage

    for chat in _langchain(place):
        first = chat.invoke("Hello")
        assert chat.invoke([HumanMessage("Hello"), first, HumanMessage("And?")]).text


@check("langchain", "picture")
def _(place: Place) -> None:
    for chat in _langchain(place):
        red(chat.invoke(_human(place)).text)


@check("langchain", "stream")
def _(place: Place) -> None:
    for chat in _langchain(place):
        red("".join(str(part.text) for part in chat.stream(_human(place))))


@check("langchain", "structured")
def _(place: Place) -> None:
    schema = {"title": "Seen", "description": "what is seen", **SCHEMA}
    for chat in _langchain(place):
        shaped(chat.with_structured_output(schema).invoke(_human(place)))


@check("langchain", "tools")
def _(place: Place) -> None:
    for chat in _langchain(place):
        assert chat.bind_tools([TOOL]).invoke(_human(place)).text
    for chat in _langchain(place)[:3]:
        answer = chat.bind_tools([TOOL], tool_choice="paint").invoke(_human(place))
        assert answer.tool_calls[0]["name"] == "paint"


@check("langchain", "errors")
def _(place: Place) -> None:
    for chat in _langchain(place):
        wrong = chat.model_copy(update={"model_name": "other", "model": "other"})
        refused(lambda wrong=wrong: wrong.invoke("Hi"), "there is no such model")


def _llm(place: Place, *arguments: str) -> str:
    """The command line program with a home of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "LLM_USER_PATH": home, "OLLAMA_HOST": place.url, "HOME": home}
        program = [str(Path(sys.executable).with_name("llm")), *arguments]
        ended = subprocess.run(program, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-500:]
    return ended.stdout


@check("llm", "text")
def _(place: Place) -> None:
    assert MODEL in _llm(place, "models", "list")
    assert _llm(place, "-m", MODEL, "Hello").strip()


@check("llm", "picture")
def _(place: Place) -> None:
    red(_llm(place, "-m", MODEL, QUESTION, "-a", str(place.picture), "--no-stream"))


@check("llm", "stream")
def _(place: Place) -> None:
    red(_llm(place, "-m", MODEL, QUESTION, "-a", str(place.picture)))


@check("llm", "structured")
def _(place: Place) -> None:
    shaped(_llm(place, "-m", MODEL, QUESTION, "-a", str(place.picture), "--schema", json.dumps(SCHEMA)))


@check("llm", "errors")
def _(place: Place) -> None:
    refused(lambda: _llm(place, "-m", MODEL, "Hi", "-o", "mirostat", "1"), "mirostat")


def _agents(place: Place) -> list[Any]:
    """pydantic-ai's models of the server."""
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    openai = OpenAIProvider(base_url=f"{place.url}/v1", api_key="none")
    return [OpenAIChatModel(MODEL, provider=openai), OpenAIResponsesModel(MODEL, provider=openai)]


def _prompt(place: Place) -> list[Any]:
    from pydantic_ai import BinaryContent

    return [QUESTION, BinaryContent(place.picture.read_bytes(), media_type="image/png")]


@check("pydantic-ai", "text")
def _(place: Place) -> None:
    from pydantic_ai import Agent

    for model in _agents(place):
        agent = Agent(model, instructions="Be brief.")
        first = agent.run_sync("Hello")
        assert agent.run_sync("And?", message_history=first.all_messages()).output


@check("pydantic-ai", "picture")
def _(place: Place) -> None:
    from pydantic_ai import Agent

    for model in _agents(place):
        red(Agent(model).run_sync(_prompt(place)).output)


@check("pydantic-ai", "stream")
def _(place: Place) -> None:
    from pydantic_ai import Agent

    async def streamed(model: Any) -> str:
        async with Agent(model).run_stream(_prompt(place)) as result:
            return str(await result.get_output())

    for model in _agents(place):
        red(asyncio.run(streamed(model)))


def _seen() -> Any:
    from pydantic import BaseModel, create_model

    fields: dict[str, Any] = {"colour": (Literal["red", "green"], ...), "count": (Literal[1, 2], ...)}
    return create_model("Seen", __base__=BaseModel, **fields)


@check("pydantic-ai", "structured")
def _(place: Place) -> None:
    from pydantic_ai import Agent, NativeOutput

    for model in _agents(place):
        shaped(Agent(model, output_type=_seen()).run_sync(_prompt(place)).output)
    for model in _agents(place):
        shaped(Agent(model, output_type=NativeOutput(_seen())).run_sync(_prompt(place)).output)


@check("pydantic-ai", "tools")
def _(place: Place) -> None:
    from pydantic_ai import Agent

    for model in _agents(place):
        agent = Agent(model)
        agent.tool_plain(_paint)
        assert agent.run_sync(_prompt(place)).output


def _paint(colour: Literal["red", "green"]) -> str:
    """Paints something."""
    return colour


@check("pydantic-ai", "errors")
def _(place: Place) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel

    provider = _agents(place)[0]._provider
    refused(lambda: Agent(OpenAIChatModel("other", provider=provider)).run_sync("Hi"), "there is no such model")


def _run(place: Place, asked: Any, **options: Any) -> Any:
    """openai-agents, which asks /v1/responses."""
    import agents
    import openai

    async def answered() -> Any:
        client = openai.AsyncOpenAI(base_url=f"{place.url}/v1", api_key="none", max_retries=0)
        agents.set_tracing_disabled(True)
        model = agents.OpenAIResponsesModel(model=options.pop("model", MODEL), openai_client=client)
        agent = agents.Agent(name="Seer", instructions="Be brief.", model=model, **options)
        result = agents.Runner.run_streamed(agent, asked)
        async for _ in result.stream_events():
            pass
        again = await agents.Runner.run(agent, asked)
        assert type(again.final_output) is type(result.final_output)
        return result.final_output

    return asyncio.run(answered())


@check("openai-agents", "text")
def _(place: Place) -> None:
    assert _run(place, "Hello")


@check("openai-agents", "picture")
def _(place: Place) -> None:
    red(_run(place, _items(place)))


@check("openai-agents", "stream")
def _(place: Place) -> None:
    red(_run(place, _items(place)))


@check("openai-agents", "structured")
def _(place: Place) -> None:
    shaped(_run(place, _items(place), output_type=_seen()))


@check("openai-agents", "tools")
def _(place: Place) -> None:
    import agents

    settings = agents.ModelSettings(tool_choice="required")
    assert _run(place, _items(place), tools=[agents.function_tool(_paint)])
    assert _run(place, _items(place), tools=[agents.function_tool(_paint)], model_settings=settings)


@check("openai-agents", "errors")
def _(place: Place) -> None:
    refused(lambda: _run(place, "Hi", model="other"), "there is no such model")


@check("instructor", "structured")
def _(place: Place) -> None:
    import instructor

    modes = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT)
    for mode in modes:
        client = instructor.from_openai(_openai(place), mode=mode)
        asked = {"model": MODEL, "messages": place.asked(), "response_model": _seen(), "max_retries": 0}
        shaped(client.chat.completions.create(**asked))
    client = instructor.from_anthropic(_anthropic(place))
    shaped(client.messages.create(model=MODEL, max_tokens=1024, messages=_blocks(place), response_model=_seen()))


def _index(place: Place) -> Any:
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model=MODEL, api_base=f"{place.url}/v1", api_key="none", is_chat_model=True, is_function_calling_model=True
    )


def _talk(place: Place) -> list[Any]:
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock

    picture = ImageBlock(image=place.picture.read_bytes(), image_mimetype="image/png")
    return [ChatMessage(role="user", blocks=[TextBlock(text=QUESTION), picture])]


@check("llama-index", "text")
def _(place: Place) -> None:
    assert _index(place).complete("Hello").text


@check("llama-index", "picture")
def _(place: Place) -> None:
    red(_index(place).chat(_talk(place)).message.content)


@check("llama-index", "stream")
def _(place: Place) -> None:
    red("".join(part.delta or "" for part in _index(place).stream_chat(_talk(place))))


@check("llama-index", "structured")
def _(place: Place) -> None:
    shaped(_index(place).as_structured_llm(_seen()).chat(_talk(place)).raw)


@check("llama-index", "tools")
def _(place: Place) -> None:
    from llama_index.core.tools import FunctionTool

    def paint(colour: str) -> str:
        """Paints something."""
        return colour

    tool = FunctionTool.from_defaults(paint)
    assert _index(place).chat_with_tools([tool], chat_history=_talk(place)).message.content
    answer = _index(place).chat_with_tools([tool], chat_history=_talk(place), tool_required=True)
    assert _index(place).get_tool_calls_from_response(answer)[0].tool_name == "paint"


@check("llama-index", "errors")
def _(place: Place) -> None:
    wrong = _index(place).model_copy(update={"model": "other", "max_retries": 0})
    refused(lambda: wrong.complete("Hi"), "there is no such model")


def has(client: str) -> bool:
    """Whether its package is installed."""
    names = NEEDS.get(client, (client.split(" ")[0],))
    names = ("langchain_openai", "langchain_anthropic", "langchain_ollama") if client == "langchain" else names
    try:
        for name in names:
            importlib.import_module(name)
    except ImportError:
        return False
    return True


def version_of(client: str) -> str:
    """The version of its package."""
    try:
        return version(PACKAGES.get(client, client))
    except PackageNotFoundError:
        return "?"


def main() -> int:
    """Runs the checks of the clients that are named, or of all; how many failed."""
    place, wanted = Place(sys.argv[1], Path(sys.argv[2])), sys.argv[3:] or list(CHECKS)
    failed = 0
    for client in wanted:
        for name, run in CHECKS[client].items():
            problem = "" if has(client) else "it is not installed"
            try:
                if not problem:
                    run(place)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                problem = f"{type(error).__name__}: {str(error)[:400]} ({Path(where.filename).name}:{where.lineno})"
            failed += bool(problem)
            told = {"client": client, "version": version_of(client), "check": name, "problem": problem}
            print(json.dumps(told), flush=True)
    return min(failed, 99)


if __name__ == "__main__":
    sys.exit(main())
